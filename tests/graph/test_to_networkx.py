"""Graphs as networkx graphs, and through GraphML."""

import networkx as nx
import pytest
import torch
from torch_geometric.data import Data

from hggraph import Stencil, grid_graph, region_graph
from hggraph.cluster import SoftSLIC
from hggraph.graph import to_networkx


def small_graph():
    """Return three nodes and four edges, two of them parallel."""
    return Data(
        x=torch.tensor([[0.5, 2.0], [-1.0, 1e-30], [3.0, 4.0]], requires_grad=True),
        pos=torch.tensor([[0.0, 1.5], [2.0, 3.0], [4.0, 5.0]]),
        area=torch.tensor([10.0, 20.5, 1.0]),
        edge_index=torch.tensor([[0, 0, 1, 2], [1, 1, 0, 2]]),
        edge_type=torch.tensor([3, 5, 4, 4]),
        edge_weight=torch.tensor([0.25, 2.0, 1e8, 1.0]),
    )


NODES = {
    0: {"y": 0.0, "x": 1.5, "feature_0": 0.5, "feature_1": 2.0, "area": 10.0},
    1: {"y": 2.0, "x": 3.0, "feature_0": -1.0, "feature_1": 1e-30, "area": 20.5},
    2: {"y": 4.0, "x": 5.0, "feature_0": 3.0, "feature_1": 4.0, "area": 1.0},
}
EDGES = [
    (0, 1, {"edge_type": 3, "edge_weight": 0.25}),
    (0, 1, {"edge_type": 5, "edge_weight": 2.0}),
    (1, 0, {"edge_type": 4, "edge_weight": 1e8}),
    (2, 2, {"edge_type": 4, "edge_weight": 1.0}),
]


def sorted_edges(edges):
    return sorted(edges, key=lambda edge: (edge[0], edge[1], edge[2]["edge_type"]))


def rounded(attributes):  # float32 numbers, exactly, as Python's float
    return {key: pytest.approx(value, rel=1e-7) for key, value in attributes.items()}


def test_attributes():
    graph = to_networkx(small_graph())
    assert isinstance(graph, nx.MultiDiGraph)
    assert dict(graph.nodes(data=True)) == {n: rounded(values) for n, values in NODES.items()}
    assert sorted_edges(graph.edges(data=True)) == EDGES
    for _, attributes in graph.nodes(data=True):
        assert all(type(value) is float for value in attributes.values())
    for _, _, attributes in graph.edges(data=True):
        assert type(attributes["edge_type"]) is int


def test_graphml(tmp_path):
    """What is read again is what was written, with node names as text, as GraphML has them."""
    nx.write_graphml(to_networkx(small_graph()), tmp_path / "graph.graphml")
    graph = nx.read_graphml(tmp_path / "graph.graphml", node_type=int, force_multigraph=True)
    assert isinstance(graph, nx.MultiDiGraph)
    assert dict(graph.nodes(data=True)) == {n: rounded(values) for n, values in NODES.items()}
    assert sorted_edges(graph.edges(data=True)) == EDGES


@pytest.mark.parametrize("num_nodes", [0, 3])
def test_empty_graph(num_nodes, tmp_path):
    data = Data(edge_index=torch.empty(2, 0, dtype=torch.long), num_nodes=num_nodes)
    graph = to_networkx(data)
    nx.write_graphml(graph, tmp_path / "graph.graphml")
    for read in (graph, nx.read_graphml(tmp_path / "graph.graphml")):
        assert read.number_of_nodes() == num_nodes
        assert read.number_of_edges() == 0


@pytest.mark.parametrize("missing", ["x", "pos", "area", "edge_type", "edge_weight"])
def test_attributes_are_optional(missing):
    data = small_graph()
    del data[missing]
    graph = to_networkx(data)
    gone = {
        "x": ("feature_0", "feature_1"),
        "pos": ("y", "x"),
    }.get(missing, (missing,))
    nodes = dict(graph.nodes(data=True))
    for n, values in NODES.items():
        assert nodes[n] == rounded({key: v for key, v in values.items() if key not in gone})
    for _, _, attributes in graph.edges(data=True):
        assert missing not in attributes
        assert len(attributes) == 2 - (missing in ("edge_type", "edge_weight"))


