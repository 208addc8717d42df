"""The B-spline basis of SplineCNN: which control points an edge's pseudo-coordinates reach, and how much."""

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
    """Return the B-spline weights of each edge and the control points they belong to (SplineCNN, Eq. 4).

    Per dimension, with ``v = u (k - m)`` for an open and ``v = u k`` for a closed spline of degree m, the control
    points ``floor(v) + s``, ``s = 0, ..., m``, taken modulo k, weigh ``B_m(v - floor(v) + m - s)``, with ``B_m``
    the uniform B-spline on ``[0, m + 1]``. Several dimensions multiply; the *first* counts fastest, in the index
    (``sum_d index_d k_0 ... k_(d-1)``) and along S, as in torch-spline-conv and pyg-lib.

    Args:
        pseudo: Pseudo-coordinates u, shape ``(E, D)``, floating point in [0, 1].
        kernel_size: Control points k of each dimension, D whole numbers or one for all; at least `degree` where
            open, at least 1 where closed.
        is_open_spline: Whether each dimension is open; a closed one is periodic, 0 and 1 are the same point.
        degree: 1, 2 or 3.

    Returns:
        Weights ``(E, S)``, not negative, each row summing to 1, float32 (float64 for float64 input); and control
        points ``(E, S)``, long in [0, the product of `kernel_size`), with ``S = (degree + 1) ** D``. Differentiable
        in `pseudo`; at a knot of degree 1 the derivative is the one to the right.

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
    size, spread = _check(pseudo, kernel_size, is_open_spline, degree)
    if pseudo.dtype != torch.float64:
        pseudo = pseudo.float()
    v = pseudo * spread
    first = v.detach().floor()
    pieces = _pieces(v - first, degree)  # (E, D, degree + 1)
    steps = torch.arange(degree + 1, device=pseudo.device)
    points = (first.long().unsqueeze(-1) + steps) % size.unsqueeze(-1)  # (E, D, degree + 1)
    points = points * (size.cumprod(0) // size).unsqueeze(-1)

    basis, index = pieces[:, 0], points[:, 0]
    for d in range(1, pseudo.shape[1]):  # a later dimension counts slower, so its axis comes first
        basis = (pieces[:, d].unsqueeze(2) * basis.unsqueeze(1)).flatten(1)
        index = (points[:, d].unsqueeze(2) + index.unsqueeze(1)).flatten(1)
    return basis, index


def spline_basis_reference(
    pseudo: Tensor, kernel_size: Sequence[int], is_open_spline: Sequence[bool], degree: int
) -> tuple[Tensor, Tensor]:
    """Return `spline_basis` edge by edge, with ``B_m`` as its sum of truncated powers."""

    def spline(u: Tensor) -> Tensor:
        powers = [
            (-1) ** r * comb(degree + 1, r) * (u - r).clamp(min=0) ** degree
            for r in range(degree + 2)
        ]
        return torch.stack(powers).sum(0) / factorial(degree)

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
    return (torch.stack(basis) if basis else pseudo.new_zeros(0)).view(shape), torch.tensor(
        index
    ).view(shape)


def _pieces(t: Tensor, degree: int) -> Tensor:
    """Return the ``degree + 1`` polynomials of the uniform B-spline at t in [0, 1), on a new last axis.

    The recursion of de Boor and Cox, ``p^n_s = ((1 - t + s) p^(n-1)_s + (t + n - s) p^(n-1)_(s-1)) / n``.
    """
    pieces = [torch.ones_like(t)]
    for n in range(1, degree + 1):
        right = [(1 - t + s) * piece for s, piece in enumerate(pieces)] + [torch.zeros_like(t)]
        left = [torch.zeros_like(t)] + [
            (t + n - s) * piece for s, piece in enumerate(pieces, start=1)
        ]
        pieces = [(a + b) / n for a, b in zip(right, left, strict=True)]
    return torch.stack(pieces, -1)


def _check(
    pseudo: Tensor,
    kernel_size: Tensor | Sequence[int] | int,
    is_open_spline: Tensor | Sequence[bool] | bool,
    degree: int,
) -> tuple[Tensor, Tensor]:
    """Return the control points and the number of intervals of each dimension, both ``(D,)``."""
    check_ndim("pseudo", pseudo, 2, shape="(E, D)")
    if not pseudo.is_floating_point() or pseudo.shape[1] == 0:
        raise ValueError(
            f"`pseudo` must be floating point of shape (E, D) with D >= 1, got {pseudo.dtype} {tuple(pseudo.shape)}."
        )
    if degree not in DEGREES:
        raise ValueError(f"`degree` must be one of {DEGREES}, got {degree!r}.")
    size = torch.as_tensor(kernel_size, device=pseudo.device)
    is_open = torch.as_tensor(is_open_spline, device=pseudo.device)
    for name, value in (("kernel_size", size), ("is_open_spline", is_open)):
        if value.shape not in ((), pseudo.shape[1:]):
            raise ValueError(
                f"`{name}` must be one value or one for each of the {pseudo.shape[1]} dimensions of `pseudo`, "
                f"got shape {tuple(value.shape)}."
            )
    size = size.long().expand(pseudo.shape[1])
    spread = size - degree * is_open.long()
    if bool((size < 1).any()) or bool((spread < 0).any()):
        raise ValueError(
            f"`kernel_size` must be at least `degree` = {degree} for an open and 1 for a closed spline, "
            f"got {size.tolist()}."
        )
    if pseudo.numel():
        low, high = (float(value) for value in torch.aminmax(pseudo.detach()))
        if not (low >= 0 and high <= 1):  # so that NaN fails too
            raise ValueError(
                f"`pseudo` (the `edge_attr` of a layer) must be in [0, 1], got values from {low} to {high}. "
                "torch_geometric.transforms.Cartesian() makes such coordinates from `pos`."
            )
    return size, spread
