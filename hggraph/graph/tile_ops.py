"""Pooling, unpooling and adjacency of an assignment with candidates, tile by tile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.ops.region_adjacency import FILTER, strongest_direction
from hggraph.ops.segment import segment_reduce
from hggraph.ops.tiles import CandidateTiles, Chunk, halo_pixels
from hggraph.stencil import Stencil

__all__ = ["tile_adjacency", "tile_pool", "tile_unpool"]


def tile_pool(tiles: CandidateTiles, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted sums ``(B, R, C)`` of maps ``(B, C, H, W)`` and the masses ``(B, R)`` of the regions.

    `weight` holds the candidates' weights by tile, shape ``(num_tiles, T, G^2)``.
    """
    split = tiles.split(x)
    sums, masses = [], []
    for chunk in tiles.chunks:
        spread = tiles.expand(chunk, weight.index_select(0, chunk.tiles))
        sums.append(torch.bmm(spread.to(x.dtype), split.index_select(0, chunk.tiles).transpose(1, 2)))
        masses.append(spread.sum(2, keepdim=True))
    return tiles.reduce(sums), tiles.reduce(masses).squeeze(2)


def tile_unpool(tiles: CandidateTiles, weight: Tensor, z: Tensor) -> Tensor:
    """Return pixel features ``(B, C, H, W)`` of region features ``(B, R, C)``."""
    parts = []
    for chunk in tiles.chunks:
        spread = tiles.expand(chunk, weight.index_select(0, chunk.tiles)).to(z.dtype)
        parts.append(torch.bmm(tiles.gather_regions(chunk, z).transpose(1, 2), spread))
    return tiles.merge(torch.cat(parts).index_select(0, tiles.inverse_order()))


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
    if not half:  # the centre alone: no pair of regions touches
        none = tiles.centers.new_empty(0)
        empty = weight.new_zeros(0, 0)
        return _clean_edges(none, none, (empty, empty), half, stencil, total, noise_cancel, max_direction)
    rows = weight.transpose(1, 2).flatten(0, 1)  # candidates innermost: a pixel of the halo is one row
    keys, values = [], []
    for chunk in tiles.chunks:
        target, source = _with_halo(tiles, chunk, weight, rows)
        raw = _products(target, source, tiles.side, tiles.reach, [stencil.offsets[k] for k in half])  # (n, K/2, U, U)
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


def _with_halo(tiles: CandidateTiles, chunk: Chunk, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return a chunk's weights over its lists, shape ``(n, U, (G + 2 reach)^2)``: of its pixels, and with the halo."""
    side, reach = tiles.side, tiles.reach
    wide = side + 2 * reach
    n, length = chunk.regions.shape
    ring = halo_pixels(side, reach, weight.device)
    image, top, left = tiles.origin(chunk.tiles)
    y = (top[:, None] + ring // wide - reach).clamp(0, tiles.size[0] - 1)  # (n, ring)
    x = (left[:, None] + ring % wide - reach).clamp(0, tiles.size[1] - 1)
    tile = (image[:, None] * tiles.grid[0] + y // side) * tiles.grid[1] + x // side
    pixel = tile * side**2 + y % side * side + x % side
    around = rows.index_select(0, pixel.flatten()).view(n, len(ring), -1).transpose(1, 2)  # (n, T, ring)

    both = F.pad(weight.index_select(0, chunk.tiles).unflatten(2, (side, side)), (reach,) * 4).flatten(2)
    both = both.index_copy(2, ring, around)
    # the last position stands for what lies outside the image
    spread = weight.new_zeros(n, length, wide**2).scatter(1, chunk.column.long(), both)
    source = spread.narrow(1, 0, length - 1)
    return source * weight.new_ones(wide**2).index_fill_(0, ring, 0), source


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
