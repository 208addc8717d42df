"""Unpool, concatenate, 1x1 convolution as ``X Wa + S (Z Wb) + b``: multiply on regions first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import autocast, kernel, operator
from hggraph.ops._pairs import check_index, collect, densify, pair_dot, spread
from hggraph.ops.region_pool import check_assignment

__all__ = ["unpool_conv1x1"]


def unpool_conv1x1(
    x: Tensor,
    z: Tensor,
    assignment: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """Compute ``conv1x1(concat(x, unpool(z)))`` as ``X Wa + S (Z Wb) + b`` (HG-Conv Sec. 4.4, HG-ResNet).

    Exact, as unpooling and the 1x1 convolution are both linear; with R regions much fewer than P pixels the
    second term costs almost nothing, and the concatenation is never made.

    Args:
        x: Pixel features, shape ``(B, C, P)``, floating point, any strides.
        z: Region features, shape ``(B, R, D)``.
        assignment: Row-normalised weights S, shape ``(B, R, P)``, or ``(B, T, P)`` with `index`.
        weight: Weight of the 1x1 convolution without its spatial axes, shape ``(O, C + D)``.
        bias: Shape ``(O,)`` or None.
        index: Region of each entry, shape ``(B, T, P)``, int32 or int64 in [0, R); None: entry r is region r.

    Returns:
        Shape ``(B, O, P)``, dtype of `x`, with the strides of channels_last, in which it is computed. Differentiable
        in all five.

    Raises:
        ValueError: if shapes disagree.

    Note:
        O(B P O (C + R) + B R D O), T in place of R with an index, instead of O(B P O (C + D)). Deterministic.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> unpool_conv1x1(3 * one, 5 * one, one, torch.tensor([[1.0, 10.0]]))
        tensor([[[53.]]])
    """
    check_assignment("x", x, assignment)
    if z.dim() != 3 or z.shape[0] != x.shape[0] or (index is None and z.shape[1] != assignment.shape[1]):
        raise ValueError(f"`z` must have shape (B, R, D) = {(*assignment.shape[:2], 'D')}, got {tuple(z.shape)}.")
    if weight.dim() != 2 or weight.shape[1] != x.shape[1] + z.shape[2]:
        raise ValueError(f"`weight` must have shape (O, {x.shape[1] + z.shape[2]}), got {tuple(weight.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"`bias` must have shape ({weight.shape[0]},), got {tuple(bias.shape)}.")
    check_index(index, assignment.shape, z.shape[1])
    x, z, weight, bias = autocast(x, z, weight, bias)
    return torch.ops.hggraph.unpool_conv1x1(x, z, assignment, weight, bias, index)


def unpool_conv1x1_reference(
    x: Tensor, z: Tensor, assignment: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None
) -> Tensor:
    """Return the convolution of the concatenation, as the paper draws it."""
    if index is not None:
        assignment = densify(assignment, index, z.shape[1])
    both = torch.cat([x, torch.einsum("brp,brd->bdp", assignment, z)], 1)
    return torch.nn.functional.conv1d(both, weight.unsqueeze(-1), bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, z, assignment, weight, bias, index = ctx.saved_tensors
    grads = torch.ops.hggraph.unpool_conv1x1_backward(grad, x, z, assignment, weight, index)
    return *grads, None if bias is None else grad.sum((0, 2)), None


@operator(
    "unpool_conv1x1",
    fake=lambda x, z, assignment, weight, *_: x.new_empty(x.shape[0], x.shape[2], weight.shape[0]).transpose(1, 2),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, z, assignment, weight, *_, **__: (
        2 * x[0] * weight[0] * (x[2] * (x[1] + assignment[1]) + z[1] * z[2])
    ),
)
def _unpool_conv1x1(
    x: Tensor, z: Tensor, assignment: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None = None
) -> Tensor:
    if index is None and (triton := kernel("unpool_conv1x1", x, z, assignment, weight)) is not None:
        return triton.unpool_conv1x1(x, z, assignment, weight, bias)
    on_pixels, on_regions = weight.split([x.shape[1], z.shape[2]], 1)
    product = torch.matmul(z, on_regions.t())  # (B, R, O)
    # pixels as rows: on a CPU this order of the product is 1.4 times faster
    out = torch.matmul(x.transpose(1, 2), on_pixels.t())  # (B, P, O)
    if index is None:
        out = out.baddbmm_(assignment.to(x.dtype).transpose(1, 2), product)
    else:
        out = out.add_(spread(product, assignment.to(x.dtype), index).transpose(1, 2))
    return (out if bias is None else out.add_(bias)).transpose(1, 2)


def _backward_fake(x: Tensor, z: Tensor, assignment: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        z.new_empty(z.shape),
        assignment.new_empty(assignment.shape),
        weight.new_empty(weight.shape),
    )


@operator(
    "unpool_conv1x1_backward",
    fake=lambda grad, x, z, assignment, weight, index: _backward_fake(x, z, assignment, weight),
    flops=lambda grad, x, z, assignment, weight, *_, **__: (
        4 * x[0] * weight[0] * (x[2] * (x[1] + assignment[1]) + z[1] * z[2])
    ),
)
def _unpool_conv1x1_backward(
    grad: Tensor, x: Tensor, z: Tensor, assignment: Tensor, weight: Tensor, index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    on_pixels, on_regions = weight.split([x.shape[1], z.shape[2]], 1)
    product, dtype = torch.matmul(z, on_regions.t()), compute_dtype(assignment)
    if index is None and (triton := kernel("unpool_conv1x1", grad, x, z, assignment, weight)) is not None:
        grad_product, grad_assignment = triton.assignment_gradients(grad, product, assignment)
    else:
        grad_product = collect(grad.to(dtype), assignment.to(dtype), index, z.shape[1])  # (B, R, O)
        grad_assignment = pair_dot(product.to(dtype), grad.to(dtype), index).to(assignment.dtype)
    grad_product = grad_product.to(z.dtype)
    grad_x = torch.matmul(on_pixels.t(), grad)
    grad_z = torch.matmul(grad_product, on_regions)
    grad_pixels = torch.bmm(grad, x.transpose(1, 2)).sum(0)
    grad_regions = torch.bmm(grad_product.transpose(1, 2), z).sum(0)
    return grad_x, grad_z, grad_assignment.contiguous(), torch.cat([grad_pixels, grad_regions], 1)
