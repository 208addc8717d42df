"""Connected regions: as many as asked for, each of one piece, none empty."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_features
from hggraph.graph import Assignment
from hggraph.ops import fast

__all__ = ["connect"]


def connect(assignment: Assignment, x: Tensor, *, inplace: bool = False) -> Assignment:
    """Make each region one 4-connected piece of the map (as superpixel programs do, but with all regions kept).

    The largest piece of a region stays; all other pixels are flooded from these pieces, smallest step in `x` first. A
    region without pixels gets half of the largest one. A pixel whose strongest region changes belongs to the new one
    alone, with weight 1; all others keep their weights, so labels, areas, positions, edges and gradients agree.

    Args:
        assignment: Of any form, with at most as many regions as pixels.
        x: The map whose steps guide the flood, shape ``(B, C, H, W)``, for example the one that was clustered.
        inplace: Write into the memory of `assignment` where no gradient forbids it.

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
    assignment.check_map(x)
    if len(x) == 0:
        return assignment
    regions, before = assignment.num_regions, assignment._strongest().int().view(-1, *assignment.size)
    connect_labels = fast.connect if fast.available() and x.shape[1] == 3 else fast.plain_connect
    after = fast.each(lambda *one: connect_labels(one[0], regions, one[1]), before.cpu(), x.detach().float().cpu())
    after = after.to(before.device)
    weight: Tensor
    index: Tensor | None
    if assignment.is_hard:
        weight, index = assignment.weight, after.flatten(1)[:, None]
    else:
        weight, index = _moved(assignment, before.flatten(1), after.flatten(1), inplace)
    old = assignment
    return Assignment._trusted(weight, old.size, index, regions, old.seeds, old.centers, old.grid)


def _moved(assignment: Assignment, before: Tensor, after: Tensor, inplace: bool) -> tuple[Tensor, Tensor | None]:
    """Return weights and index with the pixels whose label changes, ``(B, P)``, given to the new one alone."""
    weight, index = assignment.weight, assignment.index
    inplace = inplace and not weight.requires_grad  # what the gradient needs stays
    weight = weight if inplace else weight.clone()
    index = index if index is None or inplace else index.clone()
    whole = index is not None and index.dtype == torch.int32 and index.is_contiguous() and weight.is_contiguous()
    if index is not None and whole and fast.takes(weight):
        for parts in zip(weight, index, before, after, strict=True):
            fast.give(*parts)
        return weight, index
    image, pixel = (before != after).nonzero(as_tuple=True)
    new = after[image, pixel].long()
    weight[image, :, pixel] = 0
    if index is None:
        weight[image, new, pixel] = 1
        return weight, None
    weight[image, 0, pixel] = 1
    index[image, 0, pixel] = new.to(index.dtype)
    return weight, index
