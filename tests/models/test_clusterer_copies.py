"""A clusterer given to two networks, or twice to one, is copied: what one learns the other does not see."""

import inspect

import pytest
import torch
from torch import nn

from hggraph import SoftSLIC, Stencil
from hggraph.models.makers import MAKERS
from hggraph.nn import HGBasicBlock, HGStage, RegionLevel

WITH_CLUSTERER = [name for name, make in MAKERS.items() if "clusterer" in inspect.signature(make).parameters]
# what makes a network have regions, and a small one
OPTIONS: dict[str, dict[str, object]] = {
    "hg_hrnet": {"width": "w18_small_v2"},
    "hg_orientation": {"channels": 8, "depth": 1},
    "gald": {"backbone": "hg_resnet18", "aggregation": "hg"},
    "pyconv_segnet": {"backbone": "hg_resnet50"},
    "deeplab_v3_plus": {"backbone": "hg_resnet50"},
    "hs3_fuse": {"backbone": "hg_resnet50"},
    "specialize_fuse": {"backbone": "hg_resnet50"},
}


class Learned(SoftSLIC):
    """A clusterer with something to learn, which would tell if it were shared."""

    def __init__(self) -> None:
        super().__init__(4)
        self.sharpness = nn.Parameter(torch.ones(()))


def sharpness(module: nn.Module) -> list[nn.Parameter]:
    return [value for name, value in module.named_parameters(remove_duplicate=False) if name.endswith("sharpness")]


@pytest.mark.parametrize("name", WITH_CLUSTERER)
def test_networks_do_not_share_a_clusterer(name):
    with torch.device("meta"):
        given = Learned()
        nets = [MAKERS[name](**OPTIONS.get(name, {}), clusterer=given) for _ in range(2)]
    found = [given.sharpness, *(one for net in nets for one in sharpness(net))]
    assert len(found) >= 3 and len({id(one) for one in found}) == len(found)
    assert list(nets[0].state_dict()) == list(nets[1].state_dict())


def test_stages_and_levels_do_not_share_a_clusterer():
    given = Learned()
    blocks = [HGBasicBlock(4, 4, Stencil.square(3))]
    modules = [HGStage(blocks, given), HGStage(blocks, given), RegionLevel(given), RegionLevel(given)]
    learners = [torch.optim.SGD(sharpness(module), 1.0) for module in modules]
    for one in sharpness(modules[0]):
        one.grad = torch.ones(())
    for learner in learners:
        learner.step()
    assert [one.item() for module in modules for one in sharpness(module)] == [0.0, 1.0, 1.0, 1.0]
    assert given.sharpness.item() == 1.0
