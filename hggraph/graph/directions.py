"""How the edges between regions get their directions: from borders, by geometry, or by birth on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph import ops
from hggraph.graph.adjacency import RegionAdjacency
from hggraph.graph.assignment import Assignment
from hggraph.stencil import Stencil

__all__ = ["DIRECTIONS", "check_born", "check_directions", "directed"]

DIRECTIONS = ("birth", "borders", "geometry", "alone", "shuffled")


def directed(
    assignment: Assignment,
    directions: str,
    stencil: Stencil | None = None,
    *,
    noise_cancel: bool = True,
    max_direction: bool = True,
) -> RegionAdjacency:
    """Return the typed edges of regions; HGConv on them is one formula (HG-Conv Eq. 3), whatever gave the types.

    - ``"birth"``: regions whose seeds stand on a grid keep its neighbours, however they have moved and bent. Nothing is
      computed, and a layer on it is a convolution over the nodes.
    - ``"borders"``: how much two regions touch in each direction (Eq. 4 and 7), the paper's form.
    - ``"geometry"``: in each direction the region that is met one spacing of regions away from the middle; at most one
      edge for each region and direction, of weight 1, or 0 where there is none.
    - ``"alone"`` and ``"shuffled"`` are controls: each region has itself alone; the neighbours of birth, each in a
      direction drawn once for all.

    Args:
        assignment: S, with a `grid` for ``"birth"`` and ``"shuffled"``.
        directions: One of the five.
        stencil: Displacements in regions; ``Stencil.square(3)`` when None.
        noise_cancel: See `Assignment.adjacency`; for ``"borders"``.
        max_direction: Likewise.

    Returns:
        The adjacency. Only that of ``"borders"`` is differentiable. Shapes are static but for ``"borders"`` of more
        than 512 regions, and ``"shuffled"``. O(R K) but for ``"borders"``.

    Raises:
        ValueError: if `directions` is another, or the regions were not born on a grid where they have to be.

    Example:
        >>> cells = Assignment.cells((4, 6), 2)
        >>> directed(cells, "birth")
        RegionAdjacency(Stencil(3x3, dilation=1), batch_size=1, regions=6, grid=(2, 3))
        >>> bool((directed(cells, "geometry").to_dense() == directed(cells, "birth").to_dense()).all())
        True
    """
    check_directions(directions)
    stencil = Stencil.square(3) if stencil is None else stencil
    if directions == "borders":
        return assignment.adjacency(stencil, noise_cancel=noise_cancel, max_direction=max_direction)
    if directions == "geometry":
        return _geometry(assignment, stencil)
    if directions == "alone":
        center = assignment.weight.new_zeros(len(stencil))
        if stencil.center is not None:
            center[stencil.center] = 1
        itself = torch.arange(assignment.num_regions, device=center.device).expand(len(center), -1)
        return _edges(assignment, stencil, itself.mT.expand(assignment.batch_size, -1, -1), center.expand(1, 1, -1))
    check_born(assignment, f'directions="{directions}"')
    born = RegionAdjacency(stencil, grid=assignment.grid, like=assignment.weight, batch_size=assignment.batch_size)
    return born if directions == "birth" else _shuffled(born)


def check_directions(directions: str) -> None:
    """Raise unless `directions` is one of those of `directed`."""
    if directions not in DIRECTIONS:
        raise ValueError(f"`directions` must be one of {DIRECTIONS}, got {directions!r}.")


def check_born(assignment: Assignment, what: str) -> None:
    """Raise unless the regions were born on a grid, which `what` needs."""
    if assignment.grid is None:
        raise ValueError(
            f"{what} needs regions born on a grid, got {assignment} without one. Take seeds on a grid "
            f'(SoftSLIC(sampling="grid") or "warp", Cells), or directions="geometry" or "borders".'
        )


def _geometry(assignment: Assignment, stencil: Stencil) -> RegionAdjacency:
    height, width = assignment.size
    regions = assignment.num_regions
    labels = assignment.labels.flatten(1)
    middles = middles_of(assignment)
    spacing = (height * width / max(1, regions)) ** 0.5
    offsets = middles.new_tensor(stencil.offsets)
    at = (middles.unsqueeze(2) + spacing * offsets + 0.499).floor().long()  # (B, R, K, 2); halves go down everywhere
    inside = ((at >= 0) & (at < at.new_tensor([height, width]))).all(3)
    flat = at[..., 0].clamp(0, height - 1) * width + at[..., 1].clamp(0, width - 1)
    met = labels.gather(1, flat.flatten(1)).view(flat.shape)
    own = torch.arange(regions, device=met.device).view(1, -1, 1)
    center = torch.tensor([not any(offset) for offset in stencil], device=met.device)
    met = torch.where(center, own, met)
    exists = center | (inside & (met != own))
    return _edges(assignment, stencil, met, exists)


def middles_of(assignment: Assignment) -> Tensor:
    """Return the mean pixel (y, x) of each region, shape ``(B, R, 2)``, in pixels; of one without pixels its seed."""
    height, width = assignment.size
    weight = assignment.weight.detach()
    y, x = (torch.arange(length, device=weight.device, dtype=weight.dtype) for length in (height, width))
    place = torch.stack([y[:, None].expand(height, width), x.expand(height, width)]).flatten(1)
    place = place.expand(assignment.batch_size, -1, -1)
    middles, mass = ops.region_pool(place, weight, assignment.index, assignment.num_regions, return_mass=True)
    return assignment.fill_empty(middles, mass, place)


def _edges(assignment: Assignment, stencil: Stencil, source: Tensor, exists: Tensor) -> RegionAdjacency:
    """Return one edge for each region and direction, from `source` ``(B, R, K)``, of weight `exists`."""
    batch, regions, count = source.shape
    first = torch.arange(batch, device=source.device).view(-1, 1, 1) * regions
    target = torch.arange(regions, device=source.device).view(1, -1, 1) + first
    index = torch.stack([(source + first).flatten(), target.expand(-1, -1, count).flatten()])
    types = torch.arange(count, device=source.device).expand(batch, regions, -1).flatten()
    weight = exists.to(assignment.weight.dtype).expand(batch, regions, count).flatten()
    edges = (index, types, weight)
    return RegionAdjacency(stencil, edges=edges, batch_size=batch, num_regions=regions, max_direction=True)


def _shuffled(born: RegionAdjacency) -> RegionAdjacency:
    edge_index, edge_type, weight = born.to_edges()
    count = len(born.stencil)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(born.num_regions, count, generator=generator)
    if born.stencil.center is not None:
        noise[:, born.stencil.center] = -1
    others = [k for k in range(count) if k != born.stencil.center]
    order = noise.argsort(1).to(edge_type.device)
    drawn = torch.full_like(order, count)
    if born.stencil.center is not None:
        drawn.scatter_(1, order[:, :1], born.stencil.center)
        order = order[:, 1:]
    drawn.scatter_(1, order, torch.tensor(others, device=order.device).expand(len(order), -1))
    edge_type = drawn[edge_index[1] % born.num_regions, edge_type]
    by_type = torch.argsort(edge_index[1] * count + edge_type)
    edges = (edge_index[:, by_type], edge_type[by_type], weight)
    return RegionAdjacency(
        born.stencil, edges=edges, batch_size=born.batch_size, num_regions=born.num_regions, max_direction=True
    )
