"""Differentiable SLIC: HG-Conv's Algorithm 1 and its mended form, over all regions or the nearest ones."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph import ops
from hggraph._check import check_features, check_ndim, check_positive, check_range
from hggraph.cluster.sampling import check_num_regions
from hggraph.graph import Assignment
from hggraph.graph.assignment import MAX_PAIRS
from hggraph.ops import fast
from hggraph.ops._library import full_precision
from hggraph.ops._pairs import masses, negative_distance
from hggraph.ops.nearest_regions import block_side, expand_blocks, nearest_regions

__all__ = ["UPDATES", "check_update", "soft_slic"]

UPDATES = ("column", "softmax")
_LEAST = 1e-12  # a centre with less weight stays where it is
_LARGE, _KEPT = 1 << 22, 4  # from this many pixels on only so many entries are stored: next to none has more


def soft_slic(
    x: Tensor,
    centers: Tensor,
    *,
    iterations: int = 3,
    threshold: float = 1e-3,
    candidates: int | None = None,
    update: str = "column",
    position: float = 0.0,
    hard: bool = False,
) -> Assignment:
    """Cluster the pixels of each image softly around sampled centres (HG-Conv Algorithm 1).

    Each pixel starts with its spatially nearest centre. Then `iterations` times: centres become weighted means of the
    pixels, and weights ``exp(-||x_p - c_r||^2)``. After the last step entries not above `threshold` are dropped and
    each pixel's weights divided by their sum; a pixel left without any goes to its nearest region. A region that loses
    all its pixels goes back to its seed: that pixel is its centre, and what it pools to.

    Args:
        x: Map, shape ``(B, C, H, W)``, floating point, finite (checked on the CPU).
        centers: Flat pixel index of each centre, shape ``(B, R)``, long, no duplicates.
        iterations: At least 1.
        threshold: In [0, 1).
        candidates: Consider only this many spatially nearest centres: O(P T) time and memory instead of O(P R). None
            considers all.
        update: ``"column"``: for the means the weights are normalised over the pixels of a region, as in the paper:
            each centre is a step of a mean shift of its own. ``"softmax"``: over the regions of a pixel, so that
            centres compete (fuzzy k-means; Superpixel Sampling Networks).
        position: Above 0, the pixel's (y, x) times this number is appended to the features, so that a region has a
            place. Candidates are then found again from the moved centres in every step, for blocks of pixels; else each
            pixel has those of the first centres.
        hard: Give each pixel to its strongest region alone, without a gradient.

    Returns:
        The assignment, differentiable in `x`. Distances and exponents in float32 (float64 for float64 input).
        No feature scale under- or overflows, no region is lost. Deterministic, static shapes, no host synchronisation
        on a GPU.

    Raises:
        ValueError: if an argument is out of range, `x` is not finite, there are more regions than pixels, a
            centre stands twice, or all pairs would be more than 2^30 (use `candidates`).
        TypeError: if `x` is not floating point.

    Example:
        >>> step = torch.tensor([[[[0.0, 0.0, 9.0, 9.0]]]])
        >>> soft_slic(step, torch.tensor([[0, 3]])).labels
        tensor([[[0, 0, 1, 1]]])
    """
    _check(x, centers, iterations, candidates)
    check_update(update, position)
    size = (x.shape[2], x.shape[3])
    if x.shape[1] == 3 and position > 0 and update == "softmax" and candidates is not None and len(x) and fast.takes(x):
        return _photo_slic(x, centers, iterations, threshold, candidates, position, hard)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with full_precision(x):  # sums and distances stay in float32
        candidates = None if candidates is None else min(candidates, centers.shape[1])
        pixels = _pixels(x.to(dtype), position, rows=candidates is not None)
        at_seeds = pixels.gather(2, centers[:, None].expand(-1, pixels.shape[1], -1)).transpose(1, 2)
        places = torch.stack([centers // size[1], centers % size[1]], 2).to(dtype)
        side = block_side(size, centers.shape[1]) if position > 0 else 1

        def listed(middles: Tensor) -> Tensor | None:
            if candidates is None:
                return None
            return expand_blocks(nearest_regions(middles, size, side, candidates), size, side)

        index = listed(places)
        middles = _nearest_means(pixels, at_seeds, places, index, size)
        for _ in range(iterations - 1):
            index = listed(middles[..., -2:] / position) if position > 0 else index
            middles = _update(pixels, middles, index, update)
        index = listed(middles[..., -2:] / position) if position > 0 else index
        weight = ops.soft_assign(pixels, middles, index, threshold=threshold)
        # a region that has lost all its pixels goes back to where it started
        mass = masses(weight.detach(), index, centers.shape[1])
        middles = torch.where(mass[..., None] > 0, middles, at_seeds)
    found = Assignment(weight, size, index=index, num_regions=centers.shape[1], seeds=centers, centers=middles)
    return found.harden() if hard else found


def _photo_slic(
    x: Tensor,
    seeds: Tensor,
    iterations: int,
    threshold: float,
    candidates: int,
    position: float,
    hard: bool,
) -> Assignment:
    """Do the same in the fused loops for few channels."""
    size, regions = (x.shape[2], x.shape[3]), seeds.shape[1]
    side = block_side(size, regions)
    centers = fast.each(lambda one, seed: fast.slic(one, seed, position, candidates, side, iterations), x, seeds)
    if hard:
        labels = fast.each(lambda one, center: fast.labels(one, center, position, candidates, side), x, centers)
        index = labels.flatten(1).unsqueeze(1)
        return Assignment._trusted(torch.ones(()).expand(index.shape), size, index, regions, seeds, centers)
    keep = _KEPT if x[:, 0].numel() > _LARGE else None
    found = [
        fast.assign(one, center, position, candidates, side, threshold, keep=keep)
        for one, center in zip(x, centers, strict=True)
    ]
    weight, index = (parts[0][None] if len(parts) == 1 else torch.stack(parts) for parts in zip(*found, strict=True))
    return Assignment._trusted(weight, size, index, regions, seeds, centers)


def check_update(update: str, position: float) -> None:
    """Raise unless the options of `soft_slic` are in range."""
    if update not in UPDATES:
        raise ValueError(f"`update` must be one of {UPDATES}, got {update!r}.")
    if not 0 <= position < float("inf"):
        raise ValueError(f"`position` must be a finite number >= 0, got {position}.")


def _check(x: Tensor, centers: Tensor, iterations: int, candidates: int | None) -> None:
    check_features("x", x)
    check_ndim("centers", centers, 2, shape="(B, R)")
    check_positive("iterations", iterations)
    if candidates is not None:
        check_positive("candidates", candidates)
    batch, _, height, width = x.shape
    if centers.shape[0] != batch:
        raise ValueError(f"`centers` must have shape (B, R) with B = {batch}, got {tuple(centers.shape)}.")
    check_num_regions(centers.shape[1], height, width)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        check_range("centers", centers, height * width, "They are flat pixel indices y * W + x.")
        if (centers.sort(1).values.diff(dim=1) == 0).any():
            raise ValueError("`centers` must be different pixels in each image, got one twice.")
        finite = torch.isfinite(x.detach().sum())
        if not finite and not torch.isfinite(x.detach()).all():
            raise ValueError("`x` must be finite, got NaN or infinite values. Check the image or the layers before.")
    pairs = centers.numel() * height * width
    if candidates is None and pairs > MAX_PAIRS:
        raise ValueError(
            f"All {height * width} pixels against {centers.shape[1]} regions of {batch} images are {pairs} pairs, "
            f"more than {MAX_PAIRS}. Set `candidates` (for example 16) to consider only the nearest regions."
        )


def positions_of(size: tuple[int, int], like: Tensor) -> Tensor:
    """Return (y, x) of each pixel, shape ``(1, 2, H * W)``, in pixels."""
    y, x = (torch.arange(length, dtype=like.dtype, device=like.device) for length in size)
    return torch.stack([y[:, None].expand(size), x.expand(size)]).flatten(1)[None]


def _pixels(x: Tensor, position: float, rows: bool) -> Tensor:
    """Return pixels ``(B, C, P)`` with their scaled positions; as `rows` a pixel's channels are together in memory."""
    pixels = x.flatten(2).mT
    if position > 0:
        place = positions_of((x.shape[2], x.shape[3]), x).mT * position
        pixels = torch.cat([pixels, place.expand(len(x), -1, -1)], 2)
    return pixels.contiguous().mT if rows else pixels.mT


def _nearest_means(
    pixels: Tensor, at_seeds: Tensor, places: Tensor, index: Tensor | None, size: tuple[int, int]
) -> Tensor:
    """Return the means of the pixels nearest to each seed, shape ``(B, R, C)``; without any, the seed's features."""
    if index is None or index.shape[1] == 1:
        nearest = nearest_regions(places, size, 1, 1).flatten(2) if index is None else index
    else:
        here = positions_of(size, pixels).expand(len(pixels), -1, -1)
        nearest = index.gather(1, negative_distance(here, places, index).argmax(1, keepdim=True))
    hard = pixels.new_ones(nearest.shape)
    means, mass = ops.region_pool(pixels, hard, nearest, places.shape[1], return_mass=True)
    return torch.where(mass[..., None] > 0, means, at_seeds)


def _update(pixels: Tensor, centers: Tensor, index: Tensor | None, update: str) -> Tensor:
    if update == "column":
        return ops.centre_update(pixels, centers, index)
    weight = ops.soft_assign(pixels, centers, index, threshold=0.0)
    means, mass = ops.region_pool(pixels, weight, index, centers.shape[1], return_mass=True)
    return torch.where(mass[..., None] > _LEAST, means, centers)
