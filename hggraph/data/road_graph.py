"""From a road mask to a graph of roads, and to the map of where roads lead."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.data._skeleton import length_of, trace

__all__ = ["mask_to_graph", "orientation_map"]

Floats = NDArray[np.float64]


def mask_to_graph(mask: Tensor, *, spur: float = 10.0, smooth: float = 2.0) -> nx.MultiGraph:
    """Return the graph of the roads in a mask: junctions and ends as nodes, roads between them as edges.

    Step by step:

    1. **Mask.** A pixel is road where the mask is True or 1; 255 (ignored) is not.
    2. **Skeleton.** Roads are thinned to lines one pixel wide (`skimage.morphology.skeletonize`).
    3. **Links.** Skeleton pixels are linked with their 8 neighbours; a diagonal link is left out where the two pixels
       have a neighbour above, below or beside them in common, so that a corner is no junction.
    4. **Nodes.** Pixels with one link are ends. Pixels with three or more, and those of full 2 x 2 blocks, are
       junctions; linked ones form one node at their mean. A ring without a node gets one at its first pixel. A pixel
       without a link is no road.
    5. **Edges.** The lines of pixels between nodes, each with its pixels as a polyline.
    6. **Pruning.** As long as there is one, the shortest edge is removed that is shorter than `spur` and has a dead
       end (a hair, or a speck on its own), comes back to the node where it began, or runs beside a shorter edge between
       the same two nodes. A node that then joins just two edges is dissolved. Uneven borders of a mask leave hairs on a
       skeleton, and holes rings; other roads are not shortened.
    7. **Smoothing.** Polylines are simplified (Douglas and Peucker) to at most `smooth` pixels from the pixels; without
       it a slanted line of pixels is up to 8 % too long.

    Args:
        mask: Roads of one image, ``(H, W)``, bool or integers 0, 1 and 255.
        spur: Length in pixels; about the width of the roads. 0 keeps all.
        smooth: Distance in pixels; 0 keeps all that does not lie on a straight line.

    Returns:
        An undirected multigraph: nodes 0, 1, ... in row-major order with ``pos`` = (y, x) in pixels; edges with
        ``points``, float64 ``(n, 2)``, their (y, x) from the lower node to the higher, and ``length`` in pixels. A mask
        without roads gives an empty graph.

    Raises:
        ImportError: if scikit-image is not installed; the text says how to get it.
        TypeError: if `mask` is not a tensor of bool or integers.
        ValueError: if it has another shape or another label, or `spur` or `smooth` is negative.

    Note:
        On the CPU. Deterministic. Thinning shortens a road's free ends by about half its width, also where it leaves
        the image.

    Example:
        >>> mask = torch.zeros(60, 80, dtype=torch.bool)
        >>> mask[28:33] = True
        >>> mask[:30, 38:43] = True
        >>> graph = mask_to_graph(mask)
        >>> graph.number_of_nodes(), graph.number_of_edges()
        (4, 3)
    """
    if not (spur >= 0 and smooth >= 0):
        raise ValueError(f"`spur` and `smooth` must be at least 0 pixels, got {spur} and {smooth}.")
    road = _road(mask)
    thin, simplify = _skimage()
    lines = trace(thin(road) if road.any() else road)
    lines.prune(spur)
    used = sorted((node for node, edges in enumerate(lines.incident) if edges), key=lambda n: tuple(lines.positions[n]))
    number = {node: index for index, node in enumerate(used)}
    graph = nx.MultiGraph()
    for node, index in number.items():
        y, x = lines.positions[node].tolist()
        graph.add_node(index, pos=(y, x))
    edges = []
    for start, stop, points in lines.edges.values():
        points = _smooth(points, smooth, simplify)
        if number[start] > number[stop]:
            start, stop, points = stop, start, points[::-1]
        edges.append((number[start], number[stop], points))
    for start, stop, points in sorted(edges, key=lambda edge: (*edge[:2], edge[2].tolist())):
        graph.add_edge(start, stop, points=points, length=length_of(points))
    return graph


def orientation_map(
    mask: Tensor, *, half_thickness: float = 10.0, spur: float = 10.0, smooth: float = 4.0, bins: int = 36
) -> Tensor:
    """Return in which direction the road leads at each pixel, the second target of the Orientation network.

    Batra et al., "Improved road connectivity by joint learning of orientation and segmentation", 2019: each polyline
    of the graph of `mask_to_graph` is run through from the end that is farther from the image's origin to the nearer
    one. Pixels at most `half_thickness` from it get the direction of their nearest segment, as an angle clockwise from
    the x axis (y points down) in [0, 360) degrees, cut into equal bins.

    Args:
        mask: Roads of one image, ``(H, W)``, bool or integers 0, 1 and 255.
        half_thickness: Distance in pixels. Of equally near segments the first counts.
        spur: As `mask_to_graph`.
        smooth: As `mask_to_graph`; the published 4 for the whole image, 2 and 1 for maps of a half and a quarter of
            its size.
        bins: Directions; 36 of 10 degrees are published.

    Returns:
        int64 ``(H, W)``: the bin, `bins` where no road is near, and 255 where the mask is 255.

    Raises:
        ImportError: as `mask_to_graph`.
        TypeError: as `mask_to_graph`.
        ValueError: as `mask_to_graph`; if `bins` is not in [1, 254] or `half_thickness` is negative.

    Note:
        On the CPU. Deterministic.

    Example:
        >>> mask = torch.eye(60, dtype=torch.uint8)
        >>> orientation_map(mask, half_thickness=4).unique()  # up and to the left: 225 degrees
        tensor([22, 36])
    """
    if not 1 <= bins <= 254 or not half_thickness >= 0:
        raise ValueError(
            f"`bins` must be in [1, 254] and `half_thickness` at least 0 pixels, got {bins} and {half_thickness}."
        )
    graph = mask_to_graph(mask, spur=spur, smooth=smooth)
    label = np.full(tuple(mask.shape), bins, dtype=np.int64)
    nearest = np.full(tuple(mask.shape), np.inf)
    for _, _, points in graph.edges(data="points"):
        way = points if (points[0] ** 2).sum() >= (points[-1] ** 2).sum() else points[::-1]
        for start, stop in pairwise(way):
            if (start == stop).all():
                continue
            window, squared = _squared_distance(start, stop, half_thickness, label.shape)
            closer = (squared < nearest[window]) & (squared <= half_thickness**2)
            nearest[window][closer] = squared[closer]
            label[window][closer] = _bin(stop - start, bins)
    result = torch.from_numpy(label).to(mask.device)
    return result if mask.dtype == torch.bool else torch.where(mask == 255, 255, result)


def _road(mask: Tensor) -> NDArray[np.bool_]:
    """Return where a mask is road, on the CPU."""
    check_ndim("mask", mask, 2, shape="(H, W)")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"`mask` must be bool or integers 0, 1 and 255, got {mask.dtype}; threshold it first.")
    values = mask.detach().cpu()
    if values.dtype != torch.bool and not ((values == 0) | (values == 1) | (values == 255)).all():
        found = values.unique().tolist()[:6]
        raise ValueError(f"`mask` must have the labels 0, 1 (road) and 255 (ignored) alone, got {found}, ...")
    road: NDArray[np.bool_] = (values == 1).numpy()
    return road


def _skimage():  # type: ignore[no-untyped-def]
    """Return scikit-image's thinning and simplification."""
    try:
        from skimage.measure import approximate_polygon
        from skimage.morphology import skeletonize
    except ImportError as error:
        raise ImportError(
            'Road graphs need scikit-image, which is not installed: pip install "hggraph[road]"'
        ) from error
    return skeletonize, approximate_polygon


