"""Gather and scatter by an index in any order, deterministic forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_dtype, check_ndim, check_one_device, check_positive, check_range
from hggraph.ops.segment import csr_pointer, segment_reduce

__all__ = ["gather", "scatter"]


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``x[index]``, with a gradient that is summed in a fixed order.

    Indexing's own gradient adds with atomics on a GPU, in an order that changes from run to run.

    Args:
        x: Rows, shape ``(M, C)`` or ``(M,)``, floating point.
        index: Row for each result, shape ``(E,)``, long in [0, M).

    Returns:
        Shape ``(E, C)`` or ``(E,)``; empty for an empty index. Differentiable in `x`.

    Raises:
        ValueError: if `index` has not one dimension, or is out of range (checked on the CPU).

    Note:
        O(E C), and a sort of the index in the backward pass. Deterministic.

    Example:
        >>> gather(torch.tensor([5.0, 7.0]), torch.tensor([1, 1, 0]))
        tensor([7., 7., 5.])
    """
    _check(x, index)
    check_range("index", index, x.shape[0], "It must index the rows of `x`.")
    return segment_reduce(x, torch.arange(index.shape[0] + 1, device=x.device), index.long())


def scatter(x: Tensor, index: Tensor, num_segments: int, *, reduce: str = "sum") -> Tensor:
    """Reduce the rows of each segment: ``out[n] = reduce_{e: index[e] = n} x[e]``, whatever the index's order.

    What ``torch_geometric.utils.scatter`` computes, without atomics. An index that is sorted, PyG's `batch` for
    example, needs no sort: give `csr_pointer` of it to `segment_reduce`.

    Args:
        x: Rows, shape ``(E, C)`` or ``(E,)``, floating point.
        index: Segment of each row, shape ``(E,)``, long in [0, num_segments).
        num_segments: N.
        reduce: ``"sum"``, ``"mean"`` or ``"max"``.

    Returns:
        Shape ``(N, C)`` or ``(N,)``. An empty segment gives 0. Differentiable in `x`; a maximum's gradient is shared
        by the rows that reach it.

    Raises:
        ValueError: if shapes disagree, `reduce` is unknown, or `index` is out of range (checked on the CPU).

    Note:
        O(E C), and a stable sort of the index. Deterministic.

    Example:
        >>> scatter(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 3)
        tensor([2., 0., 5.])
    """
    _check(x, index)
    check_positive("num_segments", num_segments, least=0)
    if index.shape[0] != x.shape[0]:
        raise ValueError(
            f"`index` must have shape ({x.shape[0]},), one entry for each row of `x`, got {tuple(index.shape)}."
        )
    check_range("index", index, num_segments, "Give as many segments as the index names.")
    order = torch.argsort(index, stable=True)
    return segment_reduce(x, csr_pointer(index[order], num_segments), order, reduce=reduce)


def _check(x: Tensor, index: Tensor) -> None:
    check_ndim("x", x, 1, 2, shape="(E, C) or (E,)")
    check_ndim("index", index, 1, shape="(E,)")
    check_dtype("x", x)
    check_one_device(x=x, index=index)
