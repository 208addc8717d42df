"""How densely regions lie, and seeds that stand apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distinct", "distinct_near", "relative_density"]

_EXPONENT = 0.5  # of importance: regions of equal error where it is the size of a gradient
_FLOOR = 0.3  # least density, in means: flat parts keep their regions
_REACH = 2  # pixels within which a seed looks for a free one first


def relative_density(mean: Tensor) -> Tensor:
    """Return the density of regions ``(B, h, w)`` for importance averaged at their scale, 1 where all of it is 0.

    Example:
        >>> relative_density(torch.tensor([[[0.0, 8.0, 1.0]]]))
        tensor([[[0.3000, 1.6330, 0.5774]]])
    """
    level = mean.mean((1, 2), keepdim=True)
    share = mean / torch.where(level > 0, level, 1)
    density = share.clamp(min=1e-12).pow(_EXPONENT).clamp(min=_FLOOR)  # the slope of the power at 0 is infinite
    return torch.where(level > 0, density, 1)


def distinct(seeds: Tensor, density: Tensor) -> Tensor:
    """Move each seed ``(B, R)`` that stands where another does to a free pixel, the densest ``(B, P)`` first."""
    ordered, order = seeds.sort(dim=1, stable=True)
    doubled = F.pad(ordered.diff(dim=1) == 0, (1, 0))
    free = density.scatter(1, seeds, -1.0).topk(seeds.shape[1]).indices
    moved = torch.where(doubled, free.gather(1, (doubled.cumsum(1) - 1).clamp(min=0)), ordered)
    return torch.empty_like(moved).scatter(1, order, moved)


def distinct_near(seeds: Tensor, size: tuple[int, int]) -> Tensor:
    """Move each seed ``(B, R)`` that stands where another does to a free pixel near it, else to one among many seeds.

    Example:
        >>> distinct_near(torch.tensor([[4, 4, 0]]), (3, 3))
        tensor([[4, 1, 0]])
    """
    (batch, regions), none = seeds.shape, seeds.shape[1]
    number = torch.arange(regions, device=seeds.device).expand(batch, -1)
    owner = torch.full((batch, size[0] * size[1]), none, device=seeds.device).scatter_reduce(1, seeds, number, "amin")
    around = range(-_REACH, _REACH + 1)
    steps = sorted(((y * y + x * x, y, x) for y in around for x in around if y or x), key=lambda step: step[0])
    for _, dy, dx in steps:
        y, x = seeds // size[1] + dy, seeds % size[1] + dx
        inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
        there = torch.where(inside, y * size[1] + x, seeds)  # where they stand nothing is free
        wants = (owner.gather(1, seeds) != number) & (owner.gather(1, there) == none)
        # the first of those that want a pixel gets it
        owner = owner.scatter_reduce(1, there, torch.where(wants, number, none), "amin")
        seeds = torch.where(wants & (owner.gather(1, there) == number), there, seeds)
    taken = (owner < none).float().view(batch, 1, *size)
    return distinct(seeds, F.avg_pool2d(taken, 4 * _REACH + 1, 1, 2 * _REACH).flatten(1))
