"""Points on road graphs and the shortest ways between them: what APLS is computed from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

__all__ = ["OnRoads", "Roads"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_CHUNK = 2**22  # numbers in a temporary array
_ROUNDING = 1e-9  # distances that differ by less are equal


@dataclass(frozen=True)
class OnRoads:
    """Points on the edges of road graphs.

    Args:
        edge: Number of the edge each lies on, ``(N,)``; -1 for a point that lies on none.
        along: Way from the edge's beginning to it, ``(N,)``, in pixels.
    """

    edge: Ints
    along: Floats


class Roads:
    """A road graph as arrays: where its edges lie and how long they are.

    Args:
        graph: An undirected networkx graph, also with parallel edges and loops. Nodes have ``pos`` = (y, x); edges may
            have ``points`` ``(n, 2)``, their (y, x) from one node to the other, otherwise they are straight. An edge of
            no length is left out, and nodes without edges.

    Raises:
        TypeError: if `graph` is directed or no networkx graph.
        ValueError: if a node has no position, or an edge does not begin and end at its nodes.

    Example:
        >>> graph = nx.Graph([("a", "b")])
        >>> graph.nodes["a"]["pos"], graph.nodes["b"]["pos"] = (0, 0), (0, 100)
        >>> roads = Roads(graph)
        >>> points = roads.control_points(50)
        >>> roads.positions(points).tolist()
        [[0.0, 0.0], [0.0, 100.0], [0.0, 50.0]]
        >>> next(roads.distances(points)).tolist()
        [[0.0, 100.0, 50.0], [100.0, 0.0, 50.0], [50.0, 50.0, 0.0]]
    """

    def __init__(self, graph: nx.Graph) -> None:
        if not isinstance(graph, nx.Graph) or graph.is_directed():
            raise TypeError(f"A road graph must be an undirected networkx graph, got {type(graph).__name__}.")
        place = {node: _position(node, data) for node, data in graph.nodes(data=True)}
        number = {node: index for index, node in enumerate(place)}
        ends, lines = [], []
        for start, stop, points in graph.edges(data="points"):
            line = _line(place[start], place[stop], points, (start, stop))
            if len(line) > 1:
                ends.append((number[start], number[stop]))
                lines.append(line)
        self.num_nodes = len(place)
        self.ends = np.array(ends, dtype=np.int64).reshape(-1, 2)
        self.lines = lines
        steps = [np.hypot(*np.diff(line, axis=0).T) for line in lines]
        self.reach = [np.concatenate([[0.0], np.cumsum(step)]) for step in steps]  # at each point of a line
        self.lengths = np.array([reach[-1] for reach in self.reach], dtype=np.float64)
        self._edge_of = np.repeat(np.arange(len(lines)), [len(line) - 1 for line in lines]).astype(np.int64)
        self._start = np.concatenate([line[:-1] for line in lines]) if lines else np.empty((0, 2))
        self._step = np.concatenate([np.diff(line, axis=0) for line in lines]) if lines else np.empty((0, 2))
        self._before = np.concatenate([reach[:-1] for reach in self.reach]) if lines else np.empty(0)

    def control_points(self, spacing: float) -> OnRoads:
        """Return the ends and junctions, and points between them.

        An edge of length l gets ``ceil(l / spacing) - 1`` points at equal distances, and one from 0.75 of `spacing` on
        at least the one in its middle.
        """
        edge, along, have = [], [], set()
        for e, nodes in enumerate(self.ends.tolist()):
            for node, way in zip(nodes, (0.0, self.lengths[e]), strict=True):
                if node not in have:
                    have.add(node)
                    edge.append(e)
                    along.append(way)
        for e, length in enumerate(self.lengths.tolist()):
            pieces = max(int(np.ceil(length / spacing)), 2) if length >= 0.75 * spacing else 1
            edge += [e] * (pieces - 1)
            along += [length * k / pieces for k in range(1, pieces)]
        return OnRoads(np.array(edge, dtype=np.int64), np.array(along, dtype=np.float64))

    def positions(self, points: OnRoads) -> Floats:
        """Return the (y, x) of points on these roads, ``(N, 2)``."""
        found = np.empty((len(points.edge), 2))
        for index, (e, way) in enumerate(zip(points.edge.tolist(), points.along.tolist(), strict=True)):
            found[index] = [np.interp(way, self.reach[e], self.lines[e][:, axis]) for axis in (0, 1)]
        return found

    def snap(self, positions: Floats, tolerance: float) -> OnRoads:
        """Return the points of these roads that are nearest to the given (y, x) ``(N, 2)``.

        Of equally near ones the first edge's counts; one farther away than `tolerance` lies on edge -1.
        """
        edge = np.full(len(positions), -1, dtype=np.int64)
        along = np.zeros(len(positions))
        if not len(self._start):
            return OnRoads(edge, along)
        rows = max(_CHUNK // len(self._start), 1)
        squared = (self._step**2).sum(1)
        for first in range(0, len(positions), rows):
            part = slice(first, first + rows)
            away = positions[part, None] - self._start
            share = ((away * self._step).sum(2) / squared).clip(0, 1)
            distance = np.sqrt(((away - share[..., None] * self._step) ** 2).sum(2))
            best = (distance <= distance.min(1, keepdims=True) + _ROUNDING).argmax(1)
            here = np.arange(len(best))
            near = distance[here, best] <= tolerance + _ROUNDING
            edge[part] = np.where(near, self._edge_of[best], -1)
            along[part] = self._before[best] + share[here, best] * np.sqrt(squared[best])
        return OnRoads(edge, along)

    def distances(self, points: OnRoads, block: int = 256) -> Iterator[Floats]:
        """Yield the lengths of the shortest ways between points on these roads, some rows at a time.

        Args:
            points: N points on these roads.
            block: M, the number of points from which the ways of one array begin.

        Yields:
            ``(M, N)``, the last one with fewer rows; infinite where there is no way, and from and to points that lie on
            no edge.
        """
        from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
        from scipy.sparse.csgraph import dijkstra  # type: ignore[import-untyped]

        vertex, (first, second, length), count = self._split(points)
        matrix = csr_matrix((length, (first, second)), shape=(count, count))
        on = vertex >= 0
        for row in range(0, len(vertex), block):
            starts = vertex[row : row + block]
            found = np.full((len(starts), len(vertex)), np.inf)
            if (starts >= 0).any():
                ways = dijkstra(matrix, directed=False, indices=starts[starts >= 0])
                found[np.ix_(starts >= 0, on)] = ways[:, vertex[on]]
            yield found

    def _split(self, points: OnRoads) -> tuple[Ints, tuple[Ints, Ints, Floats], int]:
        """Return each point's vertex (-1: on no edge), the edges cut at the points, and the number of vertices."""
        vertex = np.full(len(points.edge), -1, dtype=np.int64)
        pieces: dict[tuple[int, int], float] = {}
        count = self.num_nodes
        order = np.lexsort((points.along, points.edge))
        bounds = np.searchsorted(points.edge[order], np.arange(len(self.lines) + 1))
        for e, (start, stop) in enumerate(self.ends.tolist()):
            last, way = start, 0.0
            for index in order[bounds[e] : bounds[e + 1]].tolist():
                along = min(float(points.along[index]), float(self.lengths[e]))
                if along > way:
                    here = stop if along == self.lengths[e] else count
                    count += here == count
                    _keep_shortest(pieces, last, here, along - way)
                    last, way = here, along
                vertex[index] = last
            if way < self.lengths[e]:
                _keep_shortest(pieces, last, stop, float(self.lengths[e]) - way)
        ends = np.array(list(pieces), dtype=np.int64).reshape(-1, 2)
        return vertex, (ends[:, 0], ends[:, 1], np.array(list(pieces.values()))), count


