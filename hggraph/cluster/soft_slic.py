"""Differentiable SLIC: HG-Conv's Algorithm 1, over all pairs or over spatial candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph import ops
from hggraph._check import check_features, check_ndim, check_positive, check_range
from hggraph.cluster.sampling import check_num_regions
from hggraph.graph import Assignment
from hggraph.graph.assignment import MAX_PAIRS
from hggraph.ops.segment import csr_pointer
from hggraph.ops.tiles import CandidateTiles

__all__ = ["soft_slic"]


def soft_slic(
    x: Tensor,
    centers: Tensor,
    *,
    iterations: int = 3,
    threshold: float = 1e-3,
    candidates: int | None = None,
) -> Assignment:
    """Cluster the pixels of each image softly around sampled centres (HG-Conv Algorithm 1).

    Each pixel starts with its spatially nearest centre; that is the only use of coordinates. Then `iterations`
    times: centres become the weighted means of the pixels (weights column-normalised), and weights
    ``exp(-||x_p - c_r||^2)``. After the last step entries not above `threshold` are dropped and each pixel's
    weights divided by their sum; a pixel left without any goes to its nearest region.

    Args:
        x: Map, shape ``(B, C, H, W)``, floating point, finite (checked on the CPU).
        centers: Flat pixel index of each centre, shape ``(B, R)``, long, no duplicates.
        iterations: At least 1.
        threshold: In [0, 1).
        candidates: Consider only this many spatially nearest centres for each pixel: O(P T) time and memory
            instead of O(P R). None considers all.

    Returns:
        The assignment, differentiable in `x`. Distances and exponents in float32 (float64 for float64 input).
        No feature scale under- or overflows, no region is lost. Deterministic. With all pairs: static shapes,
        no host synchronisation on a GPU.

    Raises:
        ValueError: if an argument is out of range, `x` is not finite, there are more regions than pixels, a
            centre stands twice, or all pairs would be more than 2^30 (use `candidates`).
        TypeError: if `x` is not floating point.

    Example:
        >>> step = torch.tensor([[[[0.0, 0.0, 9.0, 9.0]]]])
        >>> soft_slic(step, torch.tensor([[0, 3]])).labels
        tensor([[[0, 0, 1, 1]]])
    """
    check_features("x", x)
    check_ndim("centers", centers, 2, shape="(B, R)")
    check_positive("iterations", iterations)
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
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    features = x if x.dtype == dtype else x.to(dtype)
    if candidates is not None:
        check_positive("candidates", candidates)
        with torch.autocast(x.device.type, enabled=False):  # sums and distances stay in float32
            return _with_candidates(features, centers, iterations, threshold, candidates)
    pairs = centers.numel() * height * width
    if pairs > MAX_PAIRS:
        raise ValueError(
            f"All {height * width} pixels against {centers.shape[1]} regions of {batch} images are {pairs} pairs, "
            f"more than {MAX_PAIRS}. Set `candidates` (for example 16) to consider only the nearest regions."
        )
    return _all_pairs(features, centers, iterations, threshold)


def nearest_centers(centers: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the spatially nearest centre of each pixel, shape ``(B, P)``; of equals the lower number."""
    y = torch.arange(size[0], device=centers.device)[:, None]
    x = torch.arange(size[1], device=centers.device)[None, :]
    dy = (y - (centers // size[1])[:, :, None, None]).square().float()  # (B, R, H, 1)
    dx = (x - (centers % size[1])[:, :, None, None]).square().float()  # (B, R, 1, W)
    return (dy + dx).flatten(2).argmin(1)


def _label_means(pixels: Tensor, label: Tensor, num_regions: int) -> Tensor:
    """Return the means of the pixels ``(B, C, P)`` of each label ``(B, P)``, shape ``(B, R, C)``."""
    batch = label.shape[0]
    if torch.compiler.is_exporting():  # other runtimes know no segments
        rows = pixels.transpose(1, 2)
        index = label.unsqueeze(2)
        total = rows.new_zeros(batch, num_regions, rows.shape[2]).scatter_add(1, index.expand_as(rows), rows)
        count = rows.new_zeros(batch, num_regions, 1).scatter_add(1, index, torch.ones_like(rows[..., :1]))
        return total / count
    label = (label + torch.arange(batch, device=label.device)[:, None] * num_regions).flatten()
    label, order = torch.sort(label, stable=True)
    rows = pixels.transpose(1, 2).flatten(0, 1)  # a view for channels_last
    means = ops.segment_reduce(rows, csr_pointer(label, batch * num_regions), order, reduce="mean")
    return means.unflatten(0, (batch, num_regions))


def _all_pairs(x: Tensor, seeds: Tensor, iterations: int, threshold: float) -> Assignment:
    size, pixels = (x.shape[2], x.shape[3]), x.flatten(2)
    centers = _label_means(pixels, nearest_centers(seeds, size), seeds.shape[1])
    for _ in range(iterations - 1):
        centers = ops.centre_update(pixels, centers)[0]
    weight = ops.soft_assign(pixels, centers, threshold=threshold)
    return Assignment(weight, size, seeds=seeds, features=x, centers=centers)


def _with_candidates(x: Tensor, seeds: Tensor, iterations: int, threshold: float, candidates: int) -> Assignment:
    size = (x.shape[2], x.shape[3])
    tiles = CandidateTiles.build(seeds, size, candidates)
    split = tiles.split(x)
    pieces = [split.index_select(0, chunk.tiles) for chunk in tiles.chunks]
    centers = _nearest_means(tiles, pieces)
    # distances do not change when a tile's mean is subtracted, and lose no digits far from the origin
    means = [piece.detach().mean(2, keepdim=True) for piece in pieces]
    pieces = [piece - mean for piece, mean in zip(pieces, means, strict=True)]
    for _ in range(iterations - 1):
        centers = _merged_update(tiles, pieces, means, centers)
    parts = []
    for chunk, piece, mean in zip(tiles.chunks, pieces, means, strict=True):
        local = tiles.gather_regions(chunk, centers) - mean.transpose(1, 2)
        parts.append(ops.soft_assign(piece, local, tiles.own(chunk.column), threshold=threshold))
    weight = torch.cat(parts).index_select(0, tiles.inverse_order())
    return Assignment(weight, size, tiles=tiles, seeds=seeds, features=x, centers=centers)


def _nearest_means(tiles: CandidateTiles, pieces: list[Tensor]) -> Tensor:
    """Return the means of the pixels nearest to each seed, shape ``(B, R, C)``; pixels come chunk by chunk."""
    sums, counts = [], []
    for chunk, piece in zip(tiles.chunks, pieces, strict=True):
        spread = piece.new_zeros(*chunk.regions.shape, piece.shape[2])
        spread.scatter_(1, tiles.own(chunk.column[:, :1]), 1)
        sums.append(torch.bmm(spread, piece.transpose(1, 2)))
        counts.append(spread.sum(2, keepdim=True))
    return tiles.reduce(sums) / tiles.reduce(counts)


def _merged_update(tiles: CandidateTiles, pieces: list[Tensor], means: list[Tensor], centers: Tensor) -> Tensor:
    """Update the centres tile by tile and merge each region's parts by their log-sums."""
    parts, log_sums = [], []
    for chunk, piece, mean in zip(tiles.chunks, pieces, means, strict=True):
        shift = mean.transpose(1, 2)
        part, log_sum = ops.centre_update(piece, tiles.gather_regions(chunk, centers) - shift, tiles.own(chunk.column))
        parts.append(part + shift)
        log_sums.append(log_sum[..., None])
    largest = tiles.reduce([log_sum.detach() for log_sum in log_sums], "max")
    weights = [  # no clamp: the largest is one of them, and a clamp has no gradient at its bound
        (log_sum - tiles.gather_regions(chunk, largest)).exp()
        for chunk, log_sum in zip(tiles.chunks, log_sums, strict=True)
    ]
    total = tiles.reduce([part * weight for part, weight in zip(parts, weights, strict=True)])
    return total / tiles.reduce(weights)
