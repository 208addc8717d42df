"""From image to graph in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.data.data import BaseData
from torch_geometric.transforms import BaseTransform

from hggraph import ops
from hggraph._check import check_features, check_finite
from hggraph.cluster.clusterer import SoftSLIC
from hggraph.cluster.soft_slic import positions_of
from hggraph.graph import Assignment
from hggraph.ops import fast
from hggraph.ops._distance import compute_dtype
from hggraph.stencil import Stencil

__all__ = ["ToRegionGraph", "region_graph"]


def region_graph(
    x: Any,
    assignment: Assignment | None = None,
    *,
    num_regions: int | None = None,
    clusterer: Callable[..., Assignment] | None = None,
    attention: Tensor | None = None,
    stencil: Stencil | None = None,
    return_assignment: bool = False,
) -> Batch | tuple[Batch, Assignment]:
    """Turn images or feature maps into graphs of regions.

    Args:
        x: A map, shape ``(B, C, H, W)`` or ``(C, H, W)``, floating point and finite, B >= 1; or one photo: a
            `PIL.Image.Image`, or bytes, a NumPy array ``(H, W, 3)`` or ``(H, W)`` of uint8. A map of 1 or 3 channels
            without `assignment` and `clusterer` is taken as photos with values in [0, 1].
        assignment: An assignment of these maps; None clusters.
        num_regions: Regions of each image; None: one for 64 pixels.
        clusterer: What clusters, for example a `SoftSLIC`, in place of `num_regions`. None: for photos
            ``SoftSLIC(feature_scale="photo")``, for other maps ``SoftSLIC()``, both in eval mode.
        attention: Attention in [0, 1], shape ``(B, H, W)``: draws centres to where it is high (Eq. 11).
        stencil: Directions; ``Stencil.square(3)`` when None.
        return_assignment: Return the assignment too.

    Returns:
        A PyG `Batch` of B graphs with, for each, R nodes: ``x`` (R, C) mean features, ``pos`` (R, 2) mean (y, x)
        in pixels, ``area`` (R,) in pixels; ``edge_index`` (2, E), ``edge_type`` (E,), ``edge_weight`` (E,) and
        ``edge_attr`` (E, 2), the displacement ``pos[j] - pos[i]`` over twice its largest absolute value plus
        0.5, in [0, 1]. Edges run from source j to target i, each region to itself included. Differentiable in
        `x`; synchronises a GPU.

    Raises:
        ValueError: if there are fewer pixels than regions, the map is empty or not finite, a photo's values are not in
            [0, 1], sizes differ, or attention lies outside [0, 1].
        TypeError: if `x` is a tensor of integers, or none of the above.

    Example:
        >>> graph = region_graph(torch.rand(1, 3, 32, 32), num_regions=8)
        >>> graph.num_nodes, graph.x.shape
        (8, torch.Size([8, 3]))
    """
    x = as_map(x)
    if assignment is None:
        if clusterer is None:
            scale = "photo" if x.shape[1] in (1, 3) else "auto"
            clusterer = SoftSLIC(num_regions=num_regions, feature_scale=scale).eval()
        elif num_regions is not None:
            raise ValueError("`clusterer` says how many regions there are; leave `num_regions` out.")
        assignment = clusterer(x) if attention is None else clusterer(x, attention)
    elif clusterer is not None or attention is not None or num_regions is not None:
        raise ValueError(
            "`clusterer`, `num_regions` and `attention` choose an assignment; leave them out when there is one."
        )
    else:
        assignment.check_map(x)
        check_finite("x", x)  # clustering looks at it otherwise
    stencil = Stencil.square(3) if stencil is None else stencil
    nodes, pos, area = _nodes(assignment, x)
    adjacency = assignment.adjacency if assignment.index is None else assignment.edges
    edge_index, edge_type, edge_weight = adjacency(stencil).to_edges()

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
    batch = Batch.from_data_list(graphs)
    return (batch, assignment) if return_assignment else batch


class ToRegionGraph(BaseTransform):
    """Turn the image of a data object into its region graph, as a PyG transform.

    Takes a `Data` whose `key` holds one image, in any of the forms that `region_graph` takes, and returns its graph
    with all other attributes (``y``, for example) kept; or takes the image alone.

    Args:
        num_regions: Regions per image; None uses `downsample`.
        downsample: Pixels per region.
        clusterer: What clusters, in place of the two above.
        stencil: Directions; ``Stencil.square(3)`` when None.
        key: Attribute that holds the image; it is removed.
        return_assignment: Return the assignment too, as a pair with the graph.

    Example:
        >>> ToRegionGraph(num_regions=8)(torch.rand(3, 32, 32)).num_nodes
        8
    """

    def __init__(
        self,
        num_regions: int | None = None,
        *,
        downsample: float = 64,
        clusterer: Callable[..., Assignment] | None = None,
        stencil: Stencil | None = None,
        key: str = "image",
        return_assignment: bool = False,
    ) -> None:
        if clusterer is None:
            clusterer = SoftSLIC(downsample, num_regions=num_regions, feature_scale="photo").eval()
        self.clusterer = clusterer
        self.stencil = Stencil.square(3) if stencil is None else stencil
        self.key = key
        self.return_assignment = return_assignment

    def forward(self, data: Any) -> Data | tuple[Data, Assignment]:
        """Return the region graph of the image in `data`, or of the image `data`."""
        holds = isinstance(data, BaseData)
        if holds and self.key not in data:
            raise ValueError(f"`data` must hold an image as {self.key!r} (see `key`), got {data}.")
        image = as_map(data[self.key] if holds else data)
        if image.shape[0] != 1:
            raise ValueError(f"A transform takes one image, got {image.shape[0]}; use `region_graph` for batches.")
        batch, assignment = region_graph(image, clusterer=self.clusterer, stencil=self.stencil, return_assignment=True)
        graph = batch[0]
        if holds:
            for key, value in data.items():
                if key != self.key and key not in graph:
                    graph[key] = value
        return (graph, assignment) if self.return_assignment else graph

    def __repr__(self) -> str:
        """Show the clusterer."""
        return f"{type(self).__name__}({self.clusterer})"


def as_map(x: Any) -> Tensor:
    """Return a photo of any form as a map ``(B, C, H, W)``, bytes as numbers in [0, 1].

    Example:
        >>> import numpy as np
        >>> as_map(np.full((2, 4, 3), 255, dtype=np.uint8)).shape
        torch.Size([1, 3, 2, 4])
    """
    if not isinstance(x, Tensor):
        mode = getattr(x, "mode", None)
        if mode is not None and hasattr(x, "convert"):  # an image of PIL
            x = np.asarray(x if mode in ("L", "RGB") else x.convert("RGB"))
        if not isinstance(x, np.ndarray):
            raise TypeError(f"`x` must be a tensor, a PIL image or a NumPy array, got {type(x).__name__}.")
        if x.dtype != np.uint8 or x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in (1, 3)):
            raise ValueError(
                f"A NumPy array must be a photo of bytes, (H, W, 3) or (H, W) of uint8, got {x.dtype} {x.shape}. Give "
                "other maps as a tensor (B, C, H, W)."
            )
        x = x[:, :, None] if x.ndim == 2 else x
        x = torch.from_numpy(np.array(x.transpose(2, 0, 1))).float().div_(255)
    x = x.unsqueeze(0) if x.dim() == 3 else x
    check_features("x", x)
    if x.shape[0] == 0:
        raise ValueError(f"`x` must have at least one image, got shape {tuple(x.shape)}.")
    return x


def _nodes(assignment: Assignment, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean features ``(B, R, C)``, mean positions ``(B, R, 2)`` and areas ``(B, R)`` in one pass."""
    if assignment.is_hard and fast.takes(x):
        found = [
            fast.pool_labels(image, labels, assignment.num_regions)
            for image, labels in zip(x, assignment.labels, strict=True)
        ]
        nodes, pos, area = (torch.stack(parts) for parts in zip(*found, strict=True))
        if (area > 0).all():
            return nodes, pos, area
    if assignment.index is not None and not assignment.is_hard and fast.takes(x, assignment.weight):
        return _soft_nodes(assignment, x)
    dtype = compute_dtype(x)  # positions are not whole numbers in a half
    places = positions_of(assignment.size, x.new_empty(0, dtype=dtype)).expand(len(x), -1, -1)
    pixels = torch.cat([x.flatten(2).to(dtype), places], 1)
    pooled, area = ops.region_pool(
        pixels, assignment.weight, assignment.index, assignment.num_regions, return_mass=True
    )
    pooled = assignment.fill_empty(pooled, area, pixels)
    return pooled[..., :-2].to(x.dtype), pooled[..., -2:], area


