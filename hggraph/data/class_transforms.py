"""From images and clips with one class to a network's: random crops for training, one or several for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_positive
from hggraph.data._options import check_scale, check_share, check_size, check_statistics
from hggraph.data.augment import Sample, normalise
from hggraph.data.transforms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["ClassEvalTransform", "ClassTrainTransform"]


class ClassTrainTransform:
    """Random crop, mirroring and colours, then normalisation; all frames of a clip alike.

    Either a window of a random share of the image and a random shape is brought to the size (``area``, as for ImageNet
    since Szegedy et al. 2015), or the shorter side is brought to a random length and a window of the size cut out
    (``short_side``, as for Kinetics).

    Args:
        size: Side of what comes out, pixels.
        area: Smallest and largest share of the image's area, in (0, 1]; its shape is from 3:4 to 4:3.
        short_side: Smallest and largest length of the shorter side, at least `size`, instead of `area`.
        flip: Probability of mirroring left and right.
        color: Strength of changes of brightness, contrast and saturation, in [0, 1].
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each, above 0.

    Call with a sample: a dict with ``"image"`` ``(C, H, W)`` or ``"video"`` ``(T, C, H, W)``, uint8 or floating point
    in [0, 1]. Returns a new dict with float32 ``(C, size, size)``, or ``(C, T, size, size)`` as networks for video
    take it; other entries as they were.

    Raises:
        ValueError: if an option is not as said; in a call, if shapes do not fit.
        TypeError: in a call, if the sample has neither, or not as said.
        ImportError: in a call, without torchvision.

    Note:
        Random by torch's global generator alone. Costs resizing the window.

    Example:
        >>> sample = {"image": torch.zeros(3, 40, 60, dtype=torch.uint8), "label": 2}
        >>> out = ClassTrainTransform(32)(sample)
        >>> out["image"].shape, out["image"].dtype, out["label"]
        (torch.Size([3, 32, 32]), torch.float32, 2)
    """

    def __init__(
        self,
        size: int = 224,
        *,
        area: tuple[float, float] = (0.08, 1.0),
        short_side: tuple[int, int] | None = None,
        flip: float = 0.5,
        color: float = 0.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        check_positive("size", size)
        self.size = size
        self.area = check_scale("area", area)
        if self.area[1] > 1:
            raise ValueError(f"`area` must be shares in (0, 1], got {area}.")
        if short_side is not None and not size <= check_size("short_side", short_side)[0] <= short_side[1]:
            raise ValueError(f"`short_side` must be two rising lengths of at least `size`, {size}, got {short_side}.")
        self.short_side = short_side
        self.flip, self.color = check_share("flip", flip), check_share("color", color)
        self.mean, self.std = check_statistics(mean, std)

    def __call__(self, sample: Sample) -> Sample:
        """Return a random view of a sample; see the class."""
        from torchvision.transforms import v2

        key, x = pixels_of(sample, len(self.mean))
        crop: Any
        if self.short_side is None:
            crop = v2.RandomResizedCrop(self.size, scale=self.area, antialias=True)
        else:
            low, high = self.short_side
            side = int(torch.randint(low, high + 1, ()))
            crop = v2.Compose([v2.Resize(side, antialias=True), v2.RandomCrop(self.size)])
        parts = [crop, v2.RandomHorizontalFlip(self.flip)]
        if self.color:
            parts.append(v2.ColorJitter(self.color, self.color, self.color))
        return sample | {key: finish_pixels(v2.Compose(parts)(x), self.mean, self.std)}

    def __repr__(self) -> str:
        return (
            f"ClassTrainTransform(size={self.size}, area={self.area}, short_side={self.short_side}, "
            f"flip={self.flip:g}, color={self.color:g}, mean={tuple(self.mean)}, std={tuple(self.std)})"
        )


class ClassEvalTransform:
    """Bring the shorter side to a length, cut one or three windows out, normalise.

    Args:
        size: Side of the windows, pixels.
        short_side: Length of the shorter side, at least `size`; None: `size` / 0.875, as for ImageNet.
        crops: 1, the middle; or 3, which cover the longer side, as for Kinetics.
        views: Give ``(V, C, ...)``, as `hggraph.engine.ClassificationTask` takes with ``views=True``: of a clip, or of
            several ``(N, T, C, H, W)``, all windows. Needed for several crops or clips.
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each, above 0.

    Call with a sample as `ClassTrainTransform` takes it. Returns such a one, with ``views`` one dimension more.

    Raises:
        ValueError: if an option is not as said; in a call, if shapes do not fit.
        TypeError: in a call, if the sample has neither image nor video, or not as said.
        ImportError: in a call, without torchvision.

    Note:
        Nothing random.

    Example:
        >>> sample = {"video": torch.zeros(5, 3, 40, 60, dtype=torch.uint8)}
        >>> ClassEvalTransform(32)(sample)["video"].shape
        torch.Size([3, 5, 32, 32])
        >>> ClassEvalTransform(32, crops=3, views=True)(sample)["video"].shape
        torch.Size([3, 3, 5, 32, 32])
    """

    def __init__(
        self,
        size: int = 224,
        *,
        short_side: int | None = None,
        crops: int = 1,
        views: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        check_positive("size", size)
        self.size = size
        self.short_side = round(size / 0.875) if short_side is None else short_side
        check_positive("short_side", self.short_side)
        if self.short_side < size:
            raise ValueError(f"`short_side` must be at least `size`, {size}, got {short_side}.")
        if crops not in (1, 3):
            raise ValueError(f"`crops` must be 1 or 3, got {crops!r}.")
        if crops > 1 and not views:
            raise ValueError("Several crops need `views=True`, which gives them a dimension of their own.")
        self.crops, self.views = crops, views
        self.mean, self.std = check_statistics(mean, std)

    def __call__(self, sample: Sample) -> Sample:
        """Return the windows of a sample; see the class."""
        from torchvision.transforms.v2 import functional as F

        key, x = pixels_of(sample, len(self.mean), clips=self.views)
        x = F.resize(x, [self.short_side], antialias=True)
        height, width = x.shape[-2:]
        free = height - self.size, width - self.size
        starts = [(round(free[0] / 2), round(free[1] / 2))]
        if self.crops == 3:
            along = int(width > height)
            starts = [
                tuple(round(share * room) if axis == along else round(room / 2) for axis, room in enumerate(free))  # type: ignore[misc]
                for share in (0, 0.5, 1)
            ]
        windows = [
            finish_pixels(F.crop(x, top, left, self.size, self.size), self.mean, self.std) for top, left in starts
        ]
        if not self.views:
            return sample | {key: windows[0]}
        several = key == "video" and x.dim() == 5
        return sample | {key: torch.cat(windows) if several else torch.stack(windows)}

    def __repr__(self) -> str:
        return (
            f"ClassEvalTransform(size={self.size}, short_side={self.short_side}, crops={self.crops}, "
            f"views={self.views}, mean={tuple(self.mean)}, std={tuple(self.std)})"
        )


def pixels_of(sample: Sample, channels: int, *, clips: bool = False) -> tuple[str, Any]:
    """Return the name and the pixels of a sample's image or video, once they are checked.

    Args:
        sample: With ``"image"`` or ``"video"``.
        channels: That there must be.
        clips: Several clips may be stacked.
    """
    from torchvision import tv_tensors

    where = f"Sample {sample['name']!r}" if "name" in sample else "The sample"
    key = "video" if "video" in sample else "image"
    x = sample.get(key)
    if not isinstance(x, Tensor) or not (x.dtype == torch.uint8 or x.is_floating_point()):
        found = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f'{where} must have an "image" or a "video", a tensor of uint8 or floating point in [0, 1], got {found}.'
        )
    dims = (3,) if key == "image" else (4, 5) if clips else (4,)
    if x.dim() not in dims or x.shape[-3] != channels or 0 in x.shape:
        shape = f"({channels}, H, W)" if key == "image" else f"({'N, ' if clips else ''}T, {channels}, H, W)"
        raise ValueError(f"{where} must have pixels {shape} under {key!r}, got {tuple(x.shape)}.")
    return key, tv_tensors.Image(x) if key == "image" else tv_tensors.Video(x)


def finish_pixels(x: Any, mean: list[float], std: list[float]) -> Tensor:
    """Return pixels normalised, plain and contiguous, those of videos with the channels before the time."""
    plain: Tensor = normalise(x, mean, std).as_subclass(Tensor)
    return (plain if plain.dim() == 3 else plain.transpose(-4, -3)).contiguous()