def _keep_shortest(pieces: dict[tuple[int, int], float], one: int, other: int, length: float) -> None:
    key = (min(one, other), max(one, other))
    pieces[key] = min(length, pieces.get(key, length))


def _position(node: object, data: dict[str, object]) -> Floats:
    place = np.asarray(data.get("pos"), dtype=object)
    if place.shape != (2,):
        raise ValueError(f'Node {node!r} of a road graph must have "pos" = (y, x), got {data.get("pos")!r}.')
    position: Floats = place.astype(np.float64)
    if not np.isfinite(position).all():
        raise ValueError(f"The position of node {node!r} of a road graph must be finite, got {data.get('pos')!r}.")
    return position


def _line(start: Floats, stop: Floats, points: Floats | None, nodes: tuple[object, object]) -> Floats:
    """Return the points of an edge from its first node to its second, without repetitions."""
    if points is None:
        line = np.stack([start, stop])
    else:
        line = np.asarray(points, dtype=np.float64)
        if line.ndim != 2 or line.shape[1] != 2 or len(line) < 2:
            raise ValueError(f'"points" of edge {nodes} must have shape (n, 2), n at least 2, got {line.shape}.')
        if np.abs(line[0] - start).max() + np.abs(line[-1] - stop).max() > 1e-6:
            line = line[::-1]  # undirected graphs name the nodes of an edge in either order
        if np.abs(line[0] - start).max() + np.abs(line[-1] - stop).max() > 1e-6:
            raise ValueError(f'"points" of edge {nodes} must begin and end at its nodes, got {line[[0, -1]].tolist()}.')
    moved = np.concatenate([[True], (np.diff(line, axis=0) != 0).any(1)])
    return line[moved]
