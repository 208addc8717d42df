"""Orientation targets, made while loading."""

from __future__ import annotations

from typing import Any

from hggraph.data.mask_reader import DatasetError
from hggraph.data.road_graph import orientation_map
from hggraph.data.segmentation import Transform

__all__ = ["WithOrientation"]


class WithOrientation:
    """Apply a transform and add where roads lead, from the transformed mask.

    Batra et al., "Improved road connectivity by joint learning of orientation and segmentation", 2019, make the target
    of the image once; made of the crop it follows every flip and turn.

    Args:
        transform: Gives samples with ``"mask"``, roads ``(H, W)`` as 0, 1 and 255; None leaves samples as they are.
        half_thickness: As for `orientation_map`, in pixels.
        bins: Directions.

    Raises:
        DatasetError: by a call, naming the sample, if it has no mask or one with other labels.

    Example:
        >>> import torch
        >>> sample = WithOrientation(None, half_thickness=4)({"mask": torch.eye(60, dtype=torch.long)})
        >>> sample["orientation"].unique()
        tensor([22, 36])
    """

    def __init__(self, transform: Transform | None = None, half_thickness: float = 10.0, bins: int = 36) -> None:
        self.transform = transform
        self.half_thickness = half_thickness
        self.bins = bins

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with ``"orientation"``, int64 ``(H, W)``."""
        sample = sample if self.transform is None else self.transform(sample)
        name = sample.get("name", "the sample")
        if "mask" not in sample:
            raise DatasetError(
                f"{name}: expected a mask, from which orientations are made, got none; take a split that has."
            )
        try:
            found = orientation_map(sample["mask"], half_thickness=self.half_thickness, bins=self.bins)
        except ValueError as error:
            raise DatasetError(f"{name}: {error}") from error
        return sample | {"orientation": found}

    def __repr__(self) -> str:
        return f"WithOrientation({self.transform}, half_thickness={self.half_thickness}, bins={self.bins})"
