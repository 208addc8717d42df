"""Unpooling of regions to pixels: ``x_p = sum_r S_rp z_r``."""

from __future__ import annotations

from torch import Tensor

from hggraph.kernels._matmul import matmul


def region_unpool(z: Tensor, assignment: Tensor) -> Tensor:
    """Compute `hggraph.ops.region_unpool` in Triton; the arguments are the operator's."""
    return matmul(z.mT, assignment, dtype=z.dtype)[0]


def region_unpool_backward(grad: Tensor, z: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `hggraph.ops.region_unpool` in Triton; the arguments are the operator's."""
    grad_z, _ = matmul(assignment, grad.mT, dtype=z.dtype)
    grad_assignment, _ = matmul(z, grad, dtype=assignment.dtype)
    return grad_z, grad_assignment
