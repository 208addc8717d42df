"""Region and pixel graphs as networkx graphs."""

from __future__ import annotations

import networkx as nx
from torch_geometric.data import Data

__all__ = ["to_networkx"]


def to_networkx(data: Data) -> nx.MultiDiGraph:
    """Return a region graph as a networkx graph whose attributes GraphML can hold.

    PyG's own converter keeps lists as attributes, which GraphML refuses; here each number has its own name.

    Args:
        data: A graph with ``edge_index``; of ``pos``, ``x``, ``area``, ``edge_type`` and ``edge_weight`` those
            it has are taken along.

    Returns:
        A directed multigraph, source to target. Nodes carry ``y``, ``x`` (pixels; ``t`` before them for video),
        ``area`` (pixels) and ``feature_0``, ``feature_1``, ...; edges ``edge_type`` and ``edge_weight``. An
        empty graph gives an empty graph.

    Example:
        >>> import torch
        >>> to_networkx(Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2)).number_of_edges()
        1
    """
    graph = nx.MultiDiGraph()
    nodes: list[dict[str, float]] = [{} for _ in range(data.num_nodes or 0)]
    if data.pos is not None:
        for node, row in zip(nodes, data.pos.tolist(), strict=True):
            node.update(zip(("t", "y", "x")[-len(row) :], row, strict=True))
    if data.x is not None:
        for node, row in zip(nodes, data.x.flatten(1).tolist(), strict=True):
            node.update({f"feature_{i}": value for i, value in enumerate(row)})
    if "area" in data:
        for node, value in zip(nodes, data.area.tolist(), strict=True):
            node["area"] = value
    graph.add_nodes_from(enumerate(nodes))

    sources, targets = data.edge_index.tolist()
    edges: list[dict[str, float]] = [{} for _ in sources]
    for key in ("edge_type", "edge_weight"):
        if key in data:
            for edge, value in zip(edges, data[key].tolist(), strict=True):
                edge[key] = value
    graph.add_edges_from(zip(sources, targets, edges, strict=True))
    return graph
