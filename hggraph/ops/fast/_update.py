"""Soft k-means of a photo's pixels over the centres listed for their block: the fused loop of the fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from hggraph._check import check_positive
from hggraph.ops.fast._arrays import as_array, as_image, as_tensor, empty
from hggraph.ops.fast._block import block_size, distances, grid_of, read_block, softmax_block, sums_of
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._lists import Bins, make_bins, middle, nearest_to
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["check_blocks", "slic"]

f = np.float32
_SUMS = 6  # mass, three colours, y, x


def slic(lab: Any, seeds: Any, position: float, candidates: int, side: int, iterations: int) -> Tensor:
    """Return the centres of a photo's regions after iterations of soft k-means (Superpixel Sampling Networks).

    First each pixel goes to the nearest seed of its list by position alone, and centres are the means of their
    pixels. Then ``iterations - 1`` times: each block of pixels lists the centres nearest to its middle, pixels have
    weights ``softmax_t(-||f_p - c_t||^2)`` over their list, and centres are the weighted means.

    Args:
        lab: Scaled Lab, shape ``(3, H, W)``, float32.
        seeds: Flat index of each region's first pixel, shape ``(R,)``, long.
        position: Factor of (y, x) in the space of features.
        candidates: T, the length of a list; at most R are listed.
        side: Side of a block (pixels).
        iterations: At least 1.

    Returns:
        Features (L, a, b, y, x) of the centres, shape ``(R, 5)``, float32. A centre without pixels keeps its features.

    Raises:
        ValueError: if there is no seed, a seed lies outside, or a number is out of range.

    Note:
        O(H W T) time an iteration; memory of at most as many numbers as there are pixels beside the centres. The
        same bits on any number of threads.

    Example:
        >>> import torch
        >>> photo = torch.tensor([0.0, 0.0, 9.0, 9.0]).expand(3, 1, 4)
        >>> slic(photo, torch.tensor([0, 3]), 1.0, 2, 1, 2)[:, 0].round()
        tensor([0., 9.])
    """
    lab = as_image("lab", lab, np.float32)
    seeds = as_array("seeds", seeds, np.int64, (None,))
    check_blocks(lab, candidates, side, len(seeds))
    check_positive("iterations", iterations)
    _, height, width = lab.shape
    if seeds.min() < 0 or seeds.max() >= height * width:
        raise ValueError(f"`seeds` must be in [0, {height * width}), got {seeds.min()} to {seeds.max()}.")
    regions = len(seeds)
    centers = empty(regions, 5)
    ys, xs = empty(regions), empty(regions)
    _start(lab, seeds, f(position), centers, ys, xs)
    rows = -(-height // side)
    stripes = num_stripes(rows, regions * _SUMS, height * width)
    sums = empty(stripes, regions, _SUMS, dtype=np.float64)
    candidates = min(candidates, regions)
    for iteration in range(iterations):
        bins = make_bins(ys, xs, height, width)
        parts = (lab, bins, centers, ys, xs, f(position), candidates, side, iteration == 0, sums)
        run(_update_stripes, stripes, *parts)
        _finish(sums, f(position), centers, ys, xs)
    return as_tensor(centers)


def check_blocks(lab: Any, candidates: int, side: int, regions: int) -> None:
    """Raise unless a photo, lists and regions fit each other."""
    check_positive("candidates", candidates)
    check_positive("side", side)
    if lab.shape[0] != 3 or regions < 1:
        raise ValueError(f"Expected 3 channels and at least one region, got {lab.shape[0]} and {regions}.")


@jit()
def _start(lab: Array, seeds: Array, position: Any, centers: Array, ys: Array, xs: Array) -> None:
    for r in range(seeds.shape[0]):
        y, x = seeds[r] // lab.shape[2], seeds[r] % lab.shape[2]
        ys[r] = f(y)
        xs[r] = f(x)
        for c in range(3):
            centers[r, c] = lab[c, y, x]
        centers[r, 3] = f(y) * position
        centers[r, 4] = f(x) * position


@jit()
def _nearest_position(y: Any, x: Any, rows: Array, columns: Array, t: int, least: Array, which: Array) -> None:
    for i in range(least.shape[0]):
        dy, dx = rows[i] - y, columns[i] - x
        d = dy * dy + dx * dx
        nearer = d < least[i]
        least[i] = d if nearer else least[i]
        which[i] = f(t) if nearer else which[i]


@jit()
def _choose(which: Array, t: int, out: Array) -> None:
    for i in range(which.shape[0]):
        out[i] = f(1) if which[i] == f(t) else f(0)


@jit()
def _update_stripes(
    first: int,
    last: int,
    lab: Array,
    bins: Bins,
    centers: Array,
    ys: Array,
    xs: Array,
    position: Any,
    candidates: int,
    side: int,
    by_position: bool,
    sums: Array,
) -> None:
    height, width = lab.shape[1], lab.shape[2]
    rows, columns, stripes, n = -(-height // side), -(-width // side), sums.shape[0], block_size(side)
    near, near_distance, gap = np.empty(candidates, np.int32), np.empty(candidates, f), np.zeros(candidates, f)
    block, inside, least, scale = np.empty((3, n), f), np.empty(n, f), np.empty(n, f), np.empty(n, f)
    a, b, c = block[0], block[1], block[2]
    planes = (a, b, c)
    weight = np.empty((candidates, n), f)
    row, column = grid_of(side, f(1))
    row_feature, column_feature = grid_of(side, position)
    grid = (row_feature, column_feature)
    for stripe in range(first, last):
        out = sums[stripe]
        out[:] = 0
        for i in range(stripe * rows // stripes, (stripe + 1) * rows // stripes):
            for j in range(columns):
                top, left = f(i * side), f(j * side)
                nearest_to(bins, middle(i, side, height), middle(j, side, width), near, near_distance)
                whole = read_block(lab, i * side, j * side, side, block, inside)
                if by_position:  # seeds lie on pixels: whole numbers, exact ties
                    least[:] = f(np.inf)
                    for t in range(candidates):
                        r = near[t]
                        _nearest_position(ys[r] - top, xs[r] - left, row, column, t, least, scale)
                    for t in range(candidates):
                        _choose(scale, t, weight[t])
                    if whole:
                        scale[:] = f(1)
                    else:
                        scale[:] = inside
                else:
                    distances(planes, grid, centers, near, top * position, left * position, weight, least, gap)
                    softmax_block(weight, least, gap, inside, whole, scale)
                for t in range(candidates):
                    if gap[t] == f(np.inf):
                        continue
                    r = near[t]
                    mass, sa, sb, sc, sy, sx = sums_of(weight[t], scale, a, b, c, row_feature, column_feature)
                    out[r, 0] += mass
                    out[r, 1] += sa
                    out[r, 2] += sb
                    out[r, 3] += sc
                    out[r, 4] += sy + np.float64(top * position) * mass
                    out[r, 5] += sx + np.float64(left * position) * mass


@jit()
def _finish(sums: Array, position: Any, centers: Array, ys: Array, xs: Array) -> None:
    """Add the stripes' sums in their order and divide."""
    for r in range(centers.shape[0]):
        total = sums[0, r]
        for stripe in range(1, sums.shape[0]):
            for k in range(total.shape[0]):
                total[k] += sums[stripe, r, k]
        if total[0] >= 1e-12:
            for k in range(5):
                centers[r, k] = f(total[k + 1] / total[0])
            ys[r] = centers[r, 3] / position
            xs[r] = centers[r, 4] / position
