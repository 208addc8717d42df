"""SSD's random crops: boxes stay on their objects, areas and labels with them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from hggraph.data import BoxTrainTransform


def sample(height=60, width=80, boxes=((10, 10, 30, 40), (50, 20, 70, 50))):
    """Return a black image whose objects are filled with a colour of their own, and their masks."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    image, masks = torch.zeros(3, height, width), torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        image[number, y0:y1, x0:x1] = 1
        masks[number, y0:y1, x0:x1] = 1
    return {
        "image": image,
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(boxes)) + 1,
        "masks": masks,
        "area": masks.flatten(1).sum(1).float(),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.bool),
        "name": "a",
    }


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]), st.booleans())
def test_boxes_stay_on_their_objects(seed, zoom_out, crop):
    torch.manual_seed(seed)
    out = BoxTrainTransform(crop=crop, zoom_out=zoom_out)(sample())
    image = out["image"]
    assert type(image) is torch.Tensor and image.dtype == torch.float32 and image.is_contiguous()
    assert len({len(out[key]) for key in ("boxes", "labels", "masks", "area", "iscrowd")}) == 1
    for box, label, mask, area in zip(out["boxes"], out["labels"], out["masks"], out["area"], strict=True):
        x0, y0, x1, y1 = (int(v) for v in box.tolist())
        seen = image[label - 1] == 1
        assert seen[y0:y1, x0:x1].all() and torch.equal(mask.bool(), seen)  # its colour fills it, and nothing else
        assert seen.sum() == (x1 - x0) * (y1 - y0) and abs(area - seen.sum()) < 1e-2


def test_crops_keep_at_least_one_object():
    torch.manual_seed(0)
    outs = [BoxTrainTransform()(sample()) for _ in range(60)]
    assert all(len(out["boxes"]) for out in outs)
    assert len({out["image"].shape for out in outs}) > 20 and {len(out["boxes"]) for out in outs} == {1, 2}


def test_zoom_out_surrounds_the_image():
    torch.manual_seed(0)
    out = BoxTrainTransform(crop=False, zoom_out=1.0)(sample())
    assert out["image"].shape[1] >= 60 and out["image"].shape[2] >= 80 and out["area"].tolist() == [600, 600]


@pytest.mark.parametrize("size", [(60, 80), (5, 4), (1, 1)])
def test_images_without_boxes_and_small_ones(size):
    out = BoxTrainTransform(color=0.5)(sample(*size, boxes=()))
    assert out["image"].shape == (3, *size) and out["boxes"].shape == (0, 4) and out["area"].shape == (0,)
    if size == (5, 4):
        assert BoxTrainTransform()(sample(*size, boxes=((0, 0, 2, 2),)))["image"].shape == (3, 5, 4)


def test_colours_and_bytes():
    bytes_ = sample() | {"image": torch.full((3, 60, 80), 128, dtype=torch.uint8)}
    torch.manual_seed(1)
    plain = BoxTrainTransform(crop=False, flip=0)(bytes_)["image"]
    assert torch.equal(plain, torch.full((3, 60, 80), 128 / 255))
    assert not torch.equal(BoxTrainTransform(crop=False, flip=0, color=0.5)(bytes_)["image"], plain)


def test_errors():
    with pytest.raises(TypeError, match='must have "boxes"'):
        BoxTrainTransform()({"image": torch.rand(3, 9, 9)})
    with pytest.raises(ValueError, match="`crop` must be True or False"):
        BoxTrainTransform(crop=0.5)
    with pytest.raises(ValueError, match=r"`zoom_out` must be a number in \[0, 1\]"):
        BoxTrainTransform(zoom_out=4)
