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

    `weight` holds the candidates' weights by tile, shape ``(num_tiles, T, G^2)``.
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
    return tiles.merge(torch.cat(parts)[tiles.inverse_order()])


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
    index = tiles.index()
    keys, values = [], []
    for chunk in tiles.chunks:
        target, source = _with_halo(tiles, chunk, weight, index, reach)
        raw = _products(target, source, tiles.side, reach, [stencil.offsets[k] for k in half])  # (n, K/2, U, U)
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


def _with_halo(
    tiles: CandidateTiles, chunk: Chunk, weight: Tensor, index: Tensor, reach: int
) -> tuple[Tensor, Tensor]:
    """Return a chunk's weights over its lists, shape ``(n, U, (G + 2 reach)^2)``: of its pixels, and with the halo."""
    side, wide = tiles.side, tiles.side + 2 * reach
    spread = tiles.expand(chunk, weight[chunk.tiles])
    target = spread.new_zeros(*spread.shape[:2], wide, wide)
    target[:, :-1, reach : reach + side, reach : reach + side] = spread[:, :-1].unflatten(2, (side, side))
    target = target.flatten(2)

    position = _ring(side, reach, weight.device)
    image, top, left = tiles.origin(chunk.tiles)
    y = top[:, None] + position // wide - reach  # (n, ring)
    x = left[:, None] + position % wide - reach
    inside = (y >= 0) & (y < tiles.size[0]) & (x >= 0) & (x < tiles.size[1])
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    tile = (image[:, None] * tiles.grid[0] + y // side) * tiles.grid[1] + x // side
    pixel = y % side * side + x % side
    ring_weight = torch.where(inside[..., None], weight[tile, :, pixel], 0)  # (n, ring, T)
    region = index[tile, :, pixel].long()
    column = torch.searchsorted(chunk.regions, region.flatten(1)).view_as(region)
    entry = column * wide**2 + position[:, None]
    # what lies outside the image adds 0, wherever
    source = target.flatten(1).scatter_add(1, entry.flatten(1), ring_weight.flatten(1))
    return target, source.view_as(target)


def _ring(side: int, reach: int, device: torch.device) -> Tensor:
    """Return the flat positions of the halo in a tile of ``side + 2 reach`` pixels a side."""
    inner = torch.zeros(side + 2 * reach, side + 2 * reach, dtype=torch.bool, device=device)
    inner[reach : reach + side, reach : reach + side] = True
    return (~inner).flatten().nonzero().squeeze(1)


def _products(target: Tensor, source: Tensor, side: int, reach: int, offsets: list[tuple[int, ...]]) -> Tensor:
    """Return ``S^T Shift_k S`` of each tile for targets in the tile and sources up to `reach` outside."""
    wide = side + 2 * reach
    start, length = reach * wide + reach, (side - 1) * wide + side
    inner = target.narrow(2, start, length)
    shifted = [source.narrow(2, start + dy * wide + dx, length) for dy, dx in offsets]
    return torch.stack([torch.bmm(inner, view.transpose(1, 2)) for view in shifted], 1)


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
