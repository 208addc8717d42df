"""What is carried over from convolutions and residual blocks, and what is refused by name."""

import pytest
import timm
import torch
import torchvision
from timm.layers import AvgPool2dSame, BatchNormAct2d, StdConv2d
from torch import nn
from torch.testing import assert_close

from hggraph import DenseHGConv, HGConv, HGStage, RegionAdjacency, SoftSLIC, Stencil
from hggraph.cluster import Cells
from hggraph.nn import HGBasicBlock, HGBottleneck


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def self_adjacency(regions=4):
    """Return an adjacency in which every region has itself alone: a 3x3 becomes its middle tap."""
    dense = torch.zeros(1, 9, regions, regions, dtype=torch.float64)
    dense[0, 4] = torch.eye(regions)
    return RegionAdjacency(Stencil.square(3), dense)


@pytest.mark.parametrize("layer_class", [HGConv, DenseHGConv])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding="same", groups=2),
        nn.Conv2d(4, 6, 1, padding="valid", bias=False),
        nn.Conv2d(4, 6, (2, 5), padding=(3, 2), dilation=(3, 1)),
        nn.Conv3d(2, 4, (1, 3, 5), padding=(0, 1, 4), dilation=(1, 1, 2), dtype=torch.float64),
    ],
)
def test_to_conv_is_the_inverse(layer_class, conv):
    """Exactly, in its type: every number stands at its place again."""
    layer = layer_class.from_conv(conv)
    assert layer.weight.dtype == conv.weight.dtype
    back = layer.to_conv(stride=3)
    assert type(back) is type(conv)
    assert back.state_dict().keys() == conv.state_dict().keys()
    for key, value in conv.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    assert set(back.stride) == {3}
    assert (back.kernel_size, back.dilation) == (conv.kernel_size, conv.dilation)
    assert back.groups == conv.groups
    again = layer_class.from_conv(back)
    assert again.stencil == layer.stencil and torch.equal(again.weight, layer.weight)


def test_convolutions_that_do_something_else_are_refused():
    """Timm's standardises its weights on the way: taking them as they are would be silently wrong."""
    for conv in (StdConv2d(2, 2, 3, padding=1), nn.ConvTranspose2d(2, 2, 3, padding=1)):
        with pytest.raises(ValueError, match=f"a plain Conv2d or Conv3d, got {type(conv).__name__}"):
            HGConv.from_conv(conv)

    class Renamed(nn.Conv2d):
        """Convolves as its parent does."""

    assert HGConv.from_conv(Renamed(2, 2, 3, padding=1)).in_channels == 2


@pytest.mark.parametrize(
    ("make", "block_class"),
    [
        (lambda: torchvision.models.resnet18().layer2, HGBasicBlock),
        (lambda: torchvision.models.resnet50().layer1, HGBottleneck),
        (lambda: timm.create_model("resnext50_32x4d").layer1, HGBottleneck),
        (lambda: timm.create_model("resnet50d").layer4, HGBottleneck),
    ],
)
def test_on_single_pixels_a_block_is_the_block(make, block_class):
    """A 3x3 on one pixel reads its middle tap, whatever its stride, dilation and shortcut."""
    x = double(4, 0, 1, 1)
    for block in make().double().eval():
        for part in block.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean)
                nn.init.normal_(part.weight)
        channels = block.conv1.in_channels
        x = x if x.shape[1] == channels else double(4, channels, 1, 1)
        out = block_class.from_block(block)(x[None, :, :, 0, 0], self_adjacency())
        x = block(x)
        assert_close(out[0], x[:, :, 0, 0], rtol=1e-10, atol=1e-10)


def test_average_pools_of_shortcuts_are_left_out():
    """Regions stand for many pixels already; timm's "same" pool of dilated stages is one too."""
    shortcut = timm.create_model("resnet50d", output_stride=8).layer3[0].downsample
    assert isinstance(shortcut[0], nn.AvgPool2d | nn.Identity)
    block = timm.create_model("resnet26d").layer4[0]
    block.downsample[0] = AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
    parts = [type(part).__name__ for part in HGBottleneck.from_block(block).downsample]
    assert parts == ["Linear", "BatchNorm1d"]


