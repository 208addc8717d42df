"""How well a road network is found: average path length similarity."""

from __future__ import annotations

from typing import NamedTuple

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from hggraph._check import check_ndim, check_positive
from hggraph.data.road_graph import mask_to_graph
from hggraph.metrics._exact import ExactMetric, fixed_mean, to_fixed
from hggraph.metrics._inputs import check_labels, check_scores, check_target
from hggraph.metrics.road_routes import OnRoads, Roads

__all__ = ["APLS", "PathSimilarity", "path_similarity"]

_ROUNDING = 1e-9  # the same way cut at other points is as long; shorter ones are none


class PathSimilarity(NamedTuple):
    """The similarity of two road graphs: both directions and their harmonic mean, each in [0, 1]."""

    apls: float
    target_to_prediction: float
    prediction_to_target: float


def path_similarity(
    target: nx.Graph,
    prediction: nx.Graph,
    *,
    spacing: float = 50.0,
    tolerance: float = 4.0,
    shortest: float = 10.0,
    max_points: int = 1000,
) -> PathSimilarity:
    r"""Return how alike the shortest ways on two road graphs are, APLS.

    Van Etten, Lindenbaum and Bacastow, "SpaceNet: a remote sensing dataset and challenge series", 2018. In one
    direction, from a graph G to a graph G':

    1. **Control points of G:** its ends and junctions; on an edge of length l, ``ceil(l / spacing) - 1`` points at
       equal distances, and at least its middle from ``0.75 spacing`` on. (The authors' program can leave straight edges
       without points between; here every edge has them.)
    2. **Snapping:** each control point a has its a' at the nearest point of the edges of G', if that is at most
       `tolerance` away; otherwise it has none. Its place on G is found in the same way: where edges of G cross without
       a junction, the first one's counts on both graphs, and identical graphs score 1.
    3. **Routes:** all pairs (a, b) that a way on G connects whose length L(a, b) is at least `shortest`. Pairs without
       a way on G do not count.
    4. **Score:**

       .. math::
           1 - \operatorname{mean} \min\left(1, \frac{|L(a, b) - L'(a', b')|}{L(a, b)}\right)

       where a route that is missing on G', for want of a', b' or a way between them, counts 1.

    APLS is the harmonic mean of the scores of both directions, 0 if one is 0. A graph without a route scores 0 in its
    direction. If neither has a route, all is 1: the images agree that there is no road.

    Args:
        target: The true roads, an undirected networkx graph with ``pos`` = (y, x) of nodes and, if they are not
            straight, ``points`` ``(n, 2)`` of edges, as `hggraph.data.mask_to_graph` makes it.
        prediction: The roads found.
        spacing: Distance of control points, in the unit of the positions. The published values of this and the next
            two are in metres.
        tolerance: Largest distance for snapping.
        shortest: Length of the shortest routes that count.
        max_points: If a graph has more control points, so many of them, evenly chosen in their order, stand for all.

    Returns:
        A named tuple: ``apls``, ``target_to_prediction`` (roads that are missing or interrupted lower it) and
        ``prediction_to_target`` (roads that are not there do).

    Raises:
        ImportError: if scipy, which scikit-image brings, is not installed.
        TypeError: if a graph is directed or none.
        ValueError: if a node has no position, the points of an edge do not fit its nodes, `spacing` is not positive or
            another number negative.

    Note:
        O(n (E + n) log n) for n control points. Deterministic.

    Example:
        >>> target = nx.Graph([("a", "b"), ("b", "c")])
        >>> nx.set_node_attributes(target, {"a": (0, 0), "b": (0, 40), "c": (30, 40)}, "pos")
        >>> path_similarity(target, target).apls
        1.0
        >>> prediction = nx.Graph(target.subgraph(["a", "b"]))  # of 10 routes over 4 points 3 are found
        >>> [round(score, 3) for score in path_similarity(target, prediction, spacing=40)]
        [0.462, 0.3, 1.0]
    """
    if not (spacing > 0 and tolerance >= 0 and shortest >= 0):
        raise ValueError(
            f"`spacing` must be positive and `tolerance` and `shortest` at least 0, got {spacing}, {tolerance} and "
            f"{shortest}."
        )
    check_positive("max_points", max_points, 2)
    graphs = Roads(target), Roads(prediction)
    there = _one_way(*graphs, spacing, tolerance, shortest, max_points)
    back = _one_way(*graphs[::-1], spacing, tolerance, shortest, max_points)
    if there is None and back is None:
        return PathSimilarity(1.0, 1.0, 1.0)
    there, back = there or 0.0, back or 0.0
    return PathSimilarity(2 * there * back / (there + back) if there and back else 0.0, there, back)


