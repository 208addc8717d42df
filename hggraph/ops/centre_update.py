"""The centre update of soft SLIC as softmax attention of centres over pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph.ops._distance import EXCLUDED, compute_dtype, negative_distance, negative_distance_backward
from hggraph.ops._library import kernel, operator
from hggraph.ops.soft_assign import check_pair

__all__ = ["centre_update"]


def centre_update(
    x: Tensor, centers: Tensor, candidates: Tensor | None = None, values: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move each centre to the weighted mean of the pixels (HG-Conv, Algorithm 1, lines 5, 3 and 4 in one).

    ``c'_r = sum_p w_rp v_p``, with the column-normalised ``w_rp = exp(-||x_p - c_r||^2) / sum_q exp(-||x_q -
    c_r||^2)``: a softmax over the pixels, in which ``||c_r||^2`` cancels, so no feature scale under- or
    overflows and no centre is ever left without pixels.

    Args:
        x: Features, shape ``(B, C, P)``, floating point, P >= 1.
        centers: Centres, shape ``(B, R, C)``.
        candidates: The T centres that each pixel considers, shape ``(B, T, P)``, long in [0, R); None is all. A
            centre that no pixel considers gets the plain mean and the log-sum -1e30.
        values: What is averaged, shape ``(B, D, P)``; `x` itself when None.

    Returns:
        New centres, shape ``(B, R, D)``, and the logarithm of each column sum, shape ``(B, R)``, by which
        updates over parts of an image can be merged. Both float32 (float64 for float64 input), differentiable
        in `x`, `centers` and `values`.

    Raises:
        ValueError: if shapes disagree or there is no pixel.

    Note:
        O(B R P C) time. Backward recomputes the weights. Deterministic.

    Example:
        >>> centre_update(torch.tensor([[[0.0, 2.0, 90.0]]]), torch.tensor([[[1.0]]]))[0]
        tensor([[[1.]]])
    """
    check_pair(x, centers, candidates)
    if x.shape[2] == 0:
        raise ValueError(f"`x` must have at least one pixel, got shape {tuple(x.shape)}.")
    if values is not None and (values.dim() != 3 or values.shape[::2] != x.shape[::2]):
        raise ValueError(f"`values` must have shape (B, D, P) like `x` {tuple(x.shape)}, got {tuple(values.shape)}.")
    return torch.ops.hggraph.centre_update(x, centers, candidates, values)


def centre_update_reference(
    x: Tensor, centers: Tensor, candidates: Tensor | None, values: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return `centre_update` as the algorithm prints it: exponentials, column sums, weighted means."""
    weight = torch.exp(-(x[:, None] - centers[..., None]).square().sum(2))  # (B, R, P)
    if candidates is not None:
        weight = weight * torch.zeros_like(weight).scatter(1, candidates, 1)
    column = weight.sum(2, keepdim=True)
    return (weight / column) @ (x if values is None else values).transpose(1, 2), column.squeeze(2).log()


def _logits(x: Tensor, centers: Tensor, candidates: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the logits ``(B, R, P)``, and which of them are constants as no pixel considers the pair."""
    logits = negative_distance(x, centers)
    if candidates is None:
        return logits, None
    excluded = torch.ones(logits.shape, dtype=torch.bool, device=x.device).scatter_(1, candidates, False)
    return logits.masked_fill_(excluded, EXCLUDED), excluded


def _fake(x: Tensor, centers: Tensor, candidates: Any, values: Any) -> tuple[Tensor, Tensor]:
    batch, regions = centers.shape[:2]
    dtype = compute_dtype(x)
    depth = (x if values is None else values).shape[1]
    return x.new_empty(batch, regions, depth, dtype=dtype), x.new_empty(batch, regions, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, grad_log_sum: Tensor) -> tuple[Any, ...]:
    values = ctx.saved_tensors[3]
    grads = torch.ops.hggraph.centre_update_backward(grad, grad_log_sum, *ctx.saved_tensors)
    return grads[0], grads[1], None, None if values is None else grads[2]


@operator(
    "centre_update",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, centers, candidates, values, **_: (
        2 * x[0] * x[2] * centers[1] * (x[1] + (x if values is None else values)[1])
    ),
)
def _centre_update(
    x: Tensor, centers: Tensor, candidates: Tensor | None, values: Tensor | None
) -> tuple[Tensor, Tensor]:
    if (triton := kernel("centre_update", x, centers, values)) is not None:
        return triton.centre_update(x, centers, candidates, values)
    dtype = compute_dtype(x)
    x = x.to(dtype)
    logits, _ = _logits(x, centers.to(dtype), candidates)
    weight = logits.softmax(-1)
    # log-sum from the largest pair, whose weight cannot underflow
    log_sum = logits.amax(-1) - weight.amax(-1).log()
    return torch.bmm(weight, (x if values is None else values.to(dtype)).transpose(1, 2)), log_sum


def _backward_fake(
    grad: Tensor,
    grad_log_sum: Tensor,
    x: Tensor,
    centers: Tensor,
    candidates: Any,
    values: Any,
    out: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        centers.new_empty(centers.shape),
        x.new_empty(0) if values is None else values.new_empty(values.shape),
    )


@operator(
    "centre_update_backward",
    fake=_backward_fake,
    # the weights again and the distances' two gradients in C channels; two products in the values' channels
    flops=lambda grad, grad_log_sum, x, centers, candidates, values, *_, **__: (
        x[0] * x[2] * centers[1] * (6 * x[1] + 4 * (x if values is None else values)[1])
    ),
)
def _centre_update_backward(
    grad: Tensor,
    grad_log_sum: Tensor,
    x: Tensor,
    centers: Tensor,
    candidates: Tensor | None,
    values: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    if (triton := kernel("centre_update", grad, x, centers, values)) is not None:
        return triton.centre_update_backward(grad, grad_log_sum, x, centers, candidates, values, out, log_sum)
    dtype = out.dtype
    pixels, seeds = x.to(dtype), centers.to(dtype)
    logits, excluded = _logits(pixels, seeds, candidates)
    weight = logits.softmax(-1)
    averaged = pixels if values is None else values.to(dtype)
    shift = grad_log_sum - (grad * out).sum(-1)  # (B, R)
    grad_logits = weight * torch.bmm(grad, averaged).add_(shift[..., None])
    if excluded is not None:  # also where nothing else is left
        grad_logits.masked_fill_(excluded, 0)
    grad_x, grad_centers = negative_distance_backward(grad_logits, pixels, seeds)
    grad_values = torch.bmm(grad.transpose(1, 2), weight)
    if values is None:
        return (grad_x + grad_values).to(x.dtype), grad_centers.to(centers.dtype), x.new_empty(0)
    return grad_x.to(x.dtype), grad_centers.to(centers.dtype), grad_values.to(values.dtype)
