"""The precision of distances, and squared norms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EXCLUDED", "compute_dtype", "squared_norm"]

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