def test_grid_graphs():
    """Video has its time first; a pixel graph has types and no weights."""
    graph = to_networkx(grid_graph((2, 1, 3), Stencil.square(3, ndim=3)))
    assert graph.nodes[5] == {"t": 1.0, "y": 0.0, "x": 2.0}
    assert graph.number_of_edges(3, 4) == graph.number_of_edges(0, 4) == 1
    assert graph.edges[0, 4, 0] == {"edge_type": Stencil.square(3, ndim=3).offsets.index((-1, 0, -1))}


def test_region_graph(tmp_path):
    """The converted graph has the tensors' numbers, of a batch too."""
    batch = region_graph(torch.rand(2, 4, 9, 11), clusterer=SoftSLIC(num_regions=7).eval())
    graph = to_networkx(batch)
    nx.write_graphml(graph, tmp_path / "graph.graphml")
    graph = nx.read_graphml(tmp_path / "graph.graphml", node_type=int, force_multigraph=True)
    assert graph.number_of_nodes() == 14
    assert graph.number_of_edges() == batch.edge_index.shape[1]
    for node, attributes in graph.nodes(data=True):
        assert [attributes["y"], attributes["x"]] == batch.pos[node].tolist()
        assert [attributes[f"feature_{c}"] for c in range(4)] == batch.x[node].tolist()
        assert attributes["area"] == batch.area[node].item()
    written = sorted(
        zip(
            *batch.edge_index.tolist(),
            batch.edge_type.tolist(),
            batch.edge_weight.tolist(),
            strict=True,
        )
    )
    edges = graph.edges(data=True)
    assert written == sorted((s, t, a["edge_type"], a["edge_weight"]) for s, t, a in edges)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"edge_weight": torch.rand(4, 1)}, ["edge_weight"]),
        ({"edge_weight": torch.rand(4, 2)}, ["edge_weight_0", "edge_weight_1"]),
        ({"edge_weight": torch.rand(4, 2, 2)}, [f"edge_weight_{i}" for i in range(4)]),
        ({"edge_type": torch.tensor([[3], [5], [4], [255]], dtype=torch.uint8)}, ["edge_type"]),
        ({"edge_weight": torch.tensor([True, False, True, True])}, ["edge_weight"]),
        ({"edge_weight": torch.tensor([1.5, torch.nan, torch.inf, -torch.inf]).half()}, ["edge_weight"]),
        ({"edge_weight": torch.rand(4).bfloat16()}, ["edge_weight"]),
        ({"edge_weight": torch.empty(4, 0)}, []),
        ({"edge_weight": None, "area": None}, []),
    ],
)
def test_attributes_of_other_shapes_and_dtypes(values, names, tmp_path):
    """As PyG layers take them; through GraphML and back, each number under a name of its own."""
    data = small_graph()
    del data.edge_type, data.edge_weight
    for name, value in values.items():
        data[name] = value
    nx.write_graphml(to_networkx(data), tmp_path / "graph.graphml")
    edges = nx.read_graphml(tmp_path / "graph.graphml", node_type=int, force_multigraph=True).edges(data=True)
    assert all(sorted(attributes) == names for _, _, attributes in edges)
    rows = torch.tensor([[float(attributes[name]) for name in names] for _, _, attributes in edges])
    expected = [value for key, value in values.items() if key.startswith("edge") and value is not None]
    for value in expected:
        torch.testing.assert_close(rows.view(value.shape), value.float(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("edge_weight", torch.rand(4, dtype=torch.complex64), TypeError),
        ("edge_weight", [1.0, 2.0, 3.0, 4.0], TypeError),
        ("edge_weight", "heavy", TypeError),
        ("edge_weight", torch.rand(4).to_sparse(), TypeError),
        ("edge_weight", torch.rand(4, device="meta"), TypeError),
        ("edge_weight", torch.rand(3), ValueError),
        ("edge_type", torch.tensor(1), ValueError),
        ("area", torch.rand(2), ValueError),
        ("pos", torch.rand(2, 2), ValueError),
        ("edge_index", torch.tensor([[0.0], [1.0]]), TypeError),
        ("edge_index", torch.tensor([0, 1]), ValueError),
        ("edge_index", torch.tensor([[0], [7]]), ValueError),
        ("edge_index", torch.tensor([[0], [-1]]), ValueError),
        ("edge_index", None, TypeError),
    ],
)
def test_attributes_that_cannot_be_written_are_named(name, value, error):
    data = small_graph()
    data[name] = value
    with pytest.raises(error, match=rf"`data\.{name}` must "):
        to_networkx(data)