def _soft_nodes(assignment: Assignment, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of many entries without the positions as a map."""
    assert assignment.index is not None
    entries = zip(x.flatten(2), assignment.weight, assignment.index.int(), strict=True)
    found = [fast.pool(*one, assignment.num_regions, assignment.size) for one in entries]
    sums, area = (torch.stack(parts) for parts in zip(*found, strict=True))
    pooled = torch.where(area[..., None] > 0, sums / area[..., None], 0)
    if assignment.seeds is not None and not (area > 0).all():
        y, column = assignment.seeds // assignment.size[1], assignment.seeds % assignment.size[1]
        at_seeds = x.flatten(2).gather(2, assignment.seeds[:, None].expand(-1, x.shape[1], -1))
        at_seeds = torch.cat([at_seeds.mT, torch.stack([y, column], 2)], 2)
        pooled = torch.where(area[..., None] > 0, pooled, at_seeds)
    return pooled[..., :-2], pooled[..., -2:], area


def _pseudo_coordinates(pos: Tensor, edge_index: Tensor) -> Tensor:
    if edge_index.shape[1] and fast.takes(pos):  # NumPy does not wake threads for so little
        place, (source, target) = pos.detach().numpy(), edge_index.numpy()
        step = place[source] - place[target]
        most = np.abs(step).max()
        step = step / (2 * most if most > 0 else np.float32(2)) + np.float32(0.5)
        return torch.from_numpy(np.clip(step, 0, 1))
    displacement = pos[edge_index[0]] - pos[edge_index[1]]
    if displacement.shape[0] == 0:
        return displacement
    largest = displacement.abs().max()
    return (displacement / (2 * torch.where(largest > 0, largest, 1)) + 0.5).clamp(0, 1)
