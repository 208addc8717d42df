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
        return assignment.weight
    dense = torch.zeros(*assignment.weight.shape[:2], assignment.num_regions).double()
    for b in range(dense.shape[0]):
        for p in range(dense.shape[1]):
            for weight, r in zip(assignment.weight[b, p], assignment.index[b, p], strict=True):
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
    assert assignment.weight.shape == assignment.index.shape == (2, 99, 5)
    assert assignment.index.dtype == torch.long
    assert assignment.index.min() >= 0 and assignment.index.max() < 12
    assert (assignment.index.sort(2).values.diff(dim=2) > 0).all()
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
    weight = dense_assignment(2, 3, size).weight.transpose(1, 2).detach().requires_grad_()
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


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.full((1, 2, 2), 3), ValueError, r"`labels` must be in \[0, 3\), got .* 3 to 3"),
        (torch.full((1, 2, 2), -1), ValueError, r"`labels` must be in \[0, 3\)"),
        (torch.zeros(2, 2).long(), ValueError, r"`labels` must have shape \(B, H, W\)"),
        (torch.zeros(1, 2, 2), TypeError, "`labels` must hold integers, got torch.float32"),
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


def test_weight_must_fit_size():
    with pytest.raises(ValueError, match=r"`weight` must have 2 x 3 pixels, got shape \(1, 2, 5\)"):
        Assignment(torch.rand(1, 2, 5), (2, 3))
    with pytest.raises(ValueError, match=r"`weight` must have shape \(B, R, P\)"):
        Assignment(torch.rand(2, 6), (2, 3))


def test_too_many_pairs():
    """The error comes before any memory is taken, and says what to do."""
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 4096, 4096)
    with pytest.raises(ValueError, match=r"more than 1073741824\. Set `candidates`"):
        soft_slic(x, torch.arange(65)[None])


def test_too_large_to_be_dense(monkeypatch):
    monkeypatch.setattr("hggraph.graph.assignment.MAX_PAIRS", 100)
    with pytest.raises(ValueError, match=r"of shape \(1, 36, 3\) is too large; use `index` and"):
        candidate_assignment(1, 3, (6, 6), 2).to_dense()
    assert candidate_assignment(1, 3, (5, 6), 2).to_dense().shape == (1, 30, 3)


def test_repr():
    assert repr(dense_assignment(2, 3, (4, 5))) == ("Assignment(batch_size=2, size=(4, 5), regions=3, dense)")
    assert repr(candidate_assignment(1, 6, (4, 5), 2)) == (
        "Assignment(batch_size=1, size=(4, 5), regions=6, candidates=2)"
    )


def test_unpool_conv_errors():
    s = Assignment(torch.rand(1, 3, 12).softmax(1), (3, 4))
    x, z = torch.rand(1, 2, 3, 4), torch.rand(1, 3, 5)
    for weight in (torch.rand(4, 6, 3, 3), torch.rand(4, 7, 2, 2), torch.rand(4, 7, 3, 1)):
        with pytest.raises(ValueError, match=r"`weight` must have shape \(O, 7, k, k\) with odd k"):
            s.unpool_conv(x, z, weight)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(O, C \+ D, k, k\)"):
        s.unpool_conv(x, z, torch.rand(4, 7))
