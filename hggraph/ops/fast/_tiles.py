"""Raw sums of the typed adjacency of soft regions, tile by tile, as products of shifted planes of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._lanes import LANES, load, store, sum_of
from hggraph.ops.fast._pairs import Table, find, new_table, room_for
from hggraph.ops.fast._threads import num_stripes, run

__all__ = ["soft_tables"]

f = np.float32
_SIDE = 16  # of a tile, pixels
_PLANES = 32  # regions of a tile for which planes are held; with more of them, pixels are taken one by one


def soft_tables(weight: Any, index: Any, num_regions: int, steps: Any) -> list[Table]:
    """Return tables of the pairs of regions, for weights and regions of shape (T, H, W)."""
    rows = -(-weight.shape[1] // _SIDE)
    stripes = num_stripes(rows, most=16)
    tables: list[Any] = [None] * stripes

    def add(first: int, last: int) -> None:
        for k in range(first, last):
            tables[k] = _stripe_table(weight, index, k * rows // stripes, (k + 1) * rows // stripes, num_regions, steps)

    run(add, stripes)
    return tables


@jit()
def _stripe_table(weight: Array, index: Array, top: int, bottom: int, num_regions: int, steps: Array) -> Table:
    width = weight.shape[2]
    halo = 0
    for k in range(steps.shape[0]):
        halo = max(halo, max(abs(steps[k, 0]), abs(steps[k, 1])))
    wide = _SIDE + 2 * halo
    # a plane holds a tile and its halo, row by row, and room for shifted reads of any row
    planes = np.zeros((_PLANES, wide * wide), f)
    inner = np.zeros((_PLANES, (_SIDE - 1) * wide + _SIDE), f)
    regions = np.empty(_PLANES, np.int32)
    table = new_table(1024, 2 * steps.shape[0])
    for i in range(top, bottom):
        for j in range(-(-width // _SIDE)):
            table = room_for(table, _PLANES * _PLANES)
            used = _read_tile(weight, index, i * _SIDE, j * _SIDE, halo, planes, regions)
            if used < 0:
                table = _one_by_one(weight, index, i * _SIDE, j * _SIDE, num_regions, steps, table)
            elif used > 1:
                for u in range(used):
                    plane, part = planes[u], inner[u]
                    for y in range(_SIDE):
                        for x in range(0, _SIDE, LANES):
                            store(part, y * wide + x, load(plane, (y + halo) * wide + halo + x))
                _add_products(planes, inner, regions, used, halo, num_regions, steps, table)
    return table


@jit()
def _same(row: Array) -> bool:
    different = np.int32(0)
    for x in range(row.shape[0]):
        different |= row[x] ^ row[0]
    return different == 0


@jit()
def _plane_of(region: Any, regions: Array, used: int, planes: Array) -> int:
    """Return the plane of a region, a new one where it has none; -1 where there are too many."""
    for u in range(used):
        if regions[u] == region:
            return u
    if used == regions.shape[0]:
        return -1
    regions[used] = region
    planes[used] = f(0)
    return used


@jit()
def _read_tile(weight: Array, index: Array, top: int, left: int, halo: int, planes: Array, regions: Array) -> int:
    """Spread the weights of a tile and its halo over planes of regions; return how many, -1 for too many."""
    height, width = weight.shape[1], weight.shape[2]
    wide = _SIDE + 2 * halo
    used = 0
    for t in range(weight.shape[0]):
        for y in range(max(top - halo, 0), min(top + _SIDE + halo, height)):
            row, regions_row = weight[t, y], index[t, y]
            at = (y - top + halo) * wide + halo - left  # of column 0
            x, last = max(left - halo, 0), min(left + _SIDE + halo, width)
            while x < last:
                if x == left and x + _SIDE <= width:  # the tile's own pixels at once, where they list one region
                    first, second = load(row, x), load(row, x + LANES)
                    if sum_of(first + second) == f(0):
                        x += _SIDE
                        continue
                    if _same(regions_row[x : x + _SIDE]):
                        u = _plane_of(regions_row[x], regions, used, planes)
                        if u < 0:
                            return -1
                        used = max(used, u + 1)
                        plane = planes[u]
                        store(plane, at + x, load(plane, at + x) + first)
                        store(plane, at + x + LANES, load(plane, at + x + LANES) + second)
                        x += _SIDE
                        continue
                if row[x] > f(0):
                    u = _plane_of(regions_row[x], regions, used, planes)
                    if u < 0:
                        return -1
                    used = max(used, u + 1)
                    planes[u, at + x] += row[x]
                x += 1
    return used


@jit()
def _two_products(a: Array, b: Array, shifted_a: Array, shifted_b: Array) -> tuple[Any, Any]:
    forward = backward = f(0)
    for i in range(a.shape[0]):
        forward += a[i] * shifted_b[i]
        backward += b[i] * shifted_a[i]
    return forward, backward


@jit()
def _add_products(
    planes: Array, inner: Array, regions: Array, used: int, halo: int, num_regions: int, steps: Array, table: Table
) -> None:
    wide, length, half = _SIDE + 2 * halo, inner.shape[1], steps.shape[0]
    start = halo * wide + halo
    values = table[2]
    for u in range(used):
        for v in range(u + 1, used):
            row = -1
            low, high = (u, v) if regions[u] < regions[v] else (v, u)
            for k in range(half):
                at = start + steps[k, 0] * wide + steps[k, 1]
                a, b = inner[low], inner[high]
                forward, backward = _two_products(a, b, planes[low, at : at + length], planes[high, at : at + length])
                if forward > f(0) or backward > f(0):
                    if row < 0:
                        row = find(table, np.int64(regions[low]) * num_regions + regions[high])
                    values[row, k] += forward
                    values[row, half + k] += backward


@jit()
def _one_by_one(
    weight: Array, index: Array, top: int, left: int, num_regions: int, steps: Array, table: Table
) -> Table:
    """Add a tile's products pixel by pixel."""
    entries, height, width = weight.shape
    half = steps.shape[0]
    for y in range(top, min(top + _SIDE, height)):
        for x in range(left, min(left + _SIDE, width)):
            table = room_for(table, half * entries * entries)
            for k in range(half):
                p, q = y + steps[k, 0], x + steps[k, 1]
                if not (0 <= p < height and 0 <= q < width):
                    continue
                for t in range(entries):
                    if weight[t, y, x] == f(0):
                        continue
                    target = np.int64(index[t, y, x])
                    for s in range(entries):
                        value = weight[t, y, x] * weight[s, p, q]
                        source = np.int64(index[s, p, q])
                        if value == f(0) or target == source:
                            continue
                        key = min(target, source) * num_regions + max(target, source)
                        table[2][find(table, key), k if target < source else half + k] += value
    return table
