"""Blocks of pixels as buffers, their distances to listed centres, and weighted sums: what the loops are made of.

A block is `side` x `side` pixels of three planes, laid out one after the other so that every loop runs from 0 over
contiguous numbers. Blocks at the right and lower border are filled up; the buffer `inside` is 0 there and 1 elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hggraph.ops.fast._jit import Array, exponential, jit

__all__ = ["distances", "grid_of", "read_block", "softmax_block", "sums_of", "write_row"]

f = np.float32


@jit()
def grid_of(side: int, position: Any) -> tuple[Array, Array]:
    """Return y and x of a block's pixels relative to its first one, times `position`."""
    ys, xs = np.empty(side * side, np.float32), np.empty(side * side, np.float32)
    for y in range(side):
        for x in range(side):
            ys[y * side + x] = f(y) * position
            xs[y * side + x] = f(x) * position
    return ys, xs


@jit()
def write_row(row: Array, out: Array) -> None:
    """Copy a row."""
    for x in range(out.shape[0]):
        out[x] = row[x]


@jit()
def read_block(planes: Array, top: int, left: int, side: int, out: Array, inside: Array) -> bool:
    """Read a block's planes to `out` (3, side^2) and say whether it lies inside the image as a whole."""
    height, width = min(side, planes.shape[1] - top), min(side, planes.shape[2] - left)
    whole = height == side and width == side
    if not whole:
        for i in range(side * side):
            inside[i] = f(0)
            out[0, i] = out[1, i] = out[2, i] = f(0)
    for y in range(height):
        at = y * side
        write_row(planes[0, top + y, left : left + width], out[0, at : at + width])
        write_row(planes[1, top + y, left : left + width], out[1, at : at + width])
        write_row(planes[2, top + y, left : left + width], out[2, at : at + width])
        if not whole:
            for x in range(width):
                inside[at + x] = f(1)
    return whole


@jit()
def distances(
    a: Array, b: Array, c: Array, ys: Array, xs: Array, center: tuple[Any, Any, Any, Any, Any], out: Array, least: Array
) -> None:
    """Write squared distances of a block's pixels to a centre (a, b, c, y, x), and lower `least` to them."""
    ca, cb, cc, cy, cx = center
    for i in range(out.shape[0]):
        p, q, r, y, x = a[i] - ca, b[i] - cb, c[i] - cc, ys[i] - cy, xs[i] - cx
        d = p * p + q * q + r * r + y * y + x * x
        out[i] = d
        least[i] = min(d, least[i])


@jit()
def _exponentials(distance: Array, least: Array, total: Array) -> None:
    for i in range(distance.shape[0]):
        w = exponential(least[i] - distance[i])
        distance[i] = w
        total[i] += w


@jit()
def softmax_block(distance: Array, least: Array, inside: Array, whole: bool, scale: Array) -> None:
    """Turn distances (T, n) into ``exp(least - distance)``, and write to `scale` 1 over their sums, 0 outside."""
    for i in range(scale.shape[0]):
        scale[i] = f(0)
    for t in range(distance.shape[0]):
        _exponentials(distance[t], least, scale)
    if whole:
        for i in range(scale.shape[0]):
            scale[i] = f(1) / scale[i]
    else:
        for i in range(scale.shape[0]):
            scale[i] = inside[i] / scale[i]


@jit()
def sums_of(
    weight: Array, scale: Array, a: Array, b: Array, c: Array, ys: Array, xs: Array
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Return a block's sums of ``w``, ``w a``, ``w b``, ``w c``, ``w y``, ``w x`` with ``w = weight * scale``."""
    mass = sa = sb = sc = sy = sx = f(0)
    for i in range(weight.shape[0]):
        w = weight[i] * scale[i]
        mass += w
        sa += w * a[i]
        sb += w * b[i]
        sc += w * c[i]
        sy += w * ys[i]
        sx += w * xs[i]
    return mass, sa, sb, sc, sy, sx
