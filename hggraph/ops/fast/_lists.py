"""The regions nearest to each block of pixels, found in bins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from hggraph._check import check_positive
from hggraph.ops.fast._arrays import as_array, as_tensor, empty
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["Bins", "block_side", "make_bins", "middle", "nearest_regions", "nearest_to"]

f = np.float32
Bins = Any  # (start of each bin (rows * columns + 1,), members (R,), their positions (R, 2), rows, columns, side)


def block_side(height: int, width: int, num_regions: int, most: int = 16) -> int:
    """Return the side of blocks: the largest power of two up to the regions' spacing, at most `most`.

    Example:
        >>> block_side(321, 481, 300), block_side(321, 481, 1600), block_side(2, 2, 4)
        (16, 8, 1)
    """
    spacing = math.sqrt(height * width / num_regions)
    side = 1
    while 2 * side <= min(spacing, most):
        side *= 2
    return side


def nearest_regions(positions: Any, size: tuple[int, int], side: int, candidates: int) -> Tensor:
    """Return for each block of pixels the regions nearest to its middle, nearest first.

    Args:
        positions: (y, x) of the regions, pixels, shape ``(R, 2)``, float32, R >= 1.
        size: Height and width of the image (pixels).
        side: Side of a block (pixels); the last blocks of rows and columns may be smaller, and their middle is
            that of their pixels inside the image.
        candidates: T, at most R.

    Returns:
        Regions, shape ``(T, ceil(H / side), ceil(W / side))``, int32: by squared distance in float32, and of those
        equally far the lower number first.

    Raises:
        ValueError: if there are fewer regions than `candidates`, or a size is below 1.

    Note:
        O(R + blocks) time for regions spread over the image. Deterministic.

    Example:
        >>> import torch
        >>> nearest_regions(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), (1, 10), 5, 1).tolist()
        [[[0, 1]]]
    """
    points = as_array("positions", positions, np.float32, (None, 2))
    check_positive("side", side)
    check_positive("candidates", candidates)
    if min(size) < 1 or candidates > len(points):
        raise ValueError(
            f"Expected a size of at least one pixel and candidates <= {len(points)} regions, "
            f"got size {tuple(size)} and {candidates} candidates."
        )
    rows, columns = -(-size[0] // side), -(-size[1] // side)
    out = empty(candidates, rows, columns, dtype=np.int32)
    bins = make_bins(points[:, 0], points[:, 1], *size)
    run(_list_stripes, num_stripes(rows), num_stripes(rows), bins, *size, side, out)
    return as_tensor(out)


@jit(exact=True)
def make_bins(ys: Array, xs: Array, height: int, width: int) -> Bins:
    """Sort positions (pixels) into square bins of about the regions' spacing; those outside go to the border's."""
    count = ys.shape[0]
    side = max(f(1.0), f(math.sqrt(height * width / count)) * f(0.75))
    rows, columns = int(f(height) / side) + 1, int(f(width) / side) + 1
    start = np.zeros(rows * columns + 2, np.int32)
    home = np.empty(count, np.int32)
    for r in range(count):
        y = min(max(int(ys[r] / side), 0), rows - 1)
        x = min(max(int(xs[r] / side), 0), columns - 1)
        home[r] = y * columns + x
        start[home[r] + 2] += 1
    for i in range(1, rows * columns + 2):
        start[i] += start[i - 1]
    members = np.empty(count, np.int32)
    positions = np.empty((count, 2), np.float32)
    for r in range(count):
        slot = start[home[r] + 1]
        start[home[r] + 1] += 1
        members[slot] = r
        positions[slot, 0] = ys[r]
        positions[slot, 1] = xs[r]
    return start, members, positions, rows, columns, side


@jit(exact=True)
def middle(block: int, side: int, length: int) -> Any:
    """Return the middle of a block's pixels inside the image, along one axis."""
    return f(0.5) * f(block * side + min((block + 1) * side, length) - 1)


@jit(exact=True)
def nearest_to(bins: Bins, y: Any, x: Any, out: Array, distance: Array) -> None:
    """Write the nearest members to `out` and their squared distances to `distance`, nearest first.

    Rings of bins around the point are read until all others lie farther than the last one found.
    """
    start, _, _, rows, columns, side = bins
    most = out.shape[0]
    for t in range(most):
        out[t] = np.int32(2147483647)
        distance[t] = f(np.inf)
    row = min(max(int(y / side), 0), rows - 1)
    column = min(max(int(x / side), 0), columns - 1)
    # from the point to the nearest border of its own bin: what rings add to
    border = min(min(y - f(row) * side, f(row + 1) * side - y), min(x - f(column) * side, f(column + 1) * side - x))
    at_once = 1 if most == 1 else 2  # rings that are nearly always needed: whole rows of bins
    for i in range(max(row - at_once, 0), min(row + at_once, rows - 1) + 1):
        left, right = max(column - at_once, 0), min(column + at_once, columns - 1)
        _insert(bins, start[i * columns + left], start[i * columns + right + 1], y, x, out, distance)
    ring = at_once
    while ring < rows + columns:
        reach = (border + f(ring) * side) * f(0.9999)  # rounding of a bin's borders
        if reach > f(0.0) and distance[most - 1] < reach * reach:
            break
        ring += 1
        top, bottom = row - ring, row + ring
        for i in range(max(top, 0), min(bottom, rows - 1) + 1):
            step = 1 if i in (top, bottom) else 2 * ring
            for j in range(column - ring, column + ring + 1, step):
                if 0 <= j < columns:
                    _insert(bins, start[i * columns + j], start[i * columns + j + 1], y, x, out, distance)


@jit(exact=True)
def _insert(bins: Bins, first: int, last: int, y: Any, x: Any, out: Array, distance: Array) -> None:
    """Insert the members in some slots where they are nearer than those found."""
    members, positions = bins[1], bins[2]
    most = out.shape[0]
    for slot in range(first, last):
        dy, dx = positions[slot, 0] - y, positions[slot, 1] - x
        d, r = dy * dy + dx * dx, members[slot]
        if d < distance[most - 1] or (d == distance[most - 1] and r < out[most - 1]):
            t = most - 1
            while t > 0 and (d < distance[t - 1] or (d == distance[t - 1] and r < out[t - 1])):
                distance[t] = distance[t - 1]
                out[t] = out[t - 1]
                t -= 1
            distance[t] = d
            out[t] = r


@jit(exact=True)
def _list_stripes(
    first: int, last: int, stripes: int, bins: Bins, height: int, width: int, side: int, out: Array
) -> None:
    rows, columns = out.shape[1], out.shape[2]
    near = np.empty(out.shape[0], np.int32)
    distance = np.empty(out.shape[0], np.float32)
    for i in range(first * rows // stripes, last * rows // stripes):
        for j in range(columns):
            nearest_to(bins, middle(i, side, height), middle(j, side, width), near, distance)
            for t in range(out.shape[0]):
                out[t, i, j] = near[t]
