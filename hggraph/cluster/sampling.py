"""Sampling of cluster centres by importance, HG-Conv Sec. 4.1 and appendix C, after PointRend."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_positive

__all__ = ["METHODS", "sample_centers", "sample_with_noise"]

METHODS = ("topk_random", "importance", "random")


def sample_centers(
    importance: Tensor,
    num_regions: int,
    *,
    method: str = "topk_random",
    oversample: int = 7,
    beta: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample the pixels where regions start, more of them where importance is high (HG-Conv Sec. 4.1).

    ``"topk_random"``: of ``oversample * R`` random pixels the ``beta * R`` most important, filled up with random
    others. ``"importance"``: drawn without replacement, with probabilities proportional to importance.
    ``"random"``: drawn uniformly.

    Args:
        importance: Importance map, not negative, shape ``(B, H, W)``, floating point.
        num_regions: R, at least 1 and at most H * W.
        method: One of the three above.
        oversample: Candidates per region for ``"topk_random"``, at least 1.
        beta: Share of important centres for ``"topk_random"``, in [0, 1].
        generator: Source of randomness, on the device of `importance`; the global one when None.

    Returns:
        Flat pixel indices ``y * W + x``, shape ``(B, R)``, long, without duplicates, in ascending order. Not
        differentiable. No host synchronisation.

    Raises:
        ValueError: if an argument is out of range, or there are fewer pixels than regions.

    Example:
        >>> sample_centers(torch.tensor([[[0.0, 9.0, 0.0]]]), 1, beta=1.0)
        tensor([[1]])
    """
    check_ndim("importance", importance, 3, shape="(B, H, W)")
    pixels = importance.shape[1] * importance.shape[2]
    noise = torch.rand(importance.shape[0], pixels, generator=generator, device=importance.device)
    return sample_with_noise(importance, noise, num_regions, method, oversample, beta)


def sample_with_noise(
    importance: Tensor, noise: Tensor, num_regions: int, method: str, oversample: int, beta: float
) -> Tensor:
    """Sample centres as `sample_centers` does, from given noise in [0, 1) of shape ``(B, P)`` or ``(1, P)``."""
    check_sampling(method, oversample, beta)
    batch, height, width = importance.shape
    check_num_regions(num_regions, height, width)
    weight, noise = importance.detach().float().flatten(1), noise.expand(batch, -1)
    if method == "random":
        chosen = noise.topk(num_regions, sorted=False).indices
    elif method == "importance":
        # the R largest of log(weight) + Gumbel noise are such a draw
        tiny = torch.finfo(torch.float32).tiny
        gumbel = -(-noise.clamp(min=tiny).log()).clamp(min=tiny).log()
        chosen = (weight.clamp(min=tiny).log() + gumbel).topk(num_regions, sorted=False).indices
    else:
        num_important = int(beta * num_regions)
        drawn = noise.topk(min(oversample * num_regions, noise.shape[1]), sorted=False).indices
        best = weight.gather(1, drawn).topk(num_important, sorted=False).indices
        chosen = drawn.gather(1, best)
        # the smallest noise is as random as the largest, and belongs to other pixels
        rest = noise.scatter(1, chosen, 2.0).topk(num_regions - num_important, largest=False, sorted=False).indices
        chosen = torch.cat([chosen, rest], 1)
    return chosen.sort(1).values


def check_sampling(method: str, oversample: int, beta: float) -> None:
    """Raise unless the options of `sample_centers` are in range."""
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}, got {method!r}.")
    check_positive("oversample", oversample)
    if not 0 <= beta <= 1:
        raise ValueError(f"`beta` must be in [0, 1], got {beta}.")


def check_num_regions(num_regions: int, height: int, width: int) -> None:
    """Raise unless an image of the given size (pixels) has enough pixels for the regions."""
    check_positive("num_regions", num_regions)
    if num_regions > height * width:
        raise ValueError(
            f"`num_regions` must be at most the number of pixels, {height} x {width} = {height * width}, "
            f"got {num_regions}."
        )
