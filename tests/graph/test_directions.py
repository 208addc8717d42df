"""Typed edges of regions: by birth those of the grid, by geometry what is met one spacing away, and the controls."""

import pickle

import pytest
import torch
from torch import nn

from hggraph import Assignment, DenseHGConv, RegionAdjacency, SoftSLIC, Stencil, grid_graph
from hggraph.graph.directions import DIRECTIONS, directed

stencil = Stencil.square(3)


def soft(size=(11, 14), regions=12, **options):
    torch.manual_seed(0)
    return SoftSLIC(num_regions=regions, **options)(torch.rand(2, 4, *size, dtype=torch.float64))


@pytest.mark.parametrize("taps", [Stencil.square(3), Stencil.square(5), Stencil.square(2), Stencil([(0, 1), (-2, 0)])])
def test_birth_is_the_grid_graph(taps):
    assignment = soft()
    born = directed(assignment, "birth", taps)
    graph = grid_graph(assignment.grid, taps, batch_size=2)
    index, types, weight = born.to_edges()
    assert torch.equal(index, graph.edge_index) and torch.equal(types, graph.edge_type) and bool((weight == 1).all())
    dense = torch.zeros(2, len(taps), 12, 12, dtype=torch.float64)
    for (source, target), k in zip(graph.edge_index.T.tolist(), graph.edge_type.tolist(), strict=True):
        dense[target // 12, k, target % 12, source % 12] = 1
    assert torch.equal(born.to_dense(), dense) and torch.equal(born.normalized(), dense)
    layer = DenseHGConv(6, 4, taps, groups=2).double()
    z = torch.randn(2, 12, 6, dtype=torch.float64, requires_grad=True)
    as_matrices, as_edges = RegionAdjacency(taps, dense), (index, types, weight)
    as_edges = RegionAdjacency(taps, edges=as_edges, batch_size=2, num_regions=12)
    expected = layer(z, as_matrices)
    for adjacency in (born, as_edges):
        actual = layer(z, adjacency)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        ours, theirs = (torch.autograd.grad(out.square().sum(), z, retain_graph=True)[0] for out in (actual, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_birth_is_a_convolution_over_the_nodes():
    assignment = soft()
    conv = nn.Conv2d(6, 8, 5, padding=2).double()
    z = torch.randn(2, 12, 6, dtype=torch.float64)
    actual = DenseHGConv.from_conv(conv)(z, directed(assignment, "birth", Stencil.square(5)))
    expected = conv(z.mT.unflatten(2, assignment.grid)).flatten(2).mT
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_geometry_is_what_is_met_one_spacing_away():
    assignment = soft(sampling="density")
    labels, (height, width) = assignment.labels, assignment.size
    spacing = (height * width / 12) ** 0.5
    s = assignment.to_dense()  # (B, P, R)
    place = torch.stack(torch.meshgrid(torch.arange(11.0), torch.arange(14.0), indexing="ij"), 2).flatten(0, 1).double()
    expected = torch.zeros(2, 9, 12, 12, dtype=torch.float64)
    for b in range(2):
        for r in range(12):
            middle = (s[b, :, r, None] * place).sum(0) / s[b, :, r].sum()
            for k, offset in enumerate(stencil):
                y, x = ((middle + spacing * torch.tensor(offset)) + 0.499).floor().long().tolist()
                if not any(offset):
                    expected[b, k, r, r] = 1
                elif 0 <= y < height and 0 <= x < width and labels[b, y, x] != r:
                    expected[b, k, r, labels[b, y, x]] = 1
    assert torch.equal(directed(assignment, "geometry").to_dense(), expected)
    assert expected[:, :, :, :].sum() > 100


def test_borders_are_the_papers():
    assignment = soft()
    for noise_cancel in (True, False):
        for max_direction in (True, False):
            options = {"noise_cancel": noise_cancel, "max_direction": max_direction}
            ours = directed(assignment, "borders", **options).to_dense()
            assert torch.equal(ours, assignment.adjacency(**options).to_dense())


def test_controls():
    assignment = soft()
    alone = directed(assignment, "alone").to_dense()
    assert torch.equal(alone[:, 4], torch.eye(12).double().expand(2, -1, -1)) and alone.sum() == 24
    born, shuffled = directed(assignment, "birth").to_dense(), directed(assignment, "shuffled").to_dense()
    assert torch.equal(born.sum(1), shuffled.sum(1)) and torch.equal(born[:, 4], shuffled[:, 4])
    moved = (born != shuffled).any(1).sum() / born[0].any(0).sum()
    assert moved > 0.5
    assert torch.equal(directed(assignment, "shuffled").to_dense(), shuffled)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_empty_batch_and_one_region(directions):
    x = torch.rand(0, 4, 6, 6)
    assert directed(SoftSLIC(num_regions=4)(x), directions).to_dense().shape == (0, 9, 4, 4)
    one = directed(Assignment.cells((3, 3), 3), directions).to_dense()
    assert one.sum() == 1 and one[0, 4, 0, 0] == 1


def test_a_grid_moves_and_is_saved():
    born = RegionAdjacency(stencil, grid=(2, 3), like=torch.zeros(1), batch_size=2)
    again = pickle.loads(pickle.dumps(born))
    assert again.grid == (2, 3) and torch.equal(again.to_dense(), born.to_dense())
    assert born.to(torch.float64).to_dense().dtype == torch.float64
    fewer = Stencil([(0, 0), (0, 1)])
    assert torch.equal(born.restrict(fewer).to_dense(), born.to_dense()[:, [4, 5]])
    with pytest.raises(ValueError, match="`grid` needs `like`"):
        RegionAdjacency(stencil, grid=(2, 3), batch_size=2)


def test_errors():
    with pytest.raises(ValueError, match="`directions` must be one of"):
        directed(soft(), "north")
    without = soft(sampling="density")
    for directions in ("birth", "shuffled"):
        with pytest.raises(ValueError, match="needs regions born on a grid"):
            directed(without, directions)