def test_shortcut_of_a_single_convolution():
    """Not in a Sequential, as hand-written blocks have it: it must not become the identity."""
    block = torchvision.models.resnet18().layer2[0].double().eval()
    block.downsample = nn.Conv2d(64, 128, 1, stride=2, dtype=torch.float64)
    x = double(4, 64, 1, 1)
    out = HGBasicBlock.from_block(block)(x[None, :, :, 0, 0], self_adjacency())
    assert_close(out[0], block(x)[:, :, 0, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("train", [True, False])
def test_frozen_normalisation_stays_frozen(train):
    block = torchvision.models.resnet18().layer2[0].train(train)
    block.bn1.eval()
    block.downsample[1].eval()
    converted = HGBasicBlock.from_block(block)
    assert converted.training is converted.bn2.training is train
    assert not converted.bn1.training and not converted.downsample[1].training


@pytest.mark.parametrize("block_class", [HGBasicBlock, HGBottleneck])
def test_dtype_is_carried_over(block_class):
    name = "resnet18" if block_class is HGBasicBlock else "resnet26"
    converted = block_class.from_block(timm.create_model(name).layer2[0].bfloat16())
    assert {p.dtype for p in converted.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_path": timm.layers.DropPath(0.1)}, "do not carry over to regions: drop_path"),
        ({"drop_block": timm.layers.DropBlock2d(0.1)}, "do not carry over to regions: drop_block"),
        ({"se": nn.Conv2d(1, 1, 1), "aa": nn.AvgPool2d(2)}, "carry over to regions: se, aa"),
        ({"bn1": BatchNormAct2d(64)}, "Only BatchNorm2d .* got BatchNormAct2d"),
        ({"bn2": nn.GroupNorm(2, 64)}, "Only BatchNorm2d .* got GroupNorm"),
        ({"conv2": StdConv2d(64, 64, 3, padding=1)}, "plain Conv2d or Conv3d, got StdConv2d"),
        ({"conv1": nn.Conv2d(64, 64, 3, padding=1)}, "ungrouped 1x1 convolution .* got Conv2d"),
        ({"conv2": nn.Conv2d(64, 64, 5, padding=2)}, "`stencil` must have 25 directions"),
        ({"downsample": nn.Sequential(nn.MaxPool2d(2))}, "shortcut holds MaxPool2d"),
        ({"downsample": nn.Sequential(nn.Conv2d(64, 256, 3))}, "ungrouped 1x1 convolution"),
    ],
)
def test_parts_that_do_not_carry_over_are_refused(change, message):
    block = timm.create_model("resnet26").layer1[0]
    for name, part in change.items():
        setattr(block, name, part)
    with pytest.raises(ValueError, match=message):
        HGBottleneck.from_block(block)


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "skresnet18", "resnest26d", "seresnet18"])
def test_other_blocks_stay_as_they_are(name):
    """They take nodes as a map: with a region for each pixel and no stride, the blocks on pixels."""
    blocks = timm.create_model(name).layer4[1:].double().eval()
    x = double(2, 512 if "18" in name else 2048, 4, 5)
    stage = HGStage.from_stage(blocks, Cells(1), directions="birth").eval()
    assert stage.levels is not None
    assert_close(stage(x), blocks(x), rtol=1e-9, atol=1e-9)


def test_what_has_no_form_on_typed_edges_is_refused():
    block = timm.create_model("resnet26").layer1[0]
    block.conv2 = StdConv2d(64, 64, 3, padding=1)
    with pytest.raises(ValueError, match="conv2: StdConv2d is no plain convolution"):
        HGStage.from_stage([block], SoftSLIC())
    assert HGStage.from_stage([block], SoftSLIC(4), directions="birth")(torch.rand(2, 64, 6, 6)).shape[1] == 256


def test_fuse_must_keep_the_size():
    for fuse in (
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 2, padding=1),
    ):
        with pytest.raises(ValueError, match="`fuse` must be an ungrouped 1x1 convolution, or a k x k one with odd k"):
            HGStage([HGBasicBlock(2, 2)], SoftSLIC(), fuse=fuse)
    fuse = nn.Conv2d(5, 3, 1, padding="same")
    assert HGStage([HGBasicBlock(2, 3)], SoftSLIC(8), fuse=fuse)(torch.rand(1, 2, 5, 6)).shape[1] == 3