class APLS(ExactMetric):
    """Average path length similarity of predicted road masks, the mean over images.

    Masks become graphs by `hggraph.data.mask_to_graph`, and `path_similarity` compares them; there the rules stand.

    Args:
        pixel_size: Side of a pixel, in the unit of the next three: 0.5 for DeepGlobe's 50 cm if they are in metres, as
            published; 1 if they are in pixels.
        spacing: As `path_similarity`.
        tolerance: As `path_similarity`.
        shortest: As `path_similarity`.
        spur: As `mask_to_graph`, in pixels.
        smooth: As `mask_to_graph`, in pixels.
        threshold: Share of the softmax above which a pixel is road, if predictions are logits.
        ignore_index: Label of pixels that are no road in either mask.

    Shapes:
        - **prediction:** logits ``(B, 2, H, W)``, or ``(B, 1, H, W)``, x standing for 0 and x; or labels ``(B, H, W)``,
          bool or integers 0 and 1
        - **target:** labels ``(B, H, W)``, bool or integers 0 and 1
        - **output:** a dict of float64 in [0, 1]: ``"apls"``, ``"apls_target_to_prediction"`` and
          ``"apls_prediction_to_target"``, each a mean over images. NaN without data

    Raises:
        ImportError: in `update`, if scikit-image is not installed.
        TypeError: in `update`, if `target` is not of integers.
        ValueError: in `update`, if shapes disagree, a label is neither 0, 1 nor `ignore_index`, or a logit is NaN.

    Note:
        Runs on the CPU, image by image. Each image's scores are added with a precision of 1e-12, so that neither the
        order of the data nor the number of processes changes a bit.

    Example:
        >>> target = torch.zeros(1, 64, 64, dtype=torch.long)
        >>> target[:, 30:35] = 1
        >>> broken = target.clone()
        >>> broken[:, :, 40:] = 0
        >>> metric = APLS(spacing=10)
        >>> metric.update(target, target)
        >>> metric.compute()["apls"]
        tensor(1., dtype=torch.float64)
        >>> metric.update(broken, target)
        >>> metric.compute()["apls"] < 0.9
        tensor(True)
    """

    total: Tensor
    images: Tensor

    def __init__(
        self,
        *,
        pixel_size: float = 1.0,
        spacing: float = 50.0,
        tolerance: float = 4.0,
        shortest: float = 10.0,
        spur: float = 10.0,
        smooth: float = 2.0,
        threshold: float = 0.5,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not pixel_size > 0 or not 0 < threshold < 1 or ignore_index in (0, 1):
            raise ValueError(
                f"`pixel_size` must be positive, `threshold` between 0 and 1 and `ignore_index` neither 0 nor 1, got "
                f"{pixel_size}, {threshold} and {ignore_index}."
            )
        self.spacing, self.tolerance = spacing / pixel_size, tolerance / pixel_size
        self.shortest = shortest / pixel_size
        self.spur, self.smooth = spur, smooth
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.add_counts("total", len(PathSimilarity._fields))
        self.add_counts("images")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Compare a batch; see the class for shapes."""
        check_ndim("target", target, 3, shape="(B, H, W)")
        counted = check_target(target, 2, self.ignore_index)
        found = self._road(prediction, target, counted)
        scores = [
            path_similarity(
                *(mask_to_graph(mask, spur=self.spur, smooth=self.smooth) for mask in (truth, road)),
                spacing=self.spacing,
                tolerance=self.tolerance,
                shortest=self.shortest,
            )
            for road, truth in zip(found, (target == 1) & counted, strict=True)
        ]
        if scores:
            self.total += to_fixed(torch.tensor(scores, dtype=torch.float64)).sum(0).to(self.total.device)
        self.images += len(scores)

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers that the class lists."""
        both, there, back = fixed_mean(self.total, self.images)
        return {"apls": both, "apls_target_to_prediction": there, "apls_prediction_to_target": back}

    def _road(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Return where roads are predicted, bool ``(B, H, W)``."""
        if isinstance(prediction, Tensor) and not prediction.is_floating_point():
            if prediction.shape == target.shape:
                check_labels("prediction", torch.where(counted, prediction, 0), 2)
                return (prediction == 1) & counted
        else:
            logits = check_scores("prediction", prediction, "(B, 2, H, W)").float()
            if logits.dim() == 4 and logits.shape[1] in (1, 2) and logits[:, 0].shape == target.shape:
                road = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1]
                return (road > self.threshold) & counted
        raise ValueError(
            f"`prediction` must be logits (B, 2, H, W) or (B, 1, H, W) or labels (B, H, W) for a target (B, H, W) = "
            f"{tuple(target.shape)}, got {tuple(prediction.shape)}."
        )


def _one_way(
    source: Roads, other: Roads, spacing: float, tolerance: float, shortest: float, max_points: int
) -> float | None:
    """Return the score of the routes of `source` on `other`, or None if there is no route."""
    points = source.control_points(spacing)
    if len(points.edge) > max_points:
        chosen = np.linspace(0, len(points.edge) - 1, max_points).round().astype(np.int64)
        points = OnRoads(points.edge[chosen], points.along[chosen])
    places = source.positions(points)
    points, matched = source.snap(places, np.inf), other.snap(places, tolerance)
    loss, routes, row = 0.0, 0, 0
    for own, found in zip(source.distances(points), other.distances(matched), strict=True):
        later = np.arange(len(points.edge)) > np.arange(row, row + len(own))[:, None]  # each pair once
        route = np.isfinite(own) & (own >= max(shortest, _ROUNDING)) & later
        difference = np.abs(own[route] - found[route]) / own[route]
        loss += float(np.minimum(np.where(difference < _ROUNDING, 0, difference), 1).sum())
        routes += len(difference)
        row += len(own)
    return 1 - loss / routes if routes else None
