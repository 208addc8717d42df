"""Checks of arguments, so that errors name the argument, what was expected and what was got."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_features", "check_finite", "check_ndim", "check_positive", "check_range"]


def check_ndim(name: str, tensor: Tensor, *ndims: int, shape: str = "") -> None:
    """Raise unless `tensor` is a tensor with one of the given numbers of dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}.")
    if tensor.dim() not in ndims:
        raise ValueError(f"`{name}` must have shape {shape or ndims}, got {tuple(tensor.shape)}.")


def check_features(name: str, x: Tensor, shape: str = "(B, C, H, W)") -> None:
    """Raise unless `x` is a floating-point map of shape (B, C, H, W) with at least one pixel and channel."""
    check_ndim(name, x, 4, shape=shape)
    if not x.is_floating_point():
        raise TypeError(
            f"`{name}` must be floating point, got {x.dtype}. Convert an 8-bit image with `{name}.float() / 255`."
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"`{name}` must have at least one channel and one pixel, got shape {tuple(x.shape)}.")


def check_finite(name: str, x: Tensor) -> None:
    """Raise when `x` holds NaN or infinity. Reads the data: for the eager CPU path and the PyG path only."""
    # one pass and no temporary of x's size: a sum is finite only if every term is (overflow is re-checked)
    if x.numel() and not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"`{name}` must be finite, got {bad} NaN or infinite of {x.numel()} values.")


def check_positive(name: str, value: int, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}, got {value!r}.")


def check_range(name: str, index: Tensor, upper: int, hint: str = "") -> None:
    """Raise unless the integer tensor `index` lies in [0, upper). Reads the data (synchronises a GPU)."""
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"`{name}` must hold integers, got {index.dtype}.")
    if index.numel():
        low, high = (int(value) for value in torch.aminmax(index))
        if low < 0 or high >= upper:
            raise ValueError(f"`{name}` must be in [0, {upper}), got values from {low} to {high}. {hint}".rstrip())
