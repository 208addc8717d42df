"""Parts of large connected regions for regions that have no pixel."""

from __future__ import annotations

import numpy as np

from hggraph.ops.fast._jit import Array, jit

__all__ = ["split_largest"]


@jit(exact=True)
def split_largest(out: Array, width: int, num_regions: int) -> None:
    """Give each empty region, in order, a part of the largest one (in place), as `plain_connect` says.

    Args:
        out: Labels, shape ``(H * W,)``, every region one 4-connected piece or empty.
        width: Width of the image.
        num_regions: R, at most H * W.
    """
    size, first = np.zeros(num_regions, np.int32), np.full(num_regions, -1, np.int32)
    for p in range(out.shape[0]):
        size[out[p]] += 1
        if first[out[p]] < 0:
            first[out[p]] = p
    # a heap with the largest region, of equal ones the lowest number, at the top
    heap = np.empty(num_regions, np.int32)
    count = 0
    empty = np.empty(num_regions, np.int32)
    empties = 0
    for r in range(num_regions):
        if size[r] == 0:
            empty[empties] = r
            empties += 1
        else:
            heap[count] = r
            count += 1
            _rise(heap, count - 1, size)
    order, up, below = np.empty(size.max(), np.int32), np.empty(size.max(), np.int32), np.empty(size.max(), np.int32)
    for k in range(empties):
        largest, r = heap[0], empty[k]
        cut = _cut(out, width, first[largest], size[largest], order, up, below)
        total = size[largest]
        first[r] = order[cut]
        # descendants of the cut follow it in breadth-first order
        below[cut] = -1
        for i in range(cut, total):
            if i > cut and below[up[i]] != -1:
                continue
            below[i] = -1
            out[order[i]] = r
            size[r] += 1
            first[r] = min(first[r], order[i])
        size[largest] = total - size[r]
        _sink(heap, count, size)
        heap[count] = r
        count += 1
        _rise(heap, count - 1, size)


@jit(exact=True)
def _cut(out: Array, width: int, start: int, total: int, order: Array, up: Array, below: Array) -> int:
    """Return the place in breadth-first order of the node whose subtree is nearest to half of a region.

    `order` gets the pixels, `up` the place of each one's parent, `below` the size of its subtree.
    """
    region = out[start]
    order[0], up[0] = start, 0
    out[start] = -1
    found = 1
    for i in range(total):
        p = order[i]
        x = p % width
        for d in range(4):
            if (d == 1 and x == 0) or (d == 2 and x == width - 1):
                continue
            q = p - width if d == 0 else p - 1 if d == 1 else p + 1 if d == 2 else p + width
            if 0 <= q < out.shape[0] and out[q] == region:
                out[q] = -1
                order[found], up[found] = q, i
                found += 1
    below[:total] = 1
    for i in range(total - 1, 0, -1):
        below[up[i]] += below[i]
    best = 1
    for i in range(total):
        out[order[i]] = region
        if i > 1 and abs(2 * below[i] - total) < abs(2 * below[best] - total):
            best = i
    return best


@jit(exact=True)
def _before(a: int, b: int, size: Array) -> bool:
    return size[a] > size[b] or (size[a] == size[b] and a < b)


@jit(exact=True)
def _rise(heap: Array, i: int, size: Array) -> None:
    while i > 0 and _before(heap[i], heap[(i - 1) // 2], size):
        heap[i], heap[(i - 1) // 2] = heap[(i - 1) // 2], heap[i]
        i = (i - 1) // 2


@jit(exact=True)
def _sink(heap: Array, count: int, size: Array) -> None:
    i = 0
    while True:
        top = i
        for child in (2 * i + 1, 2 * i + 2):
            if child < count and _before(heap[child], heap[top], size):
                top = child
        if top == i:
            return
        heap[i], heap[top] = heap[top], heap[i]
        i = top
