"""HG-HRNetV2 against timm's modules, published counts, and its padding."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hggraph import HGStage, SoftSLIC
from hggraph.models import hg_hrnet

SMALL = "w18_small_v2"


def test_published_parameters():
    """HRNetV2 for segmentation, 19 classes."""
    for width, number in (("w48", 65_859_379), ("w32", 29_546_515), ("w18", 9_641_119), (SMALL, 3_939_579)):
        with torch.device("meta"):
            net = hg_hrnet(width, hg=False)
        assert sum(parameter.numel() for parameter in net.parameters()) == number


def test_dense_network_is_timm_with_a_head():
    net = hg_hrnet(SMALL, hg=False, num_classes=3).eval()
    whole = copy.deepcopy(net.trunk)
    whole.stage4.append(copy.deepcopy(net.last_module))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        first, *rest = whole.forward_features(x)
        rest = [F.interpolate(y, first.shape[2:], mode="bilinear", align_corners=True) for y in rest]
        want = F.interpolate(net.head(torch.cat([first, *rest], 1)), (64, 96), mode="bilinear", align_corners=True)
        torch.testing.assert_close(net(x)["out"], want)


def test_one_region_per_pixel_is_the_dense_network():

    class EachPixel(SoftSLIC):
        def regions_for(self, size, attention=None):
            return size[0] * size[1]

    net = hg_hrnet(SMALL, num_classes=3, clusterer=EachPixel(1, feature_scale=1e6)).double().eval()
    dense = copy.deepcopy(net)
    for i, branch in enumerate(dense.last_module.branches):
        on_pixels, fuse = branch.to_stage().eval(), branch.fuse
        torch.nn.init.zeros_(fuse.weight)
        torch.nn.init.eye_(fuse.weight[:, fuse.out_channels :, 0, 0].data)
        net.last_module.branches[i].fuse.load_state_dict(fuse.state_dict())
        dense.last_module.branches[i] = on_pixels
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x)["out"], dense(x)["out"], rtol=1e-8, atol=1e-8)


def test_shapes_regions_and_folding():
    net = hg_hrnet(SMALL, num_classes=1, in_channels=2, clusterer=SoftSLIC(4, iterations=1)).double()
    x = torch.randn(2, 2, 90, 101, dtype=torch.float64)
    out = net(x)
    assert {name: tuple(y.shape) for name, y in out.items()} == dict.fromkeys(("out", "aux"), (2, 1, 90, 101))
    with torch.no_grad():
        out = net.eval()(x, torch.rand(2, 90, 101), return_regions=True)
        assert [found.assignment.size for found in out["regions"]] == [(24, 32), (12, 16), (6, 8), (3, 4)]
        assert [found.name for found in out["regions"]] == ["branch 1", "branch 2", "branch 3", "branch 4"]
        folded = net.fold()
        assert not any("BatchNorm" in type(part).__name__ for part in folded.modules())
        torch.testing.assert_close(folded(x)["out"], net(x)["out"], rtol=1e-9, atol=1e-9)


def test_padding_is_cropped():
    net = hg_hrnet(SMALL, hg=False, num_classes=2).eval()
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        want = net(F.pad(x, (0, 6, 0, 26)))["out"][:, :, :70, :90]
        torch.testing.assert_close(net(x)["out"], want)


def test_default_clusterers_train():
    net = hg_hrnet(SMALL, num_classes=3)
    branches = list(net.last_module.branches)
    assert all(isinstance(branch, HGStage) for branch in branches)
    assert [branch.clusterer.iterations for branch in branches] == [1, 1, 1, 1]
    regions = [
        branch.clusterer.regions_for((side, side)) for branch, side in zip(branches, (64, 32, 16, 8), strict=True)
    ]
    assert regions == [64, 16, 4, 1]
    out = net(torch.randn(2, 3, 256, 256))
    sum(y.square().mean() for y in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_errors():
    with pytest.raises(ValueError, match=r"`width` must be one of \('w18', 'w32', 'w48', 'w18_small_v2'\), got 'w40'"):
        hg_hrnet("w40")
    with pytest.raises(ValueError, match="has 4 x 4 pixels"):
        hg_hrnet(SMALL).eval()(torch.rand(1, 3, 64, 64))
