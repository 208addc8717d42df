"""Borders of hard regions by direction: raw sums of the typed adjacency, counted along runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hggraph._check import check_positive
from hggraph.ops.fast._arrays import as_tensor
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._pairs import Table, find, new_table, room_for, sorted_pairs
from hggraph.ops.fast._pool import as_entries
from hggraph.ops.fast._runs import Runs, as_labels, runs_of
from hggraph.ops.fast._threads import num_stripes, run
from hggraph.ops.fast._tiles import soft_tables

__all__ = ["edges_of_labels", "edges_of_weights"]

Edges = tuple[Tensor, Tensor, Tensor, Tensor]


def edges_of_labels(labels: Any, num_regions: int, offsets: Sequence[tuple[int, int]]) -> Edges:
    """Count the pixels along which regions touch, ``A_k = S^T Shift_k S`` of hard S (HG-Conv Eq. 4), pair by pair.

    ``A_k[i, j]`` is the number of pixels p of region i whose neighbour ``p + offset_k`` is in region j.

    Args:
        labels: Regions in [0, R), shape ``(H, W)``, integers.
        num_regions: R.
        offsets: Displacements (dy, dx), source minus target, one of each pair of opposite ones, K / 2 of them.

    Returns:
        Regions low < high of each pair that touches in some direction, sorted, long ``(N,)``; ``A_k[low, high]`` and
        ``A_k[high, low]``, float32 ``(N, K / 2)``. No cancelling, no filter.

    Raises:
        ValueError: if a label is out of range, or an offset is not a displacement (dy, dx).

    Note:
        O(H W + K runs) time, memory for runs and pairs. Deterministic.

    Example:
        >>> import torch
        >>> [value.tolist() for value in edges_of_labels(torch.tensor([[1, 1, 0]]), 2, [(0, -1), (-1, 0)])]
        [[0], [1], [[1.0, 0.0]], [[0.0, 0.0]]]
    """
    check_positive("num_regions", num_regions)
    labels = as_labels(labels, num_regions)
    steps = as_steps(offsets)
    height, width = labels.shape
    runs = runs_of(labels)
    stripes = num_stripes(height, most=8)
    tables: list[Any] = [None] * stripes

    def count(first: int, last: int) -> None:
        for k in range(first, last):
            tables[k] = _label_table(
                runs, k * height // stripes, (k + 1) * height // stripes, width, num_regions, steps
            )

    run(count, stripes)
    return as_edges(tables, num_regions, len(steps))


def edges_of_weights(
    weight: Any, index: Any, size: tuple[int, int], num_regions: int, offsets: Sequence[tuple[int, int]]
) -> Edges:
    """Return the raw sums of the typed adjacency ``A_k = S^T Shift_k S`` of soft S (HG-Conv Eq. 4), pair by pair.

    Args:
        weight: Weights S, not negative, shape ``(T, H * W)``, float32.
        index: Region of each weight, in [0, R), shape ``(T, H * W)``, int32. Fast where neighbouring pixels list
            the same regions in the same order, right for any.
        size: H and W.
        num_regions: R.
        offsets: Displacements (dy, dx), source minus target, one of each pair of opposite ones, K / 2 of them.

    Returns:
        As `edges_of_labels`; pairs of which every sum is 0 are left out.

    Raises:
        ValueError: if shapes disagree, a region is out of range, or an offset is not a displacement (dy, dx).

    Note:
        About O(H W K U) time with U regions in a tile of 16 x 16 pixels; no matrix of pixels or regions by regions.
        Deterministic, the same bits on any number of threads.

    Example:
        >>> import torch
        >>> weight, index = torch.tensor([[1.0, 0.5], [0.0, 0.5]]), torch.tensor([[0, 0], [1, 1]])
        >>> [value.tolist() for value in edges_of_weights(weight, index, (1, 2), 2, [(0, 1)])]
        [[0], [1], [[0.5]], [[0.0]]]
    """
    check_positive("num_regions", num_regions)
    weight, index = as_entries(weight, index, num_regions)
    if len(size) != 2 or size[0] * size[1] != weight.shape[1]:
        raise ValueError(f"`size` {tuple(size)} must multiply to the {weight.shape[1]} pixels of `weight`.")
    steps = as_steps(offsets)
    shape = (weight.shape[0], *size)
    return as_edges(
        soft_tables(weight.reshape(shape), index.reshape(shape), num_regions, steps), num_regions, len(steps)
    )


def as_steps(offsets: Sequence[tuple[int, int]]) -> Any:
    """Return displacements as an array (K / 2, 2), and raise unless they are pairs of whole numbers, none zero."""
    if any(len(offset) != 2 or not any(offset) for offset in offsets):
        raise ValueError(f"`offsets` must be displacements (dy, dx) other than (0, 0), got {list(offsets)}.")
    return np.asarray(offsets, dtype=np.int64).reshape(-1, 2)


def as_edges(tables: list[Table], num_regions: int, directions: int) -> Edges:
    """Return the pairs of tables whose numbers are those of one order of the two regions, then of the other."""
    low, high, numbers = sorted_pairs(tables, num_regions, 2 * directions)
    forward, backward = numbers[:, :directions].copy(), numbers[:, directions:].copy()
    return as_tensor(low), as_tensor(high), as_tensor(forward), as_tensor(backward)


@jit(exact=True)
def _label_table(runs: Runs, top: int, bottom: int, width: int, num_regions: int, steps: Array) -> Table:
    """Return the pairs of which the target lies in the rows from top to bottom."""
    rows, _, _ = runs
    height = rows.shape[0] - 1
    table = new_table(1024, 2 * steps.shape[0])
    for y in range(top, bottom):
        for k in range(steps.shape[0]):
            other = y + steps[k, 0]
            if 0 <= other < height:
                table = room_for(table, rows[y + 1] - rows[y] + rows[other + 1] - rows[other])
                _touch(runs, y, other, steps[k, 1], width, num_regions, k, table)
    return table


@jit(exact=True)
def _touch(runs: Runs, y: int, other: int, dx: int, width: int, num_regions: int, k: int, table: Table) -> None:
    """Add the lengths along which runs of row y lie beside runs of another row shifted by dx."""
    rows, start, label = runs
    half = table[2].shape[1] // 2
    values = table[2]
    i, j = rows[y], rows[other]
    shift = other * width + dx  # from a source's pixel to the target's column
    x, end = max(0, -dx), width - max(0, dx)
    if x >= end:
        return
    while start[i + 1] - y * width <= x:
        i += 1
    while start[j + 1] - shift <= x:
        j += 1
    while x < end:
        a, b = start[i + 1] - y * width, start[j + 1] - shift
        following = min(min(a, b), end)
        target, source = np.int64(label[i]), np.int64(label[j])
        if target < source:
            values[find(table, target * num_regions + source), k] += following - x
        elif target > source:
            values[find(table, source * num_regions + target), half + k] += following - x
        if a == following:
            i += 1
        if b == following:
            j += 1
        x = following
