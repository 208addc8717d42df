"""Connected regions: as many as asked for, each of one piece, none empty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_features
from hggraph.graph import Assignment
from hggraph.ops import fast

__all__ = ["connect"]


def connect(assignment: Assignment, x: Tensor) -> Assignment:
    """Make each region one 4-connected piece of the map (as superpixel programs do, but with all regions kept).

    The largest piece of a region stays; all other pixels are flooded from these pieces, smallest step in `x` first. A
    region without pixels gets half of the largest one. A pixel whose strongest region changes belongs to the new one
    alone, with weight 1; all others keep their weights, so labels, areas, positions, edges and gradients agree.

    Args:
        assignment: Of any form, with at most as many regions as pixels.
        x: The map whose steps guide the flood, shape ``(B, C, H, W)``, for example the one that was clustered.

    Returns:
        An assignment with the same regions, all of them connected in `labels`. Reads the data; not for static shapes.

    Raises:
        ValueError: if sizes differ, or there are more regions than pixels.

    Example:
        >>> torn = Assignment.from_labels(torch.tensor([[[0, 0, 1, 0, 2]]]), 3)
        >>> connect(torn, torch.tensor([[[[0.0, 0.0, 5.0, 6.0, 9.0]]]])).labels
        tensor([[[0, 0, 1, 1, 2]]])
    """
    check_features("x", x)
    if x.shape[0] != assignment.batch_size or tuple(x.shape[2:]) != assignment.size:
        raise ValueError(f"`x` must have the images and the size of {assignment}, got shape {tuple(x.shape)}.")
    before = assignment.labels
    after = torch.empty_like(before)
    connect_labels = fast.connect if fast.available() and x.shape[1] == 3 else fast.plain_connect
    for label, guide, out in zip(before, x.detach().float(), after, strict=True):
        out.copy_(connect_labels(label.cpu(), assignment.num_regions, guide.cpu()))
    moved, label = (before != after).flatten(1)[:, None], after.flatten(1)[:, None]
    if assignment.index is None:
        one_hot = F.one_hot(label.squeeze(1), assignment.num_regions).mT.to(assignment.weight.dtype)
        weight, index = torch.where(moved, one_hot, assignment.weight), None
    else:
        first = F.pad(torch.ones_like(label), (0, 0, 0, assignment.weight.shape[1] - 1))  # the first entry alone
        weight = torch.where(moved, first.to(assignment.weight.dtype), assignment.weight)
        index = torch.where(moved & (first > 0), label.to(assignment.index.dtype), assignment.index)
    return Assignment(
        weight,
        assignment.size,
        index=index,
        num_regions=assignment.num_regions,
        seeds=assignment.seeds,
        centers=assignment.centers,
        grid=assignment.grid,
    )
