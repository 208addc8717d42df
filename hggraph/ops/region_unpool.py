"""Unpooling of regions to pixels, HG-Conv Eq. 6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops._library import kernel, operator

__all__ = ["region_unpool"]


def region_unpool(z: Tensor, assignment: Tensor) -> Tensor:
    """Copy region features back to the pixels (HG-Conv Eq. 6): ``x_p = sum_r S_rp z_r``.

    Args:
        z: Region features, shape ``(B, R, C)``, floating point.
        assignment: Row-normalised weights S, shape ``(B, R, P)``; each pixel's weights sum to 1.

    Returns:
        Shape ``(B, C, P)``, dtype of `z`. Differentiable in both.

    Raises:
        ValueError: if shapes disagree.

    Note:
        O(B R P C), one matrix product per image. Deterministic.

    Example:
        >>> region_unpool(torch.tensor([[[2.0], [8.0]]]), torch.tensor([[[1.0, 0.5], [0.0, 0.5]]]))
        tensor([[[2., 5.]]])
    """
    check_ndim("z", z, 3, shape="(B, R, C)")
    check_ndim("assignment", assignment, 3, shape="(B, R, P)")
    if z.shape[:2] != assignment.shape[:2]:
        raise ValueError(f"`z` must have shape (B, R, C) = {(*assignment.shape[:2], 'C')}, got {tuple(z.shape)}.")
    return torch.ops.hggraph.region_unpool(z, assignment)


def region_unpool_reference(z: Tensor, assignment: Tensor) -> Tensor:
    """Return the weighted copy as Eq. 6 says it."""
    return torch.einsum("brp,brc->bcp", assignment, z)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.hggraph.region_unpool_backward(grad, *ctx.saved_tensors)


@operator(
    "region_unpool",
    fake=lambda z, assignment: z.new_empty(z.shape[0], z.shape[2], assignment.shape[2]),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda z, assignment, **_: 2 * z[0] * z[1] * z[2] * assignment[2],
)
def _region_unpool(z: Tensor, assignment: Tensor) -> Tensor:
    if (triton := kernel("region_unpool", z, assignment)) is not None:
        return triton.region_unpool(z, assignment)
    return torch.bmm(z.transpose(1, 2), assignment.to(z.dtype))


@operator(
    "region_unpool_backward",
    fake=lambda grad, z, assignment: (z.new_empty(z.shape), assignment.new_empty(assignment.shape)),
    flops=lambda grad, z, assignment, **_: 4 * z[0] * z[1] * z[2] * assignment[2],
)
def _region_unpool_backward(grad: Tensor, z: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    if (triton := kernel("region_unpool", grad, z, assignment)) is not None:
        return triton.region_unpool_backward(grad, z, assignment)
    grad = grad.to(assignment.dtype)
    grad_z = torch.bmm(assignment, grad.transpose(1, 2)).to(z.dtype)
    return grad_z, torch.bmm(z.to(assignment.dtype), grad)
