"""The strongest region of each pixel of a soft assignment, and pixels given to another."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from hggraph.ops.fast._arrays import as_array, as_tensor, empty
from hggraph.ops.fast._jit import Array, jit
from hggraph.ops.fast._threads import run

__all__ = ["give", "strongest"]

_CHUNK = 2048  # pixels whose weights stay in the cache while all entries are looked at


def strongest(weight: Any, index: Any) -> Tensor:
    """Return the region of each pixel's largest weight, of equal ones the first entry's.

    Args:
        weight: Weights, shape ``(T, P)``, float32, T >= 1.
        index: Region of each weight, shape ``(T, P)``, int32.

    Returns:
        Shape ``(P,)``, int32.

    Raises:
        ValueError: if shapes disagree or there is no entry.

    Note:
        O(T P). The same on any number of threads.

    Example:
        >>> import torch
        >>> strongest(torch.tensor([[0.2, 0.5], [0.8, 0.5]]), torch.tensor([[4, 5], [6, 7]]))
        tensor([6, 5], dtype=torch.int32)
    """
    weight = as_array("weight", weight, np.float32, (None, None))
    index = as_array("index", index, np.int32, weight.shape)
    if len(weight) == 0:
        raise ValueError("`weight` must have at least one entry a pixel, got none.")
    out = empty(weight.shape[1], dtype=np.int32)
    chunks = -(-weight.shape[1] // _CHUNK)
    if chunks:
        run(_strongest_chunks, chunks, weight, index, out)
    return as_tensor(out)


def give(weight: Any, index: Any, before: Any, after: Any) -> None:
    """Give the pixels whose label changes to their new region alone, in place: weight 1 in the first entry.

    Args:
        weight: Weights, shape ``(T, P)``, float32, T >= 1, contiguous.
        index: Region of each weight, shape ``(T, P)``, int32, contiguous.
        before: Label of each pixel, shape ``(P,)``, int32.
        after: Its label from now on, likewise.

    Raises:
        ValueError: if shapes disagree or there is no entry.

    Example:
        >>> import torch
        >>> weight, index = torch.full((2, 1), 0.5), torch.tensor([[4], [6]], dtype=torch.int32)
        >>> give(weight, index, index[0], index[1])
        >>> weight.flatten().tolist(), index.flatten().tolist()
        ([1.0, 0.0], [6, 6])
    """
    weight = as_array("weight", weight, np.float32, (None, None))
    index = as_array("index", index, np.int32, weight.shape)
    before = as_array("before", before, np.int32, weight.shape[1:])
    after = as_array("after", after, np.int32, weight.shape[1:])
    if len(weight) == 0:
        raise ValueError("`weight` must have at least one entry a pixel, got none.")
    chunks = -(-weight.shape[1] // _CHUNK)
    if chunks:
        run(_give_chunks, chunks, weight, index, before, after)


@jit(exact=True)
def _give_chunks(first: int, last: int, weight: Array, index: Array, before: Array, after: Array) -> None:
    for p in range(first * _CHUNK, min(last * _CHUNK, before.shape[0])):
        if before[p] != after[p]:
            for t in range(1, weight.shape[0]):
                weight[t, p] = 0
            weight[0, p] = 1
            index[0, p] = after[p]


@jit(exact=True)
def _keep_larger(weight: Array, index: Array, best: Array, out: Array) -> None:
    for p in range(weight.shape[0]):
        larger = weight[p] > best[p]
        best[p] = weight[p] if larger else best[p]
        out[p] = index[p] if larger else out[p]


@jit(exact=True)
def _strongest_chunks(first: int, last: int, weight: Array, index: Array, out: Array) -> None:
    pixels = weight.shape[1]
    best = np.empty(_CHUNK, np.float32)
    for chunk in range(first, last):
        start = chunk * _CHUNK
        end = min(start + _CHUNK, pixels)
        here = best[: end - start]
        here[:] = weight[0, start:end]
        out[start:end] = index[0, start:end]
        for t in range(1, weight.shape[0]):
            _keep_larger(weight[t, start:end], index[t, start:end], here, out[start:end])
