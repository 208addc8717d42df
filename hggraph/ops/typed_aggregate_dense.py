"""The typed aggregation on dense adjacency matrices: out_b = sum_k A_bk x_b W_k."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_dtype, check_ndim, check_one_device
from hggraph.ops._library import autocast, kernel, operator
from hggraph.ops.typed_aggregate import EPSILON, check_weight, multiply, multiply_backward

__all__ = ["typed_aggregate_dense"]


def typed_aggregate_dense(
    x: Tensor, weight: Tensor, adjacency: Tensor, *, groups: int = 1, normalize: bool = True
) -> Tensor:
    """Compute `typed_aggregate` on dense adjacency matrices (HG-Conv Eq. 3).

    ``out_b = sum_k D_bk^-1 A_bk x_b W_k``, with ``D_bk[i] = max(sum_j A_bk[i, j], 1e-7)``.

    Args:
        x: Features, shape ``(B, R, C)``, floating point.
        weight: One matrix per direction, shape ``(K, C // groups, O)``.
        adjacency: Strengths A_k[i, j] of target i and source j, shape ``(B, K, T, R)``, not negative when
            normalised.
        groups: As in ``Conv2d``.
        normalize: Divide each row by its degree; False takes `adjacency` as it is.

    Returns:
        Shape ``(B, T, O)``. Differentiable in all three tensors, through the degree. Static shapes, no host
        synchronisation.

    Raises:
        ValueError: if shapes disagree.

    Note:
        O(B K R (R C + C O / groups)) time, B K R C numbers of memory. Deterministic.

    Example:
        >>> typed_aggregate_dense(torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 1, 1), torch.ones(1, 1, 2, 2))
        tensor([[[2.],
                 [2.]]])
    """
    check_ndim("x", x, 3, shape="(B, R, C)")
    check_ndim("adjacency", adjacency, 4, shape="(B, K, T, R)")
    check_dtype("x", x)
    check_dtype("adjacency", adjacency, "real numbers")
    check_weight(x, weight, groups)
    check_one_device(x=x, weight=weight, adjacency=adjacency)
    expected = (x.shape[0], weight.shape[0], adjacency.shape[2], x.shape[1])
    if adjacency.shape != expected:
        raise ValueError(
            f"`adjacency` must have shape (B, K, T, R) = {expected} of `x` and `weight`, got {tuple(adjacency.shape)}."
        )
    if normalize:
        adjacency = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=EPSILON)
    x, weight = autocast(x, weight)
    return torch.ops.hggraph.typed_aggregate_dense(x, weight, adjacency.to(x.dtype), groups)


def typed_aggregate_dense_reference(x: Tensor, weight: Tensor, adjacency: Tensor, groups: int) -> Tensor:
    """Return ``sum_k A_k x W_k`` group by group."""
    parts = [
        torch.einsum("bkij,bjc,kco->bio", adjacency, xg, wg)
        for xg, wg in zip(x.chunk(groups, -1), weight.chunk(groups, -1), strict=True)
    ]
    return torch.cat(parts, -1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.groups = inputs[-1]


def _aggregates(x: Tensor, adjacency: Tensor) -> Tensor:
    if (triton := kernel("typed_aggregate_dense", x, adjacency)) is not None:
        return triton.aggregates(x, adjacency)
    batch, num_directions, targets, sources = adjacency.shape
    gathered = torch.bmm(adjacency.reshape(batch, num_directions * targets, sources), x)
    gathered = gathered.view(batch, num_directions, targets, x.shape[2]).transpose(1, 2)
    return gathered.reshape(batch * targets, num_directions, x.shape[2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *torch.ops.hggraph.typed_aggregate_dense_backward(grad, *ctx.saved_tensors, ctx.groups), None


@operator(
    "typed_aggregate_dense",
    fake=lambda x, weight, adjacency, groups: x.new_empty(x.shape[0], adjacency.shape[2], weight.shape[2]),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, weight, adjacency, groups, **_: (
        2 * adjacency[0] * adjacency[1] * adjacency[2] * (adjacency[3] * x[2] + weight[1] * weight[2])
    ),
)
def _typed_aggregate_dense(x: Tensor, weight: Tensor, adjacency: Tensor, groups: int) -> Tensor:
    out = multiply(_aggregates(x, adjacency), weight, groups)
    return out.view(x.shape[0], adjacency.shape[2], weight.shape[2])


@operator(
    "typed_aggregate_dense_backward",
    fake=lambda grad, x, weight, adjacency, groups: (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        adjacency.new_empty(adjacency.shape),
    ),
    # aggregates again, and two gradients of each of the two products
    flops=lambda grad, x, weight, adjacency, groups, **_: (
        2 * adjacency[0] * adjacency[1] * adjacency[2] * (3 * adjacency[3] * x[2] + 2 * weight[1] * weight[2])
    ),
)
def _typed_aggregate_dense_backward(
    grad: Tensor, x: Tensor, weight: Tensor, adjacency: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_directions, targets, sources = adjacency.shape
    grad_gathered, grad_weight = multiply_backward(
        grad.reshape(batch * targets, weight.shape[2]), _aggregates(x, adjacency), weight, groups
    )
    grad_gathered = grad_gathered.view(batch, targets, num_directions, x.shape[2]).transpose(1, 2)
    grad_gathered = grad_gathered.reshape(batch, num_directions * targets, x.shape[2])
    grad_adjacency = torch.bmm(grad_gathered, x.transpose(1, 2)).view(adjacency.shape)
    flat = adjacency.reshape(batch, num_directions * targets, sources)
    return torch.bmm(flat.transpose(1, 2), grad_gathered), grad_weight.contiguous(), grad_adjacency
