"""A grid of seeds that is drawn to where regions are wanted and never folds: focus at a convolution's speed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_positive
from hggraph.cluster._density import relative_density
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import full_precision

__all__ = ["warp_grid"]

_CELLS = 5  # density is held this often per spacing of the grid
_BLUR = 0.5  # deviation of the blur of importance, in spacings
_TAIL = 5.0  # deviations after which a Gaussian ends
_LEAST = 1.0  # spacings of deviation: below, neighbours see different densities


def warp_grid(
    importance: Tensor, grid: tuple[int, int], *, strength: float = 0.5, deviation: float = 0.2, steps: int = 3
) -> Tensor:
    r"""Draw a regular grid of points to where importance is high, each held to its neighbours.

    Importance, blurred at the scale of a spacing, becomes a density rho, ``max(0.3, (importance / mean)^0.5)`` as for
    the seeds by density, constant in each of about 5 x 5 cells per spacing and mirrored at the border. In each step a
    point goes a part of the way to the mean of the places around it (a mean shift; Saliency-based warping, Recasens et
    al. 2018, weights a grid so)::

        u <- u + strength (m(u) - u),    m(u) = sum_v v rho(v) G(v - u) / sum_v rho(v) G(v - u)
                                              = u + sigma^2 grad log (rho * G)(u)

    in spacings of the grid, with a Gaussian G of deviation sigma. m is the gradient of the convex function
    ``|u|^2 / 2 + sigma^2 log (rho * G)(u)``, whose second derivative is a covariance over sigma^2, positive definite.
    So the Jacobian of a step is at least ``(1 - strength)^2``, that of all of them positive: the map never folds, and
    points of the border slide along it.

    Args:
        importance: Importance map, not negative, finite, shape ``(B, H, W)``, floating point.
        grid: Rows and columns, each at least 1.
        strength: Part of the way, in [0, 1]; 0: the regular grid.
        deviation: sigma of the first step, in sides of the image, halved in each step, but at least one spacing.
        steps: Number of steps, at least 0.

    Returns:
        Middles (y, x) in pixels, shape ``(B, rows, columns, 2)``, float32, or float64 of float64: -0.5 and
        ``(H, W) - 0.5`` are the borders. Differentiable in `importance`; deterministic; static shapes, no host
        synchronisation. O(steps R h w) of ``h = min(H, 5 rows)``, ``w = min(W, 5 columns)`` in matrix products.

    Raises:
        ValueError: if an argument is out of range, or an image has no pixels.

    Example:
        >>> warp_grid(torch.tensor([[[1.0, 1.0, 1.0, 1.0]]]), (1, 2))[0, 0]
        tensor([[0.0000, 0.5000],
                [0.0000, 2.5000]])
        >>> warp_grid(torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]), (1, 2))[0, 0, :, 1] > torch.tensor([0.5, 2.5])
        tensor([True, True])
    """
    check_ndim("importance", importance, 3, shape="(B, H, W)")
    if not importance.is_floating_point() or 0 in importance.shape[1:]:
        raise ValueError(
            f"`importance` must be floating point with at least one pixel, got {importance.dtype} of shape "
            f"{tuple(importance.shape)}."
        )
    for length in grid:
        check_positive("grid", length)
    check_positive("steps", steps, 0)
    if not 0 <= strength <= 1:
        raise ValueError(f"`strength` must be in [0, 1], got {strength}.")
    if not 0 < deviation < math.inf:
        raise ValueError(f"`deviation` must be sides of the image > 0, got {deviation}.")
    with full_precision(importance):
        density = _density(importance.to(compute_dtype(importance)), grid)
        # from here on lengths are spacings
        rest = [torch.arange(length, device=density.device).to(density.dtype) + 0.5 for length in grid]
        at = torch.stack(torch.meshgrid(rest[0], rest[1], indexing="ij"), 2)
        y, x = at.flatten(0, 1).mT.unsqueeze(1).expand(-1, len(density), -1)  # (B, R)
        cells = (density.shape[1], density.shape[2])
        jumps = density.diff(dim=1), density.diff(dim=2)
        for step in range(steps):
            sigma = [max(_LEAST, deviation / 2**step * length) for length in grid]
            in_rows, at_rows = _gaussian(y, grid[0], cells[0], sigma[0])
            in_columns, at_columns = _gaussian(x, grid[1], cells[1], sigma[1])
            total = ((in_rows @ density) * in_columns).sum(2)
            # jumps instead of means: nothing cancels, and a constant moves nothing
            to_y = ((at_rows @ jumps[0]) * in_columns).sum(2) / total
            to_x = ((in_rows @ jumps[1]) * at_columns).sum(2) / total
            y, x = y + strength * sigma[0] ** 2 * to_y, x + strength * sigma[1] ** 2 * to_x
    scale = [size / length for size, length in zip(importance.shape[1:], grid, strict=True)]
    return torch.stack([y * scale[0] - 0.5, x * scale[1] - 0.5], 2).unflatten(1, grid)


def _density(importance: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the density at the middle of each coarse cell, shape ``(B, h, w)``."""
    blurs = []
    for size, length in zip(importance.shape[1:], grid, strict=True):
        number = min(size, _CELLS * length)
        middle = (torch.arange(number, device=importance.device).to(importance.dtype) + 0.5) * (length / number)
        blurs.append(_gaussian(middle, length, size, _BLUR)[0])
    return relative_density(blurs[0] @ importance @ blurs[1].mT)


def _gaussian(at: Tensor, length: int, cells: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return a Gaussian's mass in each of the cells of ``[0, length]``, mirrored at both ends, and its height between.

    Args:
        at: Its middles, shape ``(..., N)``.
        length: Where the mirrored interval ends.
        cells: Equal cells of the interval, n.
        sigma: Its deviation.

    Returns:
        Mass ``(..., N, n)``, of sum 1, and what a jump between two cells adds to the slope, ``(..., N, n - 1)``.
    """
    edges = torch.arange(cells + 1, device=at.device).to(at.dtype) * (length / cells)
    mass = height = torch.zeros((), device=at.device, dtype=at.dtype)
    images = math.ceil(_TAIL * sigma / length)
    for image in range(-images, images + 1):
        sign = 1 - 2 * (image % 2)  # every other image runs backwards
        z = (image * length + (edges if sign > 0 else length - edges) - at.unsqueeze(-1)) / sigma
        mass = mass + sign / 2 * torch.erf(z * 0.5**0.5).diff(dim=-1)
        height = height + sign / (sigma * (2 * math.pi) ** 0.5) * (-0.5 * z[..., 1:-1].square()).exp()
    return mass, height
