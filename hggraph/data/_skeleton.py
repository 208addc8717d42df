"""Lines one pixel wide as a graph: junctions, ends and the lines between them, and pruning of its hairs."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

__all__ = ["Lines", "trace"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass
class Lines:
    """A graph of lines in the plane, with loops and parallel edges."""

    positions: list[Floats] = field(default_factory=list)
    edges: dict[int, tuple[int, int, Floats]] = field(default_factory=dict)  # both ends and the points between them
    incident: list[list[int]] = field(default_factory=list)  # edges of each node, a loop twice
    created: int = 0

    def add_node(self, position: Floats) -> int:
        """Add a node at (y, x) and return its number."""
        self.positions.append(position)
        self.incident.append([])
        return len(self.positions) - 1

    def add_edge(self, start: int, stop: int, points: Floats) -> int:
        """Add an edge along points ``(n, 2)``, its ends included, and return its number."""
        edge = self.created
        self.created += 1
        self.edges[edge] = (start, stop, points)
        self.incident[start].append(edge)
        self.incident[stop].append(edge)
        return edge

    def remove_edge(self, edge: int) -> None:
        """Remove an edge; its nodes stay."""
        start, stop, _ = self.edges.pop(edge)
        self.incident[start].remove(edge)
        self.incident[stop].remove(edge)

    def dissolve(self, node: int) -> None:
        """Join the two edges of a node into one, if it has just two."""
        if len(self.incident[node]) != 2 or len(set(self.incident[node])) != 2:
            return
        first, second = (self._outward(node, edge) for edge in self.incident[node])
        for edge in tuple(self.incident[node]):
            self.remove_edge(edge)
        self.add_edge(first[0], second[0], np.concatenate([first[1][::-1], second[1][1:]]))

    def prune(self, spur: float) -> None:
        """Remove the shortest useless edge under `spur`, as long as there is one: step 6 of `mask_to_graph`."""
        for node in range(len(self.positions)):
            self.dissolve(node)
        queue = [(length_of(points), edge) for edge, (_, _, points) in self.edges.items()]
        heapq.heapify(queue)
        while queue and queue[0][0] < spur:
            _, edge = heapq.heappop(queue)
            if edge not in self.edges:
                continue
            start, stop, _ = self.edges[edge]
            dead_end = min(len(self.incident[start]), len(self.incident[stop])) == 1
            if not (dead_end or start == stop or self._shorter_beside(edge)):
                continue
            self.remove_edge(edge)
            before = self.created
            for node in sorted({start, stop}):
                self.dissolve(node)
            joined = range(before, self.created) & self.edges.keys()
            nodes = {start, stop}.union(*(self.edges[new][:2] for new in joined))
            affected = {other for node in nodes for other in self.incident[node]}
            for other in sorted(affected):
                heapq.heappush(queue, (length_of(self.edges[other][2]), other))

    def _shorter_beside(self, edge: int) -> bool:
        """Say whether another edge joins the same two nodes and is shorter, or as long and older."""
        start, stop, points = self.edges[edge]
        others = set(self.incident[start]) & set(self.incident[stop]) - {edge}
        own = (length_of(points), edge)
        return any((length_of(self.edges[other][2]), other) < own for other in others)

    def _outward(self, node: int, edge: int) -> tuple[int, Floats]:
        """Return the other end of an edge, and its points on the way from a node to there."""
        start, stop, points = self.edges[edge]
        return (stop, points) if start == node else (start, points[::-1])


def length_of(points: Floats) -> float:
    """Return the length of a polyline ``(n, 2)``."""
    return float(np.hypot(*np.diff(points, axis=0).T).sum())


def trace(skeleton: Bools) -> Lines:
    """Return the lines of a skeleton, steps 3 to 5 of `mask_to_graph`.

    Args:
        skeleton: Lines one pixel wide, ``(H, W)``.
    """
    pixels = np.argwhere(skeleton)
    pairs, junction = _links(skeleton, pixels)
    near: list[list[int]] = [[] for _ in pixels]
    for a, b in pairs.tolist():
        near[a].append(b)
        near[b].append(a)
    lines = Lines()
    node_of = _nodes(lines, pixels, pairs, junction, near)
    seen: set[tuple[int, int]] = set()
    passed = np.zeros(len(pixels), dtype=bool)

    def follow(pixel: int) -> None:
        for first in near[pixel]:
            if (pixel, first) in seen or (junction[pixel] and node_of[first] == node_of[pixel]):
                continue
            before, here, between = pixel, first, []
            while node_of[here] < 0:
                between.append(here)
                one, other = near[here]
                before, here = here, (other if one == before else one)
            seen.add((here, before))
            passed[between] = True
            start, stop = node_of[pixel], node_of[here]
            points = [lines.positions[start], *pixels[between].astype(float), lines.positions[stop]]
            lines.add_edge(start, stop, np.stack(points))

    for pixel in [pixel for pixel, node in enumerate(node_of) if node >= 0]:
        follow(pixel)
    for pixel in range(len(pixels)):
        if node_of[pixel] < 0 and not passed[pixel] and near[pixel]:  # on a ring
            node_of[pixel] = lines.add_node(pixels[pixel].astype(float))
            follow(pixel)
    return lines


def _links(skeleton: Bools, pixels: Ints) -> tuple[Ints, Bools]:
    """Return the linked pairs of pixels ``(L, 2)``, and which pixels are part of a junction."""
    number = np.full((skeleton.shape[0] + 2, skeleton.shape[1] + 2), -1, dtype=np.int64)
    number[1:-1, 1:-1][skeleton] = np.arange(len(pixels))
    y, x = pixels.T + 1
    below, right, left = number[y + 1, x], number[y, x + 1], number[y, x - 1]
    lower_right, lower_left = number[y + 1, x + 1], number[y + 1, x - 1]
    to = [
        right,
        below,
        np.where((right < 0) & (below < 0), lower_right, -1),
        np.where((left < 0) & (below < 0), lower_left, -1),
    ]
    here = np.arange(len(pixels))
    pairs = np.concatenate([np.stack([here[other >= 0], other[other >= 0]], 1) for other in to])
    junction = np.bincount(pairs.ravel(), minlength=len(pixels)) > 2
    block = (right >= 0) & (below >= 0) & (lower_right >= 0)
    for corner in (here, right, below, lower_right):
        junction[corner[block]] = True
    return pairs, junction


def _nodes(lines: Lines, pixels: Ints, pairs: Ints, junction: Bools, near: list[list[int]]) -> list[int]:
    """Add the nodes, and return the one that each pixel belongs to, or -1."""
    node_of = [-1] * len(pixels)
    clusters = nx.Graph()
    clusters.add_nodes_from(np.flatnonzero(junction).tolist())
    clusters.add_edges_from(pairs[junction[pairs].all(1)].tolist())
    for cluster in nx.connected_components(clusters):
        node = lines.add_node(pixels[sorted(cluster)].mean(0))
        for pixel in cluster:
            node_of[pixel] = node
    for pixel in range(len(pixels)):
        if len(near[pixel]) == 1 and not junction[pixel]:
            node_of[pixel] = lines.add_node(pixels[pixel].astype(float))
    return node_of
