"""Region and pixel graphs as networkx graphs."""

from __future__ import annotations

from typing import Any

import networkx as nx
import torch
from torch import Tensor
from torch_geometric.data import Data

from hggraph._check import check_range

__all__ = ["to_networkx"]

AXES = ("t", "y", "x")


def to_networkx(data: Data) -> nx.MultiDiGraph:
    """Return a region graph as a networkx graph whose attributes GraphML can hold.

    PyG's own converter keeps lists as attributes, which GraphML refuses; here each number has its own name.

    Args:
        data: A graph with ``edge_index``; of ``pos``, ``x``, ``area``, ``edge_type`` and ``edge_weight`` those
            it has are taken along. Each has a row for each node or edge, of real numbers or booleans; NaN and
            infinity are kept.

    Returns:
        A directed multigraph, source to target. Nodes carry ``y``, ``x`` (pixels; ``t`` before them for video),
        ``area`` (pixels) and ``feature_0``, ``feature_1``, ...; edges ``edge_type`` and ``edge_weight``. Where a row
        has several numbers they are ``area_0``, ``area_1``, ...; of features those of the flattened row. An empty graph
        gives an empty graph.

    Raises:
        TypeError: if one of these is no dense tensor of real numbers, or `edge_index` holds no integers.
        ValueError: if a shape does not fit or an index is out of range. Both name the attribute.

    Example:
        >>> import torch
        >>> to_networkx(Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2)).number_of_edges()
        1
    """
    _check(data, "edge_index")
    if data.edge_index.dim() != 2 or len(data.edge_index) != 2:
        raise ValueError(f"`data.edge_index` must have shape (2, E), got {tuple(data.edge_index.shape)}.")
    nodes: list[dict[str, Any]] = [{} for _ in range(data.num_nodes or 0)]
    check_range("data.edge_index", data.edge_index, len(nodes))
    _add(nodes, data, "pos", "pos", AXES)
    _add(nodes, data, "x", "feature", None)
    _add(nodes, data, "area", "area", ("area",))
    edges: list[dict[str, Any]] = [{} for _ in range(data.edge_index.shape[1])]
    for key in ("edge_type", "edge_weight"):
        _add(edges, data, key, key, (key,))
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(enumerate(nodes))
    graph.add_edges_from(zip(*data.edge_index.tolist(), edges, strict=True))
    return graph


def _add(items: list[dict[str, Any]], data: Data, key: str, name: str, names: tuple[str, ...] | None) -> None:
    """Give each item its row of an attribute: by the last of `names` where there are enough, or numbered."""
    if data.get(key) is None:
        return
    values = _check(data, key)
    if values.dim() == 0 or len(values) != len(items):
        raise ValueError(f"`data.{key}` must have {len(items)} rows, got shape {tuple(values.shape)}.")
    columns = values[0].numel() if items else 0
    if names is None or columns > len(names) or columns == 0:
        names = tuple(f"{name}_{i}" for i in range(columns))
    for item, row in zip(items, values.reshape(len(items), columns).tolist(), strict=True):
        item.update(zip(names[-columns:], row, strict=True) if columns else ())


def _check(data: Data, key: str) -> Tensor:
    value = data.get(key)
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_meta:
        got = (
            type(value).__name__ if not isinstance(value, Tensor) else f"{value.dtype}, {value.layout}, {value.device}"
        )
        raise TypeError(f"`data.{key}` must be a dense tensor of real numbers, got {got}.")
    return value
