"""Soft assignment of pixels to centres, lines 5 to 8 of HG-Conv's Algorithm 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops._library import kernel, operator
from hggraph.ops._pairs import check_index, like, negative_distance, negative_distance_backward, new_weight

__all__ = ["soft_assign"]


def soft_assign(x: Tensor, centers: Tensor, index: Tensor | None = None, *, threshold: float = 1e-3) -> Tensor:
    """Assign each pixel softly to the centres near it in feature space (HG-Conv, Algorithm 1, lines 5 to 8).

    ``S_rp = exp(-||x_p - c_r||^2)``, entries not above `threshold` dropped, then each pixel's weights divided by
    their sum. A pixel for which every entry is dropped goes to its nearest centre with weight 1.

    Args:
        x: Features, shape ``(B, C, P)``, floating point.
        centers: Centres, shape ``(B, R, C)``, R >= 1.
        index: The T centres that each pixel considers, shape ``(B, T, P)``, int32 or int64 in [0, R); None is all.
        threshold: Least weight before normalisation, in [0, 1).

    Returns:
        Shape ``(B, R, P)``, with an index ``(B, T, P)``, float32 (float64 for float64 input); each pixel's weights
        sum to 1. Rows are padded in memory to multiples of 32 numbers. Differentiable in `x` and `centers`: the
        gradient is that of the entries kept.

    Raises:
        ValueError: if shapes disagree or `threshold` is out of range.

    Note:
        O(B R P C) time and B R P numbers of memory, T in place of R with an index. Computed as a softmax over the
        kept entries, so that no feature scale under- or overflows; distances and exponents in float32 at least.
        Deterministic.

    Example:
        >>> soft_assign(torch.tensor([[[0.0, 1.0, 9.0]]]), torch.tensor([[[0.0], [9.0]]]))
        tensor([[[1., 1., 0.],
                 [0., 0., 1.]]])
    """
    check_pair(x, centers, index)
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
    return torch.ops.hggraph.soft_assign(x, centers, index, threshold)


def soft_assign_reference(x: Tensor, centers: Tensor, index: Tensor | None, threshold: float) -> Tensor:
    """Return `soft_assign` step by step as the algorithm prints it."""
    distance = (x[:, None] - centers[..., None]).square().sum(2)  # (B, R, P)
    if index is not None:
        distance = distance.gather(1, index.long())
    weight = torch.exp(-distance)
    weight = weight * (weight > threshold)
    nearest = torch.zeros_like(weight).scatter(1, distance.argmin(1, keepdim=True), 1)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, nearest)
    return weight / weight.sum(1, keepdim=True)


def check_pair(x: Tensor, centers: Tensor, index: Tensor | None) -> None:
    """Raise unless pixels ``(B, C, P)``, centres ``(B, R, C)`` and an index ``(B, T, P)`` fit each other."""
    check_ndim("x", x, 3, shape="(B, C, P)")
    check_ndim("centers", centers, 3, shape="(B, R, C)")
    if x.shape[0] != centers.shape[0] or x.shape[1] != centers.shape[2] or centers.shape[1] == 0:
        raise ValueError(
            f"`centers` must have shape (B, R, C) with B = {x.shape[0]}, C = {x.shape[1]}, R >= 1, "
            f"got {tuple(centers.shape)}."
        )
    if index is None:
        return
    check_ndim("index", index, 3, shape="(B, T, P)")
    if index.shape[::2] != x.shape[::2] or index.shape[1] == 0:
        raise ValueError(
            f"`index` must have shape (B, T, P) with B = {x.shape[0]}, T >= 1, P = {x.shape[2]}, "
            f"got {tuple(index.shape)}."
        )
    check_index(index, index.shape, centers.shape[1])


def _entries(centers: Any, index: Any) -> int:
    return int((centers if index is None else index).shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3], output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *torch.ops.hggraph.soft_assign_backward(grad, *ctx.saved_tensors), None, None


@operator(
    "soft_assign",
    fake=lambda x, centers, index, threshold: new_weight(x, _entries(centers, index), x.shape[2]),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, centers, index, *_, **__: 2 * x[0] * x[1] * x[2] * (centers if index is None else index)[1],
)
def _soft_assign(x: Tensor, centers: Tensor, index: Tensor | None, threshold: float) -> Tensor:
    out = new_weight(x, _entries(centers, index), x.shape[2])
    if index is None and (triton := kernel("soft_assign", x, centers)) is not None:
        return triton.soft_assign(x, centers, threshold, out)
    logits = negative_distance(x.to(out.dtype), centers.to(out.dtype), index)
    best, nearest = logits.max(1, keepdim=True)
    least = math.log(threshold) if threshold > 0 else -math.inf
    # the row-normalised exponentials are a softmax over the entries kept, and the nearest centre is always kept
    kept = torch.where(logits > least, logits, -math.inf).scatter_(1, nearest, best)
    return out.copy_(kept.softmax(1))


@operator(
    "soft_assign_backward",
    fake=lambda grad, x, centers, *_: (torch.empty_like(x), torch.empty_like(centers)),
    flops=lambda grad, x, centers, index, *_, **__: 4 * x[0] * x[1] * x[2] * (centers if index is None else index)[1],
)
def _soft_assign_backward(
    grad: Tensor, x: Tensor, centers: Tensor, index: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    if index is None and (triton := kernel("soft_assign", grad, x, centers, weight)) is not None:
        grads = triton.soft_assign_backward(grad, x, centers, weight)
        return like(grads[0], x), like(grads[1], centers)
    # S is a softmax over the entries kept
    weighted = weight * grad
    grad_logits = weighted.sub_(weight * weighted.sum(1, keepdim=True))
    grads = negative_distance_backward(grad_logits, x.to(weight.dtype), centers.to(weight.dtype), index)
    return like(grads[0], x), like(grads[1], centers)
