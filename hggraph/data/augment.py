"""Geometry and colour of a sample: its image, masks and boxes move together.

A sample is a dict. ``"image"`` is an image ``(C, H, W)``, uint8 or floating point in [0, 1]; ``"mask"`` a map of labels
``(H, W)``; ``"boxes"`` torchvision's ``BoundingBoxes``, with ``"labels"``, ``"iscrowd"``, ``"area"`` in pixels and
``"masks"``, a mask ``(N, H, W)`` of 0 and 1 for each box, in the same order. All but the image may be missing; other
entries are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Sample",
    "Span",
    "check_sample",
    "cut",
    "drop_boxes",
    "finish",
    "map_sample",
    "normalise",
    "pad",
    "scale_areas",
    "turn",
]

Sample = dict[str, Any]

MAPS = ("image", "mask", "masks", "boxes")  # what has a place in the image
PER_BOX = ("boxes", "labels", "masks", "iscrowd", "area")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
LEAST_BOX = 1.0  # pixels


class Span(NamedTuple):
    """Where an axis of an image goes: source pixels [start, stop) to `length` pixels from `offset` on, of `total`."""

    start: int
    stop: int
    offset: int
    length: int
    total: int


def check_sample(sample: Sample, channels: int) -> Sample:
    """Return a copy of a sample with torchvision's types, boxes as corners in float32, once its parts fit together.

    Args:
        sample: As the module says; image and masks may be plain tensors.
        channels: Channels that the image must have.

    Raises:
        TypeError: if a part is not of its type, or a map stands under a name that is not known.
        ValueError: if shapes do not fit.
    """
    from torchvision import tv_tensors

    where = f"Sample {sample['name']!r}" if "name" in sample else "The sample"
    image = sample.get("image")
    if not isinstance(image, Tensor) or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise TypeError(
            f'{where} must have an "image", a tensor of uint8 or floating point in [0, 1], got {_kind(image)}.'
        )
    if image.dim() != 3 or image.shape[0] != channels or 0 in image.shape:
        raise ValueError(
            f"{where} must have an image of shape ({channels}, H, W), a channel for each number of `mean`, got "
            f"{tuple(image.shape)}."
        )
    size = tuple(image.shape[1:])
    out = sample | {"image": tv_tensors.Image(image)}
    for key in ("mask", "masks"):
        mask = sample.get(key)
        if mask is None:
            continue
        wanted = (len(mask), *size) if key == "masks" and isinstance(mask, Tensor) and mask.dim() else size
        if not isinstance(mask, Tensor) or mask.dtype not in INTEGERS:
            raise TypeError(f'{where} must have a "{key}" of integers, got {_kind(mask)}.')
        if tuple(mask.shape) != wanted:
            raise ValueError(
                f'{where} must have a "{key}" of shape {wanted}, as its image has shape {tuple(image.shape)}, got '
                f"{tuple(mask.shape)}."
            )
        out[key] = tv_tensors.Mask(mask.to(torch.uint8) if mask.dtype == torch.bool else mask)
    if sample.get("boxes") is not None:
        out["boxes"] = _checked_boxes(out, where)
    strange = [key for key, value in sample.items() if key not in MAPS and isinstance(value, tv_tensors.TVTensor)]
    if strange:
        raise TypeError(f"{where} has maps under names that are not known: {strange}, expected {sorted(MAPS)}.")
    return out


def map_sample(sample: Sample, function: Callable[[str, Any], Any]) -> Sample:
    """Return a sample with ``function(name, value)`` for each part that has a place in the image."""
    return sample | {key: function(key, sample[key]) for key in MAPS if sample.get(key) is not None}


def cut(sample: Sample, rows: Span, columns: Span) -> Sample:
    """Cut a window out of a sample and bring it to another size, without what surrounds it.

    Images are resized bilinearly, with antialiasing, masks to the nearest pixel's label by the same pixel centres.
    Boxes outside become empty; an object's area changes as that of its box. The mask comes out as int64, which has
    every ignored label.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    window = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
    size = [rows.length, columns.length]

    def move(name: str, value: Any) -> Any:
        value = F.crop(value, *window)
        if name not in ("mask", "masks"):
            return F.resize(value, size, antialias=True)
        # not F.resize: of two by two pixels it would take the first, half a pixel off the image
        planes = value.as_subclass(Tensor)[..., None, :, :]
        resized = F.resize_image(planes, size, interpolation=InterpolationMode.NEAREST_EXACT)[..., 0, :, :]
        return tv_tensors.Mask(resized.long() if name == "mask" else resized)

    return scale_areas(sample, map_sample(sample, move))


def scale_areas(before: Sample, after: Sample) -> Sample:
    """Return the sample that became of another with the objects' areas changed as those of their boxes."""
    if before.get("boxes") is None or before.get("area") is None:
        return after
    old, new = (_sides(one["boxes"]).prod(1) for one in (before, after))
    return after | {"area": before["area"] * torch.where(old > 0, new / old, 0.0)}


