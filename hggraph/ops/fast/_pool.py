"""Means and sums of pixels' features over regions, run by run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hggraph._check import check_positive
from hggraph.ops.fast._arrays import as_array, as_tensor, empty
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._lanes import LANES, all_equal, load, lower, some, sum_of, upper
from hggraph.ops.fast._runs import Runs, as_labels, runs_of
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["pool", "pool_labels"]

f = np.float32
_CHUNK = 2 * LANES  # pixels that are looked at together
_PIECE = 4096  # pixels summed in float32 before they are added in float64


def pool_labels(x: Any, labels: Any, num_regions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each region's mean features, mean position and number of pixels (HG-Conv Eq. 5 of hard regions).

    Args:
        x: Features, shape ``(C, H, W)``, float32.
        labels: Regions in [0, R), shape ``(H, W)``, integers.
        num_regions: R.

    Returns:
        Means ``(R, C)``, positions ``(R, 2)`` as (y, x) in pixels, and areas ``(R,)`` in pixels, float32; all 0 for a
        region without pixels.

    Raises:
        ValueError: if sizes disagree or a label is out of range.

    Note:
        O(H W C) time. Deterministic, the same bits on any number of threads.

    Example:
        >>> import torch
        >>> pool_labels(torch.tensor([[[1.0, 3.0, 5.0]]]), torch.tensor([[0, 0, 1]]), 2)
        (tensor([[2.],
                [5.]]), tensor([[0.0000, 0.5000],
                [0.0000, 2.0000]]), tensor([2., 1.]))
    """
    check_positive("num_regions", num_regions)
    labels = as_labels(labels, num_regions)
    x = as_array("x", x, f, (None, *labels.shape))
    channels = x.shape[0]
    height, width = labels.shape
    runs = runs_of(labels)
    stripes = num_stripes(height, num_regions * (channels + 3), max(channels, 1) * labels.size, most=16)
    sums = empty(stripes, num_regions, channels + 3, dtype=np.float64)
    run(_label_stripes, stripes, runs, x.reshape(channels, labels.size), width, sums)
    total = _added(sums)
    area = total[:, channels]
    means = (total / np.maximum(area, 1)[:, None]).astype(f)
    # copies, so that no result holds the memory of all
    return as_tensor(means[:, :channels].copy()), as_tensor(means[:, channels + 1 :].copy()), as_tensor(area.astype(f))


