"""Exact clean-up of labels, step by step in plain Python: the rules, the oracle, and the way without Numba."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_positive

__all__ = ["BUCKETS", "LOWEST", "SHIFT", "plain_connect"]

# A cost's bucket: exponent and the three highest bits after it of its float32, eight buckets from one power of two to
# the next, from 2^-10 to 2^14.
SHIFT = 20
LOWEST = (127 - 10) << 3
BUCKETS = 24 * 8


def plain_connect(labels: Tensor, num_regions: int, lab: Tensor) -> Tensor:
    """Return labels of which every region is one 4-connected piece with at least one pixel.

    1. Of each region's 4-connected pieces the largest is its marker; of equally large ones the first in row-major
       order.
    2. All other pixels are flooded from the markers. A step from a labelled pixel to a free neighbour costs their
       squared difference in `lab`, counted in 192 buckets (`BUCKETS`). First the steps to each free pixel, in
       row-major order, from its labelled neighbours above, left, right, below enter their buckets; then the oldest
       step of the lowest bucket is taken, again and again: a pixel still free gets the label of the step's source,
       and its steps to free neighbours (above, left, right, below) enter.
    3. While regions are empty, the one with the lowest number gets a part of the largest region (of equal ones the
       lowest number): of the breadth-first tree from its first pixel in row-major order (neighbours above, left,
       right, below) the subtree with a size nearest to half (of equal ones the first in breadth-first order, never
       the root). Both parts are connected.

    Args:
        labels: Regions in [0, R), shape ``(H, W)``, integers.
        num_regions: R, at most H * W.
        lab: Features that costs are taken from, shape ``(C, H, W)``, float32.

    Returns:
        Shape ``(H, W)``, int32.

    Raises:
        ValueError: if shapes disagree, a label is out of range, or there are more regions than pixels.

    Note:
        Loops of the interpreter, about a second for 100,000 pixels. Deterministic.

    Example:
        >>> plain_connect(torch.tensor([[0, 1, 0, 0]]), 2, torch.zeros(3, 1, 4))
        tensor([[1, 1, 0, 0]], dtype=torch.int32)
    """
    check_ndim("labels", labels, 2, shape="(H, W)")
    check_ndim("lab", lab, 3, shape="(C, H, W)")
    check_positive("num_regions", num_regions)
    height, width = labels.shape
    if lab.shape[1:] != labels.shape or not 1 <= num_regions <= labels.numel():
        raise ValueError(
            f"Expected `lab` of {height} x {width} pixels and at most as many regions, got {tuple(lab.shape)} and "
            f"{num_regions} regions."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_regions:
        raise ValueError(f"`labels` must be in [0, {num_regions}), got values from {low} to {high}.")
    out = _markers(labels.flatten().tolist(), width)
    _flood(out, _steps(lab), width)
    _split(out, width, num_regions)
    return torch.tensor(out, dtype=torch.int32).view(height, width)


def _neighbors(p: int, width: int, total: int) -> Iterator[int]:
    """Yield the neighbours of pixel p inside the image: above, left, right, below."""
    if p >= width:
        yield p - width
    if p % width:
        yield p - 1
    if (p + 1) % width:
        yield p + 1
    if p + width < total:
        yield p + width


def _markers(labels: list[int], width: int) -> list[int]:
    """Return the labels of each region's largest piece, -1 elsewhere."""
    seen = [False] * len(labels)
    largest: dict[int, list[int]] = {}
    for start, region in enumerate(labels):
        if seen[start]:
            continue
        seen[start] = True
        piece = [start]
        for p in piece:  # grows while it is read
            for q in _neighbors(p, width, len(labels)):
                if not seen[q] and labels[q] == region:
                    seen[q] = True
                    piece.append(q)
        if len(piece) > len(largest.get(region, [])):
            largest[region] = piece
    out = [-1] * len(labels)
    for region, piece in largest.items():
        for p in piece:
            out[p] = region
    return out


def _steps(lab: Tensor) -> dict[tuple[int, int], int]:
    """Return the bucket of the step between each pixel and its right and lower neighbour."""
    _, height, width = lab.shape
    pixel = torch.arange(height * width).view(height, width)
    out = {}
    for axis in (1, 2):
        length = lab.shape[axis] - 1
        square = (lab.narrow(axis, 0, length) - lab.narrow(axis, 1, length)).float().square()
        cost = square[0]
        for c in range(1, len(square)):
            cost = cost + square[c]
        bucket = ((cost.contiguous().view(torch.int32) >> SHIFT) - LOWEST).clamp(0, BUCKETS - 1)
        pairs = zip(
            pixel.narrow(axis - 1, 0, length).flatten().tolist(),
            pixel.narrow(axis - 1, 1, length).flatten().tolist(),
            bucket.flatten().tolist(),
            strict=True,
        )
        for p, q, b in pairs:
            out[p, q] = out[q, p] = b
    return out


def _flood(out: list[int], steps: dict[tuple[int, int], int], width: int) -> None:
    """Label the pixels that have -1, in place."""
    heap: list[tuple[int, int, int, int]] = []  # bucket, order of entry, from, to
    free = [p for p, region in enumerate(out) if region < 0]
    for p in free:
        for q in _neighbors(p, width, len(out)):
            if out[q] >= 0:
                heap.append((steps[q, p], len(heap), q, p))
    heapq.heapify(heap)
    entered = len(heap)
    while heap:
        _, _, source, p = heapq.heappop(heap)
        if out[p] >= 0:
            continue
        out[p] = out[source]
        for q in _neighbors(p, width, len(out)):
            if out[q] < 0:
                heapq.heappush(heap, (steps[p, q], entered, p, q))
                entered += 1


def _split(out: list[int], width: int, num_regions: int) -> None:
    """Give each empty region a part of the largest one, in place."""
    members: list[list[int]] = [[] for _ in range(num_regions)]
    for p, region in enumerate(out):
        members[region].append(p)
    for empty in [r for r in range(num_regions) if not members[r]]:
        largest = max(range(num_regions), key=lambda r: (len(members[r]), -r))
        first = min(members[largest])
        parent: dict[int, Any] = {first: None}
        order = [first]
        for p in order:  # grows while it is read
            for q in _neighbors(p, width, len(out)):
                if out[q] == largest and q not in parent:
                    parent[q] = p
                    order.append(q)
        below = dict.fromkeys(order, 1)
        for p in reversed(order[1:]):
            below[parent[p]] += below[p]
        cut = min(order[1:], key=lambda p: abs(2 * below[p] - len(order)))
        moved = {cut}
        for p in order:
            if parent[p] in moved:
                moved.add(p)
        for p in moved:
            out[p] = empty
        members[empty] = sorted(moved)
        members[largest] = [p for p in members[largest] if p not in moved]
