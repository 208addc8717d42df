"""Raw sums of the typed adjacency of soft regions, tile by tile, as products of shifted planes of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._lanes import LANES, all_equal, load, some, splat, store, sum_of, upper
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
    # a plane holds a tile and its halo, row by row; inner is the tile alone, from its first pixel on, as the target of
    # shifted reads; both are a few lanes longer, so that whole lanes can be read
    planes = np.zeros((_PLANES, wide * wide + LANES), f)
    length = ((_SIDE - 1) * wide + _SIDE + LANES - 1) // LANES * LANES
    inner = np.zeros((_PLANES, length), f)
    flat_weight, flat_index = weight.reshape(-1), index.reshape(-1)
    regions = np.empty(_PLANES, np.int32)
    table = new_table(1024, 2 * steps.shape[0])
    for i in range(top, bottom):
        for j in range(-(-width // _SIDE)):
            table = room_for(table, _PLANES * _PLANES)
            used = _read_tile(flat_weight, flat_index, weight.shape, i * _SIDE, j * _SIDE, halo, planes, regions)
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
def _nothing(weight: Array, first: int, rows: int, width: int, columns: int) -> bool:
    """Say whether all weights of some rows and columns (at least as many as lanes) from a place on are 0."""
    most = splat(f(0))
    for y in range(rows):
        for x in range(0, columns - LANES, LANES):
            most = upper(most, load(weight, first + y * width + x))
        most = upper(most, load(weight, first + y * width + columns - LANES))
    return not some(most)


@jit()
def _read_tile(
    weight: Array,
    index: Array,
    shape: tuple[int, int, int],
    top: int,
    left: int,
    halo: int,
    planes: Array,
    regions: Array,
) -> int:
    """Spread the weights of a tile and its halo over planes of regions; return how many, -1 for too many."""
    entries, height, width = shape
    wide, flat = _SIDE + 2 * halo, planes.reshape(-1)
    used = 0
    first_column, last_column = max(left - halo, 0), min(left + _SIDE + halo, width)
    first_row, last_row = max(top - halo, 0), min(top + _SIDE + halo, height)
    columns = last_column - first_column
    for t in range(entries):
        place = (t * height + first_row) * width + first_column
        if columns >= LANES and _nothing(weight, place, last_row - first_row, width, columns):
            continue
        for y in range(first_row, last_row):
            row = (t * height + y) * width
            at = (y - top + halo) * wide + halo - left  # of column 0
            x = first_column
            while x < last_column:
                if x == left and x + _SIDE <= width:  # the tile's own pixels at once, where they list one region
                    first, second = load(weight, row + x), load(weight, row + x + LANES)
                    if not some(upper(first, second)):
                        x += _SIDE
                        continue
                    if (
                        index[row + x] == index[row + x + LANES]
                        and all_equal(index, row + x)
                        and all_equal(index, row + x + LANES)
                    ):
                        u = _plane_of(index[row + x], regions, used, planes)
                        if u < 0:
                            return -1
                        used = max(used, u + 1)
                        place = u * planes.shape[1] + at + x
                        store(flat, place, load(flat, place) + first)
                        store(flat, place + LANES, load(flat, place + LANES) + second)
                        x += _SIDE
                        continue
                if weight[row + x] > f(0):
                    u = _plane_of(index[row + x], regions, used, planes)
                    if u < 0:
                        return -1
                    used = max(used, u + 1)
                    planes[u, at + x] += weight[row + x]
                x += 1
    return used


@jit()
def _add_products(
    planes: Array, inner: Array, regions: Array, used: int, halo: int, num_regions: int, steps: Array, table: Table
) -> None:
    wide, length, half = _SIDE + 2 * halo, inner.shape[1], steps.shape[0]
    flat, targets, values = planes.reshape(-1), inner.reshape(-1), table[2]
    for u in range(used):
        for v in range(u + 1, used):
            row = -1
            low, high = (u, v) if regions[u] < regions[v] else (v, u)
            for k in range(half):
                at = halo * wide + halo + steps[k, 0] * wide + steps[k, 1]
                a, b = low * length, high * length
                c, d = low * planes.shape[1] + at, high * planes.shape[1] + at
                forwards = backwards = splat(f(0))
                for i in range(0, length, LANES):
                    forwards = forwards + load(targets, a + i) * load(flat, d + i)
                    backwards = backwards + load(targets, b + i) * load(flat, c + i)
                forward, backward = sum_of(forwards), sum_of(backwards)
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
