"""Pooling of pixels to regions, HG-Conv Eq. 5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import kernel, operator

__all__ = ["check_assignment", "region_pool"]


def region_pool(x: Tensor, assignment: Tensor) -> Tensor:
    """Average the pixels of each region (HG-Conv Eq. 5): ``z_r = sum_p S_rp x_p / sum_p S_rp``.

    Args:
        x: Features, shape ``(B, C, P)``, floating point, any strides (channels_last costs no copy).
        assignment: Weights S, shape ``(B, R, P)``, not negative.

    Returns:
        Shape ``(B, R, C)``, dtype of `x`. A region without pixels gives 0. Differentiable in both.

    Raises:
        ValueError: if shapes disagree.

    Note:
        O(B R P C), one matrix product per image. Deterministic.

    Example:
        >>> region_pool(torch.tensor([[[1.0, 3.0, 8.0]]]), torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]]))
        tensor([[[2.],
                 [8.]]])
    """
    check_assignment("x", x, assignment)
    return torch.ops.hggraph.region_pool(x, assignment)


def region_pool_reference(x: Tensor, assignment: Tensor) -> Tensor:
    """Return the column-normalised product as Eq. 5 says it."""
    mass = assignment.sum(2, keepdim=True)
    normalised = torch.where(mass > 0, assignment / torch.where(mass > 0, mass, 1), 0)
    return torch.einsum("brp,bcp->brc", normalised, x)


def check_assignment(name: str, x: Tensor, assignment: Tensor) -> None:
    """Raise unless pixels ``(B, C, P)`` and an assignment ``(B, R, P)`` fit each other."""
    check_ndim(name, x, 3, shape="(B, C, P)")
    check_ndim("assignment", assignment, 3, shape="(B, R, P)")
    if x.shape[::2] != assignment.shape[::2]:
        raise ValueError(
            f"`{name}` {tuple(x.shape)} and `assignment` {tuple(assignment.shape)} must have the same number of "
            "images and of pixels."
        )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _inverse_mass(assignment: Tensor) -> Tensor:
    mass = assignment.sum(2, keepdim=True)
    return torch.where(mass > 0, mass.reciprocal(), 0)  # 0 also keeps an empty region out of the gradients


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.hggraph.region_pool_backward(grad, *ctx.saved_tensors)


@operator(
    "region_pool",
    fake=lambda x, assignment: x.new_empty(x.shape[0], assignment.shape[1], x.shape[1]),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, assignment, **_: 2 * x[0] * x[1] * x[2] * assignment[1],
)
def _region_pool(x: Tensor, assignment: Tensor) -> Tensor:
    if (triton := kernel("region_pool", x, assignment)) is not None:
        return triton.region_pool(x, assignment)
    dtype = compute_dtype(x)  # the sum over a region may leave a half's range where the mean does not
    out = torch.bmm(assignment.to(dtype), x.to(dtype).transpose(1, 2))
    return out.mul_(_inverse_mass(assignment).to(dtype)).to(x.dtype)


@operator(
    "region_pool_backward",
    fake=lambda grad, x, assignment, out: (x.new_empty(x.shape), assignment.new_empty(assignment.shape)),
    flops=lambda grad, x, assignment, out, **_: 4 * x[0] * x[1] * x[2] * assignment[1],
)
def _region_pool_backward(grad: Tensor, x: Tensor, assignment: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    if (triton := kernel("region_pool", grad, x, assignment)) is not None:
        return triton.region_pool_backward(grad, x, assignment, out)
    dtype = assignment.dtype
    scaled = grad.to(dtype) * _inverse_mass(assignment)
    grad_x = torch.bmm(scaled.transpose(1, 2), assignment).to(x.dtype)
    grad_assignment = torch.bmm(scaled, x.to(dtype)) - (scaled * out.to(dtype)).sum(-1, keepdim=True)
    return grad_x, grad_assignment
