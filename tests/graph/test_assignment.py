"""Assignments against the formulas of Eq. 5 and 6, dense and with candidates."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hggraph import Assignment, Stencil
from hggraph.cluster import soft_slic

EXACT = {"rtol": 0, "atol": 1e-10}


def surrounded(x):
    """Return a view with NaN all around it."""
    buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
    view = buffer[(slice(1, -1),) * x.dim()]
    view.copy_(x)
    return view


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:, :1].expand_as(x),
    "surrounded": surrounded,
}


def dense_assignment(batch, regions, size):
    weight = torch.rand(batch, regions, size[0] * size[1], dtype=torch.float64).square() + 1e-3
    return Assignment(weight / weight.sum(1, keepdim=True), size)


def candidate_assignment(batch, regions, size, candidates, x=None):
    """Cluster random features around the first pixels of a random order."""
    if x is None:
        x = torch.randn(batch, 2, *size, dtype=torch.float64)
    order = torch.rand(batch, size[0] * size[1]).argsort(1)[:, :regions].sort(1).values
    return soft_slic(x, order, iterations=2, candidates=candidates)


@st.composite
def assignments(draw):
    torch.manual_seed(draw(st.integers(0, 1000)))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    batch, regions = draw(st.integers(1, 2)), draw(st.integers(1, min(6, size[0] * size[1])))
    if draw(st.booleans()):
        return dense_assignment(batch, regions, size)
    return candidate_assignment(batch, regions, size, draw(st.integers(1, regions)))


def literal_dense(assignment):
    """Return S by writing every weight to its place."""
    if assignment.index is None:
        return assignment.weight.mT
    batch, _, pixels = assignment.weight.shape
    dense = torch.zeros(batch, pixels, assignment.num_regions).double()
    for b in range(batch):
        for p in range(pixels):
            for weight, r in zip(assignment.weight[b, :, p], assignment.index[b, :, p], strict=True):
                dense[b, p, r] += weight.detach()
    return dense


@settings(max_examples=60)
@given(assignments(), st.sampled_from(sorted(LAYOUTS)))
def test_formulas(assignment, layout):
    (batch, pixels, regions), size = assignment.to_dense().shape, assignment.size
    dense = literal_dense(assignment)
    assert_close(assignment.to_dense(), dense, rtol=0, atol=0)
    assert_close(dense.sum(2), torch.ones(batch, pixels).double(), **EXACT)
    assert (dense >= 0).all()
    assert_close(assignment.area, dense.sum(1), **EXACT)

    x = LAYOUTS[layout](torch.randn(batch, 3, *size, dtype=torch.float64))
    z = LAYOUTS[layout](torch.randn(1, batch, regions, 4, dtype=torch.float64))[0]
    column = dense / torch.where(dense.sum(1, keepdim=True) > 0, dense.sum(1, keepdim=True), 1)
    pooled = torch.einsum("bpr,bcp->brc", column, x.flatten(2))
    alive = dense.sum(1) > 0
    assert_close(assignment.pool(x)[alive], pooled[alive], **EXACT)
    unpooled = torch.einsum("bpr,brc->bcp", dense, z).unflatten(2, size)
    assert_close(assignment.unpool(z), unpooled, **EXACT)


@settings(max_examples=40)
@given(assignments())
def test_labels(assignment):
    dense, labels = literal_dense(assignment).unflatten(1, assignment.size), assignment.labels
    assert labels.shape == (assignment.batch_size, *assignment.size)
    assert labels.dtype == torch.long
    assert torch.equal(dense.gather(3, labels[..., None]).squeeze(3), dense.amax(3))


@settings(max_examples=40)
@given(assignments())
def test_pool_and_unpool_are_adjoint(assignment):
    """<unpool(z), x> = <z, area * pool(x)>: up to the normaliser of the columns."""
    batch, size = assignment.batch_size, assignment.size
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    z = torch.randn(batch, assignment.num_regions, 3, dtype=torch.float64)
    on_pixels = (assignment.unpool(z) * x).sum()
    on_regions = (z * assignment.area[..., None] * assignment.pool(x)).sum()
    assert_close(on_pixels, on_regions, **EXACT)


@settings(max_examples=40)
@given(assignments())
def test_constants_stay(assignment):
    """A region-constant map survives unpooling, a constant map survives pooling."""
    ones = torch.full((assignment.batch_size, 2, *assignment.size), 7.0, dtype=torch.float64)
    assert_close(assignment.unpool(assignment.pool(ones)), ones, **EXACT)


def test_candidates_are_t_different_regions():
    assignment = candidate_assignment(2, 12, (9, 11), 5)
    assert assignment.weight.shape == assignment.index.shape == (2, 5, 99)
    assert assignment.index.dtype == torch.int32
    assert assignment.index.min() >= 0 and assignment.index.max() < 12
    assert (assignment.index.sort(1).values.diff(dim=1) > 0).all()
    assert dense_assignment(1, 3, (2, 2)).index is None


@pytest.mark.parametrize("size", [(1, 1), (1, 13), (7, 9), (33, 5)])
@pytest.mark.parametrize("surplus", [0, 3])
def test_all_candidates_are_all_pairs(size, surplus):
    """With every region a candidate (or more asked for) all results and gradients are the dense ones."""
    regions = min(6, size[0] * size[1])
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    centers = torch.rand(2, size[0] * size[1]).argsort(1)[:, :regions]
    results, grads = [], []
    cotangents = None
    for candidates in (None, regions + surplus):
        assignment = soft_slic(x, centers, candidates=candidates)
        pooled = assignment.pool(x * 2)
        fused = assignment.unpool_conv1x1(x, pooled, torch.linspace(-1, 1, 30).view(5, 6).double())
        out = [assignment.to_dense(), assignment.area, pooled, assignment.unpool(pooled), fused]
        if cotangents is None:
            cotangents = [torch.randn_like(value) for value in out]
        results.append(out)
        grads.append(torch.autograd.grad(out, x, cotangents)[0])
        assert torch.equal(assignment.labels, assignment.to_dense().argmax(2).view(2, *size))
    assert_close(results[1], results[0], **EXACT)
    assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_unpool_conv1x1_is_the_convolution_of_the_concatenation(candidates, bias):
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    assignment = candidate_assignment(2, 5, (6, 7), candidates, x)
    z = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 7, 1, 1, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(6, dtype=torch.float64, requires_grad=True) if bias else None
    expected = F.conv2d(torch.cat([x, assignment.unpool(z)], 1), weight, offset)
    out = assignment.unpool_conv1x1(x, z, weight, offset)
    assert_close(out, expected, **EXACT)
    flat = assignment.unpool_conv1x1(x, z, weight.flatten(1), offset)
    assert_close(flat, expected, **EXACT)
    leaves = [x, z, weight, *([offset] if bias else [])]
    cotangent = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
    assert_close(grads, torch.autograd.grad(expected, leaves, cotangent), rtol=1e-10, atol=1e-10)


def test_gradients():
    size = (3, 4)
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = dense_assignment(2, 3, size).weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda w, x: Assignment(w, size).pool(x), (weight, x))
    assert torch.autograd.gradcheck(lambda w, z: Assignment(w, size).unpool(z), (weight, z))


def test_one_region_and_one_pixel_per_region():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    whole = Assignment(torch.ones(2, 1, 20, dtype=torch.float64), (4, 5))
    assert_close(whole.pool(x), x.mean((2, 3))[:, None], **EXACT)
    assert_close(whole.unpool(whole.pool(x)), x.mean((2, 3), keepdim=True).expand_as(x), **EXACT)
    single = Assignment(torch.eye(20, dtype=torch.float64).expand(2, 20, 20), (4, 5))
    assert torch.equal(single.pool(x), x.flatten(2).transpose(1, 2))
    assert torch.equal(single.unpool(single.pool(x)), x)


def test_from_labels():
    labels = torch.tensor([[[0, 2, 2], [0, 0, 2]], [[1, 1, 1], [1, 1, 1]]])
    assignment = Assignment.from_labels(labels, 3)
    assert torch.equal(assignment.labels, labels)
    assert torch.equal(assignment.to_dense(), F.one_hot(labels.flatten(1), 3).float())
    assert assignment.area.tolist() == [[3, 0, 3], [0, 6, 0]]
    pooled = assignment.pool(torch.arange(12.0).view(2, 1, 2, 3)).squeeze(2)
    assert_close(pooled, torch.tensor([[7 / 3, 0, 8 / 3], [0, 8.5, 0]]))
    assert Assignment.from_labels(labels[:0], 3).labels.shape == (0, 2, 3)
    assert Assignment.from_labels(labels).num_regions == 3
    assert Assignment.from_labels(labels.to(torch.uint8), 4).area.tolist() == [[3, 0, 3, 0], [0, 6, 0, 0]]


def test_from_labels_is_one_number_a_pixel():
    """100,000 regions of a 2-megapixel map: a dense form would have 2 * 10^11 weights."""
    labels = torch.arange(1400 * 1500).remainder(100_000).view(1, 1400, 1500)
    assignment = Assignment.from_labels(labels, 100_000)
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in (assignment.weight, assignment.index)}
    assert sum(held.values()) <= 4 * labels.numel() + 4
    assert torch.equal(assignment.labels, labels)
    pooled = assignment.pool(labels[:, None].float())
    assert torch.equal(pooled[0, :, 0], torch.arange(100_000).float())
    assert torch.equal(assignment.unpool(pooled)[0, 0], labels[0].float())


def test_labels_with_gaps_have_empty_regions():
    assignment = Assignment.from_labels(torch.tensor([[[0, 4, 4]]]), 6)
    assert assignment.area.tolist() == [[1, 0, 0, 0, 2, 0]]
    assert assignment.pool(torch.tensor([[[[1.0, 2.0, 4.0]]]])).flatten().tolist() == [1, 0, 0, 0, 3, 0]
    assert assignment.adjacency().to_edges()[0].shape[1] == 6 + 2


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_cells_are_a_stride(side):
    """Means of regular cells are average pooling; the pixels at their seeds are the map with that stride."""
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    cells = Assignment.cells((7, 9), side, batch_size=2)
    assert cells.grid == (-(-7 // side), -(-9 // side))
    pooled = cells.pool(x).mT.unflatten(2, cells.grid)
    expected = F.avg_pool2d(x, side, ceil_mode=True, count_include_pad=False)
    assert_close(pooled, expected, **EXACT)
    at_seeds = x.flatten(2).gather(2, cells.seeds[:, None].expand(-1, 3, -1)).unflatten(2, cells.grid)
    assert torch.equal(at_seeds, x[:, :, ::side, ::side])


def test_compose():
    """Regions of regions are the product of the matrices, on every form of both."""
    for fine_index, coarse_index in ((False, False), (True, False), (False, True), (True, True)):
        fine = candidate_assignment(2, 6, (4, 5), 3 if fine_index else None)
        coarse = candidate_assignment(2, 4, (2, 3), 2 if coarse_index else None)
        both = fine.compose(coarse)
        assert both.size == (4, 5) and both.num_regions == 4
        assert_close(both.to_dense(), fine.to_dense() @ coarse.to_dense(), **EXACT)
        x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
        assert_close(both.unpool(both.pool(x)), fine.unpool(coarse.unpool(both.pool(x)).flatten(2).mT), **EXACT)
    assert torch.equal(both.seeds, fine.seeds.gather(1, coarse.seeds))
    with pytest.raises(ValueError, match="`coarser` must have 2 images of 6 pixels, one for each region"):
        fine.compose(candidate_assignment(2, 4, (4, 5), None))
    halves = Assignment.cells((4, 8), 2).compose(Assignment.cells((2, 4), 2))
    assert torch.equal(halves.labels, Assignment.cells((4, 8), 4).labels) and halves.grid == (1, 2)


@pytest.mark.parametrize("candidates", [None, 3])
def test_moves_saves_and_maps(tmp_path, candidates):
    """To another dtype, without a gradient, from a file that runs no code, as a pytree."""
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assignment = candidate_assignment(2, 4, (4, 5), candidates, x)
    assert assignment.weight.requires_grad and not assignment.detach().weight.requires_grad
    single = assignment.to(torch.float32)
    assert single.weight.dtype == single.centers.dtype == torch.float32
    assert single.seeds.dtype == torch.long and single.num_regions == 4 and single.size == (4, 5)
    assert assignment.to("meta").weight.device.type == "meta"
    torch.save(assignment.detach(), tmp_path / "s.pt")
    loaded = torch.load(tmp_path / "s.pt", weights_only=True)
    assert torch.equal(loaded.to_dense(), assignment.to_dense()) and torch.equal(loaded.seeds, assignment.seeds)
    first = torch.utils._pytree.tree_map(lambda leaf: leaf[:1], assignment)
    assert first.batch_size == 1 and torch.equal(first.to_dense(), assignment.to_dense()[:1])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.full((1, 2, 2), 3), ValueError, r"`labels` must be in \[0, num_regions\) = \[0, 3\), got .* 3 to 3"),
        (torch.full((1, 2, 2), -1), ValueError, r"must be in \[0, num_regions\) .* -1 to -1"),
        (torch.zeros(2, 2).long(), ValueError, r"`labels` must have shape \(B, H, W\)"),
        (torch.zeros(1, 2, 2), TypeError, "`labels` must be integers, got torch.float32"),
    ],
)
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=message):
        Assignment.from_labels(labels, 3)


@pytest.mark.parametrize("candidates", [None, 3])
def test_sizes_must_fit(candidates):
    assignment = candidate_assignment(2, 4, (4, 6), candidates)
    for x in (torch.rand(2, 3, 6, 4), torch.rand(1, 3, 4, 6), torch.rand(2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"`x` must have 2 images of 4 x 6 pixels.*got shape"):
            assignment.pool(x)
        with pytest.raises(ValueError, match=r"`x` must have 2 images of 4 x 6 pixels.*got shape"):
            assignment.unpool_conv1x1(x, torch.rand(2, 4, 1), torch.rand(1, 4))
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, C, H, W\)"):
        assignment.pool(torch.rand(2, 4, 6))
    for z in (torch.rand(2, 5, 1), torch.rand(1, 4, 1)):
        with pytest.raises(ValueError, match=r"`z` .* B = 2 and R = 4"):
            assignment.unpool(z)
    with pytest.raises(ValueError, match=r"`stencil` must have 2 axes"):
        assignment.adjacency(Stencil.square(3, ndim=3))
    x, z = torch.rand(2, 3, 4, 6).double(), torch.rand(2, 4, 2).double()
    with pytest.raises(ValueError, match=r"`weight` must have shape \(O, 5\), got \(1, 4\)"):
        assignment.unpool_conv1x1(x, z, torch.rand(1, 4).double())


def test_what_an_index_must_be():
    weight, index = torch.rand(1, 2, 6), torch.zeros(1, 2, 6).long()
    for change, message in [
        ({"num_regions": None}, "`num_regions` must be given with `index`"),
        ({"index": index + 3}, r"`index` must be in \[0, 3\)"),
        ({"index": index - 1}, r"`index` must be in \[0, 3\)"),
        ({"index": index[..., :5]}, "`index` must have the shape of the weights"),
        ({"index": None}, "Without `index`, `weight` must have R = 3 rows, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            Assignment(weight, (2, 3), **{"index": index, "num_regions": 3} | change)


def test_weight_must_fit_size():
    with pytest.raises(ValueError, match=r"`weight` must have 2 x 3 pixels, got shape \(1, 2, 5\)"):
        Assignment(torch.rand(1, 2, 5), (2, 3))
    with pytest.raises(ValueError, match=r"`weight` must have shape \(B, T, P\)"):
        Assignment(torch.rand(2, 6), (2, 3))


def test_too_many_pairs():
    """The error comes before any memory is taken, and says what to do."""
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 4096, 4096)
    with pytest.raises(ValueError, match=r"more than 1073741824\. Set `candidates`"):
        soft_slic(x, torch.arange(65)[None])


def test_too_large_to_be_dense(monkeypatch):
    monkeypatch.setattr("hggraph.graph.assignment.MAX_PAIRS", 100)
    with pytest.raises(ValueError, match=r"of shape \(1, 3, 36\) is too large; use `index` and"):
        candidate_assignment(1, 3, (6, 6), 2).to_dense()
    assert candidate_assignment(1, 3, (5, 6), 2).to_dense().shape == (1, 30, 3)


def test_repr():
    assert repr(dense_assignment(2, 3, (4, 5))) == ("Assignment(batch_size=2, size=(4, 5), regions=3, entries=all)")
    assert repr(candidate_assignment(1, 6, (4, 5), 2)) == (
        "Assignment(batch_size=1, size=(4, 5), regions=6, entries=2)"
    )


def test_unpool_conv_errors():
    s = Assignment(torch.rand(1, 3, 12).softmax(1), (3, 4))
    x, z = torch.rand(1, 2, 3, 4), torch.rand(1, 3, 5)
    for weight in (torch.rand(4, 6, 3, 3), torch.rand(4, 7, 2, 2), torch.rand(4, 7, 3, 1)):
        with pytest.raises(ValueError, match=r"`weight` must have shape \(O, 7, k, k\) with odd k"):
            s.unpool_conv(x, z, weight)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(O, C \+ D, k, k\)"):
        s.unpool_conv(x, z, torch.rand(4, 7))
