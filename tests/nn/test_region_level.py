"""Levels of regions: pooling by area, the ways back, and stages that are made of several."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from hggraph import HGStage, SoftSLIC
from hggraph.cluster import Cells, Voronoi
from hggraph.nn import RegionLevel

close = {"rtol": 1e-10, "atol": 1e-10}


def two_levels(clusterers=None, **options):
    torch.manual_seed(0)
    first, second = (RegionLevel(one, **options) for one in clusterers or (SoftSLIC(4), SoftSLIC(4)))
    x = torch.rand(2, 5, 11, 14, dtype=torch.float64, requires_grad=True)
    first.enter(x)
    second.enter(first.pool(x), finer=first)
    return first, second, x


def test_means_of_means_are_means_over_pixels():
    """Nested pooling by area is the pooling of the composed assignment."""
    for clusterers in (None, (Cells(2), Cells(2)), (Cells(2), SoftSLIC(4))):
        first, second, x = two_levels(clusterers)
        both = first.regions.compose(second.regions)
        expected = both.pool(x).mT.unflatten(2, second.shape)
        actual = second.pool(first.pool(x))
        torch.testing.assert_close(actual, expected, **close)
        torch.testing.assert_close(second.area.double(), both.area.double(), **close)
        cotangent = torch.randn_like(expected)
        ours, theirs = (torch.autograd.grad(out, x, cotangent, retain_graph=True)[0] for out in (actual, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        whole = (second.mean(actual)[..., 0, 0], x.mean((2, 3)))
        torch.testing.assert_close(*whole, **close)


def test_ways_back():
    first, second, _ = two_levels()
    z = torch.randn(2, 3, *second.shape, dtype=torch.float64)
    both = first.regions.compose(second.regions)
    torch.testing.assert_close(second.to_map(z), both.unpool(z.flatten(2).mT), **close)
    first.back = second.back = "nearest"
    onto = first.regions.harden().compose(second.regions.harden())
    torch.testing.assert_close(second.to_map(z), onto.unpool(z.flatten(2).mT), **close)
    first.back = second.back = "bilinear"
    expected = F.interpolate(z, first.shape, mode="bilinear")
    torch.testing.assert_close(second.to_map(z), F.interpolate(expected, (11, 14), mode="bilinear"), **close)


def test_levels_of_the_map_itself():
    """Without nesting the coarser level pools the map that the finer nodes are brought back to."""
    torch.manual_seed(0)
    x = torch.rand(1, 5, 12, 12, dtype=torch.float64)
    first, second = (RegionLevel(Voronoi(n), directions="geometry", nested=False) for n in (4, 16))
    first.enter(x), second.enter(x, finer=first)
    nodes = first.pool(x)
    assert nodes.shape == (1, 5, 1, 36) and second.shape == (1, 9)
    expected = second.regions.pool(first.regions.unpool(nodes.flatten(2).mT))
    torch.testing.assert_close(second.pool(nodes), expected.mT.unflatten(2, (1, 9)), **close)
    torch.testing.assert_close(second.to_map(second.pool(nodes)), second.regions.unpool(expected), **close)


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 9), (5, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_small_maps(size, layout):
    torch.manual_seed(0)
    for clusterer in (Cells(2), SoftSLIC(4)):
        level = RegionLevel(clusterer)
        x = torch.rand(2, 6, *size).to(memory_format=layout).requires_grad_()
        level.enter(x)
        out = level.unpool(level.pool(x))
        assert out.shape == x.shape
        out.square().sum().backward()
        assert x.grad.isfinite().all()


def test_empty_batch():
    level = RegionLevel(SoftSLIC(4))
    x = torch.rand(0, 6, 8, 8)
    level.enter(x)
    assert level.unpool(level.pool(x)).shape == x.shape and level.mean(level.pool(x)).shape == (0, 6, 1, 1)


@pytest.mark.parametrize("side", [None, 1, 3])
def test_a_stage_in_steps(side):
    """Its output is that of the levels one by one, and `fuse` a convolution of the concatenation."""
    torch.manual_seed(0)
    blocks = torchvision.models.mobilenet_v2().features[7:18].double().eval()
    fuse = None if side is None else nn.Conv2d(32 + 320, 7, side, padding=side // 2, dtype=torch.float64)
    stage = HGStage.from_stage(blocks, steps=True, fuse=fuse).eval()
    x = torch.randn(2, 32, 13, 15, dtype=torch.float64, requires_grad=True)
    out = stage(x)
    stage.fuse = None
    alone = stage(x)
    assert len(stage.levels) == 2 and alone.shape == (2, 320, 13, 15)
    expected = alone if fuse is None else fuse(torch.cat([x, alone], 1))
    torch.testing.assert_close(out, expected, **close)
    cotangent = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(value, x, cotangent, retain_graph=True)[0] for value in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    given = stage.cluster(x)
    torch.testing.assert_close(stage(x, assignment=given), alone, **close)


def test_one_jump_of_any_blocks():
    blocks = torchvision.models.mobilenet_v2().features[8:11].eval()
    stage = HGStage.from_stage(blocks, Cells(1)).eval()
    x = torch.randn(1, 64, 6, 7)
    # a region for each pixel, its borders those of the grid
    torch.testing.assert_close(stage(x), blocks(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Only HGBasicBlock and HGBottleneck have a form on pixels"):
        stage.to_stage()


def test_operations_of_regions_are_those_of_the_strided_blocks_and_of_the_regions():
    """What 1/4 and 1/16 of the nodes save is saved: counted beside the blocks at the full size."""
    from torch.utils.flop_counter import FlopCounterMode

    blocks = torchvision.models.mobilenet_v2().features[7:18].eval()
    stage = HGStage.from_stage(blocks, steps=True).eval()
    x, counts = torch.randn(1, 32, 48, 64), []
    for net in (blocks, stage):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x)
        counts.append(counter.get_total_flops())
    assert counts[0] < counts[1] < 1.4 * counts[0]