def pad(sample: Sample, rows: Span, columns: Span, ignore_index: int) -> Sample:
    """Surround what `cut` has cut: images, already normalised, with 0, the mean; the mask with `ignore_index`."""
    from torchvision.transforms.v2 import functional as F

    left, top = columns.offset, rows.offset
    right, bottom = columns.total - left - columns.length, rows.total - top - rows.length
    if not (left or top or right or bottom):
        return sample
    return map_sample(
        sample, lambda name, value: F.pad(value, [left, top, right, bottom], fill=_fill(name, ignore_index))
    )


def turn(sample: Sample, angle: float, size: tuple[int, int], ignore_index: int) -> Sample:
    """Rotate a normalised sample about its middle and keep the middle of it.

    Args:
        sample: What `pad` returns, so large that the rotated middle lies inside.
        angle: Degrees, against the clock.
        size: Height and width of what is kept.
        ignore_index: Label of pixels from outside.

    A box becomes the box around its rotated corners. Empty boxes must have been dropped before.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    def move(name: str, value: Any) -> Any:
        fill = _fill(name, ignore_index) or None  # None is 0 too, and quicker
        rotated = F.rotate(value, angle, interpolation=InterpolationMode.BILINEAR, fill=fill)  # masks: nearest
        return F.center_crop(rotated, list(size))

    return map_sample(sample, move)


def drop_boxes(sample: Sample) -> Sample:
    """Drop boxes with a side of less than a pixel, and what belongs to them."""
    from torchvision import tv_tensors

    boxes = sample.get("boxes")
    if boxes is None:
        return sample
    keep = _sides(boxes).amin(1) > LEAST_BOX - 1e-3  # rounding must not drop a box that is a pixel wide
    out = dict(sample)
    for key in PER_BOX:
        value = sample.get(key)
        if isinstance(value, tv_tensors.TVTensor):
            out[key] = tv_tensors.wrap(value.as_subclass(Tensor)[keep], like=value)
        elif value is not None:
            out[key] = value[keep]
    return out


def normalise(image: Any, mean: list[float], std: list[float], color: tuple[float, float, float] | None = None) -> Any:
    """Return an image as float32, with the colours adjusted before if asked for, minus the mean, over the deviation."""
    from torchvision.transforms.v2 import functional as F

    image = F.to_dtype(image, torch.float32, scale=True)
    if color is not None:
        image = _adjust_color(image, *color)
    return F.normalize(image, mean, std)


def finish(sample: Sample, size: tuple[int, int]) -> Sample:
    """Return a sample as a network takes it: plain contiguous tensors, and boxes inside an image of this size."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    def close(name: str, value: Any) -> Any:
        tensor = value.as_subclass(Tensor).contiguous()
        if name == "boxes":  # turned without a box, torchvision forgets the new size; rounding leaves it by 1e-6
            boxes = tv_tensors.BoundingBoxes(tensor, format=value.format, canvas_size=size)
            return F.clamp_bounding_boxes(boxes)
        return tensor.long() if name == "mask" else tensor

    return map_sample(sample, close)


def _adjust_color(image: Any, brightness: float, contrast: float, saturation: float) -> Any:
    """Return an image in [0, 1] with these factors applied in this order, each result clipped to [0, 1].

    With other than 1 or 3 channels each channel has a contrast of its own and there is no saturation.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    x = image.as_subclass(Tensor)
    plain = x.shape[0] not in (1, 3)
    x = x[:, None] if plain else x
    x = F.adjust_contrast(F.adjust_brightness(x, brightness), contrast)
    x = x[:, 0] if plain else F.adjust_saturation(x, saturation)
    return tv_tensors.wrap(x, like=image)


def _checked_boxes(sample: Sample, where: str) -> Any:
    """Return boxes as corners in float32."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    boxes, size = sample["boxes"], tuple(sample["image"].shape[1:])
    if not isinstance(boxes, tv_tensors.BoundingBoxes) or tuple(boxes.canvas_size) != size:
        raise TypeError(
            f'{where} must have "boxes" of type torchvision.tv_tensors.BoundingBoxes with canvas_size={size}, got '
            f"{boxes!r:.200}."
        )
    if tv_tensors.is_rotated_bounding_format(boxes.format):
        raise TypeError(f"{where} must have boxes along the axes, got the format {boxes.format.name}.")
    found = {key: sample[key] for key in PER_BOX if sample.get(key) is not None}
    lengths = {key: len(value) if isinstance(value, Tensor) else _kind(value) for key, value in found.items()}
    if any(length != len(boxes) for length in lengths.values()):
        raise ValueError(f"{where} must have tensors with one entry for each box, got {lengths}.")
    corners = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    return tv_tensors.wrap(corners.as_subclass(Tensor).to(torch.float32), like=corners)


def _sides(boxes: Any) -> Tensor:
    """Return widths and heights ``(N, 2)``."""
    corners: Tensor = boxes.as_subclass(Tensor)
    return corners[:, 2:] - corners[:, :2]


def _fill(name: str, ignore_index: int) -> int:
    return ignore_index if name == "mask" else 0


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
