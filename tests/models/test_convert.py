"""Conversion of other people's networks: the same weights, on regions, or a clear refusal."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from hggraph import HGStage, SoftSLIC
from hggraph.models import convert


@pytest.mark.parametrize("make", [lambda: timm.create_model("resnet26", num_classes=4), torchvision.models.resnet18])
def test_one_region_per_pixel_is_the_stage(make):
    net = make().double().eval()
    for conv in (part for part in net.layer4.modules() if isinstance(part, nn.Conv2d)):
        conv.stride = (1, 1)
    before = net.state_dict().keys()
    pixels = SoftSLIC(num_regions=16, feature_scale=1e4)
    for concat in (False, True):
        on_regions = convert(net, "layer4", clusterer=pixels, concat=concat)
        assert isinstance(on_regions.layer4, HGStage) and net.state_dict().keys() == before
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():  # a new 1x1 starts as the stage's output alone
            torch.testing.assert_close(on_regions(x), net(x), rtol=1e-8, atol=1e-8)


def test_nested_stages_cluster_each_for_itself():
    net = timm.create_model("hrnet_w18_small_v2", features_only=True)
    names = [f"stage4.1.branches.{i}" for i in range(2)]
    slic = SoftSLIC(4, iterations=1)
    on_regions = convert(net, names, clusterer=slic).eval()
    stages = [on_regions.get_submodule(name) for name in names]
    assert all(isinstance(stage, HGStage) for stage in stages)
    assert stages[0].clusterer is not stages[1].clusterer and stages[0].clusterer is not slic
    assert len(on_regions(torch.randn(1, 3, 64, 64))) == len(net.eval()(torch.randn(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("name", "stages", "message"),
    [
        ("resnet18", "layer5", "no stage 'layer5'. Did you mean .*layer4"),
        ("resnet18", "", "no stage ''"),
        ("resnet18", [], "must name at least one stage"),
        ("resnet18", "conv1", "must be a sequence of residual blocks, got Conv2d"),
        ("resnet18", "layer4.0", "must be a sequence of residual blocks, got BasicBlock"),
        ("seresnet18", "layer4", "'layer4' cannot be converted: .*do not carry over to regions: se"),
        ("resnetblur18", "layer4", "'layer4' cannot be converted: .*do not carry over to regions: aa"),
        ("convnext_atto", "stages.3.blocks", "'stages.3.blocks' cannot be converted: `block` must be a BasicBlock"),
        ("resnext26ts", "stages.3", "'stages.3' cannot be converted"),
    ],
)
def test_refusals(name, stages, message):
    with pytest.raises(ValueError, match=message):
        convert(timm.create_model(name), stages)
