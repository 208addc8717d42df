"""The last step of the clustering: each pixel's region, or its weights over the regions listed for its block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from hggraph.ops.fast._arrays import as_array, as_image, as_tensor, empty
from hggraph.ops.fast._block import block_size, distances, grid_of, read_block, write_row
from hggraph.ops.fast._jit import Array, as_float, jit
from hggraph.ops.fast._lanes import LANES, exp_lanes, least_of, load, lower, splat, store, up_to, upper
from hggraph.ops.fast._lists import Bins, make_bins, middle, nearest_to
from hggraph.ops.fast._threads import num_stripes, run
from hggraph.ops.fast._update import check_blocks

__all__ = ["assign", "labels"]

f = np.float32


def assign(
    lab: Any,
    centers: Any,
    position: float,
    candidates: int,
    side: int,
    threshold: float = 1e-3,
    *,
    keep: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Assign each pixel softly to the centres listed for its block (HG-Conv, Algorithm 1, lines 5 to 8).

    ``exp(-||f_p - c_t||^2)`` over the list, entries not above `threshold` dropped, the nearest always kept, then
    divided by their sum: `hggraph.ops.soft_assign`.

    Args:
        lab: Scaled Lab, shape ``(3, H, W)``, float32.
        centers: Features (L, a, b, y, x) of the centres, shape ``(R, 5)``, float32, R >= 1.
        position: Factor of (y, x) in the space of features.
        candidates: T, the length of a list; at most R are listed.
        side: Side of a block (pixels).
        threshold: Least weight before normalisation, in [0, 1).
        keep: Entries stored of each pixel, None for all T. Where more centres than `keep` have a weight in a
            block, pixels keep their `keep` largest weights, divided by their sum; elsewhere nothing is lost.

    Returns:
        Weights, shape ``(keep, H * W)``, float32, each pixel's sum 1, and their regions, int32. A pixel's regions
        are all different, in the list's order or, where weights were lost, in any.

    Raises:
        ValueError: if there is no centre or a number is out of range.

    Note:
        O(H W T) time. The same bits on any number of threads.

    Example:
        >>> import torch
        >>> centers = torch.tensor([[0.0, 0, 0, 0, 0], [9.0, 9, 9, 0, 1]])
        >>> assign(torch.tensor([0.0, 9.0]).expand(3, 1, 2), centers, 1.0, 2, 1)
        (tensor([[1., 1.],
                [0., 0.]]), tensor([[0, 1],
                [1, 0]], dtype=torch.int32))
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
    if keep is not None and keep < 1:
        raise ValueError(f"`keep` must be at least 1 entry, got {keep}.")
    lab, centers, bins, stripes = _prepare(lab, centers, position, candidates, side)
    candidates = min(candidates, len(centers))
    kept = candidates if keep is None else min(keep, candidates)
    # weights above the threshold: distances under its logarithm, so up to the next smaller number
    limit = np.nextafter(f(-math.log(threshold)), f(0)) if threshold > 0 else f(math.inf)
    weight = empty(kept, *lab.shape[1:])
    index = empty(kept, *lab.shape[1:], dtype=np.int32)
    run(_assign_stripes, stripes, stripes, lab, bins, centers, f(position), candidates, side, limit, weight, index)
    return as_tensor(weight).flatten(1), as_tensor(index).flatten(1)


def labels(lab: Any, centers: Any, position: float, candidates: int, side: int) -> Tensor:
    """Return the listed region whose centre is nearest to each pixel, that of the largest weight of `assign`.

    Args:
        lab: Scaled Lab, shape ``(3, H, W)``, float32.
        centers: Features (L, a, b, y, x) of the centres, shape ``(R, 5)``, float32, R >= 1.
        position: Factor of (y, x) in the space of features.
        candidates: T, the length of a list; at most R are listed.
        side: Side of a block (pixels).

    Returns:
        Shape ``(H, W)``, int32; of regions equally near the first in the list.

    Raises:
        ValueError: if there is no centre or a number is out of range.

    Note:
        O(H W T) time. The same bits on any number of threads.

    Example:
        >>> import torch
        >>> centers = torch.tensor([[0.0, 0, 0, 0, 0], [9.0, 9, 9, 0, 1]])
        >>> labels(torch.tensor([0.0, 9.0]).expand(3, 1, 2), centers, 1.0, 2, 1)
        tensor([[0, 1]], dtype=torch.int32)
    """
    lab, centers, bins, stripes = _prepare(lab, centers, position, candidates, side)
    out = empty(*lab.shape[1:], dtype=np.int32)
    run(_label_stripes, stripes, stripes, lab, bins, centers, f(position), min(candidates, len(centers)), side, out)
    return as_tensor(out)


def _prepare(lab: Any, centers: Any, position: float, candidates: int, side: int) -> tuple[Any, Any, Bins, int]:
    lab = as_image("lab", lab, np.float32)
    centers = as_array("centers", centers, np.float32, (None, 5))
    check_blocks(lab, candidates, side, len(centers))
    height, width = lab.shape[1:]
    bins = make_bins(centers[:, 3] / f(position), centers[:, 4] / f(position), height, width)
    return lab, centers, bins, num_stripes(-(-height // side))


@jit()
def _overwrite(distance: Array, region: Any, least: Array, out: Array) -> None:
    for i in range(least.shape[0]):
        out[i] = region if distance[i] <= least[i] else out[i]


@jit()
def _label_stripes(
    first: int,
    last: int,
    stripes: int,
    lab: Array,
    bins: Bins,
    centers: Array,
    position: Any,
    candidates: int,
    side: int,
    out: Array,
) -> None:
    height, width = out.shape
    rows, columns, n = -(-height // side), -(-width // side), block_size(side)
    near, near_distance, gap = np.empty(candidates, np.int32), np.empty(candidates, f), np.empty(candidates, f)
    block, inside, least = np.empty((3, n), f), np.empty(n, f), np.empty(n, f)
    planes = (block[0], block[1], block[2])
    distance = np.empty((candidates, n), f)
    region = np.empty(n, np.int32)
    grid = grid_of(side, position)
    for i in range(first * rows // stripes, last * rows // stripes):
        for j in range(columns):
            nearest_to(bins, middle(i, side, height), middle(j, side, width), near, near_distance)
            read_block(lab, i * side, j * side, side, block, inside)
            top, left = f(i * side) * position, f(j * side) * position
            distances(planes, grid, centers, near, top, left, distance, least, gap)
            region[:] = near[0]
            for t in range(candidates - 1, -1, -1):  # the first of those equally near comes last
                if gap[t] <= f(0):
                    _overwrite(distance[t], near[t], least, region)
            wide = min(side, width - j * side)
            for y in range(min(side, height - i * side)):
                write_row(region[y * side : y * side + wide], out[i * side + y, j * side : j * side + wide])


@jit()
def _kept_exponentials(distance: Array, least: Array, limit: Any, total: Array) -> Any:
    """Overwrite distances with weights, 0 over `limit` but for the nearest, and return the largest."""
    bound, largest = splat(limit), splat(f(0))
    for i in range(0, least.shape[0], LANES):
        d, m = load(distance, i), load(least, i)
        w = up_to(d, upper(bound, m), exp_lanes(m - d))
        store(distance, i, w)
        store(total, i, load(total, i) + w)
        largest = lower(largest, f(0) - w)
    return -least_of(largest)


@jit()
def _write_block(
    row: Array, scale: Array, region: Any, side: int, at: int, wide: int, weight: Array, index: Array
) -> None:
    """Write a block inside the image whose first pixel has the place `at` in the flat maps, `wide` to a row."""
    number = splat(as_float(np.int32(region)))  # its bits
    for y in range(side):
        for x in range(0, side, LANES):
            store(weight, at + y * wide + x, load(row, y * side + x) * load(scale, y * side + x))
            store(index, at + y * wide + x, number)


@jit()
def _assign_stripes(
    first: int,
    last: int,
    stripes: int,
    lab: Array,
    bins: Bins,
    centers: Array,
    position: Any,
    candidates: int,
    side: int,
    limit: Any,
    weight: Array,
    index: Array,
) -> None:
    kept, height, width = weight.shape
    rows, columns, n = -(-height // side), -(-width // side), block_size(side)
    near, near_distance, gap = np.empty(candidates, np.int32), np.empty(candidates, f), np.empty(candidates, f)
    block, inside, least, total = np.empty((3, n), f), np.empty(n, f), np.empty(n, f), np.empty(n, f)
    planes = (block[0], block[1], block[2])
    value = np.empty((candidates, n), f)
    flat_weight, flat_index = weight.reshape(-1), index.reshape(-1).view(f)
    used, order = np.empty(candidates, np.bool_), np.empty(candidates, np.int32)
    grid = grid_of(side, position)
    for i in range(first * rows // stripes, last * rows // stripes):
        for j in range(columns):
            nearest_to(bins, middle(i, side, height), middle(j, side, width), near, near_distance)
            read_block(lab, i * side, j * side, side, block, inside)
            top, left = f(i * side) * position, f(j * side) * position
            distances(planes, grid, centers, near, top, left, value, least, gap)
            total[:] = f(0)
            num_used = 0
            for t in range(candidates):
                used[t] = gap[t] <= limit and _kept_exponentials(value[t], least, limit, total) > f(0)
                if not used[t]:
                    value[t] = f(0)
                num_used += used[t]
            slots = 0
            for wanted in (True, False):  # those with a weight in this block first
                for t in range(candidates):
                    if used[t] == wanted:
                        order[slots] = t
                        slots += 1
            if num_used > kept:
                _keep_largest(value, order, kept, num_used, total)
            for i_n in range(n):
                total[i_n] = f(1) / total[i_n]
            if kept == candidates:
                for t in range(candidates):
                    order[t] = t
            whole = (i + 1) * side <= height and (j + 1) * side <= width and side % LANES == 0
            for t in range(kept):
                row, region = value[order[t]], near[order[t]]
                if whole:
                    at = (t * height + i * side) * width + j * side
                    _write_block(row, total, region, side, at, width, flat_weight, flat_index)
                else:
                    for y in range(min(side, height - i * side)):
                        for x in range(min(side, width - j * side)):
                            weight[t, i * side + y, j * side + x] = row[y * side + x] * total[y * side + x]
                            index[t, i * side + y, j * side + x] = region
            if num_used > kept:
                _write_moved(value, order, near, total, i * side, j * side, side, num_used, weight, index)


@jit()
def _keep_largest(value: Array, order: Array, kept: int, num_used: int, total: Array) -> None:
    """Drop the smallest weights of pixels that have more than `kept` (of those equal the last in the list)."""
    for i in range(value.shape[1]):
        count = 0
        for t in range(value.shape[0]):
            count += value[t, i] > f(0)
        while count > kept:
            smallest = -1
            for t in range(value.shape[0]):
                if value[t, i] > f(0) and (smallest < 0 or value[t, i] <= value[smallest, i]):
                    smallest = t
            total[i] -= value[smallest, i]
            value[smallest, i] = f(0)
            count -= 1


@jit()
def _write_moved(
    value: Array,
    order: Array,
    near: Array,
    scale: Array,
    top: int,
    left: int,
    side: int,
    num_used: int,
    weight: Array,
    index: Array,
) -> None:
    """Write weights of regions beyond the block's first `kept` ones to slots that the pixel does not need."""
    kept, height, width = weight.shape
    for y in range(min(side, height - top)):
        for x in range(min(side, width - left)):
            i = y * side + x
            free = 0
            for slot in range(kept, num_used):
                t = order[slot]
                if value[t, i] > f(0):
                    while value[order[free], i] > f(0):
                        free += 1
                    weight[free, top + y, left + x] = value[t, i] * scale[i]
                    index[free, top + y, left + x] = near[t]
                    free += 1
