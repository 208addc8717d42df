"""What a RegionAdjacency keeps and refuses, its normalised form and its gradients, how it travels."""

import copy
import io
import pickle

import pytest
import torch
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from hggraph import Assignment, DenseHGConv, RegionAdjacency, Stencil
from hggraph.cluster import soft_slic


def small_weight(size, regions=3):
    weight = torch.rand(1, regions, size[0] * size[1], dtype=torch.float64) + 0.1
    return (weight / weight.sum(1, keepdim=True)).requires_grad_()


@pytest.mark.parametrize("noise_cancel", [True, False])
@pytest.mark.parametrize("max_direction", [True, False])
def test_gradcheck(noise_cancel, max_direction):
    def edges(weight):
        adjacency = Assignment(weight, (2, 3)).adjacency(noise_cancel=noise_cancel, max_direction=max_direction)
        return adjacency.to_edges()[2], adjacency.normalized()

    # The strongest direction and the cancelling are chosen by S: far from a tie they stay chosen.
    assert torch.autograd.gradcheck(edges, (small_weight((2, 3)),))


def test_gradient_through_candidates():
    """Over tiles of 4 x 4 pixels, so that regions are merged, and over a stencil wider than their halo."""
    x = torch.randn(1, 2, 5, 9, dtype=torch.float64, requires_grad=True)
    seeds = torch.tensor([[0, 8, 21, 40]])
    for stencil in (Stencil.square(3), Stencil.square(5)):

        def edges(x, stencil=stencil):
            return soft_slic(x, seeds, candidates=3).adjacency(stencil).to_edges()[2]

        assert torch.autograd.gradcheck(edges, (x,), fast_mode=True)


def test_normalized_by_hand():
    """Each row is divided by its sum, or by 1e-7 when that is larger; an empty row stays 0."""
    dense = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]], [[0.0, 2e-8], [5.0, 0.0]]]])
    normalized = RegionAdjacency(Stencil([(0, 1), (1, 0)]), dense).normalized()
    expected = torch.tensor([[[[0.25, 0.75], [0.0, 0.0]], [[0.0, 0.2], [1.0, 0.0]]]])
    assert_close(normalized, expected)


def test_normalized_is_computed_once():
    """The layers of a stage share it."""
    adjacency = Assignment(small_weight((2, 3)) * 1, (2, 3)).adjacency()
    assert adjacency.normalized() is adjacency.normalized()


def test_normalized_without_a_graph_serves_no_training():
    weight = small_weight((2, 3))
    adjacency = Assignment(weight * 1, (2, 3)).adjacency()
    with torch.no_grad():
        before = adjacency.normalized()
    after = adjacency.normalized()
    assert torch.equal(after, before)
    (grad,) = torch.autograd.grad(after, weight, torch.randn_like(after))
    assert grad.any()


def both_forms(dtype=torch.float32):
    """The same weights with degrees, without, and as edges."""
    stencil, dense = Stencil.square(3), torch.rand(2, 9, 4, 4, dtype=dtype)
    edges = RegionAdjacency(stencil, dense).to_edges()
    return {
        "degree": RegionAdjacency(stencil, dense, degree=dense.sum(-1)),
        "dense": RegionAdjacency(stencil, dense, max_direction=True),
        "edges": RegionAdjacency(stencil, edges=edges, batch_size=2, num_regions=4),
    }


FORMS = pytest.mark.parametrize("form", ["degree", "dense", "edges"])


@pytest.mark.parametrize("form", ["dense", "edges"])
def test_kept_under_inference_mode(form):
    """An evaluation between two steps leaves nothing that the next cannot differentiate."""
    adjacency, fewer = both_forms()[form], Stencil.square((1, 3))
    layer, x = DenseHGConv(2, 4, Stencil.square(3)), torch.rand(2, 4, 2)
    small = DenseHGConv(2, 4, fewer)
    restricted = form == "edges"  # the other has the strongest direction alone
    with torch.inference_mode():
        before = adjacency.normalized()
        assert adjacency.normalized() is before
        if restricted:
            adjacency.restrict(fewer).normalized()
    layer(x, adjacency).sum().backward()
    assert layer.weight.grad.any()
    after = adjacency.normalized()
    assert torch.equal(after, before)
    with torch.inference_mode():
        assert adjacency.normalized() is after
    if restricted:
        small(x, adjacency.restrict(fewer)).sum().backward()
        assert small.weight.grad.any()


