"""Two road graphs of one image: what is found, what is missed and what is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
from torch import Tensor

from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import draw_centers, draw_image, paper_tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hggraph.metrics.road_routes import Roads

__all__ = ["road_figure"]

_FOUND, _MISSED = "#0072b2", "#d55e00"  # which stay apart for colour-blind eyes
_PIECE = 2.0  # pixels


def road_figure(
    image: Tensor, target_graph: nx.Graph, predicted_graph: nx.Graph, *, spacing: float = 50.0, tolerance: float = 4.0
) -> Figure:
    """Draw two road graphs on their image and say how alike they are.

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        target_graph: The true roads, as `hggraph.data.mask_to_graph` makes them, in pixels of the image.
        predicted_graph: The roads found.
        spacing: Distance of the control points of APLS, in pixels.
        tolerance: Distance up to which roads are the same, in pixels.

    Returns:
        A matplotlib figure of two panels on the photo in pale grey. On the left the true roads, blue where a predicted
        one is at most `tolerance` away and orange where none is; on the right the predicted ones, orange where there is
        no true road. Dots are junctions and ends, small white ones the control points between them. The titles tell the
        length of the roads, the blue share of it and, on the right, APLS.

    Raises:
        ImportError: if matplotlib, torchmetrics or scikit-image is not installed.
        TypeError: if a graph is directed or none.
        ValueError: if `image` is no image, or a node has no position.

    Note:
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> import torch
        >>> from hggraph.data.road_graph import mask_to_graph
        >>> mask = torch.zeros(60, 80, dtype=torch.bool)
        >>> mask[28:33] = True
        >>> graph = mask_to_graph(mask)
        >>> figure = road_figure(torch.rand(3, 60, 80), graph, nx.MultiGraph())
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['Target: 76 px of road, 0 % found', 'Prediction: no road; APLS 0.000']
    """
    from hggraph.metrics.road import path_similarity
    from hggraph.metrics.road_routes import Roads

    check_image(image)
    size = (image.shape[1], image.shape[2])
    target, predicted = Roads(target_graph), Roads(predicted_graph)
    score = path_similarity(target_graph, predicted_graph, spacing=spacing, tolerance=tolerance).apls
    step = coarsening(size)
    ground = paper_tone(shrink(image.detach().clamp(0, 1).expand(3, -1, -1), step))
    figure, (left, right), _ = page(size[1] / size[0], 1, 2)
    for axes, roads, other in [(left, target, predicted), (right, predicted, target)]:
        draw_image(axes, ground, size, step, "")
        shares = _draw_roads(axes, roads, other, spacing, tolerance)
        length = f"{roads.lengths.sum():,.0f} px of road" if shares is not None else "no road"
        if axes is left:
            title = f"Target: {length}" + ("" if shares is None else f", {shares:.0%} found".replace("%", " %"))
        else:
            right_share = "" if shares is None else f", {shares:.0%} right".replace("%", " %")
            title = f"Prediction: {length}{right_share}; APLS {score:.3f}"
        axes.set_title(title, fontsize=11.5, loc="left", pad=5)
    return figure


def _draw_roads(axes: Axes, roads: Roads, other: Roads, spacing: float, tolerance: float) -> float | None:
    """Draw roads by whether another graph has them; return the share that it has, or None without roads."""
    from matplotlib.collections import LineCollection

    from hggraph.metrics.road_routes import OnRoads

    if not len(roads.lengths):
        return None
    pieces = np.maximum(np.ceil(roads.lengths / _PIECE), 1).astype(np.int64)
    edge = np.repeat(np.arange(len(pieces)), pieces)
    number = np.concatenate([np.arange(count) for count in pieces])
    width = (roads.lengths / pieces)[edge]
    begin, middle, end = (roads.positions(OnRoads(edge, (number + part) * width)) for part in (0.0, 0.5, 1.0))
    found = other.snap(middle, tolerance).edge >= 0
    for same, color in [(True, _FOUND), (False, _MISSED)]:
        segments = np.stack([begin, end], 1)[found == same][..., ::-1]  # (x, y)
        axes.add_collection(
            LineCollection(list(segments), colors=color, linewidths=2.2, capstyle="round", zorder=0.9), autolim=False
        )
    points = roads.positions(roads.control_points(spacing))[:, ::-1]
    nodes = len(np.unique(roads.ends))  # they come first
    x, y = points[nodes:].T
    axes.scatter(x, y, s=5, c="white", linewidths=0)
    draw_centers(axes, points[:nodes], 4.6)
    return float(width[found].sum() / width.sum())
