"""Tensors of one image as numpy arrays, and back, without copies where their layout allows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_array", "as_image", "as_tensor", "empty"]


def as_array(name: str, x: Any, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray[Any, Any]:
    """Return a tensor or array as a contiguous array, and raise unless it has the shape (None: any length).

    Example:
        >>> as_array("x", torch.ones(2, 3, dtype=torch.float64).T, np.float32, (3, None)).flags.c_contiguous
        True
    """
    array = x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x)
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"`{name}` must have shape ({wanted}), got {tuple(array.shape)}.")
    return np.ascontiguousarray(array, dtype)


def as_image(name: str, x: Any, dtype: type) -> np.ndarray[Any, Any]:
    """Return a map (C, H, W) as `as_array`, and raise when it has no pixel."""
    array = as_array(name, x, dtype, (None, None, None))
    if 0 in array.shape:
        raise ValueError(f"`{name}` must have at least one channel and one pixel, got shape {array.shape}.")
    return array


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return the tensor that shares an array's memory."""
    return torch.from_numpy(array)


def empty(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    """Return a new array, not filled (numpy asks the kernel for large pages, which torch does not)."""
    return np.empty(shape, dtype)
