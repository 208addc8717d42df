"""A photo's scaled CIELAB after a Gaussian, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hggraph.ops.fast._arrays import as_tensor, empty
from hggraph.ops.fast._jit import Array, cube_root, jit, linear_rgb
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["gaussian_taps", "lab"]

f = np.float32


def lab(photo: Any, sigma: float = 1.0, *, scale: float | Sequence[float] = 0.26) -> Tensor:
    """Return a photo in scaled CIELAB (CIE 1976, white point D65) after a Gaussian over its sRGB values.

    Args:
        photo: Tensor or array: ``(3, H, W)`` float32 in [0, 1], or uint8 of shape ``(3, H, W)`` or ``(H, W, 3)``,
            with any strides. Where both fit, the first.
        sigma: Standard deviation of the Gaussian, pixels; 0 for none. It reaches ``ceil(2 sigma)`` pixels, and
            edges are replicated.
        scale: Factor of Lab, or factors of L, a and b.

    Returns:
        Shape ``(3, H, W)``, float32: scaled L, a, b, within 5e-4 of the formula at 0.26 (L up to 26).

    Raises:
        ValueError: if the photo has another shape or no pixel, or sigma is negative.
        TypeError: if it is neither float32 nor uint8.

    Note:
        O(H W) time, a few rows of memory beside the result. The same bits on any number of threads.

    Example:
        >>> import torch
        >>> lab(torch.ones(3, 1, 1), scale=1.0).round().flatten().abs()
        tensor([100.,   0.,   0.])
    """
    array = photo.detach().numpy() if isinstance(photo, Tensor) else np.asarray(photo)
    if array.dtype not in (np.float32, np.uint8):
        raise TypeError(f"`photo` must be float32 in [0, 1] or uint8, got {array.dtype}.")
    if array.ndim == 3 and array.shape[0] != 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or 0 in array.shape:
        raise ValueError(f"`photo` must have shape (3, H, W) with at least one pixel, got {array.shape}.")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"`sigma` must be at least 0 pixels, got {sigma}.")
    _, height, width = array.shape
    taps = gaussian_taps(sigma)
    out = empty(3, height, width)
    unit = f(1 / 255 if array.dtype == np.uint8 else 1)
    factors = np.broadcast_to(np.asarray(scale, f), (3,)).copy()
    run(_lab_stripes, num_stripes(height), num_stripes(height), array, taps, unit, factors, out)
    return as_tensor(out)


def gaussian_taps(sigma: float) -> np.ndarray[Any, Any]:
    """Return the weights of a Gaussian from ``-ceil(2 sigma)`` to ``ceil(2 sigma)``; their sum is 1.

    Example:
        >>> gaussian_taps(0.0)
        array([1.], dtype=float32)
    """
    radius = math.ceil(2 * sigma)
    at = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (at / sigma) ** 2) if sigma > 0 else np.ones(1)
    return (taps / taps.sum()).astype(np.float32)


@jit()
def _weighted_row(row: Array, weight: Any, out: Array, first: bool) -> None:
    if first:
        for x in range(out.shape[0]):
            out[x] = weight * f(row[x])
    else:
        for x in range(out.shape[0]):
            out[x] += weight * f(row[x])


@jit()
def _five_rows(a: Array, b: Array, c: Array, d: Array, e: Array, outer: Any, inner: Any, mid: Any, out: Array) -> None:
    """Write the symmetric sum of five rows at once."""
    for x in range(out.shape[0]):
        out[x] = outer * (f(a[x]) + f(e[x])) + inner * (f(b[x]) + f(d[x])) + mid * f(c[x])


@jit()
def _blur_row(photo: Array, channel: int, y: int, taps: Array, unit: Any, wide: Array, out: Array) -> None:
    """Write one blurred row: over rows into `wide` (padded by the radius on both sides), then along it."""
    height, width = photo.shape[1], photo.shape[2]
    radius = taps.shape[0] // 2
    middle = wide[radius : radius + width]
    last = height - 1
    if radius == 2:
        a, b = photo[channel, max(y - 2, 0)], photo[channel, max(y - 1, 0)]
        d, e = photo[channel, min(y + 1, last)], photo[channel, min(y + 2, last)]
        c = photo[channel, y]
        _five_rows(a, b, c, d, e, taps[0] * unit, taps[1] * unit, taps[2] * unit, middle)
    else:
        for k in range(taps.shape[0]):
            row = photo[channel, min(max(y + k - radius, 0), last)]
            _weighted_row(row, taps[k] * unit, middle, k == 0)
    for x in range(radius):
        wide[x] = middle[0]
        wide[radius + width + x] = middle[width - 1]
    if radius == 2:
        _five_rows(wide, wide[1:], middle, wide[3:], wide[4:], taps[0], taps[1], taps[2], out)
    else:
        for k in range(taps.shape[0]):
            _weighted_row(wide[k:], taps[k], out, k == 0)


@jit()
def _row_to_lab(red: Array, green: Array, blue: Array, scale: Array, lightness: Array, a: Array, b: Array) -> None:
    first, second, third = scale[0], scale[1], scale[2]
    for x in range(lightness.shape[0]):
        r, g, v = linear_rgb(red[x]), linear_rgb(green[x]), linear_rgb(blue[x])
        # XYZ over the white point
        i = cube_root(f(0.412453 / 0.95047) * r + f(0.357580 / 0.95047) * g + f(0.180423 / 0.95047) * v)
        j = cube_root(f(0.212671) * r + f(0.715160) * g + f(0.072169) * v)
        k = cube_root(f(0.019334 / 1.08883) * r + f(0.119193 / 1.08883) * g + f(0.950227 / 1.08883) * v)
        lightness[x] = first * (f(116) * j - f(16))
        a[x] = second * f(500) * (i - j)
        b[x] = third * f(200) * (j - k)


@jit()
def _lab_stripes(
    first: int, last: int, stripes: int, photo: Array, taps: Array, unit: Any, scale: Any, out: Array
) -> None:
    height, width = photo.shape[1], photo.shape[2]
    wide = np.empty(width + taps.shape[0] - 1, np.float32)
    rgb = np.empty((3, width), np.float32)
    for y in range(first * height // stripes, last * height // stripes):
        for channel in range(3):
            _blur_row(photo, channel, y, taps, unit, wide, rgb[channel])
        _row_to_lab(rgb[0], rgb[1], rgb[2], scale, out[0, y], out[1, y], out[2, y])
