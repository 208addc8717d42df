"""A table of pairs of regions with numbers for each: open addressing, grown as pairs come."""

from __future__ import annotations

from typing import Any

import numpy as np

from hggraph.ops.fast._jit import Array, jit

__all__ = ["Table", "add_table", "find", "new_table", "room_for", "sorted_pairs"]

Table = Any  # (slot of each hash (size,), keys (capacity,), values (capacity, K), [number of pairs])


@jit(exact=True)
def new_table(size: int, numbers: int) -> Table:
    """Return an empty table of a power of two of places."""
    slots = np.full(size, -1, np.int32)
    return slots, np.empty(size // 2, np.int64), np.zeros((size // 2, numbers), np.float64), np.zeros(1, np.int64)


@jit(exact=True)
def find(table: Table, key: int) -> Any:
    """Return the row of a pair, a new one of zeros where the pair is new. There must be room."""
    slots, keys, _, count = table
    mask = slots.shape[0] - 1
    # Fibonacci hashing: the product's high bits
    place = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)) & mask
    while True:
        row = slots[place]
        if row < 0:
            row = np.int32(count[0])
            count[0] += 1
            slots[place] = row
            keys[row] = key
            return row
        if keys[row] == key:
            return row
        place = (place + 1) & mask


@jit(exact=True)
def room_for(table: Table, more: int) -> Table:
    """Return a table with the same pairs and room for so many more."""
    slots, keys, values, count = table
    if count[0] + more <= keys.shape[0]:
        return table
    size = slots.shape[0]
    while size // 2 < count[0] + more:
        size *= 2
    larger = new_table(size, values.shape[1])
    for row in range(count[0]):
        larger[2][find(larger, keys[row])] = values[row]
    return larger


@jit(exact=True)
def add_table(table: Table, keys: Array, values: Array) -> Table:
    """Add the pairs of another table, in their order."""
    table = room_for(table, keys.shape[0])
    total = table[2]
    for i in range(keys.shape[0]):
        row = find(table, keys[i])
        for k in range(values.shape[1]):
            total[row, k] += values[i, k]
    return table


def sorted_pairs(tables: list[Table], num_regions: int, numbers: int) -> tuple[Any, Any, Any]:
    """Return low, high and the numbers of all pairs, added in the order of the tables and sorted by pair."""
    table = tables[0] if len(tables) == 1 else new_table(1024, numbers)
    if len(tables) > 1:
        for _, keys, values, count in tables:
            table = add_table(table, keys[: count[0]], values[: count[0]])
    _, keys, values, count = table
    order = np.argsort(keys[: count[0]])
    low, high = np.divmod(keys[: count[0]][order], num_regions)
    return low, high, values[: count[0]][order].astype(np.float32)
