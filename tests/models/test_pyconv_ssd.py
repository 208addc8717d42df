"""PyConvSSD and its baseline: published counts and boxes, a loss that falls, detections."""

import pytest
import torch
from torch import nn

from hggraph.models import pyconv_ssd
from hggraph.models.pyconv_ssd import SCALES, SIZE
from hggraph.nn import PyConv2d


@pytest.mark.parametrize(
    ("depth", "pyramids", "parameters"), [(50, False, "22.89"), (101, True, "39.01"), (50, True, "21.55")]
)
def test_published_parameters(depth, pyramids, parameters):
    with torch.device("meta"):
        net = pyconv_ssd(depth, pyramids=pyramids)
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}" == parameters


@pytest.mark.parametrize("pyramids", [True, False])
def test_maps_and_boxes(pyramids):
    """38 pixels to 1, as strides and paddings of the extra layers say; 8732 boxes."""
    with torch.device("meta"):
        net = pyconv_ssd(pyramids=pyramids).eval()
        maps = list(net.backbone(torch.empty(2, 3, SIZE, SIZE)).values())
    sizes = [(1024, 38), (512, 19), (512, 10), (256, 5), (256, 3), (256, 1)]
    assert [tuple(y.shape[1:]) for y in maps] == [(channels, side, side) for channels, side in sizes]
    assert net.head(maps)["cls_logits"].shape == (2, 8732, 81)
    assert sum(side**2 * boxes for (_, side), boxes in zip(sizes, (4, 6, 6, 6, 4, 4), strict=True)) == 8732
    assert all(conv.stride == (1, 1) for conv in net.backbone.body.layer3.modules() if isinstance(conv, nn.Conv2d))


def test_pyramids_of_the_extra_layers():
    with torch.device("meta"):
        extras = pyconv_ssd().backbone.extras
    found = [next(part for part in layer if isinstance(part, PyConv2d)) for layer in extras]
    assert [[level.kernel_size[0] for level in conv.pyramid] for conv in found] == [
        [3, 5, 7, 9],
        [3, 5, 7],
        [3, 5],
        [3],
        [3],
    ]
    assert [conv.padding for conv in found] == [True, True, True, False, False]


def test_scales_are_those_of_300_pixels():
    assert [round(SIZE * scale) for scale in SCALES] == [21, 45, 99, 153, 207, 261, 315]


@pytest.mark.slow
def test_trains_and_detects():
    net = pyconv_ssd(50, num_classes=3)
    images = [torch.rand(3, 100, 140), torch.rand(3, 120, 90)]
    targets = [
        {"boxes": torch.tensor([[10.0, 20.0, 80.0, 90.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[5.0, 5.0, 60.0, 100.0]]), "labels": torch.tensor([2])},
    ]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        parts = net(images, targets)
        loss = sum(parts.values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert set(parts) == {"bbox_regression", "classification"} and losses[-1] < losses[0]
    with torch.no_grad():
        found = net.eval()(images)
    assert all(f["boxes"].shape == (len(f["scores"]), 4) and set(f["labels"].tolist()) <= {1, 2} for f in found)
    with torch.no_grad():
        torch._dynamo.reset()
        x = torch.rand(1, 3, SIZE, SIZE)
        compiled = torch.compile(net.backbone, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)["5"], net.backbone(x)["5"], rtol=1e-3, atol=1e-4)
        program = torch.export.export(net.backbone, (x,)).module()
        torch.testing.assert_close(program(x)["5"], net.backbone(x)["5"], rtol=1e-3, atol=1e-4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`depth` must be one of \(50, 101, 152\), got 18"):
        pyconv_ssd(18)
    with pytest.raises(ValueError, match="`num_classes` must be a whole number >= 2, got 1"):
        pyconv_ssd(num_classes=1)
    with torch.device("meta"), pytest.raises(ValueError, match="no weights of PyConvResNets to download"):
        pyconv_ssd(pretrained=True)
