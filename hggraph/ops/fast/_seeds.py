"""Seeds of regions where the detail is: weighted Lloyd's algorithm on a coarse grid of cells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from hggraph._check import check_positive
from hggraph.ops.fast._arrays import as_array, as_image, as_tensor, empty
from hggraph.ops.fast._cells import cell_importance, cell_means, cell_middles, smooth_cells
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._lab import gaussian_taps
from hggraph.ops.fast._lists import Bins, make_bins, nearest_to
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["density_seeds", "grid_seeds"]

f = np.float32
_TILE = 8  # cells in a row and in a column whose nearest seeds are looked for together


def density_seeds(
    lab: Any,
    num_regions: int,
    importance: Any = None,
    *,
    steps: int = 2,
    cells: float = 5.0,
    blur: float = 0.5,
    least: float = 0.3,
    power: float = 0.5,
) -> Tensor:
    """Return the pixels where regions start: a centroidal Voronoi tessellation, denser where the detail is.

    From a regular grid, `steps` of Lloyd's algorithm (Du, Faber, Gunzburger, SIAM Review 1999) over square cells of
    pixels with ``density = max(least, (D / mean D)^power)``, D the cells' mean importance blurred by a Gaussian.
    Regions under 4 pixels wide keep the grid.

    Args:
        lab: Scaled Lab, shape ``(3, H, W)``, float32.
        num_regions: R, at least 1 and at most H * W.
        importance: Map to use, shape ``(H, W)``, not negative; None for `hggraph.cluster.importance_map` of `lab`.
        steps: Steps of Lloyd's algorithm, at least 0.
        cells: Cells in a region's spacing.
        blur: Standard deviation of the Gaussian over a region's spacing.
        least: Least density, of the mean.
        power: Exponent of the density.

    Returns:
        Flat pixel indices ``y * W + x``, shape ``(R,)``, long; those of the grid row by row where nothing moved.

    Raises:
        ValueError: if there are more regions than pixels, or `importance` has another shape or is not finite.

    Note:
        O(H W + steps cells^2 R) time, O(R) memory beside the importance of cells. Deterministic, the same bits on
        any number of threads.

    Example:
        >>> import torch
        >>> density_seeds(torch.zeros(3, 2, 4), 2)
        tensor([5, 7])
    """
    lab = as_image("lab", lab, np.float32)
    _, height, width = lab.shape
    check_positive("num_regions", num_regions)
    check_positive("steps", steps, 0)
    if num_regions > height * width:
        raise ValueError(f"`num_regions` must be at most {height} x {width} = {height * width}, got {num_regions}.")
    ys, xs = grid_seeds(height, width, num_regions)
    spacing = math.sqrt(height * width / num_regions)
    if spacing >= 4 and steps:
        side = max(1, math.floor(spacing / cells))
        if importance is None:
            density = cell_importance(lab, side)
        else:
            density = cell_means(as_array("importance", importance, np.float32, (height, width)), side)
        if not np.isfinite(density).all():
            raise ValueError("`importance` must be finite, got NaN or infinity.")
        density = smooth_cells(density, gaussian_taps(blur * spacing / side))
        _move(ys, xs, density, (height, width), side, steps, least, power)
    rows = np.clip(np.floor(ys + f(0.499)).astype(np.int64), 0, height - 1)
    columns = np.clip(np.floor(xs + f(0.499)).astype(np.int64), 0, width - 1)
    return as_tensor(rows * width + columns)


def grid_seeds(height: int, width: int, num_regions: int) -> tuple[Any, Any]:
    """Return y and x of R seeds on a regular grid, row by row, float32.

    Example:
        >>> grid_seeds(2, 4, 2)
        (array([1., 1.], dtype=float32), array([1., 3.], dtype=float32))
    """
    rows = round(math.sqrt(num_regions * height / width))
    rows = min(max(rows, -(-num_regions // width)), min(num_regions, height))
    row = np.arange(num_regions) * rows // num_regions  # a first guess; the exact row follows
    first = np.arange(rows + 1) * num_regions // rows
    row = np.searchsorted(first, np.arange(num_regions), side="right") - 1
    count = np.diff(first)[row]
    place = np.arange(num_regions) - first[row]
    ys = (2 * row + 1) * height // (2 * rows)  # floor((i + 0.5) H / n), in whole numbers
    xs = (2 * place + 1) * width // (2 * count)
    return ys.astype(np.float32), xs.astype(np.float32)


def _move(
    ys: Any, xs: Any, density: Any, size: tuple[int, int], side: int, steps: int, least: float, power: float
) -> None:
    """Move seeds (in place) to the weighted means of the cells nearest to them, `steps` times."""
    rows, columns = density.shape
    mean = density.mean(dtype=np.float64)
    relative = density / f(mean) if mean > 0 else np.ones_like(density)
    middle_y, count_y = cell_middles(size[0], side)
    middle_x, count_x = cell_middles(size[1], side)
    weight = np.maximum(f(least), relative ** f(power)) * count_y[:, None] * count_x
    tiles = -(-rows // _TILE)
    stripes = num_stripes(tiles, 3 * len(ys), rows * columns)
    sums = empty(stripes, len(ys), 3, dtype=np.float64)
    for _ in range(steps):
        bins = make_bins(ys, xs, *size)
        run(_lloyd_stripes, stripes, bins, weight, middle_y, middle_x, sums)
        total = sums[0]
        for stripe in range(1, stripes):
            total += sums[stripe]
        some = total[:, 0] > 0
        ys[some] = total[some, 1] / total[some, 0]
        xs[some] = total[some, 2] / total[some, 0]


@jit(exact=True)
def _near_tile(bins: Bins, y: Any, x: Any, half: Any, near: Array, distance: Array, found: Array) -> int:
    """Write the slots of all members that may be nearest to a point at most `half` from (y, x); return how many."""
    start, _, positions, rows, columns, side = bins
    nearest_to(bins, y, x, near, distance)
    reach = (np.sqrt(distance[0]) + f(2) * half) * f(1.0001) + f(1e-3)
    top, bottom = max(int((y - reach) / side), 0), min(int((y + reach) / side), rows - 1)
    left, right = max(int((x - reach) / side), 0), min(int((x + reach) / side), columns - 1)
    count = 0
    for i in range(min(top, rows - 1), max(bottom, 0) + 1):
        first = start[i * columns + min(left, columns - 1)]
        for slot in range(first, start[i * columns + max(right, 0) + 1]):
            dy, dx = positions[slot, 0] - y, positions[slot, 1] - x
            if dy * dy + dx * dx <= reach * reach:
                found[count] = slot
                count += 1
    return count


@jit(exact=True)
def _nearer(y: Any, x: Any, region: Any, ys: Array, xs: Array, least: Array, which: Array) -> None:
    for i in range(least.shape[0]):
        dy, dx = ys[i] - y, xs[i] - x
        d = dy * dy + dx * dx
        nearer = (d < least[i]) | ((d == least[i]) & (region < which[i]))
        least[i] = d if nearer else least[i]
        which[i] = region if nearer else which[i]


@jit()
def _lloyd_stripes(
    first: int, last: int, bins: Bins, weight: Array, middle_y: Array, middle_x: Array, sums: Array
) -> None:
    rows, columns = weight.shape
    tiles, stripes = -(-rows // _TILE), sums.shape[0]
    members, positions = bins[1], bins[2]
    found = np.empty(members.shape[0], np.int32)
    near, distance = np.empty(1, np.int32), np.empty(1, f)
    n = _TILE * _TILE
    ys, xs, least, which = np.empty(n, f), np.empty(n, f), np.empty(n, f), np.empty(n, np.int32)
    for stripe in range(first, last):
        out = sums[stripe]
        out[:] = 0
        for i in range(stripe * tiles // stripes, (stripe + 1) * tiles // stripes):
            top, bottom = i * _TILE, min((i + 1) * _TILE, rows) - 1
            for j in range(-(-columns // _TILE)):
                left, right = j * _TILE, min((j + 1) * _TILE, columns) - 1
                for k in range(n):  # cells beyond the border repeat the last one
                    ys[k] = middle_y[min(top + k // _TILE, bottom)]
                    xs[k] = middle_x[min(left + k % _TILE, right)]
                y, x = f(0.5) * (ys[0] + ys[n - 1]), f(0.5) * (xs[0] + xs[n - 1])
                half = np.sqrt((ys[n - 1] - y) ** 2 + (xs[n - 1] - x) ** 2)
                least[:] = f(np.inf)
                which[:] = 2147483647
                for k in range(_near_tile(bins, y, x, half, near, distance, found)):
                    slot = found[k]
                    _nearer(positions[slot, 0], positions[slot, 1], members[slot], ys, xs, least, which)
                for p in range(top, bottom + 1):
                    for q in range(left, right + 1):
                        k = (p - top) * _TILE + q - left
                        w, r = np.float64(weight[p, q]), which[k]
                        out[r, 0] += w
                        out[r, 1] += w * ys[k]
                        out[r, 2] += w * xs[k]
