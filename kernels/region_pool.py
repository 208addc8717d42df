"""Pooling of pixels to regions: ``z_r = sum_p S_rp x_p / sum_p S_rp``, the masses in the same pass as the sums."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph.kernels._matmul import matmul


def _inverse(mass: Tensor) -> Tensor:
    return torch.where(mass > 0, mass.reciprocal(), 0)[..., None]  # 0 keeps an empty region out of the gradients


def region_pool(x: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `hggraph.ops.region_pool` over all regions in Triton: the means and the masses."""
    total, mass = matmul(assignment, x.mT, dtype=torch.float32, row_sum=True)
    return total.mul_(_inverse(mass)).to(x.dtype), mass


def region_pool_backward(
    grad: Tensor, grad_mass: Tensor, x: Tensor, assignment: Tensor, out: Tensor, mass: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `hggraph.ops.region_pool` over all regions in Triton."""
    scaled = grad.float() * _inverse(mass)
    grad_x, _ = matmul(scaled.mT, assignment, dtype=x.dtype)
    shift = (scaled * out).sum(2).sub_(grad_mass)
    grad_assignment, _ = matmul(scaled, x, dtype=assignment.dtype, row_shift=shift)
    return grad_x, grad_assignment
