"""Counts against published figures and against counting by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hggraph import SoftSLIC
from hggraph.models import count, hg_hrnet, hg_resnet

GIGA = 1e9


def net(variant, hg_stages, downsample=64):
    with torch.device("meta"):
        return hg_resnet(101, variant, hg_stages, aux=False, clusterer=SoftSLIC.paper(downsample)).eval()


def total(model, size, **options):
    return count(model, size, **options)[-1].macs / GIGA


def test_published_operations():
    """HG-Conv Table 2, at 769 x 769 by its way of counting: within 1 % of the total."""
    size = (769, 769)
    dense = total(net("dilation", ()), size, paper=True)
    assert dense == pytest.approx(512.8, rel=0.01)
    for variant, hg_stages, more in (("dcn", (), 11.3), ("dilation", (4,), -78.1), ("dcn", (4,), -69.1)):
        assert total(net(variant, hg_stages), size, paper=True) - dense == pytest.approx(more, abs=0.01 * dense)


def test_published_reductions():
    """HG-Conv Table 5, at 1024 x 2048: what stage 4 saves with a region for 16, 32, 64 and 128 pixels."""
    size = (1024, 2048)
    dense = total(net("dilation", ()), size, paper=True)
    for downsample, saved in ((16, 252), (32, 268), (64, 276), (128, 280)):
        found = dense - total(net("dilation", (4,), downsample), size, paper=True)
        assert found == pytest.approx(saved, rel=0.015)


def test_published_operations_of_hrnet():
    with torch.device("meta"):
        hrnet = hg_hrnet("w48", hg=False).eval()
    assert total(hrnet, (1024, 2048)) == pytest.approx(747.5, abs=0.1)


def test_folding_takes_a_third_away():
    size = (713, 713)
    assert total(net("dilation", ()), size) == pytest.approx(441, abs=1)
    assert total(net("dilation", (4,)).fold(), size) == pytest.approx(300, rel=0.02)
    assert total(net("dilation", (3, 4)).fold(), size) == pytest.approx(70, rel=0.05)


@pytest.mark.parametrize("form", [SoftSLIC, SoftSLIC.paper])
@pytest.mark.parametrize("fold", [False, True])
def test_parts_are_the_whole(fold, form):
    model = hg_resnet(18, num_classes=5, clusterer=form(16), aux=False).eval()
    model = model.fold() if fold else model
    parts = count(model, (90, 70))
    *rest, whole = parts
    assert sum(part.macs for part in rest) == whole.macs and whole.flops == 2 * whole.macs
    assert sum(part.parameters for part in rest) == whole.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 90, 70))
    assert counter.get_total_flops() == whole.flops  # meta tensors count as real ones do
    pixels, channels = 12 * 9, 256
    macs = {part.name: part.macs for part in parts}
    if form is SoftSLIC:  # 3 x 2 seeds, all of them candidates; the distance has the position's two channels too
        regions, space = 6, channels + 2
        steps = 2 * 2 + 1  # two updates, each weights and means, and the last weights
    else:
        regions, space = 7, channels
        steps = 2 * 2 + 1  # two updates, each distances and means, and the last weights
    assert macs["trunk.hg: clustering"] == pixels * space * (steps * regions + 1)  # and the first centres' means
    assert macs["trunk.hg: pooling"] == pixels * regions * channels
    assert macs["trunk.hg: adjacency"] == 4 * pixels * regions**2
    if not fold:
        assert macs["trunk.hg: unpooling, 1x1"] == 512 * (pixels * (256 + regions) + regions * 512)
        assert macs["head"] == pixels * (9 * 512 * 128 + 128 * 5)


def test_candidates_are_counted():
    """The default at 713 x 713: 90 x 90 pixels of 1024 channels, 11 x 12 regions, 9 of them for each pixel."""
    with torch.device("meta"):
        model = hg_resnet(101, aux=False).eval()
    macs = {part.name: part.macs for part in count(model, (713, 713))}
    assert macs["trunk.hg: clustering"] == 8100 * 1026 * (1 + 5 * 9)
    assert macs["trunk.hg: pooling"] == 8100 * 1024 * 9
    assert macs["trunk.hg: unpooling, 1x1"] == 2048 * (8100 * (1024 + 9) + 132 * 2048)


def test_what_depends_on_the_image_runs():
    """More than 512 regions have edges, and only an image says how many."""
    model = hg_resnet(18, aux=False, clusterer=SoftSLIC(num_regions=600, candidates=4))
    model.train()
    image = torch.rand(1, 3, 200, 200)  # 25 x 25 pixels reach the stage
    *parts, whole = count(model, (200, 200), image=image)
    assert model.training  # as it was
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    assert whole.flops == counter.get_total_flops() and sum(part.macs for part in parts) == whole.macs
    assert {part.name: part.macs for part in parts}["trunk.hg: clustering"] > 0
    with pytest.raises(ValueError, match="`height` must be a whole number >= 1, got 0"):
        count(model, (0, 48))
