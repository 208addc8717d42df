"""Direction-typed edges of regions from a sparse assignment, HG-Conv Eq. 4, 7 and appendix B."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops import fast
from hggraph.ops._region_pairs import RegionPairs, region_pairs
from hggraph.ops._window import flat_offsets
from hggraph.ops.region_adjacency import FILTER, cleaned, opposite_pairs, tie

__all__ = ["edges_of_pairs", "region_edges"]


def region_edges(
    assignment: Tensor,
    index: Tensor,
    size: tuple[int, int],
    offsets: Sequence[Sequence[int]],
    num_regions: int,
    *,
    noise_cancel: bool = True,
    max_direction: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `region_adjacency` of the same S as a matrix holds, as edges, without making a matrix.

    Args:
        assignment: Weights, not negative, shape ``(B, T, H * W)``. One that is 0 counts nothing and gets no gradient.
        index: Region of each weight, likewise, int32 or int64 in [0, R); several entries of a pixel may name one
            region, and add up.
        size: Height and width of the images, in pixels.
        offsets: K displacements (dy, dx), source minus target.
        num_regions: R.
        noise_cancel: Subtract the opposite direction.
        max_direction: Keep one direction per pair.

    Returns:
        ``edge_index`` (2, E), ``edge_type`` (E,), both long, and ``edge_weight`` (E,), dtype of `assignment`, over the
        flat node index ``b * R + r``, sorted by target, then type, then source. Where `offsets` has the zero
        displacement each region has an edge of weight 1 to itself. Differentiable in `assignment`, through the edges.

    Raises:
        ValueError: if shapes disagree or, on the CPU, a region that has weight is out of range.
        TypeError: if `index` is neither int32 nor int64.

    Note:
        O(P T U) for the U regions of a tile of about 16 x 16 pixels; memory beyond the edges does not grow with the
        image. Deterministic; half precision is added in float32. PyTorch on every device; synchronises a GPU.

    Example:
        >>> weight, index = torch.ones(1, 1, 2), torch.tensor([[[0, 1]]])  # two pixels side by side, two regions
        >>> region_edges(weight, index, (1, 2), [(0, -1), (0, 1)], 2)
        (tensor([[1, 0],
                [0, 1]]), tensor([1, 0]), tensor([1., 1.]))
    """
    check_ndim("assignment", assignment, 3, shape="(B, T, P)")
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`index` must be int32 or int64, got {index.dtype}.")
    if index.shape != assignment.shape:
        raise ValueError(f"`index` must have the shape of `assignment`, {tuple(assignment.shape)}, got {index.shape}.")
    if len(size) != 2 or size[0] * size[1] != assignment.shape[2]:
        raise ValueError(f"`size` {tuple(size)} must multiply to the {assignment.shape[2]} pixels of `assignment`.")
    if assignment.device.type == "meta":
        raise NotImplementedError("How many edges there are depends on the weights: shapes alone do not say it.")
    flat = flat_offsets(offsets)
    half = [value for k, _ in opposite_pairs(flat) for value in flat[2 * k : 2 * k + 2]]
    with torch.autocast(assignment.device.type, enabled=False):
        pairs = region_pairs(assignment, index, size, half, num_regions)
        nodes = assignment.shape[0] * num_regions
        edge_index, edge_type, weight = edges_of_pairs(pairs, flat, nodes, noise_cancel, max_direction)
    return edge_index, edge_type, weight.to(assignment.dtype)


def edges_of_pairs(
    pairs: RegionPairs, offsets: Sequence[int], num_nodes: int, noise_cancel: bool, max_direction: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges of `region_edges` from raw strengths in the first direction of each opposite two.

    Args:
        pairs: Sorted pairs, strengths by `opposite_pairs` of the offsets.
        offsets: K displacements as ``dy, dx, dy, dx, ...``.
        num_nodes: B * R.
        noise_cancel: As above.
        max_direction: As above.
    """
    directions, half = len(offsets) // 2, opposite_pairs(offsets)
    # columns forward, backward, 0 for the centre; A_opposite(k)[low, high] is A_k[high, low]
    there, back = [2 * len(half)] * directions, [2 * len(half)] * directions
    for column, (k, other) in enumerate(half):
        there[k], back[k] = column, column + len(half)
        if other is not None:
            there[other], back[other] = back[k], there[k]
    low, high, forward, backward = pairs
    if fast.takes(forward, backward):
        strength, share = torch.cat([forward, backward], 1), tie(torch.float32) if max_direction else None
        return fast.clean_edges(low, high, strength, there, back, num_nodes, noise_cancel, FILTER, share)
    strength = F.pad(torch.cat([forward, backward], 1), (0, 1))
    weight, reverse = (strength.index_select(1, torch.tensor(columns, device=low.device)) for columns in (there, back))
    weight = cleaned(torch.cat([weight, reverse]), torch.cat([reverse, weight]), noise_cancel, max_direction)
    row, edge_type = weight.nonzero(as_tuple=True)
    target, source, weight = torch.cat([low, high])[row], torch.cat([high, low])[row], weight[row, edge_type]
    center = [k for k in range(directions) if there[k] == 2 * len(half)]
    if center:
        itself = torch.arange(num_nodes, device=low.device)
        target, source = torch.cat([target, itself]), torch.cat([source, itself])
        edge_type = torch.cat([edge_type, torch.full_like(itself, center[0])])
        weight = torch.cat([weight, weight.new_ones(num_nodes)])
    order = torch.argsort((target * directions + edge_type) * num_nodes + source)
    return torch.stack([source[order], target[order]]), edge_type[order], weight[order]
