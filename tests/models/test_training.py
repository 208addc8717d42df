"""Each network learns: some steps on two frames lower its loss, auxiliary losses included.

The frames are those of CamVid where the environment names a copy (``HGGRAPH_CAMVID``, a folder with ``train`` and
``trainannot``, masks of 11 classes and 11 for void), else the two sample photos with classes of brightness.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hggraph import SoftSLIC
from hggraph.data import load_image, sample_photo
from hggraph.models import gald, hg_detector, hg_hrnet, hg_orientation, hg_resnet, hg_resunet, pyconv_segnet
from tests.models.test_gald import ALL

CLASSES, VOID, CAR = 11, 11, 8
SIZE = (120, 160)


def camvid(folder: Path) -> tuple[Tensor, Tensor]:
    paths = sorted((folder / "train").iterdir())
    paths = [paths[0], paths[len(paths) // 2]]
    masks = [np.array(Image.open(folder / "trainannot" / f"{path.stem}.png")) for path in paths]
    return torch.stack([load_image(path) for path in paths]), torch.from_numpy(np.stack(masks)).long()


@pytest.fixture(scope="module", params=["photos", "camvid"])
def frames(request) -> tuple[Tensor, Tensor]:
    """Return two images (2, 3, H, W), normalised, and their classes (2, H, W)."""
    if request.param == "camvid":
        folder = os.environ.get("HGGRAPH_CAMVID")
        if not folder:
            pytest.skip("needs CamVid: set HGGRAPH_CAMVID to a folder with train/ and trainannot/")
        images, classes = camvid(Path(folder))
    else:
        images = torch.stack([sample_photo("china"), sample_photo("flower")])
        classes = (images.mean(1) * CLASSES).long().clamp(max=CLASSES - 1)
    images = F.interpolate(images, SIZE, mode="bilinear", antialias=True)
    classes = F.interpolate(classes[:, None].float(), SIZE, mode="nearest")[:, 0].long()
    return (images - 0.45) / 0.225, classes


def losses(net: nn.Module, loss, steps: int = 6, rate: float = 0.003) -> list[float]:
    """Train on the same images and return the loss before each step and after the last."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        found.append(value.item())
    with torch.no_grad():
        return [*found, loss().item()]


def segmentation(net: nn.Module, x: Tensor, classes: Tensor):
    def loss() -> Tensor:
        out = net(x)
        main = F.cross_entropy(out["out"], classes, ignore_index=VOID)
        return main + 0.4 * F.cross_entropy(out["aux"], classes, ignore_index=VOID)

    return loss


@pytest.mark.parametrize(
    "make",
    [
        lambda: hg_resnet(18, "dilation", (4,), CLASSES),
        lambda: hg_resnet(18, "dcn", (3, 4), CLASSES),
        lambda: hg_hrnet("w18_small_v2", num_classes=CLASSES, clusterer=SoftSLIC(4)),
    ],
    ids=["hg_resnet", "hg_resnet on stages 3 and 4", "hg_hrnet"],
)
def test_segmentation(make, frames):
    net = make()
    before, *_, after = losses(net, segmentation(net, *frames))
    assert after < 0.8 * before


@pytest.mark.parametrize(("aggregation", "distribution", "arrangement"), ALL)
def test_gald(aggregation, distribution, arrangement, frames):
    options = {"channels": 32, "kernel_size": 3, "dilation": 2, "clusterer": SoftSLIC(16)}
    net = gald("resnet18", aggregation, distribution, arrangement, CLASSES, **options)
    before, *_, after = losses(net, segmentation(net, *frames), steps=4)
    assert after < 0.9 * before


def test_gald_on_regions(frames):
    options = {"channels": 32, "kernel_size": 3, "clusterer": SoftSLIC(16), "num_classes": CLASSES}
    net = gald("hg_resnet18", "hg", "v2", **options)
    before, *_, after = losses(net, segmentation(net, *frames))
    assert after < 0.8 * before


@pytest.mark.parametrize("backbone", ["pyconv_resnet18", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_pyconv_segnet(backbone, frames):
    net = pyconv_segnet(backbone, CLASSES, channels=64)
    before, *_, after = losses(net, segmentation(net, *frames), steps=4)
    assert after < 0.9 * before


def test_resunet_finds_an_object_and_focuses_on_it(frames):
    x, classes = frames
    wanted = (classes == (CAR if (classes == CAR).any() else classes.mode().values[0].mode().values)).float()[:, None]
    net = hg_resunet(18, attention="object")

    def loss() -> Tensor:
        return sum(F.binary_cross_entropy_with_logits(y, wanted) for y in net(x).values())

    before, *_, after = losses(net, loss)
    assert after < 0.8 * before


def test_orientation(frames):
    x, classes = frames
    road, direction = (classes == 3).long(), classes * 3  # any classes at all
    net = hg_orientation(channels=16, depth=2, clusterer=SoftSLIC(4))

    def loss() -> Tensor:
        out = net(x)
        assert list(out) == ["out", "orientation", "aux", "aux_orientation"]
        total = 0
        for name, y in out.items():
            target = direction if "orientation" in name else road
            size = y.shape[2:]
            target = target if size == SIZE else F.interpolate(target[:, None].float(), size)[:, 0].long()
            total = total + F.cross_entropy(y, target)
        return total

    before, *_, after = losses(net, loss, steps=12)
    assert after < 0.8 * before


@pytest.mark.slow
def test_detector(frames):
    x, _ = frames
    targets = [
        {"boxes": torch.tensor([[20.0, 30.0, 90.0, 100.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[40.0, 10.0, 150.0, 110.0], [5.0, 5.0, 60.0, 60.0]]), "labels": torch.tensor([2, 1])},
    ]
    trunk = hg_resnet(18, output_stride=16, clusterer=SoftSLIC(4)).trunk
    net = hg_detector("faster_rcnn", trunk, 3, min_size=SIZE[0], max_size=SIZE[1])
    images = list(x * 0.225 + 0.45)

    def loss() -> Tensor:
        torch.manual_seed(0)  # the detector samples proposals
        return sum(net(images, targets).values())

    before, *_, after = losses(net, loss, steps=3, rate=0.001)
    assert after < 0.8 * before
