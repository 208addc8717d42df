"""Blocks of pixels as buffers, their distances to listed centres, and weighted sums: what the loops are made of.

A block is `side` x `side` pixels of three planes, laid out one after the other (`block_size` numbers, at least eight)
so that every loop runs from 0 over contiguous numbers. What lies outside the image is filled up; the buffer `inside` is
0 there and 1 elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._lanes import LANES, exp_lanes, least_of, load, lower, splat, store

__all__ = ["block_size", "distances", "grid_of", "read_block", "softmax_block", "sums_of", "write_row"]

f = np.float32
_NOTHING = f(28.0)  # exp(-28) is 7e-13: a centre whose weights sum to less than 1e-12 stays


@jit()
def block_size(side: int) -> int:
    """Return the length of a block's buffers."""
    return max(side * side, LANES)


@jit()
def grid_of(side: int, position: Any) -> tuple[Array, Array]:
    """Return y and x of a block's pixels relative to its first one, times `position`."""
    ys, xs = np.zeros(block_size(side), f), np.zeros(block_size(side), f)
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
    """Read a block's planes (3, H * W) to `out` and say whether it and its buffers lie inside the image as a whole."""
    height, width = min(side, planes.shape[1] - top), min(side, planes.shape[2] - left)
    whole = height == side and width == side and side * side >= LANES
    if whole and side % LANES == 0:
        for c in range(3):
            plane, buffer = planes[c], out[c]
            for y in range(side):
                for x in range(0, side, LANES):
                    store(buffer, y * side + x, load(plane, (top + y) * planes.shape[2] + left + x))
        return True
    if not whole:
        inside[:] = f(0)
        out[:] = f(0)
    for y in range(height):
        for x in range(width):
            inside[y * side + x] = f(1)
            for c in range(3):
                out[c, y * side + x] = planes[c, top + y, left + x]
    return whole


@jit()
def _two_distances(
    a: Array, b: Array, c: Array, ys: Array, xs: Array, p: Any, q: Any, out_p: Array, out_q: Array, least: Array
) -> tuple[Any, Any]:
    gap_p = gap_q = splat(f(np.inf))
    for i in range(0, least.shape[0], LANES):
        va, vb, vc, vy, vx = load(a, i), load(b, i), load(c, i), load(ys, i), load(xs, i)
        da, db, dc, dy, dx = va - p[0], vb - p[1], vc - p[2], vy - p[3], vx - p[4]
        d = da * da + db * db + dc * dc + dy * dy + dx * dx
        ea, eb, ec, ey, ex = va - q[0], vb - q[1], vc - q[2], vy - q[3], vx - q[4]
        e = ea * ea + eb * eb + ec * ec + ey * ey + ex * ex
        m = lower(lower(d, e), load(least, i))
        store(out_p, i, d)
        store(out_q, i, e)
        store(least, i, m)
        gap_p, gap_q = lower(gap_p, d - m), lower(gap_q, e - m)
    return least_of(gap_p), least_of(gap_q)


@jit()
def distances(
    planes: tuple[Array, Array, Array],
    grid: tuple[Array, Array],
    centers: Array,
    near: Array,
    top: Any,
    left: Any,
    out: Array,
    least: Array,
    gap: Array,
) -> None:
    """Write squared distances (T, n) of a block's pixels to the centres `near`, and the least over them.

    `top` and `left` are the features of the block's first pixel. `gap` gets a lower bound, for each centre, of how much
    farther than the least it is from every pixel.
    """
    a, b, c = planes
    ys, xs = grid
    least[:] = f(np.inf)
    for t in range(0, near.shape[0], 2):
        s = min(t + 1, near.shape[0] - 1)
        r, q = near[t], near[s]
        first = (centers[r, 0], centers[r, 1], centers[r, 2], centers[r, 3] - top, centers[r, 4] - left)
        second = (centers[q, 0], centers[q, 1], centers[q, 2], centers[q, 3] - top, centers[q, 4] - left)
        gap[t], gap[s] = _two_distances(a, b, c, ys, xs, first, second, out[t], out[s], least)


@jit()
def _exponentials(distance: Array, least: Array, total: Array) -> None:
    for i in range(0, least.shape[0], LANES):
        w = exp_lanes(load(least, i) - load(distance, i))
        store(distance, i, w)
        store(total, i, load(total, i) + w)


@jit()
def softmax_block(distance: Array, least: Array, gap: Array, inside: Array, whole: bool, scale: Array) -> None:
    """Turn distances (T, n) into ``exp(least - distance)``, and write to `scale` 1 over their sums, 0 outside.

    A centre too far from all pixels to change a sum is left out, and its gap becomes infinite.
    """
    scale[:] = f(0)
    for t in range(distance.shape[0]):
        if gap[t] <= _NOTHING:
            _exponentials(distance[t], least, scale)
        else:
            gap[t] = f(np.inf)
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
