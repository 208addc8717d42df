"""The regions that the pixels of a block consider: the nearest ones in space."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_positive
from hggraph.ops import fast

__all__ = ["block_side", "expand_blocks", "nearest_regions"]

_PAIRS = 1 << 22  # blocks times regions handled at once


def nearest_regions(positions: Tensor, size: tuple[int, int], side: int, entries: int) -> Tensor:
    """List the regions nearest to the middle of each block of pixels.

    Args:
        positions: Middle (y, x) of each region in pixels, shape ``(B, R, 2)``, float32 or float64.
        size: Height and width of the images, in pixels.
        side: Side of a block, in pixels; 1: every pixel has a list of its own. Blocks at the lower and right border
            may be smaller, and their middle is that of their pixels.
        entries: Regions listed, T; at most R.

    Returns:
        Region numbers, the nearest first, of equally near ones the lower, shape ``(B, T, ceil(H / side),
        ceil(W / side))``, int32. Not differentiable. Deterministic, static shapes.

    Raises:
        ValueError: if a number is below 1, or there are fewer regions than `entries`.

    Note:
        Every block looks at every region, in pieces of bounded memory; with Numba on a CPU only at those near it.

    Example:
        >>> nearest_regions(torch.tensor([[[0.0, 0.0], [0.0, 3.0]]]), (1, 4), 1, 1).tolist()
        [[[[0, 0, 1, 1]]]]
    """
    check_ndim("positions", positions, 3, shape="(B, R, 2)")
    check_positive("side", side)
    check_positive("entries", entries)
    if entries > positions.shape[1]:
        raise ValueError(f"`entries` must be at most the {positions.shape[1]} regions, got {entries}.")
    positions = positions.detach()
    if len(positions) and fast.takes(positions):
        return fast.each(lambda one: fast.nearest_regions(one, size, side, entries), positions)
    y, x = (_middles(length, side, positions) for length in size)
    step = max(1, _PAIRS // max(1, positions.shape[1] * len(x)))
    parts = [_nearest(positions, rows, x, entries) for rows in y.split(step)]
    return torch.cat(parts, 2)


def block_side(size: tuple[int, int], num_regions: int) -> int:
    """Return the side of blocks that share a list: the largest power of two up to a region's spacing, at most 16.

    Example:
        >>> block_side((481, 321), 300)
        16
    """
    side = 1
    while side < 16 and (2 * side) ** 2 * num_regions <= size[0] * size[1]:
        side *= 2
    return side


def expand_blocks(index: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Return the lists of blocks ``(B, T, h, w)`` for each pixel, shape ``(B, T, H * W)``."""
    if side > 1:
        index = index.repeat_interleave(side, 2)[:, :, : size[0]].repeat_interleave(side, 3)[..., : size[1]]
    return index.flatten(2)


def _middles(length: int, side: int, like: Tensor) -> Tensor:
    first = torch.arange(0, length, side, device=like.device)
    return ((first + (first + side).clamp(max=length) - 1).to(like.dtype)) / 2


def _nearest(positions: Tensor, y: Tensor, x: Tensor, entries: int) -> Tensor:
    dy = (y[:, None] - positions[:, None, :, 0]).square()  # (B, h, R)
    dx = (x[:, None] - positions[:, None, :, 1]).square()  # (B, w, R)
    distance = (dy[:, :, None] + dx[:, None]).float()  # (B, h, w, R)
    regions = positions.shape[1]
    order = torch.arange(regions, device=x.device)
    if torch.compiler.is_exporting():  # other runtimes do not look at a number's bits: a share far below rounding
        share = order.double()
        key = distance.double() * (1 + share * 2.0**-45) + share * 1e-300
        return key.topk(entries, dim=3, largest=False).indices.to(torch.int32).permute(0, 3, 1, 2)
    # floats that are not negative keep their order as whole numbers; with the region's number there are no ties
    key = distance.view(torch.int32).long() * regions + order
    chosen = key.topk(entries, dim=3, largest=False).values.remainder_(regions)
    return chosen.to(torch.int32).permute(0, 3, 1, 2)
