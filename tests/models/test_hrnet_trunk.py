"""The stages of an HRNet against timm's, and its last module on regions."""

import pytest
import torch
import torch.nn.functional as F

from hggraph import HGStage, SoftSLIC
from hggraph.models import hg_hrnet
from hggraph.models.hrnet_trunk import HRNetTrunk, create_hrnet, hrnet_trunk

SMALL = "w18_small_v2"


def test_stages_of_timm():
    hrnet = create_hrnet(SMALL).eval()
    x, found = torch.randn(2, 3, 64, 96), []
    handles = [
        stage.register_forward_hook(lambda *call: found.append(call[-1])) for stage in (hrnet.stage2, hrnet.stage3)
    ]
    with torch.no_grad():
        found.append(hrnet.forward_features(x))
        for handle in handles:
            handle.remove()
        maps, clustered = HRNetTrunk(hrnet)(x)
        for got, branches in zip(maps, found, strict=True):
            size = branches[0].shape[2:]
            want = [F.interpolate(y, size, mode="bilinear", align_corners=True) for y in branches]
            torch.testing.assert_close(got, torch.cat(want, 1))
    assert [x.shape[1] for x in maps] == [54, 126, 270] and clustered == []


@pytest.mark.parametrize(("width", "finest"), [("w18", 18), ("w32", 32), ("w48", 48), (SMALL, 18)])
def test_channels(width, finest):
    with torch.device("meta"):
        trunk = hrnet_trunk(width).eval()
        maps, _ = trunk(torch.empty(1, 3, 64, 32))
    assert trunk.channels == [x.shape[1] for x in maps] == [3 * finest, 7 * finest, 15 * finest]


def test_regions_of_hg_hrnet():
    """The same branches on regions, the same exchange: with the same weights the maps of `hg_hrnet`."""
    net = hg_hrnet(SMALL, num_classes=3, clusterer=SoftSLIC(4)).eval()
    trunk = hrnet_trunk(SMALL, hg=True, clusterer=SoftSLIC(4)).eval()
    assert all(isinstance(branch, HGStage) for branch in trunk.stages[2][-1].branches)
    whole, last = net.trunk, net.last_module
    stem = torch.nn.Sequential(whole.conv1, whole.bn1, whole.act1, whole.conv2, whole.bn2, whole.act2, whole.layer1)
    trunk.stem.load_state_dict(stem.state_dict())
    layers = [whole.transition1, whole.transition2, whole.transition3]
    for mine, theirs in zip(trunk.transitions, layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    for mine, theirs in zip(trunk.stages, (whole.stage2, whole.stage3, [*whole.stage4, last]), strict=True):
        for module, other in zip(mine, theirs, strict=True):
            module.load_state_dict(other.state_dict())
    x, attention = torch.rand(2, 3, 96, 64), torch.rand(2, 96, 64)
    with torch.no_grad():
        maps, clustered = trunk(x, attention)
        found = net(x, attention, return_regions=True)
        assert [each.name for each in clustered] == ["branch 1", "branch 2", "branch 3", "branch 4"]
        for mine, theirs in zip(clustered, found["regions"], strict=True):
            torch.testing.assert_close(mine.assignment.labels, theirs.assignment.labels)
        want = F.interpolate(net.head(maps[-1]), (96, 64), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found["out"], want)


def test_unknown_width():
    with pytest.raises(ValueError, match=r"`width` must be one of .* got 'w40'"):
        hrnet_trunk("w40")
