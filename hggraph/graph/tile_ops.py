"""Pooling, unpooling and adjacency of an assignment with candidates, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph.ops.region_adjacency import FILTER, strongest_direction
from hggraph.ops.segment import csr_pointer, segment_reduce
from hggraph.ops.tiles import CandidateTiles, Chunk
from hggraph.stencil import Stencil

__all__ = ["tile_adjacency", "tile_pool", "tile_unpool"]


def tile_pool(tiles: CandidateTiles, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted sums ``(B, R, C)`` of maps ``(B, C, H, W)`` and the masses ``(B, R)`` of the regions.

    `weight` holds the candidates' weights by tile, shape ``(num_tiles, T, G^2)``, 0 outside the image.
    """
    split = tiles.split(x)
    sums, masses = [], []
    for chunk in tiles.chunks:
        spread = tiles.expand(chunk, weight[chunk.tiles])
        sums.append(torch.bmm(spread.to(x.dtype), split[chunk.tiles].transpose(1, 2)))
        masses.append(spread.sum(2, keepdim=True))
    return tiles.reduce(sums), tiles.reduce(masses).squeeze(2)


def tile_unpool(tiles: CandidateTiles, weight: Tensor, z: Tensor) -> Tensor:
    """Return pixel features ``(B, C, H, W)`` of region features ``(B, R, C)``."""
    parts = []
    for chunk in tiles.chunks:
        spread = tiles.expand(chunk, weight[chunk.tiles]).to(z.dtype)
        parts.append(torch.bmm(tiles.gather_regions(chunk, z).transpose(1, 2), spread))
    order = torch.cat([chunk.tiles for chunk in tiles.chunks])
    return tiles.merge(torch.cat(parts)[torch.argsort(order)])


def tile_adjacency(
    tiles: CandidateTiles, weight: Tensor, stencil: Stencil, noise_cancel: bool, max_direction: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges of `region_adjacency` without making any P x R or R x R matrix."""
    reach = max(stencil.reach)
    if reach > tiles.reach:
        wider = CandidateTiles.build(tiles.centers, tiles.size, tiles.num_candidates, reach=reach)
        return tile_adjacency(wider, weight, stencil, noise_cancel, max_direction)
    half = [k for k, other in enumerate(stencil.opposite) if k != stencil.center and (other is None or k < other)]
    total = tiles.batch_size * tiles.num_regions
    weight_halo, region_halo = _halo(tiles, weight, reach)
    keys, values = [], []
    for chunk in tiles.chunks:
        spread = _spread_halo(chunk, weight_halo[chunk.tiles], region_halo[chunk.tiles], total)
        raw = _products(spread, tiles.side, reach, [stencil.offsets[k] for k in half])  # (n, K/2, U, U)
        touching = (raw + raw.transpose(2, 3)).sum(1).triu(1)
        tile, i, j = touching.nonzero(as_tuple=True)  # regions ascend, so i < j holds for their numbers too
        keys.append(chunk.regions[tile, i] * total + chunk.regions[tile, j])
        values.append(torch.cat([raw[tile, :, i, j], raw[tile, :, j, i]], 1))
    key, order = torch.sort(torch.cat(keys), stable=True)
    unique, count = torch.unique_consecutive(key, return_counts=True)
    ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    strength = segment_reduce(torch.cat(values), ptr, order)  # (pairs, K)
    low, high = unique // total, unique % total
    return _clean_edges(low, high, strength.chunk(2, 1), half, stencil, total, noise_cancel, max_direction)


def _halo(tiles: CandidateTiles, weight: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Return weights and flat region numbers of each tile's pixels and of those up to `reach` around it."""
    image = torch.arange(tiles.batch_size, device=weight.device)[:, None, None, None]
    region = tiles.merge(tiles.index()) + image * tiles.num_regions
    total = tiles.batch_size * tiles.num_regions
    return tiles.split(tiles.merge(weight), reach), tiles.split(region, reach, fill=total)


def _spread_halo(chunk: Chunk, weight: Tensor, region: Tensor, total: int) -> Tensor:
    """Spread weights over the tile's own list, shape ``(n, U, (G + 2 reach)^2)``."""
    n, length = chunk.regions.shape
    column = torch.searchsorted(chunk.regions, region.flatten(1)).view_as(region)
    # one more column takes what lies outside the image
    spread = weight.new_zeros(n, length + 1, weight.shape[2]).scatter(1, column.clamp(max=length), weight)
    return spread[:, :length]


def _products(spread: Tensor, side: int, reach: int, offsets: list[tuple[int, ...]]) -> Tensor:
    """Return ``S^T Shift_k S`` inside each tile for targets in the tile and sources up to `reach` outside."""
    grid = spread.unflatten(2, (side + 2 * reach, side + 2 * reach))

    def window(dy: int, dx: int) -> Tensor:
        return grid[:, :, reach + dy : reach + dy + side, reach + dx : reach + dx + side].flatten(2)

    target = window(0, 0)
    return torch.stack([torch.bmm(target, window(dy, dx).transpose(1, 2)) for dy, dx in offsets], 1)


def _clean_edges(
    low: Tensor,
    high: Tensor,
    strength: tuple[Tensor, ...],
    half: list[int],
    stencil: Stencil,
    total: int,
    noise_cancel: bool,
    max_direction: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean up pairs as `region_adjacency` does matrices, and add each region's edge to itself."""
    forward, backward = strength  # A_k[low, high] and A_k[high, low] = A_opposite(k)[low, high]
    target, source = torch.cat([low, high]), torch.cat([high, low])
    direct, reverse = torch.cat([forward, backward]), torch.cat([backward, forward])
    if noise_cancel:
        direct, reverse = (direct - reverse).clamp(min=0), (reverse - direct).clamp(min=0)
    columns: list[Tensor] = [direct.new_zeros(direct.shape[0])] * len(stencil)
    for position, k in enumerate(half):
        columns[k] = direct[:, position]
        other = stencil.opposite[k]
        if other is not None:
            columns[other] = reverse[:, position]
    weight = torch.stack(columns, 1)  # (2 * pairs, K)
    keep = weight >= FILTER
    if max_direction:
        keep = keep & strongest_direction(weight)
    pair, edge_type = keep.nonzero(as_tuple=True)
    target, source, edge_weight = target[pair], source[pair], weight[pair, edge_type]
    if stencil.center is not None:
        itself = torch.arange(total, device=target.device)
        target, source = torch.cat([target, itself]), torch.cat([source, itself])
        edge_type = torch.cat([edge_type, torch.full_like(itself, stencil.center)])
        edge_weight = torch.cat([edge_weight, edge_weight.new_ones(total)])
    order = torch.argsort((target * len(stencil) + edge_type) * total + source)
    return torch.stack([source[order], target[order]]), edge_type[order], edge_weight[order]
