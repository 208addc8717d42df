"""Tiles of pixels with the regions they may touch: all-pairs products stay small and dense inside each tile.

With ``candidates=T`` a pixel considers only its T nearest centres. Neighbouring pixels share most of them, so an
image is cut into square tiles, each with the list of regions that any of its pixels considers; every operator
then runs on tiles as on small images, and results of a region are merged over its tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.ops.segment import csr_pointer, segment_reduce

__all__ = ["CandidateTiles", "Chunk", "halo_pixels"]

_PAIRS = 1 << 19  # pixel-region pairs handled at once: 2 MiB of float32, so that temporaries stay in the cache
_BLOCKS = (64, 8)  # tiles per side of the blocks that share a first and a second selection of regions


@dataclass(frozen=True)
class Chunk:
    """Tiles with lists of similar length, padded to one tensor.

    Attributes:
        tiles: Number of each tile, shape ``(n,)``.
        regions: Flat region numbers ``b * R + r`` of each tile in ascending order, shape ``(n, U)``, padded with
            ``B * R``; the last of each tile is padding.
        column: For each pixel the positions of its candidates in `regions`, the nearest first, int16, shape
            ``(n, T, (G + 2 reach)^2)``: the tile's own pixels and those of the halo around it. Pixels outside the
            image point to the last position, and so to no region.
    """

    tiles: Tensor
    regions: Tensor
    column: Tensor


@dataclass(frozen=True)
class CandidateTiles:
    """The T spatially nearest centres of every pixel, arranged in tiles of G x G pixels.

    Attributes:
        size: Height and width of the images, in pixels.
        batch_size: Number of images B.
        num_regions: Regions per image R.
        num_candidates: Candidates per pixel T.
        side: Side G of a tile, in pixels.
        reach: Width of the halo around each tile, in pixels.
        centers: Flat pixel index of each centre, shape ``(B, R)``.
        chunks: The tiles, sorted by the length of their lists.
    """

    size: tuple[int, int]
    batch_size: int
    num_regions: int
    num_candidates: int
    side: int
    reach: int
    centers: Tensor
    chunks: tuple[Chunk, ...] = field(repr=False)

    @classmethod
    def build(cls, centers: Tensor, size: tuple[int, int], num_candidates: int, *, reach: int = 1) -> CandidateTiles:
        """Find the T nearest centres of every pixel; of equally distant ones the lower region number counts.

        Args:
            centers: Flat pixel index of each centre, shape ``(B, R)``, long.
            size: Height and width, in pixels.
            num_candidates: T, at least 1; at most R are used.
            reach: Width of the halo whose candidates are found too, in pixels.

        Returns:
            The tiles. O(P T) time and memory for P pixels; centres may crowd anywhere.
        """
        batch, regions = centers.shape
        num_candidates = min(num_candidates, regions)
        spacing = math.sqrt(size[0] * size[1] / regions)
        # about a quarter of the candidates' width: smaller tiles have more halo, larger ones longer lists
        side = min(32, max(4, 1 << math.floor(math.log2(max(spacing * math.sqrt(num_candidates) / 4, 1)))))
        rows, columns = -(-size[0] // side), -(-size[1] // side)
        counts, lists = [], []
        for image in range(batch):
            yx = torch.stack([centers[image] // size[1], centers[image] % size[1]]).to(_whole(size))
            order, count, flat = _region_lists(yx, size, side, (rows, columns), num_candidates, reach)
            # blocks come in their own order; tiles are numbered row by row
            rank = torch.argsort(order)
            start = count.cumsum(0) - count
            count = count[rank]
            entry = start[rank].repeat_interleave(count) + _within(count)
            counts.append(count)
            lists.append(flat.index_select(0, entry) + image * regions)
        count, flat = torch.cat(counts), torch.cat(lists)
        partial = cls(size, batch, regions, num_candidates, side, reach, centers, ())
        return cls(size, batch, regions, num_candidates, side, reach, centers, tuple(partial._chunks(count, flat)))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles per image."""
        return -(-self.size[0] // self.side), -(-self.size[1] // self.side)

    @property
    def num_tiles(self) -> int:
        """Tiles of all images."""
        return self.batch_size * self.grid[0] * self.grid[1]

    def split(self, x: Tensor, halo: int = 0, fill: float = 0) -> Tensor:
        """Cut maps ``(B, C, H, W)`` into tiles ``(num_tiles, C, (G + 2 halo)^2)``; outside the image is `fill`."""
        (rows, columns), side = self.grid, self.side
        bottom, right = rows * side - self.size[0], columns * side - self.size[1]
        if halo or bottom or right:
            x = F.pad(x, (halo, right + halo, halo, bottom + halo), value=fill)
        if halo:
            x = x.unfold(2, side + 2 * halo, side).unfold(3, side + 2 * halo, side)  # (B, C, rows, columns, g, g)
        else:
            x = x.unflatten(2, (rows, side)).unflatten(4, (columns, side)).transpose(3, 4)
        return x.permute(0, 2, 3, 1, 4, 5).reshape(self.num_tiles, x.shape[1], -1)

    def merge(self, tiles: Tensor) -> Tensor:
        """Put tiles ``(num_tiles, C, G^2)`` together to maps ``(B, C, H, W)``, the inverse of `split`."""
        (rows, columns), side = self.grid, self.side
        x = tiles.view(self.batch_size, rows, columns, -1, side, side).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(self.batch_size, -1, rows * side, columns * side)[..., : self.size[0], : self.size[1]]

    def expand(self, chunk: Chunk, weight: Tensor) -> Tensor:
        """Spread candidates' weights ``(n, T, G^2)`` over a chunk's regions ``(n, U, G^2)``; the last is no region."""
        shape = (*chunk.regions.shape, weight.shape[2])
        return weight.new_zeros(shape).scatter(1, self.own(chunk.column), weight)

    def own(self, position: Tensor) -> Tensor:
        """Return positions ``(n, ., (G + 2 reach)^2)`` of the tile's own pixels alone, ``(n, ., G^2)``, long."""
        wide = self.side + 2 * self.reach
        inner = slice(self.reach, self.reach + self.side)
        return position.unflatten(2, (wide, wide))[:, :, inner, inner].long().flatten(2)

    def gather_regions(self, chunk: Chunk, z: Tensor) -> Tensor:
        """Return the region features ``(B, R, C)`` of a chunk's lists, ``(n, U, C)``; padding is 0."""
        flat = F.pad(z.flatten(0, 1), (0, 0, 0, 1))
        return flat.index_select(0, chunk.regions.flatten()).view(*chunk.regions.shape, -1)

    def reduce(self, parts: list[Tensor], reduce: str = "sum") -> Tensor:
        """Reduce values per tile and region, one ``(n, U, C)`` for each chunk, to regions ``(B, R, C)``."""
        order, ptr = self._merge_order()
        values = torch.cat([part.flatten(0, 1) for part in parts])
        return segment_reduce(values, ptr, order, reduce=reduce).unflatten(0, (self.batch_size, self.num_regions))

    def inverse_order(self) -> Tensor:
        """Return the order that puts tiles, taken chunk after chunk, back into their numbering."""
        return torch.argsort(torch.cat([chunk.tiles for chunk in self.chunks]))

    def _merge_order(self) -> tuple[Tensor, Tensor]:
        cached = self.__dict__.get("_order")
        if cached is None:
            ids = torch.cat([chunk.regions.flatten() for chunk in self.chunks])
            total = self.batch_size * self.num_regions
            ids, order = torch.sort(ids, stable=True)
            ptr = csr_pointer(ids, total)  # the padding, numbered `total`, falls behind the last bound
            cached = order[: int(ptr[-1])], ptr
            self.__dict__["_order"] = cached
        return cached

    def index(self) -> Tensor:
        """Return each pixel's candidates as flat region numbers, shape ``(num_tiles, T, G^2)``, int32."""
        shape = (self.num_tiles, self.num_candidates, self.side**2)
        out = torch.empty(shape, dtype=torch.int32, device=self.centers.device)
        for chunk in self.chunks:
            column = self.own(chunk.column)
            regions = chunk.regions.to(torch.int32)[:, :, None].expand(-1, -1, column.shape[2])
            out[chunk.tiles] = regions.gather(1, column)
        return out

    def origin(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return image, top row and left column (pixels) of tiles."""
        rows, columns = self.grid
        within = tiles % (rows * columns)
        return tiles // (rows * columns), within // columns * self.side, within % columns * self.side

    def _chunks(self, count: Tensor, flat: Tensor) -> Iterator[Chunk]:
        """Find the candidates of each pixel from the tiles' lists, and group tiles whose lists end up similar."""
        order, padding = torch.argsort(count, stable=True), self.batch_size * self.num_regions
        start = count.cumsum(0) - count
        selected = []
        for first, last, longest in self._groups(count[order].tolist()):
            tiles = order[first:last]
            position = torch.arange(longest + 1, device=flat.device)
            inside = position < count[tiles][:, None]
            entry = (start[tiles][:, None] + position).clamp(max=flat.shape[0] - 1)
            selected.append(self._select(tiles, torch.where(inside, flat[entry], padding)))
        longest = max(chunk.regions.shape[1] for chunk in selected)
        tiles = torch.cat([chunk.tiles for chunk in selected])
        regions = torch.cat([F.pad(c.regions, (0, longest - c.regions.shape[1]), value=padding) for c in selected])
        column = torch.cat([chunk.column for chunk in selected])
        count = (regions < padding).sum(1)
        order = torch.argsort(count, stable=True)
        for first, last, longest in self._groups(count[order].tolist()):
            rows = order[first:last]
            own = column.index_select(0, rows)  # copies rows, where indexing copies numbers
            if int(own.amin()) < 0:
                own.masked_fill_(own < 0, longest)  # from here on the last of the list stands for the outside
            yield Chunk(tiles[rows], regions[rows, : longest + 1], own)

    def _groups(self, lengths: list[int]) -> Iterator[tuple[int, int, int]]:
        """Cut ascending lengths into runs (first, last, longest): small once padded, and little of it padding."""
        first = 0
        while first < len(lengths):
            last = first + 1
            while (
                last < len(lengths)
                and (last + 1 - first) * lengths[last] * self.side**2 <= _PAIRS
                and lengths[last] <= 1.25 * lengths[first] + 4
            ):
                last += 1
            yield first, last, lengths[last - 1]
            first = last

    def _select(self, tiles: Tensor, regions: Tensor) -> Chunk:
        """Find the T nearest centres of each pixel among those listed, and shorten the lists to them.

        Pixels outside the image get the position -1.
        """
        width, padding = self.size[1], self.batch_size * self.num_regions
        pixel = F.pad(self.centers.flatten(), (0, 1))[regions]  # (n, U)
        step = torch.arange(-self.reach, self.side + self.reach, device=tiles.device)
        _, top, left = self.origin(tiles)
        y, x = top[:, None] + step, left[:, None] + step  # (n, G + 2 reach)
        dy = (y[:, :, None] - (pixel // width)[:, None, :]).square()  # (n, G + 2 reach, U)
        dx = (x[:, :, None] - (pixel % width)[:, None, :]).square()
        length = regions.shape[1]
        # one whole number orders by distance, then by region
        limit = int(dy.max() + dx.max() + 1) * length
        dtype = torch.int32 if limit < 2**30 else torch.int64
        rank = torch.arange(length, device=tiles.device)
        dx = dx * length + rank + torch.where(regions == padding, limit, 0)[:, None, :]
        key = ((dy * length).to(dtype)[:, :, None, :] + dx.to(dtype)[:, None, :, :]).flatten(1, 2)
        # sorted, so that a pixel has its candidates in one order in its own tile and in its neighbours' halos
        column = key.topk(self.num_candidates, dim=2, largest=False, sorted=True).indices  # (n, pixels, T)
        outside = ((y < 0) | (y >= self.size[0]))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
        if bool(outside.any()):  # most tiles lie inside
            column.masked_fill_(outside.flatten(1)[..., None], length - 1)

        used = torch.zeros_like(regions, dtype=torch.bool).scatter_(1, column.flatten(1), True)
        used[:, -1] = False
        place = torch.where(used, used.cumsum(1) - 1, -1)
        shorter = torch.full_like(regions, padding)
        shorter.scatter_(1, place.where(used, length - 1), torch.where(used, regions, padding))
        column = place.to(torch.int16).gather(1, column.flatten(1)).view_as(column).transpose(1, 2)  # (n, T, pixels)
        return Chunk(tiles, shorter, column)


def halo_pixels(side: int, reach: int, device: torch.device) -> Tensor:
    """Return the flat positions of a tile's halo among its ``(side + 2 reach)^2`` pixels."""
    outer = torch.ones(side + 2 * reach, side + 2 * reach, dtype=torch.bool, device=device)
    outer[reach : reach + side, reach : reach + side] = False
    return outer.flatten().nonzero().squeeze(1)


def _whole(size: tuple[int, int]) -> torch.dtype:
    """Return the integers that hold any squared distance in an image of this size (pixels)."""
    return torch.int32 if (size[0] + 64) ** 2 + (size[1] + 64) ** 2 < 2**31 else torch.int64


def _within(count: Tensor) -> Tensor:
    """Return 0, 1, ..., count - 1 for each count, one after the other."""
    total = int(count.sum())
    start = count.cumsum(0) - count
    return torch.arange(total, device=count.device) - start.repeat_interleave(count, output_size=total)


def _region_lists(
    yx: Tensor, size: tuple[int, int], side: int, grid: tuple[int, int], num_candidates: int, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tile numbers, lengths of their lists and the lists one after the other, block by block.

    A block's list holds those of its parts, so lists are narrowed from large blocks to small ones to tiles.
    """
    every = torch.arange(yx.shape[1], device=yx.device)
    blocks = [(0, 0, *grid, every)]
    for step in _BLOCKS:
        parts = []
        for top, left, height, width, near in blocks:
            y, x, needed = _narrowed(yx[:, near], size, side, (top, left, height, width), step, num_candidates, reach)
            for row, column, keep in zip(y.tolist(), x.tolist(), needed, strict=True):
                inner = (min(step, top + height - row), min(step, left + width - column))
                parts.append((row, column, *inner, near[keep]))
        blocks = parts
    tiles, counts, lists = [], [], []
    for top, left, height, width, near in blocks:
        y, x, needed = _narrowed(yx[:, near], size, side, (top, left, height, width), 1, num_candidates, reach)
        tiles.append(y.long() * grid[1] + x)
        counts.append(needed.sum(1))
        lists.append(near[needed.nonzero()[:, 1]])
    return torch.cat(tiles), torch.cat(counts), torch.cat(lists)


def _narrowed(
    yx: Tensor,
    size: tuple[int, int],
    side: int,
    block: tuple[int, int, int, int],
    step: int,
    num_candidates: int,
    reach: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a block (top, left, height, width in tiles) into parts; return their corners and the centres each needs."""
    top, left, height, width = block
    row = torch.arange(top, top + height, step, dtype=yx.dtype, device=yx.device)
    column = torch.arange(left, left + width, step, dtype=yx.dtype, device=yx.device)
    y, x = (edge.flatten() for edge in torch.meshgrid(row, column, indexing="ij"))
    corner = torch.stack([y, x])
    bounds = torch.tensor(size, dtype=yx.dtype, device=yx.device)[:, None] - 1
    high = torch.minimum((corner + step) * side - 1 + reach, bounds)
    return y, x, _needed(yx, (corner * side - reach).clamp(min=0), high, num_candidates)


def _needed(yx: Tensor, low: Tensor, high: Tensor, num_candidates: int) -> Tensor:
    """Mark the centres that can be among the T nearest of some pixel of each box, shape ``(boxes, R)``.

    T centres lie within the T-th smallest of the farthest distances of a box; a centre whose nearest distance is
    larger is never needed.
    """
    below, above = low[:, :, None] - yx[:, None, :], yx[:, None, :] - high[:, :, None]  # (2, boxes, R)
    # with l <= h: max(l - c, c - h, 0) and max(c - l, h - c)
    nearest = torch.maximum(below, above).clamp_(min=0).square_().sum(0, dtype=below.dtype)
    farthest = torch.minimum(below, above).square_().sum(0, dtype=below.dtype)
    limit = farthest.topk(num_candidates, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
    return nearest <= limit
