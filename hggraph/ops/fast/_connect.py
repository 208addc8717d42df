"""Exact clean-up of labels: every region one 4-connected piece, none empty."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from hggraph._check import check_positive
from hggraph.ops.fast._arrays import as_array, as_tensor, empty
from hggraph.ops.fast._jit import Array, as_int, jit
from hggraph.ops.fast._runs import Runs, as_labels, runs_of
from hggraph.ops.fast._split import split_largest
from hggraph.ops.fast._threads import num_stripes, run
from hggraph.ops.fast.plain_connect import BUCKETS, LOWEST, SHIFT

__all__ = ["connect"]

f = np.float32


def connect(labels: Any, num_regions: int, lab: Any) -> Tensor:
    """Return labels of which every region is one 4-connected piece with at least one pixel.

    Each region keeps its largest piece; all other pixels are flooded from these along the smallest steps of colour
    (seeded watershed, Meyer 1991, with costs between neighbours); then a region without a pixel gets about half of
    the largest one. `plain_connect` has every rule and gives the same labels.

    Args:
        labels: Regions in [0, R), shape ``(H, W)``, integers.
        num_regions: R, at most H * W.
        lab: Scaled Lab, shape ``(3, H, W)``, float32.

    Returns:
        Shape ``(H, W)``, int32.

    Raises:
        ValueError: if shapes disagree, a label is out of range, or there are more regions than pixels.

    Note:
        O(H W) time, and O(H W log R) where many regions are empty. Deterministic.

    Example:
        >>> import torch
        >>> connect(torch.tensor([[0, 1, 0, 0]]), 2, torch.zeros(3, 1, 4))
        tensor([[1, 1, 0, 0]], dtype=torch.int32)
    """
    check_positive("num_regions", num_regions)
    labels = as_labels(labels, num_regions)
    lab = as_array("lab", lab, f, (3, *labels.shape))
    height, width = labels.shape
    if num_regions > labels.size:
        raise ValueError(f"`num_regions` must be at most {height} x {width} = {labels.size}, got {num_regions}.")
    runs = runs_of(labels)
    marker, place, groups, filled = _markers(*runs, width, num_regions)
    out = empty(height, width, dtype=np.int32)
    stripes = num_stripes(height)
    run(_write_stripes, stripes, stripes, runs, marker, place, out)
    if groups[-1]:
        pixels = empty(groups[-1], dtype=np.int32)
        _list_pixels(runs[1], marker, place, pixels)
        chain = empty(4 * groups[-1], dtype=np.int32)
        stripes = num_stripes(len(groups) - 1)
        run(_flood_stripes, stripes, stripes, lab.reshape(3, -1), pixels, groups, width, chain, out.reshape(-1))
    if filled < num_regions:
        split_largest(out.reshape(-1), width, num_regions)
    return as_tensor(out)


@jit(exact=True)
def _root(parent: Array, i: Any) -> Any:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@jit(exact=True)
def _join(parent: Array, rows: Array, start: Array, width: int, label: Array, wanted: Array, loose: bool) -> None:
    """Join runs that touch in neighbouring rows: those of one label, or with `loose` those not `wanted`.

    A piece is known by its first run, the smallest of its numbers.
    """
    for y in range(1, rows.shape[0] - 1):
        i, j = rows[y - 1], rows[y]
        while i < rows[y] and j < rows[y + 1]:
            if (not wanted[i] and not wanted[j]) if loose else label[i] == label[j]:
                a, b = _root(parent, i), _root(parent, j)
                parent[max(a, b)] = min(a, b)
            over = start[i + 1] + width - start[j + 1]  # how much farther right the upper run ends
            if over <= 0:
                i += 1
            if over >= 0:
                j += 1


@jit(exact=True)
def _markers(rows: Array, start: Array, label: Array, width: int, num_regions: int) -> tuple[Array, Array, Array, int]:
    """Say of each run whether it is part of its region's largest piece, and put the other runs into groups.

    Of pieces equally large the first counts. The pixels outside of all markers are listed by connected groups, in a
    group row by row: returns the place of each run's first pixel in that list, the place of each group's first pixel
    with the length of the list at the end, and how many regions have pixels.
    """
    runs = label.shape[0]
    parent = np.arange(runs).astype(np.int32)
    marker = np.zeros(runs, np.bool_)
    _join(parent, rows, start, width, label, marker, False)
    size = np.zeros(runs, np.int32)
    for i in range(runs):
        parent[i] = _root(parent, i)
        size[parent[i]] += start[i + 1] - start[i]
    best = np.full(num_regions, -1, np.int32)
    filled = 0
    for i in range(runs):
        if parent[i] == i:
            r = label[i]
            if best[r] < 0:
                filled += 1
                best[r] = i
            elif size[i] > size[best[r]]:
                best[r] = i
    for i in range(runs):
        marker[i] = parent[i] == best[label[i]]
    for y in range(rows.shape[0] - 1):
        for i in range(rows[y], rows[y + 1]):
            beside = i > rows[y] and not marker[i] and not marker[i - 1]
            parent[i] = parent[i - 1] if beside else i
    _join(parent, rows, start, width, label, marker, True)
    size[:] = 0
    count = 0
    for i in range(runs):
        parent[i] = _root(parent, i)
        if not marker[i]:
            size[parent[i]] += start[i + 1] - start[i]
            count += parent[i] == i
    groups = np.zeros(count + 1, np.int32)
    place = np.zeros(runs, np.int32)
    count = total = 0
    for i in range(runs):
        if not marker[i]:
            if parent[i] == i:
                groups[count] = total
                count += 1
                total += size[i]
                size[i] = groups[count - 1]  # from here on the place of the group's next run
            place[i] = size[parent[i]]
            size[parent[i]] += start[i + 1] - start[i]
    groups[count] = total
    return marker, place, groups, filled


@jit(exact=True)
def _write_stripes(first: int, last: int, stripes: int, runs: Runs, marker: Array, place: Array, out: Array) -> None:
    """Write the markers' labels, and -1 - its place in the list to every other pixel."""
    rows, start, label = runs
    height, width = out.shape
    for y in range(first * height // stripes, last * height // stripes):
        row = out[y]
        for i in range(rows[y], rows[y + 1]):
            left, right = start[i] - y * width, start[i + 1] - y * width
            if marker[i]:
                row[left:right] = label[i]
            else:
                for x in range(left, right):
                    row[x] = -1 - place[i] - (x - left)


@jit(exact=True)
def _list_pixels(start: Array, marker: Array, place: Array, pixels: Array) -> None:
    for i in range(marker.shape[0]):
        if not marker[i]:
            for p in range(start[i], start[i + 1]):
                pixels[place[i] + p - start[i]] = p


@jit(exact=True)
def _bucket(lab: Array, p: Any, q: Any) -> int:
    """Return the bucket of the squared colour difference of two pixels."""
    a, b, c = lab[0, p] - lab[0, q], lab[1, p] - lab[1, q], lab[2, p] - lab[2, q]
    return min(max((as_int((a * a + b * b) + c * c) >> SHIFT) - LOWEST, 0), BUCKETS - 1)


@jit(exact=True)
def _flood_stripes(
    first: int, last: int, stripes: int, lab: Array, pixels: Array, groups: Array, width: int, chain: Array, out: Array
) -> None:
    """Flood groups one by one: none reaches another, so their steps come in the order of a common queue."""
    total = groups.shape[0] - 1
    head, tail = np.full(BUCKETS, -1, np.int32), np.empty(BUCKETS, np.int32)
    for g in range(first * total // stripes, last * total // stripes):
        _flood(lab, pixels, groups[g], groups[g + 1], width, chain, head, tail, out)


@jit(exact=True)
def _flood(
    lab: Array, pixels: Array, first: int, last: int, width: int, chain: Array, head: Array, tail: Array, out: Array
) -> None:
    """Give each listed pixel (out = -1 - its place) the label of a neighbour, cheapest steps first.

    Entry ``4 i + d`` stands for the step to listed pixel i from its neighbour d (up, left, right, down); entries of
    a bucket are a chain, first in, first out. All buckets are empty before and after.
    """
    steps = (-width, -1, 1, width)
    total = out.shape[0]
    waiting, bucket = 0, BUCKETS - 1
    for i in range(first, last):
        p = pixels[i]
        x = p % width
        for d in range(4):
            q = p + steps[d]
            if q < 0 or q >= total or (d == 1 and x == 0) or (d == 2 and x == width - 1) or out[q] < 0:
                continue
            there = _bucket(lab, p, q)
            _append(there, 4 * i + d, chain, head, tail)
            bucket = min(bucket, there)
            waiting += 1
    while waiting:
        entry = head[bucket]
        if entry < 0:
            bucket += 1
            continue
        head[bucket] = chain[entry]
        waiting -= 1
        p = pixels[entry >> 2]
        if out[p] >= 0:
            continue
        out[p] = out[p + steps[entry & 3]]
        x = p % width
        for d in range(4):
            q = p + steps[d]
            if q < 0 or q >= total or (d == 1 and x == 0) or (d == 2 and x == width - 1) or out[q] >= 0:
                continue
            there = _bucket(lab, p, q)
            _append(there, 4 * (-1 - out[q]) + 3 - d, chain, head, tail)
            bucket = min(bucket, there)
            waiting += 1


@jit(exact=True)
def _append(bucket: int, entry: int, chain: Array, head: Array, tail: Array) -> None:
    chain[entry] = -1
    if head[bucket] < 0:
        head[bucket] = entry
    else:
        chain[tail[bucket]] = entry
    tail[bucket] = entry
