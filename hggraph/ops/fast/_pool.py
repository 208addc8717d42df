"""Means and sums of pixels' features over regions, run by run."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from hggraph._check import check_positive
from hggraph.ops.fast._arrays import as_array, as_tensor, empty
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._runs import Runs, as_labels, runs_of
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["pool", "pool_labels"]

f = np.float32
_CHUNK = 16  # pixels that are looked at together
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


def pool(x: Any, weight: Any, index: Any, num_regions: int) -> tuple[Tensor, Tensor]:
    """Return each region's weighted sum of features and its mass: ``sum_p S_pr x_p`` and ``sum_p S_pr``.

    Args:
        x: Features, shape ``(C, P)``, float32.
        weight: Weights S or their gradients, shape ``(T, P)``, float32.
        index: Region of each weight, in [0, R), shape ``(T, P)``, int32.
        num_regions: R.

    Returns:
        Sums ``(R, C)`` and masses ``(R,)``, float32; 0 for a region without weights.

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
    channels = x.shape[0]
    stripes = num_stripes(max(1, pixels // 1024), num_regions * (channels + 1), max(channels, 1) * pixels, most=16)
    sums = empty(stripes, num_regions, channels + 1, dtype=np.float64)
    run(_weight_stripes, stripes, x, weight, index, sums)
    total = _added(sums).astype(f)
    return as_tensor(total[:, :channels].copy()), as_tensor(total[:, channels].copy())


def as_entries(weight: Any, index: Any, num_regions: int) -> tuple[Any, Any]:
    """Return weights and regions (T, P) as arrays, and raise unless they fit each other and R."""
    weight = as_array("weight", weight, f, (None, None))
    index = as_array("index", index, np.int32, weight.shape)
    if index.size:
        low, high = int(index.min()), int(index.max())
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
def _all_zero(row: Array) -> bool:
    largest = f(0)
    for x in range(row.shape[0]):
        size = abs(row[x])
        largest = size if size > largest else largest
    return largest == f(0)


@jit()
def _all_same(row: Array) -> bool:
    different = np.int32(0)
    for x in range(row.shape[0]):
        different |= row[x] ^ row[0]
    return different == 0


@jit()
def _product(row: Array, other: Array) -> Any:
    total = f(0)
    for x in range(row.shape[0]):
        total += row[x] * other[x]
    return total


@jit()
def _weight_stripes(first: int, last: int, x: Array, weight: Array, index: Array, sums: Array) -> None:
    channels, stripes = x.shape[0], sums.shape[0]
    pixels = weight.shape[1]
    for stripe in range(first, last):
        out = sums[stripe]
        out[:] = 0
        for t in range(weight.shape[0]):
            p = stripe * pixels // stripes
            end = (stripe + 1) * pixels // stripes
            while p < end:
                q = min(p + _CHUNK, end)
                if _all_zero(weight[t, p:q]):
                    p = q
                    continue
                r = index[t, p]
                if not _all_same(index[t, p:q]):
                    q = p + 1
                    while index[t, q] == r:
                        q += 1
                w = weight[t, p:q]
                out[r, channels] += _sum(w)
                for c in range(channels):
                    out[r, c] += _product(w, x[c, p:q])
                p = q
