"""What a RegionAdjacency keeps and refuses, its normalised form and its gradients."""

import pytest
import torch
from torch.testing import assert_close

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
        with pytest.raises(ValueError, match="Give either `dense` or `edges`"):
            RegionAdjacency(stencil, **arguments)
    for shape in ((9, 4, 4), (1, 8, 4, 4), (1, 9, 4, 5)):
        with pytest.raises(ValueError, match=r"`dense` must have shape \(B, K, R, R\) with K = 9"):
            RegionAdjacency(stencil, torch.rand(shape))
    monkeypatch.setattr("hggraph.graph.adjacency._DENSE_LIMIT", 100)
    adjacency = RegionAdjacency(stencil, edges=edges, batch_size=1, num_regions=4)
    with pytest.raises(ValueError, match=r"of shape \(1, 9, 4, 4\) are too large; use `to_edges"):
        adjacency.to_dense()
