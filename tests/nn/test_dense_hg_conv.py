"""DenseHGConv against HGConv on the same edges."""

import pytest
import torch
from torch import nn

from hggraph import DenseHGConv, HGConv, RegionAdjacency, Stencil

close = {"rtol": 1e-10, "atol": 1e-10}


def adjacency(batch, regions, stencil, share=0.5):
    weight = torch.rand(batch, len(stencil), regions, regions, dtype=torch.float64)
    return weight * (torch.rand_like(weight) < share)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stencil", [Stencil.square(3), Stencil([(0, 1), (2, 1)])])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 4)])
def test_equals_hg_conv(groups, stencil, shape):
    batch, regions = shape
    dense = DenseHGConv(4, 6, stencil, groups=groups).double()
    sparse = HGConv(4, 6, stencil, groups=groups).double()
    sparse.load_state_dict(dense.state_dict())
    dense.load_state_dict(sparse.state_dict())
    weight = adjacency(batch, regions, stencil).requires_grad_()
    x = torch.randn(batch, regions, 4, dtype=torch.float64, requires_grad=True)
    edges = RegionAdjacency(stencil, weight).to_edges()
    actual = dense(x, RegionAdjacency(stencil, weight)).flatten(0, 1)
    expected = sparse(x.flatten(0, 1), *edges)
    torch.testing.assert_close(actual, expected, **close)
    cotangent = torch.randn_like(actual)
    ours = torch.autograd.grad(actual, [x, dense.weight, dense.bias, weight], cotangent)
    theirs = torch.autograd.grad(expected, [x, sparse.weight, sparse.bias, weight], cotangent)
    torch.testing.assert_close(ours[:3], theirs[:3], **close)
    # an absent edge is no edge to the sparse layer, but a weight of 0 to the dense one
    torch.testing.assert_close(ours[3] * (weight > 0), theirs[3], **close)


def test_region_without_neighbours_gets_the_bias():
    layer = DenseHGConv(3, 2)
    out = layer(torch.randn(1, 4, 3), RegionAdjacency(Stencil.square(3), torch.zeros(1, 9, 4, 4)))
    assert torch.equal(out, layer.bias.expand(1, 4, -1))


def test_edges_instead_of_matrices():
    stencil, layer = Stencil.square(3), DenseHGConv(3, 2).double()
    dense = RegionAdjacency(stencil, adjacency(2, 4, stencil))
    edges = RegionAdjacency(stencil, edges=dense.to_edges(), batch_size=2, num_regions=4)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x, edges), layer(x, dense), **close)


def test_from_conv_and_back():
    conv = nn.Conv2d(4, 8, 3, padding=4, dilation=4, groups=2)
    layer = DenseHGConv.from_conv(conv, stencil=Stencil.square(3))
    assert layer.stencil == Stencil.square(3)
    assert torch.equal(layer.weight, HGConv.from_conv(conv).weight) and torch.equal(layer.bias, conv.bias)
    assert DenseHGConv.from_conv(conv).stencil == Stencil.square(3, dilation=4)
    assert torch.equal(layer.to_conv().weight, conv.weight)
    with pytest.raises(ValueError, match="`stencil` must have 9 directions"):
        DenseHGConv.from_conv(conv, stencil=Stencil.square(5))


def test_errors():
    layer = DenseHGConv(3, 2)
    with pytest.raises(ValueError, match=r"`adjacency` must be over Stencil\(3x3, dilation=1\), got Stencil\(5x5"):
        layer(torch.randn(1, 4, 3), RegionAdjacency(Stencil.square(5), torch.zeros(1, 25, 4, 4)))
    with pytest.raises(ValueError, match=r"`x` must have shape .*, as `adjacency` has"):
        layer(torch.randn(1, 5, 3), RegionAdjacency(Stencil.square(3), torch.zeros(1, 9, 4, 4)))
    assert repr(layer) == "DenseHGConv(3, 2, stencil=Stencil(3x3, dilation=1))"
