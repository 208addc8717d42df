"""Unpooling of regions to pixels, HG-Conv Eq. 6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import kernel, operator
from hggraph.ops._pairs import check_index, collect, densify, pair_dot, spread

__all__ = ["region_unpool"]


def region_unpool(z: Tensor, assignment: Tensor, index: Tensor | None = None) -> Tensor:
    """Copy region features back to the pixels (HG-Conv Eq. 6): ``x_p = sum_r S_rp z_r``.

    Args:
        z: Region features, shape ``(B, R, C)``, floating point.
        assignment: Row-normalised weights S, shape ``(B, R, P)``, or ``(B, T, P)`` with `index`; each pixel's weights
            sum to 1.
        index: Region of each entry, shape ``(B, T, P)``, int32 or int64 in [0, R); None: entry r is region r.

    Returns:
        Shape ``(B, C, P)``, dtype of `z`. Differentiable in both.

    Raises:
        ValueError: if shapes disagree, or a region does not exist (checked on a CPU).

    Note:
        O(B R P C), one matrix product per image; with an index O(B T P C). Deterministic.

    Example:
        >>> region_unpool(torch.tensor([[[2.0], [8.0]]]), torch.tensor([[[1.0, 0.5], [0.0, 0.5]]]))
        tensor([[[2., 5.]]])
    """
    check_ndim("z", z, 3, shape="(B, R, C)")
    check_ndim("assignment", assignment, 3, shape="(B, R, P)")
    if z.shape[0] != assignment.shape[0] or (index is None and z.shape[1] != assignment.shape[1]):
        raise ValueError(f"`z` must have shape (B, R, C) = {(*assignment.shape[:2], 'C')}, got {tuple(z.shape)}.")
    check_index(index, assignment.shape, z.shape[1])
    return torch.ops.hggraph.region_unpool(z, assignment, index)


def region_unpool_reference(z: Tensor, assignment: Tensor, index: Tensor | None) -> Tensor:
    """Return the weighted copy as Eq. 6 says it."""
    if index is not None:
        assignment = densify(assignment, index, z.shape[1])
    return torch.einsum("brp,brc->bcp", assignment, z)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *torch.ops.hggraph.region_unpool_backward(grad, *ctx.saved_tensors), None


@operator(
    "region_unpool",
    fake=lambda z, assignment, index=None: z.new_empty(z.shape[0], z.shape[2], assignment.shape[2]),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda z, assignment, *_, **__: 2 * z[0] * z[2] * assignment[1] * assignment[2],
)
def _region_unpool(z: Tensor, assignment: Tensor, index: Tensor | None = None) -> Tensor:
    if index is None and (triton := kernel("region_unpool", z, assignment)) is not None:
        return triton.region_unpool(z, assignment)
    return spread(z, assignment.to(z.dtype), index).contiguous()


@operator(
    "region_unpool_backward",
    fake=lambda grad, z, assignment, index: (z.new_empty(z.shape), assignment.new_empty(assignment.shape)),
    flops=lambda grad, z, assignment, *_, **__: 4 * z[0] * z[2] * assignment[1] * assignment[2],
)
def _region_unpool_backward(grad: Tensor, z: Tensor, assignment: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    if index is None and (triton := kernel("region_unpool", grad, z, assignment)) is not None:
        return triton.region_unpool_backward(grad, z, assignment)
    dtype = torch.promote_types(compute_dtype(assignment), compute_dtype(grad))
    grad = grad.to(dtype)
    grad_z = collect(grad, assignment.to(dtype), index, z.shape[1]).to(z.dtype)
    return grad_z.contiguous(), pair_dot(z.to(dtype), grad, index).to(assignment.dtype).contiguous()
