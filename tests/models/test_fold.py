"""Folding against the unfolded layers, one by one."""

import pytest
import torch
from torch import nn

from hggraph import DenseHGConv, HGConv, RegionAdjacency, Stencil
from hggraph.models.fold import compose_convs, fold_batch_norm
from hggraph.nn import DeformConv2d
from hggraph.nn.hg_block import on_nodes

close = {"rtol": 1e-10, "atol": 1e-10}


def scattered(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.double().eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
        DeformConv2d(4, 6, 3, padding=1, bias=True),
        nn.Sequential(nn.Conv2d(4, 5, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(5, 6, 3))),
    ],
)
def test_layers_on_pixels(layer, affine):
    pair = nn.Sequential(layer, scattered(nn.BatchNorm2d(6, affine=affine))).double().eval()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    want = pair(x)
    fold_batch_norm(pair)
    assert isinstance(pair[1], nn.Identity)
    torch.testing.assert_close(pair(x), want, **close)


@pytest.mark.parametrize("make", [DenseHGConv, HGConv, nn.Linear])
def test_layers_on_regions(make):
    layer, norm = make(4, 6, bias=False).double(), scattered(nn.BatchNorm1d(6))
    adjacency = RegionAdjacency(Stencil.square(3), torch.rand(1, 9, 5, 5, dtype=torch.float64))
    z = torch.randn(5, 4, dtype=torch.float64)

    def run(layer):
        if make is nn.Linear:
            return layer(z)[None]
        return layer(z[None], adjacency) if make is DenseHGConv else layer(z, *adjacency.to_edges())[None]

    want = on_nodes(norm, run(layer))
    pair = nn.Sequential(layer, norm)
    fold_batch_norm(pair)
    torch.testing.assert_close(run(pair[0]), want, **close)


def test_only_what_follows_a_layer_is_folded():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn1, self.conv2, self.bn2, self.norm = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), None

    named = Named().eval()
    fold_batch_norm(named)
    assert isinstance(named.bn1, nn.BatchNorm2d) and isinstance(named.bn2, nn.Identity)
    for kept in (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ):
        fold_batch_norm(kept.eval())
        assert not isinstance(kept[1], nn.Identity)
    with pytest.raises(ValueError, match="must be in eval mode"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_composed_convolutions(bias, size, dilation):
    first = nn.Conv2d(4, 5, 1, bias=False).double()
    second = nn.Conv2d(5, 3, size, padding=dilation * (size // 2), dilation=dilation, bias=bias).double()
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(compose_convs(first, second)(x), second(first(x)), **close)


@pytest.mark.parametrize("first", [nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, bias=False), nn.Conv2d(4, 6, 1, bias=False)])
def test_what_does_not_compose(first):
    with pytest.raises(ValueError, match="Only a 1x1 convolution without bias"):
        compose_convs(first, nn.Conv2d(5, 3, 3))
