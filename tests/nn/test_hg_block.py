"""HGBasicBlock and HGBottleneck carry the weights of ordinary residual blocks."""

import copy

import pytest
import timm
import torch
from torch import nn

from hggraph import DenseHGConv, RegionAdjacency, Stencil
from hggraph.nn import HGBasicBlock, HGBottleneck
from hggraph.nn.hg_block import on_nodes

close = {"rtol": 1e-10, "atol": 1e-10}


def pixel_adjacency(height, width):
    """Every pixel a region: direction k holds the neighbour at offset k."""
    stencil, pixels = Stencil.square(3), height * width
    dense = torch.zeros(1, 9, pixels, pixels, dtype=torch.float64)
    for k, (dy, dx) in enumerate(stencil.offsets):
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    dense[0, k, y * width + x, (y + dy) * width + x + dx] = 1
    return RegionAdjacency(stencil, dense)


def random_statistics(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module.double()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("name", "block_class"),
    [("resnet18", HGBasicBlock), ("resnet26", HGBottleneck), ("resnet26d", HGBottleneck), ("resnet18d", HGBasicBlock)],
)
def test_block_on_pixels_is_the_block(name, block_class, train):
    # stage 2 without its stride; the second block has no projection
    stage = random_statistics(timm.create_model(name, output_stride=8).layer3).train(train)
    for conv in (part for part in stage.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)):
        conv.dilation, conv.padding = (1, 1), (1, 1)
    if name.endswith("d"):
        stage[0].downsample[0] = nn.Identity()  # its 2x2 mean has no meaning on regions and is left out
    adjacency = pixel_adjacency(5, 4)
    x = torch.randn(1, stage[0].conv1.in_channels, 5, 4, dtype=torch.float64)
    z = x.flatten(2).transpose(1, 2)
    for block in stage:
        converted = block_class.from_block(block)
        assert converted.training is train
        x, z = block(x), converted(z, adjacency)
        torch.testing.assert_close(z.transpose(1, 2).view_as(x), x, **close)


def test_weights_are_copies():
    block = timm.create_model("resnet18").layer4[0]
    converted = HGBasicBlock.from_block(block)
    nn.init.zeros_(block.conv1.weight)
    assert converted.conv1.weight.abs().sum() > 0
    assert sum(p.numel() for p in converted.parameters()) == sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize("block_class", [HGBasicBlock, HGBottleneck])
@pytest.mark.parametrize("in_channels", [4, 16])
def test_fresh_blocks_train(block_class, in_channels):
    torch.manual_seed(0)
    block = block_class(in_channels, 4)
    adjacency = RegionAdjacency(Stencil.square(3), torch.rand(2, 9, 5, 5))
    out = block(torch.randn(2, 5, in_channels), adjacency)
    assert out.shape == (2, 5, 4 if block_class is HGBasicBlock else 16)
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())
    assert (block.downsample is None) == (in_channels == out.shape[2])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("seresnet50", "se"),
        ("ecaresnet26t", "se"),
        ("resnetblur50", "aa"),
        ("resnetaa50", "aa"),
    ],
)
def test_parts_that_do_not_carry_over_are_named(name, text):
    block = timm.create_model(name).layer4[1 if text == "se" else 0]
    with pytest.raises(ValueError, match=f"do not carry over to regions: .*{text}"):
        HGBottleneck.from_block(block)


def test_wrong_blocks_are_refused():
    with pytest.raises(ValueError, match=r"must be a BasicBlock .* unexpected \['conv3'\]"):
        HGBasicBlock.from_block(timm.create_model("resnet26").layer4[0])
    with pytest.raises(ValueError, match=r"must be a Bottleneck .*missing \['conv3', 'bn3'\]"):
        HGBottleneck.from_block(timm.create_model("resnet18").layer4[0])
    with pytest.raises(ValueError, match="must be a Bottleneck"):
        HGBottleneck.from_block(nn.Linear(1, 1))


def test_grouped_convolutions_carry_over():
    block = timm.create_model("resnext50_32x4d").layer4[1]
    converted = HGBottleneck.from_block(block)
    assert isinstance(converted.conv2, DenseHGConv) and converted.conv2.groups == 32


def test_normalisation_of_nodes_is_that_of_pixels():
    block = random_statistics(timm.create_model("resnet18").layer4[0])
    block.bn1.eps, block.bn1.momentum = 1e-3, 0.3
    norm, nodes = block.bn1, HGBasicBlock.from_block(block).bn1
    x = torch.randn(2, 512, 4, 5, dtype=torch.float64)
    for train in (True, False):
        norm.train(train), nodes.train(train)
        z = on_nodes(nodes, x.flatten(2).transpose(1, 2))
        torch.testing.assert_close(z.transpose(1, 2).view_as(x), norm(x), **close)
    torch.testing.assert_close(dict(nodes.state_dict()), dict(norm.state_dict()), **close)
    block.bn1 = nn.GroupNorm(1, 512)
    with pytest.raises(ValueError, match="Only BatchNorm2d"):
        HGBasicBlock.from_block(block)


def test_normalisations_of_nodes_become_synchronised_ones():
    """PyTorch converts by class: what it makes has to take nodes too."""
    block = HGBottleneck.from_block(random_statistics(timm.create_model("resnet26").layer4[0]))
    z, adjacency = torch.randn(2, 20, 1024, dtype=torch.float64), pixel_adjacency(5, 4)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block))
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in converted.modules()) == 4
    both = RegionAdjacency(adjacency.stencil, adjacency.to_dense().expand(2, -1, -1, -1))
    torch.testing.assert_close(converted.eval()(z, both), block.eval()(z, both), **close)
    assert isinstance(converted.to_block().bn1, nn.BatchNorm2d)
