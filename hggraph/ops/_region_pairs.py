"""How strongly pairs of regions touch, from a sparse assignment: tile by tile, without a matrix of all regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hggraph._check import check_range
from hggraph.ops import fast
from hggraph.ops._distance import compute_dtype
from hggraph.ops.segment import gather_scale_sum

__all__ = ["RegionPairs", "region_pairs"]

_ENTRIES = 1 << 21  # weights that are looked at together
_VALUES = 1 << 23  # numbers of their tiles' matrices: 32 MiB of float32


class RegionPairs(NamedTuple):
    """Pairs of regions that touch, sorted by `low`, then `high`, and their strengths in K' directions."""

    low: Tensor
    """Flat number ``b * R + r`` of the one region, shape ``(pairs,)``, long."""
    high: Tensor
    """That of the other, larger."""
    forward: Tensor
    """``A_k[low, high]``, shape ``(pairs, K')``."""
    backward: Tensor
    """``A_k[high, low]``, likewise."""


def region_pairs(
    assignment: Tensor, index: Tensor, size: Sequence[int], offsets: Sequence[int], num_regions: int
) -> RegionPairs:
    """Return ``A_k = S^T Shift_k S`` off the diagonal, of the pairs for which it is not 0 in all directions.

    Args:
        assignment: Weights, not negative, shape ``(B, T, P)``; one that is 0 takes no part and gets no gradient.
        index: Region of each weight, likewise, int32 or int64; a region may stand in several entries of a pixel.
        size: Height and width of the images, in pixels.
        offsets: K' displacements as ``dy, dx, dy, dx, ...``, none of them zero.
        num_regions: R.

    Returns:
        Strengths in float32, or float64 for float64. Differentiable in `assignment`, once.

    Raises:
        ValueError: if a region that has weight is out of range; checked on the CPU.

    Note:
        Matrix products over the regions of each tile of about 16 x 16 pixels, in PyTorch on every device. Memory
        beyond the result does not grow with the image. Deterministic. Synchronises a GPU.

    Example:
        >>> weight, index = torch.ones(1, 1, 3), torch.tensor([[[0, 1, 1]]])
        >>> region_pairs(weight, index, (1, 3), [0, 1], 2).forward
        tensor([[1.]])
    """
    if len(assignment) and fast.takes(assignment):
        return _compiled_pairs(assignment, index, (size[0], size[1]), offsets, num_regions)
    key, strength = _Pairs.apply(assignment, index, tuple(size), tuple(offsets), num_regions)
    low, (forward, backward) = key // num_regions, strength.chunk(2, 1)
    return RegionPairs(low, low // num_regions * num_regions + key % num_regions, forward, backward)


def _compiled_pairs(
    assignment: Tensor, index: Tensor, size: tuple[int, int], offsets: Sequence[int], num_regions: int
) -> RegionPairs:
    steps = list(zip(offsets[::2], offsets[1::2], strict=True))
    parts = []
    for image, (weight, regions) in enumerate(zip(assignment, index.int(), strict=True)):
        if len(weight) == 1:  # an entry with an index: labels
            low, high, *strength = fast.edges_of_labels(regions.view(size), num_regions, steps)
        else:
            low, high, *strength = fast.edges_of_weights(weight, regions, size, num_regions, steps)
        parts.append((low + image * num_regions, high + image * num_regions, *strength))
    return RegionPairs(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _Pairs(torch.autograd.Function):
    """Keys ``(b * R + low) * R + high`` in ascending order, and strengths forward and backward ``(pairs, 2 K')``."""

    @staticmethod
    def forward(
        ctx: Any, assignment: Tensor, index: Tensor, size: tuple[int, int], offsets: tuple[int, ...], num_regions: int
    ) -> tuple[Tensor, Tensor]:
        ctx.layout = layout = _Layout.of(size, offsets, assignment.shape[1], num_regions)
        dtype = compute_dtype(assignment)
        keys, values = [index.new_empty(0, dtype=torch.long)], [assignment.new_empty(0, len(offsets), dtype=dtype)]
        for tiles in _tiles(assignment, index, layout):
            raw = layout.products(tiles.spread)
            there, back, key = _touching(raw, tiles, num_regions)
            keys.append(key)
            values.append(torch.cat([raw.flatten(1).index_select(1, at) for at in (there, back)]).t())
        key, order = torch.sort(torch.cat(keys), stable=True)
        unique, count = torch.unique_consecutive(key, return_counts=True)
        ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        strength = gather_scale_sum(torch.cat(values), ptr, order, None)
        ctx.save_for_backward(assignment, index, unique)
        ctx.mark_non_differentiable(unique)
        return unique, strength

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Any, grad: Tensor) -> tuple[Any, ...]:
        assignment, index, unique = ctx.saved_tensors
        layout: _Layout = ctx.layout
        out = torch.zeros(assignment.shape, dtype=grad.dtype, device=grad.device)
        for tiles in _tiles(assignment, index, layout):
            raw = layout.products(tiles.spread)
            there, back, key = _touching(raw, tiles, layout.num_regions)
            pair = torch.searchsorted(unique, key)
            forward, backward = grad.index_select(0, pair).t().chunk(2)
            grad_raw = raw.zero_().flatten(1)
            grad_raw[:, there], grad_raw[:, back] = forward, backward
            grad_spread = layout.products_backward(grad_raw.view(raw.shape), tiles.spread)
            _add_at(out[tiles.image].view(-1), tiles.source, grad_spread.view(-1).index_select(0, tiles.place))
        return out.to(assignment.dtype), None, None, None, None


class _Tiles(NamedTuple):
    """Some tiles of an image, with their halo of L pixels, and the U regions that have weight there."""

    image: int
    regions: Tensor  # (n, U), ascending in a tile; the flat number b * R + r
    spread: Tensor  # (n, U, L), weights
    place: Tensor  # of each entry in `spread`
    source: Tensor  # of each entry in the image's weights (T, P)


class _Layout(NamedTuple):
    """Tiles of `side` x `side` pixels and the halo that displacements read, `above` and `before`, `wide` in all."""

    size: tuple[int, int]
    displacements: tuple[tuple[int, int], ...]
    num_entries: int
    num_regions: int
    side: int
    above: int
    before: int
    high: int
    wide: int

    @classmethod
    def of(cls, size: tuple[int, int], offsets: tuple[int, ...], num_entries: int, num_regions: int) -> _Layout:
        pairs = tuple(zip(offsets[::2], offsets[1::2], strict=True))
        inside = [(0, 0), *(pair for pair in pairs if abs(pair[0]) < size[0] and abs(pair[1]) < size[1])]
        (above, below), (before, after) = ((-min(axis), max(axis)) for axis in zip(*inside, strict=True))
        # small tiles have more halo, large ones more pairs of regions that do not meet
        side = max(8 if size[0] * size[1] < 64 * num_regions else 16, above, below, before, after)
        high, wide = above + side + below, before + side + after
        return cls(size, pairs, num_entries, num_regions, side, above, before, high, wide)

    def pixels(self, device: torch.device) -> Tensor:
        """Return the flat pixels of each tile and its halo, shape ``(tiles, L)``; -1 outside the image."""
        (height, width), side = self.size, self.side
        y = torch.arange(0, height, side, device=device)[:, None] + torch.arange(self.high, device=device) - self.above
        x = torch.arange(0, width, side, device=device)[:, None] + torch.arange(self.wide, device=device) - self.before
        flat = (y * width)[:, None, :, None] + x[:, None]  # (rows, columns, high, wide)
        inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None]
        return flat.masked_fill_(~inside, -1).flatten(2).flatten(0, 1)

    def own(self, spread: Tensor) -> Tensor:
        """Return weights ``(n, U, L)`` without those of the halo."""
        mask = spread.new_zeros(self.high, self.wide)
        mask[self.above : self.above + self.side, self.before : self.before + self.side] = 1
        return spread * mask.flatten()

    def views(self, spread: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the directions that do not leave the image, with the weights that targets read in them.

        A tile's pixels are one run of the flat ones: what lies between its rows has no weight in `own`.
        """
        for k, (dy, dx) in enumerate(self.displacements):
            if abs(dy) < self.size[0] and abs(dx) < self.size[1]:
                yield k, self.run(spread, dy, dx)

    def run(self, spread: Tensor, dy: int = 0, dx: int = 0) -> Tensor:
        start, length = (self.above + dy) * self.wide + self.before + dx, (self.side - 1) * self.wide + self.side
        return spread.narrow(2, start, length)

    def products(self, spread: Tensor) -> Tensor:
        """Return ``A_k[i, j]`` of each tile, shape ``(K', n, U, U)``."""
        n, regions, _ = spread.shape
        raw, target = spread.new_zeros(len(self.displacements), n, regions, regions), self.run(self.own(spread))
        for k, source in self.views(spread):
            torch.bmm(target, source.mT, out=raw[k])
        return raw

    def products_backward(self, grad: Tensor, spread: Tensor) -> Tensor:
        """Return the gradient of `products` for `spread`."""
        out, target = torch.zeros_like(spread), self.run(self.own(spread))
        grad_target = torch.zeros_like(target)
        for (k, source), (_, grad_source) in zip(self.views(spread), self.views(out), strict=True):
            grad_target.baddbmm_(grad[k], source)
            grad_source += torch.bmm(grad[k].mT, target)
        whole = torch.zeros_like(spread)
        self.run(whole).copy_(grad_target)
        return out.add_(self.own(whole))


def _tiles(assignment: Tensor, index: Tensor, layout: _Layout) -> Iterator[_Tiles]:
    """Yield the tiles of all images, some with similarly many regions at a time."""
    every, regions = layout.pixels(assignment.device), layout.num_regions
    count = max(1, _ENTRIES // max(1, layout.num_entries * every.shape[1]))
    for image, (weights, numbers) in enumerate(zip(assignment.detach(), index, strict=True)):
        for pixel in every.split(count):
            weight = weights.index_select(1, pixel.flatten().clamp(min=0))  # (T, n * L)
            entry, at = (weight.ne(0) & pixel.flatten().ge(0)).nonzero(as_tuple=True)
            weight = weight.view(-1).index_select(0, entry * pixel.numel() + at).to(compute_dtype(assignment))
            source = entry * weights.shape[1] + pixel.flatten().index_select(0, at)
            region = numbers.reshape(-1).index_select(0, source).long()
            if region.device.type == "cpu":
                check_range("index", region, regions)
            yield from _grouped(image, weight, source, region, at, pixel.shape, layout)


def _grouped(
    image: int, weight: Tensor, source: Tensor, region: Tensor, at: Tensor, shape: torch.Size, layout: _Layout
) -> Iterator[_Tiles]:
    """Number the regions of each tile, and group the tiles whose numbers of them have the same power of two above."""
    (tiles, length), regions = shape, layout.num_regions
    tile, at = at // length, at % length
    key, column = _numbered(tile * regions + region, tiles * regions)
    of_key = key // regions
    count = torch.bincount(of_key, minlength=tiles)
    first = count.cumsum(0) - count
    column -= first.index_select(0, tile)
    for wide in sorted({1 << (number - 1).bit_length() for number in count.unique().tolist() if number}):
        members = ((count <= wide) & (count > wide // 2)).nonzero().squeeze(1)
        most = int(count[members].max())
        for some in members.split(max(1, _VALUES // (most * (length + len(layout.displacements) * most)))):
            slot = torch.full_like(count, -1).index_copy_(0, some, torch.arange(len(some), device=some.device))
            row = slot.index_select(0, tile)
            here, mine = (row >= 0).nonzero().squeeze(1), (slot[of_key] >= 0).nonzero().squeeze(1)
            place = ((row * most + column) * length + at).index_select(0, here)
            spread = weight.new_zeros(len(some) * most * length)
            _add_at(spread, place, weight.index_select(0, here))
            names = key.new_zeros(len(some), most)
            row = of_key[mine]
            names[slot[row], mine - first[row]] = key[mine] % regions + image * regions
            yield _Tiles(image, names, spread.view(len(some), most, length), place, source.index_select(0, here))


def _numbered(key: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Return the different keys in [0, bound) in ascending order, and the number of each among them."""
    if bound > 8 * len(key) + 65536:
        return torch.unique(key, return_inverse=True)
    seen = torch.zeros(bound, dtype=torch.bool, device=key.device)
    seen[key] = True  # a table is faster than a sort
    return seen.nonzero().squeeze(1), (seen.cumsum(0) - 1).index_select(0, key)


def _touching(raw: Tensor, tiles: _Tiles, num_regions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where ``A_k`` of touching regions i < j stands, where that of (j, i), and the pairs' keys."""
    both = raw.sum(0)
    tile, i, j = (both + both.mT).triu(1).nonzero(as_tuple=True)
    regions = raw.shape[2]
    i, j, names = tile * regions + i, tile * regions + j, tiles.regions.view(-1)
    key = names.index_select(0, i) * num_regions + names.index_select(0, j) % num_regions
    # row j of a tile is column j - tile * regions
    return i * regions + j - tile * regions, j * regions + i - tile * regions, key


def _add_at(out: Tensor, place: Tensor, value: Tensor) -> None:
    """Add to a vector in place, in a fixed order: on a GPU `index_add_` has none, on the CPU `index_put_`."""
    if out.is_cuda:
        out.index_put_((place,), value, accumulate=True)
    else:
        out.index_add_(0, place, value)
