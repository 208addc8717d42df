"""From image to graph in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform

from hggraph._check import check_features, check_finite
from hggraph.cluster.clusterer import SoftSLIC
from hggraph.graph import Assignment
from hggraph.ops._distance import compute_dtype
from hggraph.stencil import Stencil

__all__ = ["ToRegionGraph", "region_graph"]


def region_graph(
    x: Tensor,
    assignment: Assignment | None = None,
    *,
    clusterer: Callable[..., Assignment] | None = None,
    attention: Tensor | None = None,
    stencil: Stencil | None = None,
) -> Batch:
    """Turn images or feature maps into graphs of regions.

    Args:
        x: Map, shape ``(B, C, H, W)``, floating point and finite, B >= 1. With 1 or 3 channels and neither of
            the next two arguments it is taken as photos with values in [0, 1].
        assignment: An assignment of these maps; None clusters.
        clusterer: What clusters, for example a `SoftSLIC`. None: for photos ``SoftSLIC(feature_scale="photo",
            candidates=6)``, for other maps ``SoftSLIC()``, both in eval mode.
        attention: Attention in [0, 1], shape ``(B, H, W)``: draws centres to where it is high (Eq. 11).
        stencil: Directions; ``Stencil.square(3)`` when None.

    Returns:
        A PyG `Batch` of B graphs with, for each, R nodes: ``x`` (R, C) mean features, ``pos`` (R, 2) mean (y, x)
        in pixels, ``area`` (R,) in pixels; ``edge_index`` (2, E), ``edge_type`` (E,), ``edge_weight`` (E,) and
        ``edge_attr`` (E, 2), the displacement ``pos[j] - pos[i]`` over twice its largest absolute value plus
        0.5, in [0, 1]. Edges run from source j to target i, each region to itself included. Differentiable in
        `x`; synchronises a GPU.

    Raises:
        ValueError: if there are fewer pixels than regions, the map is empty or not finite, sizes differ, or
            attention lies outside [0, 1].
        TypeError: if `x` holds integers.

    Example:
        >>> graph = region_graph(torch.rand(1, 3, 32, 32), clusterer=SoftSLIC(num_regions=8).eval())
        >>> graph.num_nodes, graph.x.shape
        (8, torch.Size([8, 3]))
    """
    check_features("x", x)
    if x.shape[0] == 0:
        raise ValueError(f"`x` must have at least one image, got shape {tuple(x.shape)}.")
    if assignment is None:
        clusterer = _default_clusterer(x.shape[1]) if clusterer is None else clusterer
        assignment = clusterer(x) if attention is None else clusterer(x, attention)
    elif clusterer is not None or attention is not None:
        raise ValueError("`clusterer` and `attention` choose an assignment; leave them out when `assignment` is given.")
    else:
        check_finite("x", x)  # clustering looks at it otherwise
    stencil = Stencil.square(3) if stencil is None else stencil
    nodes, pos = _pool_with_positions(assignment, x)
    area = assignment.area
    edge_index, edge_type, edge_weight = assignment.adjacency(stencil).to_edges()

    graphs, regions = [], assignment.num_regions
    # edges are sorted by target, so each image's edges are one piece
    bounds = torch.searchsorted(edge_index[1].contiguous(), torch.arange(len(x) + 1, device=x.device) * regions)
    for image, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        edges = edge_index[:, first:last] - image * regions
        graphs.append(
            Data(
                x=nodes[image],
                pos=pos[image],
                area=area[image],
                edge_index=edges,
                edge_type=edge_type[first:last],
                edge_weight=edge_weight[first:last],
                edge_attr=_pseudo_coordinates(pos[image], edges),
            )
        )
    return Batch.from_data_list(graphs)


class ToRegionGraph(BaseTransform):
    """Turn the image of a data object into its region graph, as a PyG transform.

    Takes a `Data` whose `key` holds an image ``(C, H, W)`` or ``(1, C, H, W)`` with values in [0, 1] and returns
    it as `region_graph` makes it, with all other attributes (``y``, for example) kept; or takes the image tensor
    alone.

    Args:
        num_regions: Regions per image; None uses `downsample`.
        downsample: Pixels per region.
        candidates: Nearest centres that a pixel considers; None considers all.
        clusterer: What clusters, in place of the three above.
        stencil: Directions; ``Stencil.square(3)`` when None.
        key: Attribute that holds the image; it is removed.

    Example:
        >>> ToRegionGraph(num_regions=8)(torch.rand(3, 32, 32)).num_nodes
        8
    """

    def __init__(
        self,
        num_regions: int | None = None,
        *,
        downsample: float = 64,
        candidates: int | None = 6,
        clusterer: Callable[..., Assignment] | None = None,
        stencil: Stencil | None = None,
        key: str = "image",
    ) -> None:
        if clusterer is None:
            clusterer = SoftSLIC(
                downsample, num_regions=num_regions, candidates=candidates, feature_scale="photo"
            ).eval()
        self.clusterer = clusterer
        self.stencil = Stencil.square(3) if stencil is None else stencil
        self.key = key

    def forward(self, data: Any) -> Data:
        """Return the region graph of the image in `data`, or of the image `data`."""
        if not isinstance(data, Tensor) and self.key not in data:
            raise ValueError(f"`data` must hold an image as {self.key!r} (see `key`), got {data}.")
        image = data if isinstance(data, Tensor) else data[self.key]
        image = image if image.dim() == 4 else image.unsqueeze(0)
        if image.shape[0] != 1:
            raise ValueError(f"A transform takes one image, got {image.shape[0]}; use `region_graph` for batches.")
        graph = region_graph(image, clusterer=self.clusterer, stencil=self.stencil)[0]
        if not isinstance(data, Tensor):
            for key, value in data.items():
                if key != self.key and key not in graph:
                    graph[key] = value
        return graph

    def __repr__(self) -> str:
        """Show the clusterer."""
        return f"{type(self).__name__}({self.clusterer})"


def _default_clusterer(channels: int) -> SoftSLIC:
    if channels in (1, 3):
        return SoftSLIC(feature_scale="photo", candidates=6).eval()
    return SoftSLIC().eval()


def _pool_with_positions(assignment: Assignment, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean features ``(B, R, C)`` and mean positions ``(B, R, 2)``, in one pass where that is exact."""
    positions = _positions(x).expand(x.shape[0], -1, -1, -1)
    known = assignment.known_centers is not None and x is assignment.known_centers[0]
    if known or positions.dtype != x.dtype:
        return assignment.pool(x), assignment.pool(positions)
    nodes, pos = assignment.pool(torch.cat([x, positions], 1)).split([x.shape[1], 2], 2)
    return nodes, pos


def _positions(x: Tensor) -> Tensor:
    """Return the map of (y, x), shape ``(1, 2, H, W)``, in pixels, not in a half, which rounds them."""
    y = torch.arange(x.shape[2], dtype=compute_dtype(x), device=x.device)
    column = torch.arange(x.shape[3], dtype=compute_dtype(x), device=x.device)
    return torch.stack(torch.meshgrid(y, column, indexing="ij"))[None]


def _pseudo_coordinates(pos: Tensor, edge_index: Tensor) -> Tensor:
    displacement = pos[edge_index[0]] - pos[edge_index[1]]
    if displacement.shape[0] == 0:
        return displacement
    largest = displacement.abs().max()
    return (displacement / (2 * torch.where(largest > 0, largest, 1)) + 0.5).clamp(0, 1)
