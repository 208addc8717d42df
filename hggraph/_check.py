"""Checks of arguments, so that errors name the argument, what was expected and what was got."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "check_dtype",
    "check_features",
    "check_finite",
    "check_ndim",
    "check_one_device",
    "check_one_dtype",
    "check_positive",
    "check_range",
    "check_strengths",
]

_KINDS: dict[str, Callable[[torch.dtype], bool]] = {
    "floating point": lambda dtype: dtype.is_floating_point and dtype.itemsize > 1,
    "integers": lambda dtype: not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool),
    "real numbers": lambda dtype: not dtype.is_complex,
}


def check_ndim(name: str, tensor: Tensor, *ndims: int, shape: str = "") -> None:
    """Raise unless `tensor` is a dense tensor with one of the given numbers of dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}.")
    if tensor.layout != torch.strided:
        raise TypeError(f"`{name}` must be dense, got {tensor.layout}. Convert it with `{name}.to_dense()`.")
    if tensor.dim() not in ndims:
        raise ValueError(f"`{name}` must have shape {shape or ndims}, got {tuple(tensor.shape)}.")


def check_dtype(name: str, tensor: Tensor, kind: str = "floating point") -> None:
    """Raise unless a tensor holds numbers of a kind: floating point, integers or real numbers."""
    if not _KINDS[kind](tensor.dtype):
        raise TypeError(f"`{name}` must be {kind}, got {tensor.dtype}.")


def check_one_device(**tensors: Tensor | None) -> None:
    """Raise unless tensors, by their names, are on the device of the first."""
    (first, reference), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in others:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}.")
        if tensor.device != reference.device:
            raise ValueError(f"`{name}` must be on the device of `{first}`, {reference.device}, got {tensor.device}.")


def check_one_dtype(**tensors: Tensor) -> None:
    """Raise unless tensors, by their names, have the dtype of the first, or autocast is to give them one."""
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != reference.dtype:
            device = reference.device.type
            if device != "meta" and reference.dtype != torch.float64 and torch.is_autocast_enabled(device):
                return
            raise TypeError(f"`{name}` must have the dtype of `{first}`, {reference.dtype}, got {tensor.dtype}.")


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
    if not _KINDS["integers"](index.dtype):
        raise TypeError(f"`{name}` must hold integers, got {index.dtype}.")
    if index.is_meta:
        raise ValueError(f"`{name}` must hold data, got a tensor on the device meta.")
    if index.numel():
        low, high = (int(value) for value in torch.aminmax(index))
        if low < 0 or high >= upper:
            raise ValueError(f"`{name}` must be in [0, {upper}), got values from {low} to {high}. {hint}".rstrip())


def check_strengths(name: str, strength: Tensor) -> None:
    """Raise unless all strengths are finite and not negative. On a GPU, which would be waited for, nothing is read."""
    if strength.numel() and strength.device.type == "cpu":
        low, high = (float(value) for value in torch.aminmax(strength.detach()))
        if not 0 <= low <= high < float("inf"):  # NaN fails too
            raise ValueError(f"`{name}` must be finite and not negative, got values from {low} to {high}.")
