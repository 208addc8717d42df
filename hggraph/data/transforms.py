"""From a data set's samples to a network's: random crops for training, sizes that can be undone for evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_positive
from hggraph.data._options import check_label, check_scale, check_share, check_size, check_statistics
from hggraph.data.augment import Sample, Span, check_sample, cut, drop_boxes, finish, map_sample, normalise, pad, turn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "EvalTransform", "TrainTransform", "undo", "undo_detections"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainTransform:
    """Random scale, crop, rotation, flips and colours, then normalisation: image, masks and boxes alike.

    A window of ``crop / s`` pixels of the image, with the scale s drawn from `scale`, becomes `crop` pixels. Where the
    window is larger than the image, the image lies somewhere in it, surrounded by `mean` (0 after normalisation), and
    in the mask by `ignore_index`. Only the window is resized, so that large images cost what the crop costs.

    Args:
        crop: Height and width of what comes out, pixels.
        scale: Smallest and largest scale, above 0, drawn evenly; (1, 1) for none.
        flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom, as for aerial images.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees, as for aerial images; `crop` is the size after it.
        rotate: Largest rotation to either side, degrees in [0, 180], about the middle of the crop. A box becomes the
            one around its rotated corners.
        color: Strength of changes of brightness, contrast and, with 3 channels, saturation, in [0, 1]: factors are
            drawn from [1 - color, 1 + color]. Hues stay, as some classes live by them. 0 changes nothing.
        blur: Probability of a Gaussian blur of 5 x 5 pixels, sigma 1.1, as PSPNet is trained with.
        ignore_index: Label of pixels without one.
        mean: Mean of each channel in [0, 1], one for each channel of the images.
        std: Standard deviation of each, above 0.

    Call with a sample: a dict with ``"image"``, uint8 or floating point in [0, 1], shape ``(C, H, W)``, and where there
    are such ``"mask"`` ``(H, W)`` of labels, ``"boxes"`` (torchvision's ``BoundingBoxes``, along the axes), ``"masks"``
    ``(N, H, W)`` of 0 and 1, ``"labels"``, ``"iscrowd"`` and ``"area"`` of each box. Returns a new dict with the image
    as float32 ``(C, h, w)`` and the mask as int64 ``(h, w)``, plain tensors; boxes as corners (x, y, x, y) in float32,
    without those of which less than a pixel is left, nor what belongs to them, and areas changed as the boxes'; other
    entries as they were.

    Raises:
        ValueError: if an option is not as said; in a call, if shapes do not fit.
        TypeError: in a call, if a part is not of its type, or a map stands under another name: a map of directions, for
            example, would have to change its labels, so make it afterwards, from the mask.
        ImportError: in a call, without torchvision.

    Note:
        Random by torch's global generator alone: the same seed gives the same sample. Costs resizing the window to
        `crop`; a rotation more than doubles that.

    Example:
        >>> sample = {"image": torch.zeros(3, 40, 60, dtype=torch.uint8), "mask": torch.ones(40, 60, dtype=torch.uint8)}
        >>> out = TrainTransform(crop=(32, 32))(sample)
        >>> out["image"].shape, out["image"].dtype, out["mask"].shape, out["mask"].dtype
        (torch.Size([3, 32, 32]), torch.float32, torch.Size([32, 32]), torch.int64)
    """

    def __init__(
        self,
        crop: tuple[int, int],
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        vertical_flip: float = 0.0,
        quarter_turns: bool = False,
        rotate: float = 0.0,
        color: float = 0.0,
        blur: float = 0.0,
        ignore_index: int = 255,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.crop = check_size("crop", crop)
        self.scale = check_scale("scale", scale)
        self.flip = check_share("flip", flip)
        self.vertical_flip = check_share("vertical_flip", vertical_flip)
        if not isinstance(quarter_turns, bool):
            raise ValueError(f"`quarter_turns` must be True or False, got {quarter_turns!r}.")
        self.quarter_turns = quarter_turns
        self.rotate = check_share("rotate", rotate, 180.0)
        self.color = check_share("color", color)
        self.blur = check_share("blur", blur)
        if blur and min(self.crop) < 3:
            raise ValueError(f"`blur` needs crops of at least 3 x 3 pixels, got {self.crop}.")
        self.ignore_index = check_label("ignore_index", ignore_index)
        self.mean, self.std = check_statistics(mean, std)

    def __call__(self, sample: Sample) -> Sample:
        """Return a random view of a sample; see the class."""
        from torchvision.transforms.v2 import functional as F

        sample = check_sample(sample, len(self.mean))
        turns = int(torch.randint(4, ())) if self.quarter_turns else 0
        angle = _between(-self.rotate, self.rotate) if self.rotate else 0.0
        height, width = self.crop if turns % 2 == 0 else self.crop[::-1]
        scale = _between(*self.scale)
        rows, columns = (
            _place(side, crop, scale, margin)
            for side, crop, margin in zip(
                sample["image"].shape[1:], (height, width), _margins(height, width, angle), strict=True
            )
        )
        color = self._color()
        sample = drop_boxes(cut(sample, rows, columns))
        sample["image"] = normalise(sample["image"], self.mean, self.std, color)
        sample = pad(sample, rows, columns, self.ignore_index)
        if angle:
            sample = drop_boxes(turn(sample, angle, (height, width), self.ignore_index))
        if turns:
            sample = map_sample(sample, lambda _, value: F.rotate(value, 90.0 * turns, expand=True))
        if torch.rand(()) < self.flip:
            sample = map_sample(sample, lambda _, value: F.horizontal_flip(value))
        if torch.rand(()) < self.vertical_flip:
            sample = map_sample(sample, lambda _, value: F.vertical_flip(value))
        if self.blur and torch.rand(()) < self.blur:
            sample["image"] = F.gaussian_blur(sample["image"], [5, 5], [1.1, 1.1])
        return finish(sample, self.crop)

    def __repr__(self) -> str:
        return (
            f"TrainTransform(crop={self.crop}, scale={self.scale}, flip={self.flip:g}, "
            f"vertical_flip={self.vertical_flip:g}, quarter_turns={self.quarter_turns}, rotate={self.rotate:g}, "
            f"color={self.color:g}, blur={self.blur:g}, ignore_index={self.ignore_index}, "
            f"mean={tuple(self.mean)}, std={tuple(self.std)})"
        )

    def _color(self) -> tuple[float, float, float] | None:
        """Return factors of brightness, contrast and saturation."""
        if not self.color:
            return None
        low, high = 1 - self.color, 1 + self.color
        return _between(low, high), _between(low, high), _between(low, high)


class EvalTransform:
    """Bring images to a size, or leave them as they are, then pad and normalise; `undo` takes results back.

    Masks and boxes stay in the images' own pixels, where `undo` brings what a network makes of the image: scores are
    those of the images as they are.

    Args:
        size: Height and width to resize to, whatever the shape of the image. None: not so.
        long_side: Pixels of the longer side to resize to; the shape of the image stays. None: not so.
        multiple: Pad right and bottom to multiples of this, with `mean`. The networks of `hggraph.models` need none:
            they pad themselves. None: no padding.
        mean: Mean of each channel in [0, 1], one for each channel of the images.
        std: Standard deviation of each, above 0.

    Call with a sample as `TrainTransform` takes it. Returns such a one, with the image's own (height, width) added as
    ``"size"``, and as ``"shown"`` that of the image in what comes out, without padding. Images are resized bilinearly,
    with antialiasing.

    Raises:
        ValueError: if an option is not as said, or both `size` and `long_side` are given; in a call, if shapes do not
            fit.
        TypeError: in a call, if a part is not of its type.
        ImportError: in a call, without torchvision.

    Note:
        Nothing random.

    Example:
        >>> transform = EvalTransform(long_side=30, multiple=16)
        >>> out = transform({"image": torch.zeros(3, 40, 60, dtype=torch.uint8)})
        >>> out["image"].shape, out["size"]
        (torch.Size([3, 32, 32]), (40, 60))
        >>> transform.undo(torch.rand(1, 5, 32, 32), out["size"]).shape
        torch.Size([1, 5, 40, 60])
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        long_side: int | None = None,
        multiple: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if size is not None and long_side is not None:
            raise ValueError(f"Give `size` or `long_side`, not both, got {size} and {long_side}.")
        for name, value in (("long_side", long_side), ("multiple", multiple)):
            if value is not None:
                check_positive(name, value)
        self.size = None if size is None else check_size("size", size)
        self.long_side = long_side
        self.multiple = multiple
        self.mean, self.std = check_statistics(mean, std)

    def __call__(self, sample: Sample) -> Sample:
        """Return a sample at its size for evaluation; see the class."""
        sample = check_sample(sample, len(self.mean))
        own = int(sample["image"].shape[1]), int(sample["image"].shape[2])
        rows, columns = self._spans(own)
        moved = cut({"image": sample["image"]}, rows, columns)
        moved["image"] = normalise(moved["image"], self.mean, self.std)
        moved = pad(moved, rows, columns, 0)
        return finish(sample | moved, own) | {"size": own, "shown": (rows.length, columns.length)}

    def undo(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring logits back to the pixels of the image: cut the padding off, then resize.

        Args:
            logits: What a network returns for transformed images, of their size: ``(B, K, h, w)`` or ``(K, h, w)``.
            size: The image's own height and width, ``sample["size"]``.

        Returns:
            Logits ``(B, K, H, W)`` or ``(K, H, W)``, bilinear between pixel centres, as the images were resized.

        Raises:
            ValueError: if the logits have not the size that such an image gets.
        """
        rows, columns = self._spans(check_size("size", size))
        if logits.dim() not in (3, 4) or tuple(logits.shape[-2:]) != (rows.total, columns.total):
            raise ValueError(
                f"`logits` must have shape (B, K, {rows.total}, {columns.total}) or (K, {rows.total}, {columns.total}) "
                f"for an image of {size[0]} x {size[1]}, got {tuple(logits.shape)}."
            )
        return undo(logits, (rows.length, columns.length), size)

    def __repr__(self) -> str:
        return (
            f"EvalTransform(size={self.size}, long_side={self.long_side}, multiple={self.multiple}, "
            f"mean={tuple(self.mean)}, std={tuple(self.std)})"
        )

    def _spans(self, own: tuple[int, int]) -> tuple[Span, Span]:
        """Return where the rows and columns of an image go."""
        lengths: tuple[int, ...] = own
        if self.size is not None:
            lengths = self.size
        elif self.long_side is not None:
            lengths = tuple(max(1, round(side * self.long_side / max(own))) for side in own)
        step = self.multiple or 1
        first, second = (
            Span(0, side, 0, length, -(-length // step) * step) for side, length in zip(own, lengths, strict=True)
        )
        return first, second


def undo(x: Tensor, shown: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Bring maps of what `EvalTransform` has made of an image back to the image's own pixels.

    Args:
        x: Floating point, ``(B, K, h, w)`` or ``(K, h, w)``.
        shown: Height and width of the image in it, as the sample says; what lies beyond is padding.
        size: The image's own height and width.

    Returns:
        Such maps of `size`, bilinear between pixel centres; `x` itself where nothing was changed.

    Example:
        >>> undo(torch.rand(1, 5, 32, 32), (20, 30), (40, 60)).shape
        torch.Size([1, 5, 40, 60])
    """
    if tuple(x.shape[-2:]) != tuple(shown):
        x = x[..., : shown[0], : shown[1]]
    if tuple(shown) == tuple(size):
        return x
    batch = x if x.dim() == 4 else x[None]
    batch = F.interpolate(batch, tuple(size), mode="bilinear", align_corners=False)
    return batch if x.dim() == 4 else batch[0]


def undo_detections(found: dict[str, Tensor], shown: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
    """Bring the boxes ``(N, 4)`` and masks ``(N, 1, h, w)`` that a detector has found back to the image's own pixels.

    Args:
        found: As torchvision's detectors return it.
        shown: See `undo`.
        size: See `undo`.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
        >>> undo_detections({"boxes": boxes}, (20, 30), (40, 60))["boxes"]
        tensor([[ 0.,  0., 20., 40.]])
    """
    if tuple(shown) == tuple(size):
        return found
    scale = found["boxes"].new_tensor([size[1] / shown[1], size[0] / shown[0]] * 2)
    back = found | {"boxes": found["boxes"] * scale}
    if "masks" in found:
        back["masks"] = undo(found["masks"], shown, size)
    return back


def _between(low: float, high: float) -> float:
    """Draw a number evenly by torch's global generator."""
    return low + (high - low) * float(torch.rand(()))


def _margins(height: int, width: int, angle: float) -> tuple[int, int]:
    """Return how far a crop of this size reaches beyond itself on each side when turned about its middle."""
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    tall, wide = height * cos + width * sin, height * sin + width * cos
    return math.ceil(max(0.0, tall - height) / 2), math.ceil(max(0.0, wide - width) / 2)


def _place(side: int, crop: int, scale: float, margin: int) -> Span:
    """Draw where a crop lies along an axis.

    Args:
        side: Pixels of the image.
        crop: Pixels of the crop.
        scale: Pixels of the crop for one of the image.
        margin: Pixels of the crop that are wanted on either side of it too.
    """
    window = max(1, round(crop / scale))
    ratio = crop / window
    room = side - window
    start = int(torch.randint(abs(room) + 1, ())) * (1 if room >= 0 else -1)
    around = round(margin / ratio)
    start, window, total = start - around, window + 2 * around, crop + 2 * margin
    first, last = max(0, start), min(side, start + window)
    # at least a pixel of the image stays, wherever rounding puts it
    offset = min(round((first - start) * total / window), total - 1)
    end = max(offset + 1, round((last - start) * total / window))
    return Span(first, last, offset, end - offset, total)
