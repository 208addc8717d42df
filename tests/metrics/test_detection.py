"""COCO's average precision: needs pycocotools, and says so; with it, hand-made cases and any order of images."""

import importlib.util

import pytest
import torch

from hggraph.metrics.detection import CocoAP

needs_coco = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="needs pycocotools, which is not installed"
)


def scene(seed):
    """Detections that are near the truth, each with its own score."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 4, (1,), generator=generator)) if seed else 3
    corner = torch.rand(count, 2, generator=generator) * 40
    box = torch.cat([corner, corner + 5 + 20 * torch.rand(count, 2, generator=generator)], 1)
    labels = torch.randint(1, 4, (count,), generator=generator)
    moved = box + torch.randn(box.shape, generator=generator)
    masks = torch.zeros(count, 70, 70, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, box.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    prediction = {"boxes": moved, "labels": labels, "scores": torch.rand(count, generator=generator).round(decimals=1)}
    prediction["masks"] = masks[:, None].roll(1, 2).float() * 0.8
    return prediction, {"boxes": box, "labels": labels, "masks": masks}


def test_missing_library_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "coco" in name else found(name, *rest))
    with pytest.raises(ImportError, match=r"needs pycocotools, which is not installed: pip install pycocotools"):
        CocoAP()


@needs_coco
def test_exact_and_missed_boxes():
    box = torch.tensor([[10.0, 10.0, 50.0, 60.0], [100.0, 20.0, 260.0, 180.0]])
    label = torch.tensor([1, 2])
    metric = CocoAP()
    metric.update(
        [{"boxes": box[:1], "scores": torch.tensor([0.9]), "labels": label[:1]}], [{"boxes": box, "labels": label}]
    )
    result = metric.compute()
    assert {name: value.item() for name, value in result.items()} == pytest.approx(
        {"ap": 0.5, "ap50": 0.5, "ap75": 0.5, "ap_s": -1, "ap_m": 1, "ap_l": 0}, abs=1e-6
    )


@needs_coco
def test_threshold_of_overlap():
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    found = torch.tensor([[0.0, 0.0, 100.0, 62.0]])  # an intersection over union of 0.62: 3 of 10 thresholds
    metric = CocoAP()
    metric.update(
        [{"boxes": found, "scores": torch.tensor([0.5]), "labels": torch.tensor([0])}],
        [{"boxes": box, "labels": torch.tensor([0])}],
    )
    result = metric.compute()
    assert result["ap"].item() == pytest.approx(0.3, abs=1e-6)
    assert (result["ap50"], result["ap75"]) == (1, 0)


@needs_coco
def test_masks_of_torchvision():
    metric = CocoAP(("bbox", "segm"))
    masks = torch.zeros(1, 1, 40, 40)
    masks[:, :, 5:25, 5:25] = 0.7
    masks[:, :, 30:, 30:] = 0.3
    box = torch.tensor([[5.0, 5.0, 25.0, 25.0]])
    metric.update(
        [{"boxes": box + 15, "scores": torch.tensor([0.5]), "labels": torch.tensor([0]), "masks": masks}],
        [{"boxes": box, "labels": torch.tensor([0]), "masks": (masks[:, 0] > 0.5).to(torch.uint8)}],
    )
    result = metric.compute()
    assert result["mask_ap"] == 1 and result["ap"] == 0


@needs_coco
@pytest.mark.parametrize("kinds", [("bbox",), ("segm",), ("bbox", "segm")])
def test_order_and_partition(kinds):
    scenes = [scene(seed) for seed in range(7)]
    whole, parts = CocoAP(kinds), CocoAP(kinds)
    whole.update(*(list(part) for part in zip(*scenes, strict=True)))
    for index in [4, 0, 6, 2, 5, 1, 3]:
        parts.update([scenes[index][0]], [scenes[index][1]])
    result = whole.compute()
    assert result == parts.compute()
    assert 0 < result["mask_ap" if kinds == ("segm",) else "ap"] < 1


@needs_coco
def test_no_data():
    metric = CocoAP()
    assert all(value == -1 for value in metric.compute().values())
    metric.update([], [])
    assert all(value == -1 for value in metric.compute().values())
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    metric.update([nothing], [{name: nothing[name] for name in ("boxes", "labels")}])
    assert all(value == -1 for value in metric.compute().values())


@needs_coco
def test_bad_input():
    with pytest.raises(ValueError, match='must be a sequence of "bbox" and "segm"'):
        CocoAP(("boxes",))
    with pytest.raises(ValueError, match='must be a sequence of "bbox" and "segm"'):
        CocoAP("bbox")
    with pytest.raises(ValueError, match="one dict for each image, got 1 and 0"):
        CocoAP().update([scene(0)[0]], [])
    prediction, target = scene(0)
    wrong = prediction | {"scores": torch.full_like(prediction["scores"], torch.nan)}
    with pytest.raises(ValueError, match=r"`prediction\[0\]\['scores'\]` is NaN"):
        CocoAP().update([wrong], [target])
    with pytest.raises(ValueError, match=r"`target\[0\]\['boxes'\]` is NaN"):
        CocoAP().update([prediction], [target | {"boxes": target["boxes"] * torch.nan}])
    with pytest.raises(ValueError, match="scores"):
        CocoAP().update([scene(0)[1]], [scene(0)[1]])
