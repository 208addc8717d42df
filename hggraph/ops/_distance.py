"""Squared distances between pixels and centres as one matrix product, and their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EXCLUDED", "compute_dtype", "negative_distance", "negative_distance_backward", "squared_norm"]

EXCLUDED = -1e30  # logit of a pair that is left out: finite, so that a row or column of them makes no NaN


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of distances and exponents: float32, or float64 for float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def squared_norm(x: Tensor) -> Tensor:
    """Return ``sum_c x_c^2`` over dimension 1, piece by piece so that the squares stay in the cache."""
    if x.dim() > 2 and x.stride(1) == 1 and not x.requires_grad:
        return torch.linalg.vector_norm(x, dim=1).square_()  # contiguous along the sum: one pass
    pieces = [piece.square().sum(1) for piece in x.split(128, 1)]
    return sum(pieces[1:], pieces[0])


def negative_distance(x: Tensor, centers: Tensor) -> Tensor:
    """Return ``-||x_p - c_r||^2``, shape ``(B, R, P)``, for ``x (B, C, P)`` and ``centers (B, R, C)``."""
    # rounding can make the expanded square slightly positive, hence the clamp
    logits = torch.baddbmm(-centers.square().sum(-1, keepdim=True), centers, x, alpha=2)
    return logits.sub_(squared_norm(x).unsqueeze(1)).clamp_(max=0)


def negative_distance_backward(grad: Tensor, x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `negative_distance` for `x` and `centers`."""
    grad_x = torch.bmm(centers.transpose(1, 2), grad).sub_(x * grad.sum(1, keepdim=True)).mul_(2)
    grad_centers = torch.bmm(grad, x.transpose(1, 2)).sub_(centers * grad.sum(2, keepdim=True)).mul_(2)
    return grad_x, grad_centers
