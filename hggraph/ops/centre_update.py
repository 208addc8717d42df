"""The centre update of soft SLIC as softmax attention of centres over pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import kernel, operator
from hggraph.ops._pairs import (
    collect,
    masses,
    negative_distance,
    negative_distance_backward,
    of_region,
    pair_dot,
    spread,
)
from hggraph.ops.soft_assign import check_pair

__all__ = ["centre_update"]


def centre_update(x: Tensor, centers: Tensor, index: Tensor | None = None) -> Tensor:
    """Move each centre to the weighted mean of the pixels (HG-Conv, Algorithm 1, lines 5, 3 and 4 in one).

    ``c'_r = sum_p w_rp x_p``, with the column-normalised ``w_rp = exp(-||x_p - c_r||^2) / sum_q exp(-||x_q -
    c_r||^2)``: a softmax over the pixels, in which ``||c_r||^2`` cancels, so no feature scale under- or
    overflows and no centre is ever left without pixels.

    Args:
        x: Features, shape ``(B, C, P)``, floating point, P >= 1.
        centers: Centres, shape ``(B, R, C)``.
        index: The T centres that each pixel considers, shape ``(B, T, P)``, int32 or int64 in [0, R); None is all. A
            centre that no pixel considers stays where it is.

    Returns:
        New centres, shape ``(B, R, C)``, float32 (float64 for float64 input), differentiable in `x` and `centers`.

    Raises:
        ValueError: if shapes disagree or there is no pixel.

    Note:
        O(B R P C) time, T in place of R with an index. Backward recomputes the weights. Deterministic.

    Example:
        >>> centre_update(torch.tensor([[[0.0, 2.0, 90.0]]]), torch.tensor([[[1.0]]]))
        tensor([[[1.]]])
    """
    check_pair(x, centers, index)
    if x.shape[2] == 0:
        raise ValueError(f"`x` must have at least one pixel, got shape {tuple(x.shape)}.")
    return torch.ops.hggraph.centre_update(x, centers, index)[0]


def centre_update_reference(x: Tensor, centers: Tensor, index: Tensor | None) -> Tensor:
    """Return `centre_update` as the algorithm prints it: exponentials, column sums, weighted means."""
    weight = torch.exp(-(x[:, None] - centers[..., None]).square().sum(2))  # (B, R, P)
    if index is not None:
        weight = weight * torch.zeros_like(weight).scatter(1, index.long(), 1)
    column = weight.sum(2, keepdim=True)
    return torch.where(column > 0, (weight / column) @ x.transpose(1, 2), centers)


def _weights(x: Tensor, centers: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each entry's column-normalised weight ``(B, T, P)``, and the centres that no pixel considers."""
    logits = negative_distance(x, centers, index)
    if index is None:
        return logits.softmax(2), logits.new_zeros(centers.shape[:2], dtype=torch.bool)
    largest = logits.new_full(centers.shape[:2], -math.inf)
    largest = largest.scatter_reduce(1, index.flatten(1).long(), logits.flatten(1), "amax")
    weight = logits.sub_(of_region(largest, index)).exp_()
    total = masses(weight, index, centers.shape[1])
    return weight.div_(of_region(total, index)), total == 0


def _fake(x: Tensor, centers: Tensor, index: Any) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x)
    return x.new_empty(centers.shape, dtype=dtype), x.new_empty(centers.shape[:2], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return *torch.ops.hggraph.centre_update_backward(grad, *ctx.saved_tensors), None


@operator(
    "centre_update",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, centers, index, **_: 4 * x[0] * x[1] * x[2] * (centers if index is None else index)[1],
)
def _centre_update(x: Tensor, centers: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the centres, and the logarithms of the column sums where a kernel's backward needs them."""
    if index is None and (triton := kernel("centre_update", x, centers)) is not None:
        return triton.centre_update(x, centers)
    dtype = compute_dtype(x)
    x, centers = x.to(dtype), centers.to(dtype)
    weight, alone = _weights(x, centers, index)
    out = collect(x, weight, index, centers.shape[1])
    return torch.where(alone.unsqueeze(2), centers, out), out.new_zeros(centers.shape[:2])


@operator(
    "centre_update_backward",
    fake=lambda grad, x, centers, *_: (x.new_empty(x.shape), centers.new_empty(centers.shape)),
    # the weights again, the distances' two gradients, and two products of the means
    flops=lambda grad, x, centers, index, *_, **__: 10 * x[0] * x[1] * x[2] * (centers if index is None else index)[1],
)
def _centre_update_backward(
    grad: Tensor, x: Tensor, centers: Tensor, index: Tensor | None, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor]:
    if index is None and (triton := kernel("centre_update", grad, x, centers)) is not None:
        return triton.centre_update_backward(grad, x, centers, out, log_sum)
    pixels, seeds = x.to(out.dtype), centers.to(out.dtype)
    weight, alone = _weights(pixels, seeds, index)
    grad_logits = pair_dot(grad, pixels, index).sub_(of_region((grad * out).sum(2), index)).mul_(weight)
    grad_x, grad_centers = negative_distance_backward(grad_logits, pixels, seeds, index)
    grad_x = grad_x + spread(grad, weight, index)
    grad_centers = torch.where(alone.unsqueeze(2), grad, grad_centers)
    return grad_x.to(x.dtype).contiguous(), grad_centers.to(centers.dtype).contiguous()