def _smooth(points: Floats, tolerance: float, simplify) -> Floats:  # type: ignore[no-untyped-def]
    """Return a polyline with fewer points; one that ends where it begins keeps the point farthest from there."""
    if (points[0] == points[-1]).all():
        far = int(((points - points[0]) ** 2).sum(1).argmax())
        halves = [simplify(part, tolerance) for part in (points[: far + 1], points[far:])]
        return np.concatenate([halves[0], halves[1][1:]])
    return np.asarray(simplify(points, tolerance), dtype=np.float64)


def _squared_distance(
    start: Floats, stop: Floats, margin: float, size: tuple[int, ...]
) -> tuple[tuple[slice, slice], Floats]:
    """Return the pixels in a segment's bounding box with a margin, and their squared distances from the segment."""
    low = np.maximum(np.ceil(np.minimum(start, stop) - margin), 0).astype(int)
    high = np.minimum(np.floor(np.maximum(start, stop) + margin) + 1, size).astype(int)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    y, x = np.ogrid[window]
    along = stop - start
    share = ((y - start[0]) * along[0] + (x - start[1]) * along[1]) / (along**2).sum()
    share = share.clip(0, 1)
    return window, (y - start[0] - share * along[0]) ** 2 + (x - start[1] - share * along[1]) ** 2


def _bin(step: Floats, bins: int) -> int:
    """Return the bin of a direction (y, x)."""
    degrees = float(np.degrees(np.arctan2(step[0], step[1]))) % 360
    return int(degrees * bins / 360) % bins