def pool(
    x: Any, weight: Any, index: Any, num_regions: int, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return each region's weighted sum of features and its mass: ``sum_p S_pr x_p`` and ``sum_p S_pr``.

    Args:
        x: Features, shape ``(C, P)``, float32.
        weight: Weights S or their gradients, shape ``(T, P)``, float32.
        index: Region of each weight, in [0, R), shape ``(T, P)``, int32.
        num_regions: R.
        size: H and W, for the sums of (y, x) in pixels too, as two more features.

    Returns:
        Sums ``(R, C)``, with `size` ``(R, C + 2)``, and masses ``(R,)``, float32; 0 for a region without weights.

    Raises:
        ValueError: if shapes disagree or a region is out of range.

    Note:
        O(P (T + entries C)) time, of entries that are not 0. Deterministic, the same bits on any number of threads.

    Example:
        >>> import torch
        >>> weight, index = torch.tensor([[1.0, 0.5], [0.0, 0.5]]), torch.tensor([[0, 0], [1, 1]])
        >>> pool(torch.tensor([[2.0, 4.0]]), weight, index, 2)
        (tensor([[4.],
                [2.]]), tensor([1.5000, 0.5000]))
    """
    check_positive("num_regions", num_regions)
    weight, index = as_entries(weight, index, num_regions)
    pixels = weight.shape[1]
    x = as_array("x", x, f, (None, pixels))
    if size is not None and size[0] * size[1] != pixels:
        raise ValueError(f"`size` {tuple(size)} must multiply to the {pixels} pixels of `weight`.")
    channels, width = x.shape[0], pixels if size is None else size[1]
    numbers = channels + (1 if size is None else 3)
    stripes = num_stripes(max(1, pixels // 1024), num_regions * numbers, max(channels, 1) * pixels, most=16)
    sums = empty(stripes, num_regions, numbers, dtype=np.float64)
    run(_weight_stripes, stripes, x, weight, index, width, sums)
    total = _added(sums).astype(f)
    return as_tensor(total[:, 1:].copy()), as_tensor(total[:, 0].copy())


def as_entries(weight: Any, index: Any, num_regions: int) -> tuple[Any, Any]:
    """Return weights and regions (T, P) as arrays, and raise unless they fit each other and R."""
    weight = as_array("weight", weight, f, (None, None))
    index = as_array("index", index, np.int32, weight.shape)
    if index.size:
        low, high = (int(value) for value in torch.aminmax(as_tensor(index)))
        if low < 0 or high >= num_regions:
            raise ValueError(f"`index` must be in [0, {num_regions}), got values from {low} to {high}.")
    return weight, index


def _added(sums: Any) -> Any:
    """Return the sum of the stripes' sums, in their order."""
    for stripe in range(1, len(sums)):
        sums[0] += sums[stripe]
    return sums[0]


@jit()
def _sum(row: Array) -> Any:
    total = f(0)
    for x in range(row.shape[0]):
        total += row[x]
    return total


@jit()
def _label_stripes(first: int, last: int, runs: Runs, x: Array, width: int, sums: Array) -> None:
    rows, start, label = runs
    channels, stripes, height = x.shape[0], sums.shape[0], rows.shape[0] - 1
    for stripe in range(first, last):
        out = sums[stripe]
        out[:] = 0
        for y in range(stripe * height // stripes, (stripe + 1) * height // stripes):
            for i in range(rows[y], rows[y + 1]):
                p, q, r = start[i], start[i + 1], label[i]
                for piece in range(p, q, _PIECE):
                    end = min(piece + _PIECE, q)
                    for c in range(channels):
                        out[r, c] += _sum(x[c, piece:end])
                length = q - p
                out[r, channels] += length
                out[r, channels + 1] += np.float64(y) * length
                out[r, channels + 2] += 0.5 * (p + q - 1 - 2 * y * width) * length


@jit()
def _weight_stripes(first: int, last: int, x: Array, weight: Array, index: Array, width: int, sums: Array) -> None:
    """Add each stripe's mass, features and, where there is room for them, y and x."""
    stripes, pixels = sums.shape[0], weight.shape[1]
    flat, flat_x = weight.reshape(-1), x.reshape(-1)
    flat_index = index.reshape(-1)
    placed = sums.shape[2] > x.shape[0] + 1
    column = np.arange(_CHUNK).astype(f)
    for stripe in range(first, last):
        out = sums[stripe]
        out[:] = 0
        for t in range(weight.shape[0]):
            p = stripe * pixels // stripes
            end = (stripe + 1) * pixels // stripes
            while p < end:
                row = p // width
                row_end = min((row + 1) * width, end)
                y, left = (row, row * width) if placed else (0, 0)
                while p < row_end:
                    at = t * pixels + p
                    if p + _CHUNK <= row_end:
                        a, b = load(flat, at), load(flat, at + LANES)
                        if not some(upper(upper(a, b), f(0) - lower(a, b))):
                            p += _CHUNK
                            continue
                        if (
                            flat_index[at] == flat_index[at + LANES]
                            and all_equal(flat_index, at)
                            and all_equal(flat_index, at + LANES)
                        ):
                            _add_chunk(a, b, flat_x, p, pixels, column, y, p - left, placed, out[flat_index[at]])
                            p += _CHUNK
                            continue
                    for q in range(p, min(p + _CHUNK, row_end)):
                        w = weight[t, q]
                        if w != f(0):
                            _add_pixel(w, x, q, y, q - left, placed, out[index[t, q]])
                    p = min(p + _CHUNK, row_end)


@jit()
def _add_chunk(
    a: Any, b: Any, x: Array, p: int, pixels: int, column: Array, y: int, left: int, placed: bool, out: Array
) -> None:
    mass = np.float64(sum_of(a + b))
    out[0] += mass
    last = out.shape[0] - 2 * placed
    for c in range(last - 1):
        at = c * pixels + p
        out[c + 1] += sum_of(a * load(x, at) + b * load(x, at + LANES))
    if placed:
        out[last] += y * mass
        out[last + 1] += left * mass + sum_of(a * load(column, 0) + b * load(column, LANES))


@jit()
def _add_pixel(w: Any, x: Array, p: int, y: int, left: int, placed: bool, out: Array) -> None:
    out[0] += w
    for c in range(x.shape[0]):
        out[c + 1] += w * x[c, p]
    if placed:
        out[x.shape[0] + 1] += np.float64(y) * w
        out[x.shape[0] + 2] += np.float64(left) * w
