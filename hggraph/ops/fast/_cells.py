"""Importance of pixels as means over square cells, and its Gaussian."""

from __future__ import annotations

from typing import Any

import numpy as np

from hggraph.ops.fast._arrays import empty
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["cell_importance", "cell_means", "cell_middles", "smooth_cells"]

f = np.float32


def cell_middles(length: int, side: int) -> tuple[Any, Any]:
    """Return the middle of each cell's pixels along an axis, and how many they are.

    Example:
        >>> cell_middles(5, 2)
        (array([0.5, 2.5, 4. ], dtype=float32), array([2., 2., 1.], dtype=float32))
    """
    first = np.arange(0, length, side)
    last = np.minimum(first + side, length) - 1
    return ((first + last) / 2).astype(np.float32), (last - first + 1).astype(np.float32)


def cell_importance(lab: Any, side: int) -> Any:
    """Return the mean importance of each cell's pixels: mean L2 distance to the up to four neighbours."""
    _, height, width = lab.shape
    out = empty(-(-height // side), -(-width // side))
    stripes = num_stripes(out.shape[0])
    run(_importance_stripes, stripes, stripes, lab, side, out)
    return out


def cell_means(x: Any, side: int) -> Any:
    """Return the mean of a map (H, W) over cells."""
    height, width = x.shape
    out = empty(-(-height // side), -(-width // side))
    stripes = num_stripes(out.shape[0])
    run(_mean_stripes, stripes, stripes, x, side, out)
    return out


def smooth_cells(x: Any, taps: Any) -> Any:
    """Return a map after a separable filter with replicated edges."""
    return _filter(np.ascontiguousarray(_filter(x, taps).T), taps).T.copy()


def _filter(x: Any, taps: Any) -> Any:
    """Filter along the first axis."""
    out = empty(*x.shape)
    stripes = num_stripes(x.shape[0])
    run(_filter_stripes, stripes, stripes, x, taps, out)
    return out


@jit()
def _add_scaled(row: Array, weight: Any, out: Array) -> None:
    for x in range(out.shape[0]):
        out[x] += weight * row[x]


@jit()
def _filter_stripes(first: int, last: int, stripes: int, x: Array, taps: Array, out: Array) -> None:
    rows, radius = x.shape[0], taps.shape[0] // 2
    for y in range(first * rows // stripes, last * rows // stripes):
        out[y] = f(0)
        for k in range(taps.shape[0]):
            _add_scaled(x[min(max(y + k - radius, 0), rows - 1)], taps[k], out[y])


@jit()
def _distances(a: Array, b: Array, c: Array, d: Array, e: Array, g: Array, out: Array) -> None:
    """Write the distances of pixels (a, b, c) to pixels (d, e, g)."""
    for x in range(out.shape[0]):
        p, q, r = a[x] - d[x], b[x] - e[x], c[x] - g[x]
        out[x] = np.sqrt(p * p + q * q + r * r)


@jit()
def _add_importance(above: Array, below: Array, across: Array, share: Array, out: Array) -> None:
    """Add the mean of a row's distances to its neighbours; `across` starts left of the first pixel."""
    before, after = across, across[1:]
    for x in range(out.shape[0]):
        out[x] += (above[x] + below[x] + before[x] + after[x]) * share[x]


@jit()
def _importance_stripes(first: int, last: int, stripes: int, lab: Array, side: int, out: Array) -> None:
    height, width = lab.shape[1], lab.shape[2]
    rows = out.shape[0]
    above, below = np.zeros(width, f), np.zeros(width, f)
    across, total = np.zeros(width + 1, f), np.empty(width, f)
    share = np.empty((3, width), f)  # 1 over the number of neighbours, for 0, 1, 2 of them above and below
    for k in range(3):
        for x in range(width):
            share[k, x] = f(1) / f(max(k + (x > 0) + (x < width - 1), 1))
    for i in range(first * rows // stripes, last * rows // stripes):
        total[:] = f(0)
        bottom = min((i + 1) * side, height)
        for y in range(i * side, bottom):
            vertical = 0
            if y == 0:
                above[:] = f(0)
            else:
                _distances(lab[0, y], lab[1, y], lab[2, y], lab[0, y - 1], lab[1, y - 1], lab[2, y - 1], above)
                vertical += 1
            if y == height - 1:
                below[:] = f(0)
            else:
                _distances(lab[0, y], lab[1, y], lab[2, y], lab[0, y + 1], lab[1, y + 1], lab[2, y + 1], below)
                vertical += 1
            a, b, c = lab[0, y], lab[1, y], lab[2, y]
            _distances(a[1:], b[1:], c[1:], a, b, c, across[1:width])
            _add_importance(above, below, across, share[vertical], total)
        _write_means(total, side, bottom - i * side, out[i])


@jit()
def _mean_stripes(first: int, last: int, stripes: int, x: Array, side: int, out: Array) -> None:
    height, width = x.shape
    rows = out.shape[0]
    total = np.empty(width, f)
    for i in range(first * rows // stripes, last * rows // stripes):
        total[:] = f(0)
        bottom = min((i + 1) * side, height)
        for y in range(i * side, bottom):
            _add_scaled(x[y], f(1), total)
        _write_means(total, side, bottom - i * side, out[i])


@jit()
def _write_means(total: Array, side: int, height: int, out: Array) -> None:
    for j in range(out.shape[0]):
        end = min((j + 1) * side, total.shape[0])
        value = f(0)
        for x in range(j * side, end):
            value += total[x]
        out[j] = value / f((end - j * side) * height)
