"""Unity steers regions: where a label fills a cell one region is enough, and mixed cells get more of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.graph import Assignment
from hggraph.schemes.specialize.fuse import levels_used

__all__ = ["unity_attention", "unity_regions"]


def unity_attention(unity: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    r"""Return where cells are mixed, as the attention of active focus (no paper has this).

    .. math::
        1 - \frac{1}{L} \sum_l \mathrm{Up}(U_l)

    Args:
        unity: Probabilities of unity, coarse to fine, each ``(B, h, w)`` with twice the sides of the one before.
        size: Height and width of what is returned.

    Returns:
        Shape ``(B, *size)``, in [0, 1]: 0 where every level has unity. No gradient.

    Raises:
        ValueError: if there is no level.

    Note:
        Values are repeated, not interpolated. Deterministic, with static shapes.

    Example:
        >>> unity_attention([torch.tensor([[[1.0, 0.0]]])], (2, 4)).tolist()
        [[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]
    """
    if not len(unity):
        raise ValueError("`unity` must hold at least one level, got none.")
    with torch.no_grad():
        planes = [F.interpolate(u[:, None].float(), size, mode="nearest")[:, 0] for u in unity]
        return (1 - torch.stack(planes).mean(0)).clamp(0, 1)


def unity_regions(unity: Sequence[Tensor], threshold: float = 0.9, *, num_regions: int | None = None) -> Assignment:
    """Return the fused unity-cells as regions, a quadtree (no paper has this).

    A cell that has unity is a region; one that has none is split in four, and each of those is looked at one level
    further down. What the finest level given does not join are cells of half its sides, a region each.

    Args:
        unity: Probabilities of unity, coarse to fine, each ``(B, h, w)`` with twice the sides of the one before.
        threshold: A cell has unity if its probability reaches it, as in `fuse`.
        num_regions: Regions of every image, at least as many as it has cells; None: as many as the image that has
            most.

    Returns:
        A hard assignment of a map of twice the finest level's sides, whose regions are numbered by their first pixels,
        row by row. Regions beyond an image's cells are empty.

    Raises:
        ValueError: as `levels_used`; if `num_regions` are too few.

    Note:
        O(P), vectorised. Without `num_regions` their number is read from the device once; with the number of smallest
        cells shapes are static. Deterministic. No gradient reaches `unity`, which is taught by its own loss.

    Example:
        >>> assignment = unity_regions([torch.tensor([[[0.95, 0.3]]])])
        >>> assignment.labels.tolist(), assignment.num_regions
        ([[[0, 0, 1, 2], [0, 0, 3, 4]]], 5)
    """
    level = levels_used(unity, threshold)  # (B, H, W)
    height, width = level.shape[1:]
    side = 2 ** (len(unity) - level)  # of the cell that each pixel is in
    rows = torch.arange(height, device=level.device)[:, None]
    columns = torch.arange(width, device=level.device)
    first = (rows - rows % side) * width + (columns - columns % side)  # the cell's first pixel
    begins = (first == rows * width + columns).flatten(1)
    number = begins.cumsum(1) - 1
    labels = number.gather(1, first.flatten(1)).view_as(level)
    return Assignment.from_labels(labels, int(begins.sum(1).max()) if num_regions is None else num_regions)
