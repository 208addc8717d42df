"""Runs of equal labels in the rows of a map: what components, means and borders are counted from."""

from __future__ import annotations

from typing import Any

import numpy as np

from hggraph.ops.fast._arrays import as_array, empty
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["Runs", "as_labels", "runs_of"]

Runs = Any  # (first run of each row (H + 1,), first pixel of each run and H * W at the end (n + 1,), its label (n,))


def as_labels(labels: Any, num_regions: int) -> Any:
    """Return a label map as a contiguous int32 array, and raise unless it holds regions in [0, R)."""
    array = as_array("labels", labels, np.int32, (None, None))
    if array.size == 0:
        raise ValueError(f"`labels` must have at least one pixel, got shape {array.shape}.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_regions:
        raise ValueError(f"`labels` must be in [0, {num_regions}), got values from {low} to {high}.")
    return array


def runs_of(labels: Any) -> Runs:
    """Return the runs of a label map (H, W), int32: O(H W) time, two numbers of memory for each run."""
    height, width = labels.shape
    rows = np.zeros(height + 1, np.int32)
    stripes = num_stripes(height)
    run(_count_stripes, stripes, stripes, labels, rows)
    np.cumsum(rows, out=rows)
    start, label = empty(rows[-1] + 1, dtype=np.int32), empty(rows[-1], dtype=np.int32)
    start[-1] = height * width
    run(_fill_stripes, stripes, stripes, labels, rows, start, label)
    return rows, start, label


@jit()
def _changes(row: Array, following: Array) -> Any:
    count = np.int32(0)
    for x in range(following.shape[0]):
        count += np.int32(row[x] != following[x])
    return count


@jit()
def _count_stripes(first: int, last: int, stripes: int, labels: Array, rows: Array) -> None:
    height = labels.shape[0]
    for y in range(first * height // stripes, last * height // stripes):
        rows[y + 1] = 1 + _changes(labels[y], labels[y, 1:])


@jit()
def _fill_stripes(first: int, last: int, stripes: int, labels: Array, rows: Array, start: Array, label: Array) -> None:
    height, width = labels.shape
    for y in range(first * height // stripes, last * height // stripes):
        _fill_row(labels[y], y * width, start[rows[y] : rows[y + 1]], label[rows[y] : rows[y + 1]])


@jit()
def _fill_row(row: Array, first: int, start: Array, label: Array) -> None:
    n = 0
    before = row[0]
    start[0], label[0] = first, before
    for x in range(row.shape[0]):
        if row[x] != before:
            before = row[x]
            n += 1
            start[n], label[n] = first + x, before
