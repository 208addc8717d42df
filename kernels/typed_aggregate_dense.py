"""Aggregates on dense adjacency, ``A_bk x_b``, written in the order in which one product with all W_k follows."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph.kernels._matmul import matmul


def aggregates(x: Tensor, adjacency: Tensor) -> Tensor:
    """Return (B * T, K, C) for x (B, R, C) and adjacency (B, K, T, R)."""
    batch, directions, targets, _ = adjacency.shape
    out = torch.empty(batch, targets, directions, x.shape[2], device=x.device, dtype=x.dtype)
    shared = x[:, None].expand(-1, directions, -1, -1)
    matmul(adjacency, shared, dtype=x.dtype, out=out.transpose(1, 2))
    return out.view(batch * targets, directions, x.shape[2])
