"""Checks of the transforms' options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hggraph._check import check_positive

__all__ = ["check_label", "check_scale", "check_share", "check_size", "check_statistics"]


def check_size(name: str, value: Any) -> tuple[int, int]:
    """Return (height, width), once it is one."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"`{name}` must be (height, width) in pixels, got {value!r}.")
    for side in value:
        check_positive(name, side)
    return value[0], value[1]


def check_share(name: str, value: float, high: float = 1.0) -> float:
    """Return a number in [0, high], once it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise ValueError(f"`{name}` must be a number in [0, {high:g}], got {value!r}.")
    return float(value)


def check_scale(name: str, value: Any) -> tuple[float, float]:
    """Return two positive numbers in order, once they are."""
    numbers = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not numbers or not 0 < value[0] <= value[1] < math.inf:
        raise ValueError(f"`{name}` must be two numbers above 0, the smaller one first, got {value!r}.")
    return float(value[0]), float(value[1])


def check_label(name: str, value: int) -> int:
    """Return a label, once it is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`{name}` must be a whole number, usually 255, got {value!r}.")
    return value


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the mean and the deviation of each channel, once they fit together."""
    means, stds = [float(value) for value in mean], [float(value) for value in std]
    if not means or len(means) != len(stds):
        raise ValueError(f"`mean` and `std` must hold a number for each channel, got {means} and {stds}.")
    if not all(0 <= value <= 1 for value in means) or not all(0 < value < math.inf for value in stds):
        raise ValueError(
            f"`mean` must be in [0, 1] and `std` above 0, in units of the brightest value, got {means} and {stds}. "
            f"Divide numbers of an 8-bit scale by 255."
        )
    return means, stds
