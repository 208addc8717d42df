"""The B-spline basis of SplineCNN: which control points an edge reaches, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import comb, factorial

import torch
from torch import Tensor

from hggraph._check import check_ndim

__all__ = ["spline_basis"]

DEGREES = (1, 2, 3)


def spline_basis(
    pseudo: Tensor,
    kernel_size: Tensor | Sequence[int] | int,
    is_open_spline: Tensor | Sequence[bool] | bool = True,
    degree: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the B-spline weights of each edge and the control points they belong to (SplineCNN).

    Per dimension, with ``v = u (k - m)`` for an open and ``v = u k`` for a closed spline of degree
    m: the control points ``floor(v) + s``, ``s = 0, ..., m``, modulo k, weigh
    ``B_m(v - floor(v) + m - s)``, with ``B_m`` the uniform B-spline on ``[0, m + 1]``. Dimensions
    multiply. The *first* counts fastest, along S and in the control points' numbers
    ``sum_d point_d k_0 ... k_(d-1)``, as in torch-spline-conv and pyg-lib.

    Args:
        pseudo: Pseudo-coordinates u, shape ``(E, D)``, floating point in [0, 1].
        kernel_size: Control points k per dimension, D whole numbers or one for all; at least
            `degree` where open (then the kernel is constant), at least 1 where closed.
        is_open_spline: Whether a dimension is open, D values or one for all; a closed one is
            periodic, so that 0 and 1 are the same point.
        degree: 1, 2 or 3.

    Returns:
        Weights ``(E, S)``, ``S = (degree + 1) ** D``, not negative, each row summing to 1, float32
        (float64 for float64 input); and control points ``(E, S)``, long in [0, the product of
        `kernel_size`). Differentiable in `pseudo`, at a knot of degree 1 to the right.

    Raises:
        ValueError: if a shape or number is not as said. Reads the data (synchronises a GPU).

    Note:
        O(E S) time and memory. Deterministic.

    Example:
        >>> spline_basis(torch.tensor([[0.25], [0.7]]), kernel_size=5)
        (tensor([[1.0000, 0.0000],
                [0.2000, 0.8000]]), tensor([[1, 2],
                [2, 3]]))
    """
    size, intervals = _check(pseudo, kernel_size, is_open_spline, degree)
    v = pseudo * intervals
    first = v.detach().floor()
    pieces = _pieces(v - first, degree)  # (E, D, degree + 1)
    steps = torch.arange(degree + 1, device=pseudo.device)
    points = (first.long().unsqueeze(-1) + steps) % size.unsqueeze(-1)
    points = points * (size.cumprod(0) // size).unsqueeze(-1)  # (E, D, degree + 1)

    basis, index = pieces[:, 0], points[:, 0]
    for d in range(1, pseudo.shape[1]):  # a later dimension counts slower: its axis comes first
        basis = (pieces[:, d].unsqueeze(2) * basis.unsqueeze(1)).flatten(1)
        index = (points[:, d].unsqueeze(2) + index.unsqueeze(1)).flatten(1)
    return basis, index


def spline_basis_reference(
    pseudo: Tensor, kernel_size: Sequence[int], is_open_spline: Sequence[bool], degree: int
) -> tuple[Tensor, Tensor]:
    """Return `spline_basis` edge by edge, with ``B_m`` as its sum of truncated powers."""

    def spline(u: Tensor) -> Tensor:
        powers = [((u - r) * (u >= r)) ** degree for r in range(degree + 2)]
        terms = [(-1) ** r * comb(degree + 1, r) * power for r, power in enumerate(powers)]
        return torch.stack(terms).sum(0) / factorial(degree)

    basis, index = [], []
    for u in pseudo:
        for steps in product(range(degree + 1), repeat=len(kernel_size)):
            weight, point, stride = u.new_ones(()), 0, 1
            for d, s in enumerate(reversed(steps)):
                v = u[d] * (kernel_size[d] - degree * int(is_open_spline[d]))
                weight = weight * spline(v - v.floor() + degree - s)
                point += (int(v.floor()) + s) % kernel_size[d] * stride
                stride *= kernel_size[d]
            basis.append(weight)
            index.append(point)
    shape = (pseudo.shape[0], (degree + 1) ** len(kernel_size))
    weights = torch.stack(basis) if basis else pseudo.new_zeros(0)
    return weights.view(shape), torch.tensor(index, dtype=torch.long).view(shape)


def _pieces(t: Tensor, degree: int) -> Tensor:
    """Return the ``degree + 1`` pieces of the uniform B-spline at t in [0, 1], on a new last axis.

    By the recursion of de Boor and Cox for knots at the integers,
    ``p^n_s = ((1 - t + s) p^(n-1)_s + (t + n - s) p^(n-1)_(s-1)) / n``.
    """
    pieces = [torch.ones_like(t)]
    zero = torch.zeros_like(t)
    for n in range(1, degree + 1):
        right = [*((1 - t + s) * piece for s, piece in enumerate(pieces)), zero]
        left = [zero, *((t + n - s) * piece for s, piece in enumerate(pieces, start=1))]
        pieces = [(a + b) / n for a, b in zip(right, left, strict=True)]
    return torch.stack(pieces, -1)


def _check(
    pseudo: Tensor,
    kernel_size: Tensor | Sequence[int] | int,
    is_open_spline: Tensor | Sequence[bool] | bool,
    degree: int,
) -> tuple[Tensor, Tensor]:
    """Return each dimension's numbers of control points, long, and of intervals, both ``(D,)``."""
    check_ndim("pseudo", pseudo, 2, shape="(E, D)")
    if not pseudo.is_floating_point() or pseudo.shape[1] == 0:
        raise ValueError(
            f"`pseudo` must be floating point of shape (E, D) with D >= 1, got {pseudo.dtype} {tuple(pseudo.shape)}."
        )
    if pseudo.is_meta:
        raise ValueError("`pseudo` (a layer's `edge_attr`) must hold data, got a tensor on the device meta.")
    if degree not in DEGREES:
        raise ValueError(f"`degree` must be one of {DEGREES}, got {degree!r}.")
    size = torch.as_tensor(kernel_size, device=pseudo.device)
    is_open = torch.as_tensor(is_open_spline, device=pseudo.device)
    for name, value in (("kernel_size", size), ("is_open_spline", is_open)):
        if value.shape not in ((), pseudo.shape[1:]):
            raise ValueError(
                f"`{name}` must be one value or D = {pseudo.shape[1]}, one per column of `pseudo`, "
                f"got shape {tuple(value.shape)}."
            )
    size = size.long().expand(pseudo.shape[1])
    intervals = size - degree * is_open.long()
    if bool((size < 1).any()) or bool((intervals < 0).any()):
        raise ValueError(
            f"`kernel_size` must be >= `degree` = {degree} for an open spline and >= 1 for a "
            f"closed one, got {size.tolist()}."
        )
    if pseudo.numel():
        low, high = (float(value) for value in torch.aminmax(pseudo.detach()))
        if not (low >= 0 and high <= 1):  # so that NaN fails too
            raise ValueError(
                f"`pseudo` (a layer's `edge_attr`) must be in [0, 1], got values from {low} to "
                f"{high}. torch_geometric.transforms.Cartesian() makes such from `pos`."
            )
    return size, intervals.to(torch.promote_types(pseudo.dtype, torch.float32))
