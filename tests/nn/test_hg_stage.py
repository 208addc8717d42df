"""HGStage against the dense stage that it replaces."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph import HGStage, SoftSLIC
from hggraph.models import hg_resnet
from hggraph.nn import HGBasicBlock, HGBottleneck

close = {"rtol": 1e-10, "atol": 1e-10}


def small_stage(clusterer=None, fuse=None, channels=6):
    clusterer = SoftSLIC(num_regions=5) if clusterer is None else clusterer
    return HGStage([HGBasicBlock(channels, 8), HGBasicBlock(8, 8)], clusterer, fuse=fuse)


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
def test_one_region_per_pixel_is_the_dense_stage(name):
    dense = timm.create_model(name, output_stride=8).layer4.double().eval()
    for conv in (part for part in dense.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)):
        conv.dilation, conv.padding = (1, 1), (1, 1)
    x = 10 * torch.randn(2, dense[0].conv1.in_channels, 5, 4, dtype=torch.float64)  # far apart from each other
    x.requires_grad_()
    stage = HGStage.from_stage(dense, SoftSLIC(num_regions=20, feature_scale="none")).eval()
    actual, expected = stage(x), dense(x)
    torch.testing.assert_close(actual, expected, **close)
    cotangent = torch.randn_like(expected)
    (ours,), (theirs,) = torch.autograd.grad(actual, x, cotangent), torch.autograd.grad(expected, x, cotangent)
    torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fuse_is_a_convolution_of_the_concatenation(bias, size, candidates, layout):
    fuse = nn.Conv2d(6 + 8, 7, size, padding="same", bias=bias)
    stage = small_stage(SoftSLIC(num_regions=5, candidates=candidates), fuse=fuse).double().eval()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    fused = stage(x)
    stage.fuse = None
    expected = fuse(torch.cat([x, stage(x)], 1))
    torch.testing.assert_close(fused, expected, **close)
    cotangent = torch.randn_like(expected)
    (ours,), (theirs,) = torch.autograd.grad(fused, x, cotangent), torch.autograd.grad(expected, x, cotangent)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)  # sums in another order


def test_fuse_takes_another_map():
    stage = small_stage(fuse=nn.Conv2d(3 + 8, 7, 1)).double().eval()
    x, skip = torch.randn(2, 6, 9, 7, dtype=torch.float64), torch.randn(2, 3, 9, 7, dtype=torch.float64)
    fused, fuse = stage(x, skip=skip), stage.fuse
    stage.fuse = None
    torch.testing.assert_close(fused, fuse(torch.cat([skip, stage(x)], 1)), **close)


@pytest.mark.parametrize("noise_cancel", [True, False])
@pytest.mark.parametrize("max_direction", [True, False])
def test_blocks_get_the_adjacency_that_was_asked_for(noise_cancel, max_direction):
    class Spy(nn.Module):
        def forward(self, z, adjacency):
            self.seen = adjacency.to_dense()
            return z

    options = {"noise_cancel": noise_cancel, "max_direction": max_direction}
    stage = HGStage([Spy()], SoftSLIC(num_regions=5), **options).eval()
    x = torch.randn(2, 6, 9, 7)
    stage(x)
    torch.testing.assert_close(stage.blocks[0].seen, stage.cluster(x).adjacency(**options).to_dense())
    net = hg_resnet(18, **options)
    assert (net.trunk.hg.noise_cancel, net.trunk.hg.max_direction) == (noise_cancel, max_direction)


def test_batch_is_its_images():
    stage = small_stage(SoftSLIC(num_regions=6, sampling="importance")).double().eval()
    x = torch.randn(3, 6, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(stage(x), torch.cat([stage(image[None]) for image in x]), **close)
    assert torch.equal(stage(x), stage(x))


def test_given_assignment_and_attention():
    stage = small_stage(SoftSLIC.paper(num_regions=5, feature_scale="auto")).eval()  # Eq. 11 as the paper has it
    x = torch.randn(1, 6, 12, 12)
    attention = torch.zeros(1, 12, 12)
    attention[:, 8:, 8:] = 1
    focused = stage.cluster(x, attention)
    assert torch.equal(stage(x, attention), stage(x, assignment=focused))
    seeds = torch.stack([focused.seeds[0] // 12, focused.seeds[0] % 12])
    assert (seeds.amin(0) >= 8).sum() >= 3
    with pytest.raises(ValueError, match=r"`attention` must be in \[0, 1\]"):
        stage(x, 2 * attention)
    for sampling in (None, "density"):  # a grid gives way to attention
        stage.clusterer = SoftSLIC(num_regions=5, sampling=sampling)
        focused = stage.cluster(x, attention)
        assert focused.grid is None
        assert torch.equal(stage(x, attention), stage(x, assignment=focused))
        assert not torch.equal(stage(x, attention), stage(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (16, 16)])
def test_any_size_trains(size):
    torch.manual_seed(0)
    stage = small_stage(SoftSLIC(downsample=4))
    x = torch.randn(2, 6, *size, requires_grad=True)
    out = stage(x)
    assert out.shape == (2, 8, *size)
    out.square().sum().backward()
    assert all(t.grad.isfinite().all() for t in [x, *stage.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_constant_images(dtype):
    torch.manual_seed(0)
    stage = small_stage(fuse=nn.Conv2d(14, 7, 1))
    for x in [torch.randn(2, 6, 8, 8), torch.full((2, 6, 8, 8), 3.0), 100 * torch.randn(2, 6, 8, 8)]:
        x.requires_grad_()
        stage.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            out = stage(x)
        assert out.isfinite().all()
        out.float().mean().backward()
        assert all(t.grad.isfinite().all() for t in [x, *stage.parameters()])


def check_compiled(dynamic, sizes):
    stage = HGStage([HGBasicBlock(6, 8)], SoftSLIC(num_regions=5, iterations=2), fuse=nn.Conv2d(14, 7, 1)).eval()
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in sizes:
        x = torch.randn(2, 6, *size, requires_grad=True)
        out, expected = compiled(x), stage(x)
        torch.testing.assert_close(out, expected)
        (ours,), (theirs,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(expected.sum(), x)
        torch.testing.assert_close(ours, theirs)


def test_compiles_into_one_graph():
    check_compiled(False, [(8, 8)])


@pytest.mark.slow
def test_compiles_for_any_size():
    check_compiled(True, [(8, 8), (9, 6)])


def test_operations_are_counted():
    stage = small_stage(SoftSLIC.paper(num_regions=5)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stage(torch.randn(1, 6, 12, 12))
    counts = {str(op).removeprefix("hggraph."): n for op, n in counter.get_flop_counts()["Global"].items()}
    pairs, nearest = 2 * 144 * 5 * 6, 2 * 144 * 6
    assert counts["soft_assign"] == pairs and counts["centre_update"] == 2 * 2 * pairs
    assert counts["region_pool"] == pairs + nearest  # the first centres are means of the nearest pixels
    assert counts["region_adjacency"] == 4 * 2 * 144 * 5 * 5 and counts["region_unpool"] == 2 * 144 * 5 * 8


def test_operations_with_candidates_are_counted():
    """Three of five regions for each pixel, in the six channels and the two of the position."""
    stage = small_stage(SoftSLIC(num_regions=5, candidates=3)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stage(torch.randn(1, 6, 12, 12))
    counts = {str(op).removeprefix("hggraph."): n for op, n in counter.get_flop_counts()["Global"].items()}
    pairs, nearest = 2 * 144 * 3 * 8, 2 * 144 * 8
    assert counts["soft_assign"] == 3 * pairs and "centre_update" not in counts
    assert counts["region_pool"] == nearest + 2 * pairs + 2 * 144 * 3 * 6  # first centres, two steps, the stage
    assert counts["region_adjacency"] == 4 * 2 * 144 * 5 * 5 and counts["region_unpool"] == 2 * 144 * 3 * 8


@pytest.mark.parametrize("update", ["softmax", "column"])
def test_all_regions_as_candidates_are_all_regions(update):
    """As entries with an index and as matrices: the same S, the same gradients.

    Without positions: with them a pixel between two seeds starts with the one nearer to its block.
    """
    stage = small_stage(SoftSLIC(num_regions=5, candidates=5, update=update, position=0.0)).double().eval()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    local = stage(x)
    assert stage.cluster(x).index is not None
    stage.clusterer.candidates = None
    everything = stage(x)
    assert stage.cluster(x).index is None
    torch.testing.assert_close(local, everything, **close)
    (ours,), (theirs,) = torch.autograd.grad(local.sum(), x), torch.autograd.grad(everything.sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)  # sums in another order


@pytest.mark.parametrize("candidates", ["auto", None])
def test_empty_batch(candidates):
    """No images in, none out, and gradients of 0."""
    stage = small_stage(SoftSLIC(num_regions=5, candidates=candidates), fuse=nn.Conv2d(14, 7, 1)).eval()
    x = torch.randn(0, 6, 9, 8, requires_grad=True)
    out = stage(x)
    assert out.shape == (0, 7, 9, 8)
    out.sum().backward()
    assert x.grad.shape == x.shape and not any(p.grad.any() for p in stage.parameters() if p.grad is not None)


def test_errors():
    for wrong in (
        nn.Conv2d(14, 7, 3),
        nn.Conv2d(14, 7, 2, padding="same"),
        nn.Conv2d(14, 7, 1, stride=2),
        nn.Conv2d(14, 7, 3, padding=2, dilation=2),
        nn.Conv2d(14, 7, 3, padding=1, padding_mode="reflect"),
    ):
        with pytest.raises(ValueError, match="ungrouped 1x1 convolution, or a k x k one with odd k"):
            small_stage(fuse=wrong)
    with pytest.raises(ValueError, match="Only HGBasicBlock and HGBottleneck have a form on pixels, got ReLU"):
        HGStage([nn.ReLU()], SoftSLIC()).to_stage()
    with pytest.raises(ValueError, match="at least one block"):
        HGStage.from_stage([])
    stage = small_stage(SoftSLIC(num_regions=50))
    with pytest.raises(ValueError, match="`num_regions` must be at most the number of pixels, 4 x 4"):
        stage(torch.randn(1, 6, 4, 4))
    with pytest.raises(TypeError, match="`x` must be floating point"):
        stage(torch.zeros(1, 6, 4, 4, dtype=torch.uint8))
    assert isinstance(HGStage.from_stage(timm.create_model("resnet26").layer4).blocks[0], HGBottleneck)


def test_unpooled_output_is_constant_in_a_region():
    stage = small_stage(SoftSLIC(num_regions=2, feature_scale="none")).eval()
    x = torch.zeros(1, 6, 4, 6)
    x[..., 3:] = 50
    out = stage(x)
    labels = stage.cluster(x).labels[0]
    for region in labels.unique():
        inside = out[0][:, labels == region]
        torch.testing.assert_close(inside, inside[:, :1].expand_as(inside))
    assert F.mse_loss(out[..., 0], out[..., -1]) > 0
