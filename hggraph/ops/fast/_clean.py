"""Edges from the raw strengths of pairs of regions: cancelled, filtered, the strongest direction chosen, sorted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hggraph.ops.fast._arrays import as_array, as_tensor, empty
from hggraph.ops.fast._jit import Array, jit

__all__ = ["clean_edges"]

f = np.float32


def clean_edges(
    low: Any,
    high: Any,
    strength: Any,
    there: Sequence[int],
    back: Sequence[int],
    num_nodes: int,
    noise_cancel: bool,
    least: float,
    tie: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges of pairs of nodes, both ways, and each node's to itself (HG-Conv appendix B).

    Args:
        low: One node of each pair, shape ``(N,)``, long.
        high: The other, likewise.
        strength: Raw strengths, shape ``(N, S)``, float32.
        there: Column of ``A_k[low, high]`` for each of K directions; S for the centre.
        back: Column of ``A_k[high, low]``, likewise.
        num_nodes: Nodes.
        noise_cancel: Subtract the opposite direction.
        least: Smaller strengths are dropped.
        tie: Keep the strongest direction alone, the first of those that are not under this share of it; None: all.

    Returns:
        ``edge_index`` (2, E) as (source, target), ``edge_type`` (E,), long, and ``edge_weight`` (E,), float32, sorted
        by target, then type, then source.

    Raises:
        ValueError: if shapes disagree.

    Note:
        O(N K) and a sort of the edges. Deterministic.

    Example:
        >>> import torch
        >>> clean_edges([0], [1], [[1.0, 0.0]], [0, 1], [1, 0], 2, True, 1e-7, 0.999)[1:]
        (tensor([0, 1]), tensor([1., 1.]))
    """
    low = as_array("low", low, np.int64, (None,))
    high = as_array("high", high, np.int64, low.shape)
    strength = as_array("strength", strength, f, (len(low), None))
    columns = np.asarray([there, back], np.int64)
    directions, numbers = columns.shape[1], strength.shape[1]
    centers = np.flatnonzero(columns[0] == numbers)
    own = num_nodes if len(centers) else 0
    most = 2 * len(low) * (1 if tie is not None else directions) + own
    key, weight = empty(most, dtype=np.int64), empty(most)
    share = f(-1 if tie is None else tie)
    count = _fill(low, high, strength, columns, num_nodes, noise_cancel, f(least), share, key, weight)
    if own:
        node = np.arange(num_nodes)
        key[count : count + own] = (node * directions + centers[0]) * num_nodes + node
        weight[count : count + own] = 1
    key, weight = key[: count + own], weight[: count + own]
    order = np.argsort(key)
    key = key[order]
    edges = np.empty((2, len(key)), np.int64)
    rest, edges[0] = np.divmod(key, max(num_nodes, 1))
    edges[1], edge_type = np.divmod(rest, max(directions, 1))
    return as_tensor(edges), as_tensor(edge_type), as_tensor(weight[order])


@jit(exact=True)
def _fill(
    low: Array,
    high: Array,
    strength: Array,
    columns: Array,
    num_nodes: int,
    noise_cancel: bool,
    least: Any,
    tie: Any,
    key: Array,
    weight: Array,
) -> int:
    """Write keys ``(target K + direction) nodes + source`` and weights, and return how many."""
    directions, numbers = columns.shape[1], strength.shape[1]
    clean = np.zeros(directions, f)
    count = 0
    for n in range(low.shape[0]):
        for way in range(2):
            target, source = (high[n], low[n]) if way else (low[n], high[n])
            largest = f(0)
            for k in range(directions):
                if columns[0, k] == numbers:
                    continue
                w = strength[n, columns[way, k]]
                if noise_cancel:
                    opposite = columns[1 - way, k]
                    w = max(w - strength[n, opposite], f(0))
                clean[k] = w if w >= least else f(0)
                largest = max(largest, clean[k])
            if largest == f(0):
                continue
            for k in range(directions):
                if clean[k] != f(0) and clean[k] >= largest * tie:
                    key[count] = (target * directions + k) * num_nodes + source
                    weight[count] = clean[k]
                    count += 1
                    if tie > f(0):
                        break
    return count
