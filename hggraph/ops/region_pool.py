"""Pooling of pixels to regions, HG-Conv Eq. 5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import kernel, operator
from hggraph.ops._pairs import check_index, collect_with_masses, densify, of_region, pair_dot, spread

__all__ = ["check_assignment", "region_pool"]


def region_pool(
    x: Tensor,
    assignment: Tensor,
    index: Tensor | None = None,
    num_regions: int | None = None,
    *,
    return_mass: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Average the pixels of each region (HG-Conv Eq. 5): ``z_r = sum_p S_rp x_p / sum_p S_rp``.

    Args:
        x: Features, shape ``(B, C, P)``, floating point, any strides (channels_last costs no copy).
        assignment: Weights S, not negative, shape ``(B, R, P)``, or ``(B, T, P)`` with `index`.
        index: Region of each entry, shape ``(B, T, P)``, int32 or int64 in [0, R); None: entry r is region r.
        num_regions: R; needed with `index`.
        return_mass: Return the sums of the weights too.

    Returns:
        Shape ``(B, R, C)``, dtype of `x`. A region without pixels gives 0. With `return_mass` also ``sum_p S_rp``,
        shape ``(B, R)``, float32 at least. Differentiable in `x` and `assignment`.

    Raises:
        ValueError: if shapes disagree, or a region does not exist (checked on a CPU).

    Note:
        O(B R P C), one matrix product per image; with an index O(B T P C) and a sort of B T P numbers. Deterministic.

    Example:
        >>> region_pool(torch.tensor([[[1.0, 3.0, 8.0]]]), torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]]))
        tensor([[[2.],
                 [8.]]])
        >>> region_pool(torch.tensor([[[1.0, 3.0, 8.0]]]), torch.ones(1, 1, 3), torch.tensor([[[0, 0, 1]]]), 2)
        tensor([[[2.],
                 [8.]]])
    """
    check_assignment("x", x, assignment, index, num_regions)
    if index is None or num_regions is None:
        num_regions = assignment.shape[1]
    out, mass = torch.ops.hggraph.region_pool(x, assignment, index, num_regions)
    return (out, mass) if return_mass else out


def region_pool_reference(x: Tensor, assignment: Tensor, index: Tensor | None, num_regions: int) -> Tensor:
    """Return the column-normalised product as Eq. 5 says it."""
    if index is not None:
        assignment = densify(assignment, index, num_regions)
    mass = assignment.sum(2, keepdim=True)
    normalised = torch.where(mass > 0, assignment / torch.where(mass > 0, mass, 1), 0)
    return torch.einsum("brp,bcp->brc", normalised, x)


def check_assignment(
    name: str, x: Tensor, assignment: Tensor, index: Tensor | None = None, num_regions: int | None = None
) -> None:
    """Raise unless pixels ``(B, C, P)`` and an assignment ``(B, T, P)`` fit each other."""
    check_ndim(name, x, 3, shape="(B, C, P)")
    check_ndim("assignment", assignment, 3, shape="(B, R, P)")
    if x.shape[::2] != assignment.shape[::2]:
        raise ValueError(
            f"`{name}` {tuple(x.shape)} and `assignment` {tuple(assignment.shape)} must have the same number of "
            "images and of pixels."
        )
    check_index(index, assignment.shape, num_regions)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)


def _inverse(mass: Tensor) -> Tensor:
    return torch.where(mass > 0, mass.reciprocal(), 0).unsqueeze(2)  # 0 also keeps an empty region out of the gradients


def _backward(ctx: Any, grad: Tensor, grad_mass: Tensor) -> tuple[Any, ...]:
    return *torch.ops.hggraph.region_pool_backward(grad, grad_mass, *ctx.saved_tensors), None, None


@operator(
    "region_pool",
    fake=lambda x, assignment, index, num_regions: (
        x.new_empty(x.shape[0], num_regions, x.shape[1]),
        x.new_empty(x.shape[0], num_regions, dtype=compute_dtype(assignment)),
    ),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, assignment, *_, **__: 2 * x[0] * x[1] * x[2] * assignment[1],
)
def _region_pool(x: Tensor, assignment: Tensor, index: Tensor | None, num_regions: int) -> tuple[Tensor, Tensor]:
    if index is None and (triton := kernel("region_pool", x, assignment)) is not None:
        return triton.region_pool(x, assignment)
    dtype = compute_dtype(x)  # the sum over a region may leave a half's range where the mean does not
    weight = assignment.to(torch.promote_types(dtype, compute_dtype(assignment)))
    out, mass = collect_with_masses(x.to(weight.dtype), weight, index, num_regions)
    return out.mul_(_inverse(mass)).to(x.dtype), mass.to(compute_dtype(assignment))


@operator(
    "region_pool_backward",
    fake=lambda grad, grad_mass, x, assignment, *_: (x.new_empty(x.shape), assignment.new_empty(assignment.shape)),
    flops=lambda grad, grad_mass, x, assignment, *_, **__: 4 * x[0] * x[1] * x[2] * assignment[1],
)
def _region_pool_backward(
    grad: Tensor, grad_mass: Tensor, x: Tensor, assignment: Tensor, index: Tensor | None, out: Tensor, mass: Tensor
) -> tuple[Tensor, Tensor]:
    if index is None and (triton := kernel("region_pool", grad, x, assignment)) is not None:
        return triton.region_pool_backward(grad, grad_mass, x, assignment, out, mass)
    dtype = torch.promote_types(compute_dtype(x), mass.dtype)
    scaled = grad.to(dtype) * _inverse(mass.to(dtype))
    grad_x = spread(scaled, assignment.to(dtype), index).to(x.dtype)
    shift = grad_mass - (scaled * out.to(dtype)).sum(2)
    grad_assignment = pair_dot(scaled, x.to(dtype), index) + of_region(shift, index)
    return grad_x.contiguous(), grad_assignment.to(assignment.dtype).contiguous()
