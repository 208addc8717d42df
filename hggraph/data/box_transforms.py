"""From photos with boxes to a detector's: the random crops of SSD."""

from __future__ import annotations

from typing import Any

import torch

from hggraph.data._options import check_share
from hggraph.data.augment import Sample, check_sample, drop_boxes, finish, scale_areas

__all__ = ["BoxTrainTransform"]

LEAST_SIDE = 8  # pixels; of smaller images torchvision's crops may be empty


class BoxTrainTransform:
    """Random crops that keep objects, mirroring and colours, for detectors (Liu et al., *SSD*, ECCV 2016, Sec. 2.2).

    A crop has from 0.3 to 1 of each side, and at least one box that overlaps it by a random 0, 0.1, 0.3, 0.5, 0.7 or
    0.9 (or the image stays whole); boxes whose centre lies outside go.

    Args:
        crop: Cut out.
        zoom_out: Probability of laying the image, before it is cut, on a canvas of up to 4 times its sides.
        flip: Probability of mirroring left and right.
        color: Strength of changes of brightness, contrast and saturation, in [0, 1].

    Call with a sample: a dict with ``"image"`` ``(3, H, W)``, uint8 or floating point in [0, 1], ``"boxes"``
    (torchvision's ``BoundingBoxes``), ``"labels"``, and as far as there are any ``"masks"``, ``"iscrowd"`` and
    ``"area"``. Returns a new dict with the image as float32 in [0, 1], not normalised, as torchvision's detectors take
    it, and what is left of the boxes as corners in float32; other entries as they were.

    Raises:
        ValueError: if an option is not as said; in a call, if shapes do not fit.
        TypeError: in a call, if a part is not of its type.
        ImportError: in a call, without torchvision.

    Note:
        Random by torch's global generator alone. An image without boxes, or under 8 pixels wide or high, is not
        cropped. Areas change as the boxes'.

    Example:
        >>> from torchvision import tv_tensors
        >>> corners = torch.tensor([[0.0, 10.0, 50.0, 30.0]])
        >>> boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(40, 60))
        >>> sample = {"image": torch.zeros(3, 40, 60, dtype=torch.uint8), "boxes": boxes, "labels": torch.tensor([3])}
        >>> out = BoxTrainTransform(flip=1.0, crop=False)(sample)
        >>> out["boxes"].tolist(), out["labels"].tolist(), out["image"].dtype
        ([[10.0, 10.0, 60.0, 30.0]], [3], torch.float32)
    """

    def __init__(self, *, crop: bool = True, zoom_out: float = 0.0, flip: float = 0.5, color: float = 0.0) -> None:
        if not isinstance(crop, bool):
            raise ValueError(f"`crop` must be True or False, got {crop!r}.")
        self.crop = crop
        self.zoom_out = check_share("zoom_out", zoom_out)
        self.flip, self.color = check_share("flip", flip), check_share("color", color)

    def __call__(self, sample: Sample) -> Sample:
        """Return a random view of a sample; see the class."""
        from torchvision.transforms import v2

        sample = check_sample(sample, 3)
        if sample.get("boxes") is None:
            raise TypeError('The sample must have "boxes", torchvision\'s BoundingBoxes, got none.')
        parts: list[Any] = [v2.RandomHorizontalFlip(self.flip)]
        if self.crop and len(sample["boxes"]) and min(sample["image"].shape[1:]) >= LEAST_SIDE:
            parts.insert(0, v2.RandomIoUCrop())
        if self.zoom_out:
            parts.insert(0, v2.RandomZoomOut(p=self.zoom_out))
        if self.color:
            parts.insert(0, v2.ColorJitter(self.color, self.color, self.color))
        moved = drop_boxes(scale_areas(sample, v2.Compose(parts)(sample)))
        moved["image"] = v2.functional.to_dtype(moved["image"], torch.float32, scale=True)
        return finish(moved, tuple(moved["image"].shape[1:]))

    def __repr__(self) -> str:
        return (
            f"BoxTrainTransform(crop={self.crop}, zoom_out={self.zoom_out:g}, flip={self.flip:g}, color={self.color:g})"
        )