def check_same(actual, expected):
    assert type(actual) is RegionAdjacency
    assert repr(actual) == repr(expected)
    assert (actual.stencil, actual.max_direction) == (expected.stencil, expected.max_direction)
    for ours, theirs in zip(actual.to_edges(), expected.to_edges(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(actual.normalized(), expected.normalized())


@FORMS
def test_files(form):
    """Pickled, copied, and loaded as data alone; what was computed is left behind."""
    adjacency = both_forms()[form]
    adjacency.normalized()
    file = io.BytesIO()
    torch.save({"adjacency": adjacency}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["adjacency"]
    for same in (loaded, pickle.loads(pickle.dumps(adjacency)), copy.deepcopy(adjacency), copy.copy(adjacency)):
        assert same._normalized is None
        check_same(same, adjacency)


@FORMS
def test_pytree(form):
    adjacency = both_forms()[form]
    leaves, spec = pytree.tree_flatten(adjacency)
    assert len(leaves) == {"degree": 2, "dense": 1, "edges": 3}[form]
    check_same(pytree.tree_unflatten(leaves, spec), adjacency)
    doubled = pytree.tree_map(lambda x: 2 * x if x.is_floating_point() else x, {"a": adjacency})["a"]
    assert torch.equal(doubled.to_dense(), 2 * adjacency.to_dense())
    assert_close(doubled.normalized(), adjacency.normalized())
    pytree.tree_map(str, adjacency)  # leaves may be anything


@FORMS
def test_to(form):
    adjacency = both_forms()[form]
    assert adjacency.to("cpu") is adjacency
    assert adjacency.to(torch.float32) is adjacency
    double = adjacency.to(torch.float64)
    assert double.normalized().dtype == torch.float64
    check_same(double.to(torch.rand(1)), adjacency)
    edges = double.to_edges()
    assert [x.dtype for x in edges] == [torch.int64, torch.int64, torch.float64]
    meta = adjacency.to("meta", dtype=torch.float16)
    assert {x.device.type for x in pytree.tree_leaves(meta)} == {"meta"}
    assert meta._weight.dtype == torch.float16


@FORMS
def test_detach(form):
    adjacency = both_forms()[form]
    weight = adjacency._weight.requires_grad_()
    apart = adjacency.detach()
    assert not apart.normalized().requires_grad
    assert apart._weight.data_ptr() == weight.data_ptr()
    assert adjacency.normalized().requires_grad
    check_same(apart, adjacency)


@pytest.mark.parametrize("form", ["dense", "edges"])
def test_adjacency_as_a_parameter(form):
    """It can be differentiated and changed again and again."""
    stencil = Stencil([(0, 1)])
    parameter = torch.rand(1, 1, 3, 3).requires_grad_()
    layer, x = DenseHGConv(2, 4, stencil), torch.rand(1, 3, 2)
    if form == "dense":
        adjacency = RegionAdjacency(stencil, parameter)
    else:
        index, types, _ = RegionAdjacency(stencil, parameter.detach()).to_edges()
        parameter = torch.rand(9).requires_grad_()
        edges = (index, types, parameter)
        adjacency = RegionAdjacency(stencil, edges=edges, batch_size=1, num_regions=3)
    results = []
    for _ in range(2):
        out = layer(x, adjacency)
        (grad,) = torch.autograd.grad(out.square().sum(), parameter)
        assert grad.any()
        results.append(out.detach())
        with torch.no_grad():
            parameter += torch.rand_like(parameter)
    assert not torch.allclose(*results)


def test_flat_node_index_in_batches():
    """Image b has the nodes b * R to b * R + R - 1, and its edges are those it has alone."""
    labels = torch.tensor([[[0, 1], [2, 2]], [[2, 2], [1, 1]], [[0, 0], [0, 0]]])
    together = Assignment.from_labels(labels, 3).adjacency().to_edges()
    parts = [Assignment.from_labels(labels[b : b + 1], 3).adjacency().to_edges() for b in range(3)]
    assert torch.equal(together[0], torch.cat([p[0] + 3 * b for b, p in enumerate(parts)], 1))
    assert torch.equal(together[1], torch.cat([p[1] for p in parts]))
    assert torch.equal(together[2], torch.cat([p[2] for p in parts]))


@pytest.mark.parametrize("candidates", [None, 1, 4])
@pytest.mark.parametrize(("size", "regions"), [((1, 1), 1), ((3, 4), 1), ((2, 2), 4), ((1, 5), 5)])
def test_one_region_and_one_pixel_per_region(candidates, size, regions):
    """One region has only itself; one pixel per region gives the pixel graph's neighbours."""
    pixels = size[0] * size[1]
    x = 100 * torch.arange(pixels, dtype=torch.float64).view(1, 1, *size).requires_grad_()
    assignment = soft_slic(x, torch.arange(regions)[None], candidates=candidates)
    index, types, weight = assignment.adjacency().to_edges()
    if regions == 1:
        assert (index.tolist(), types.tolist(), weight.tolist()) == ([[0], [0]], [4], [1])
    else:
        places = [(p // size[1], p % size[1]) for p in range(pixels)]
        offsets = Stencil.square(3).offsets
        expected = [
            (j, i, offsets.index((b[0] - a[0], b[1] - a[1])))
            for i, a in enumerate(places)
            for j, b in enumerate(places)
            if abs(b[0] - a[0]) <= 1 and abs(b[1] - a[1]) <= 1
        ]
        assert list(zip(*index.tolist(), types.tolist(), strict=True)) == expected
        assert (weight == 1).all()


def test_no_images():
    adjacency = RegionAdjacency(Stencil.square(3), torch.rand(0, 9, 4, 4))
    index, types, weight = adjacency.to_edges()
    assert (index.shape, types.shape, weight.shape) == ((2, 0), (0,), (0,))
    assert adjacency.normalized().shape == (0, 9, 4, 4)


def test_repr():
    dense = RegionAdjacency(Stencil.square(3), torch.rand(2, 9, 4, 4))
    stencil = "Stencil(3x3, dilation=1)"
    assert repr(dense) == f"RegionAdjacency({stencil}, batch_size=2, regions=4, dense)"
    edges = RegionAdjacency(Stencil.square(3), edges=dense.to_edges(), batch_size=2, num_regions=4)
    assert repr(edges) == f"RegionAdjacency({stencil}, batch_size=2, regions=4, edges)"


def test_errors(monkeypatch):
    stencil = Stencil.square(3)
    dense = torch.rand(1, 9, 4, 4)
    edges = RegionAdjacency(stencil, dense).to_edges()
    for arguments in ({}, {"dense": dense, "edges": edges}):
        with pytest.raises(ValueError, match="Give one of `dense`, `edges` and `grid`"):
            RegionAdjacency(stencil, **arguments)
    for shape in ((9, 4, 4), (1, 8, 4, 4), (1, 9, 4, 5)):
        with pytest.raises(ValueError, match=r"`dense` must have shape \(B, K, R, R\) with K = 9"):
            RegionAdjacency(stencil, torch.rand(shape))
    monkeypatch.setattr("hggraph.graph.adjacency._DENSE_LIMIT", 100)
    adjacency = RegionAdjacency(stencil, edges=edges, batch_size=1, num_regions=4)
    with pytest.raises(ValueError, match=r"of shape \(1, 9, 4, 4\) are too large; use `to_edges"):
        adjacency.to_dense()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_index": torch.tensor([[0, 8], [1, 2]])}, r"`edge_index` must be in \[0, 8\), got values from 0 to 8"),
        ({"edge_index": torch.tensor([[0, 1], [-1, 2]])}, r"`edge_index` must be in \[0, 8\)"),
        ({"edge_index": torch.tensor([[0, 1], [1, 4]])}, "joins two images"),
        ({"edge_index": torch.zeros(2, dtype=torch.long)}, "`edge_index` must have shape"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.long)}, r"`edge_index` of `edges` must have shape \(2, 2\)"),
        ({"edge_type": torch.tensor([0, 9])}, r"`edge_type` must be in \[0, 9\), got values from 0 to 9\. Were the"),
        ({"edge_type": torch.tensor([-1, 0])}, r"`edge_type` must be in \[0, 9\)"),
        ({"edge_type": torch.tensor([0])}, r"`edge_type` of `edges` must have shape \(2,\), got \(1,\)"),
        ({"edge_weight": torch.ones(2, 1)}, "`edge_weight` of `edges` must have shape"),
        ({"batch_size": 0}, r"`edge_index` must be in \[0, 0\).*Do `batch_size` and `num_regions`"),
    ],
)
def test_wrong_edges(change, message):
    arguments = {"edge_index": torch.tensor([[0, 7], [1, 6]]), "edge_type": torch.tensor([0, 8])}
    arguments |= {"edge_weight": torch.ones(2), "batch_size": 2, "num_regions": 4}
    *edges, batch_size, num_regions = (arguments | change).values()
    with pytest.raises(ValueError, match=message):
        RegionAdjacency(Stencil.square(3), edges=tuple(edges), batch_size=batch_size, num_regions=num_regions)


def test_wrong_parts():
    with pytest.raises(ValueError, match=r"`degree` must have shape \(1, 1, 3\), got \(1, 3\)"):
        RegionAdjacency(Stencil([(0, 1)]), torch.rand(1, 1, 3, 3), degree=torch.rand(1, 3))
    with pytest.raises(ValueError, match=r"edge_weight\), got 2 parts"):
        RegionAdjacency(Stencil([(0, 1)]), edges=(torch.zeros(2, 1), torch.zeros(1)), batch_size=1, num_regions=1)


def test_half_restricted():
    """The strongest of fewer directions, in half precision too."""
    dense = torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)
    dense[0, :, 0, 1] = torch.tensor([1.0, 3.0, 2.0])
    stencil, fewer = Stencil([(0, 1), (1, 0), (1, 1)]), Stencil([(0, 1), (1, 1)])
    whole = RegionAdjacency(stencil, dense)
    edges = RegionAdjacency(stencil, edges=whole.to_edges(), batch_size=1, num_regions=2)
    for adjacency in (whole, edges):
        assert adjacency.restrict(fewer).to_dense()[0, :, 0, 1].tolist() == [0, 2]
