"""The last step of the clustering: each pixel's region, or its weights over the regions listed for its block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from hggraph.ops.fast._arrays import as_array, as_image, as_tensor, empty
from hggraph.ops.fast._block import distances, grid_of, read_block, write_row
from hggraph.ops.fast._jit import Array, exponential, jit
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
    limit = f(-math.log(threshold) if threshold > 0 else math.inf)
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
def _nearest(distance: Array, region: Any, least: Array, out: Array) -> None:
    for i in range(distance.shape[0]):
        nearer = distance[i] < least[i]
        least[i] = distance[i] if nearer else least[i]
        out[i] = region if nearer else out[i]


@jit()
def _block_distances(
    planes: tuple[Array, Array, Array],
    grid: tuple[Array, Array],
    centers: Array,
    near: Array,
    top: Any,
    left: Any,
    distance: Array,
    least: Array,
) -> None:
    """Write the distances (T, n) of a block whose first pixel has the features `top` and `left`."""
    a, b, c = planes
    ys, xs = grid
    least[:] = f(np.inf)
    for t in range(near.shape[0]):
        r = near[t]
        center = (centers[r, 0], centers[r, 1], centers[r, 2], centers[r, 3] - top, centers[r, 4] - left)
        distances(a, b, c, ys, xs, center, distance[t], least)


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
    rows, columns, n = -(-height // side), -(-width // side), side * side
    near, near_distance = np.empty(candidates, np.int32), np.empty(candidates, f)
    block, inside, least = np.empty((3, n), f), np.empty(n, f), np.empty(n, f)
    planes = (block[0], block[1], block[2])
    distance = np.empty((candidates, n), f)
    region = np.empty(n, np.int32)
    grid = grid_of(side, position)
    for i in range(first * rows // stripes, last * rows // stripes):
        for j in range(columns):
            nearest_to(bins, middle(i, side, height), middle(j, side, width), near, near_distance)
            read_block(lab, i * side, j * side, side, block, inside)
            _block_distances(
                planes, grid, centers, near, f(i * side) * position, f(j * side) * position, distance, least
            )
            least[:] = f(np.inf)
            region[:] = near[0]
            for t in range(candidates):
                _nearest(distance[t], near[t], least, region)
            wide = min(side, width - j * side)
            for y in range(min(side, height - i * side)):
                write_row(region[y * side : y * side + wide], out[i * side + y, j * side : j * side + wide])


@jit()
def _kept_exponentials(distance: Array, least: Array, limit: Any, total: Array) -> Any:
    """Overwrite distances with weights, 0 from `limit` on but for the nearest, and return whether one is left."""
    largest = f(0)
    for i in range(distance.shape[0]):
        kept = distance[i] < limit or distance[i] == least[i]
        w = exponential(least[i] - distance[i]) if kept else f(0)
        distance[i] = w
        total[i] += w
        largest = max(w, largest)
    return largest


@jit()
def _write_scaled(row: Array, scale: Array, out: Array) -> None:
    for x in range(out.shape[0]):
        out[x] = row[x] * scale[x]


@jit()
def _fill(value: Any, out: Array) -> None:
    for x in range(out.shape[0]):
        out[x] = value


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
    rows, columns, n = -(-height // side), -(-width // side), side * side
    near, near_distance = np.empty(candidates, np.int32), np.empty(candidates, f)
    block, inside, least, total = np.empty((3, n), f), np.empty(n, f), np.empty(n, f), np.empty(n, f)
    planes = (block[0], block[1], block[2])
    value = np.empty((candidates, n), f)
    used, order = np.empty(candidates, np.bool_), np.empty(candidates, np.int32)
    grid = grid_of(side, position)
    for i in range(first * rows // stripes, last * rows // stripes):
        for j in range(columns):
            nearest_to(bins, middle(i, side, height), middle(j, side, width), near, near_distance)
            read_block(lab, i * side, j * side, side, block, inside)
            _block_distances(planes, grid, centers, near, f(i * side) * position, f(j * side) * position, value, least)
            total[:] = f(0)
            num_used = 0
            for t in range(candidates):
                used[t] = _kept_exponentials(value[t], least, limit, total) > f(0)
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
            wide = min(side, width - j * side)
            for t in range(kept):
                row, region = value[order[t]], near[order[t]]
                for y in range(min(side, height - i * side)):
                    at = y * side
                    out = weight[t, i * side + y, j * side : j * side + wide]
                    _write_scaled(row[at : at + wide], total[at : at + wide], out)
                    _fill(region, index[t, i * side + y, j * side : j * side + wide])
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
