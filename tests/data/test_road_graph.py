"""Road masks to graphs on hand-drawn skeletons, and orientation maps against a literal loop."""

import math
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.data._skeleton import length_of, trace
from hggraph.data.road_graph import mask_to_graph, orientation_map

pytest.importorskip("skimage", reason="needs the extra `road`")


def drawn(text):
    return torch.tensor([[character == "#" for character in line] for line in text.split()])


def shape_of(graph):
    """Nodes by position, and edges by their ends and rounded length."""
    place = nx.get_node_attributes(graph, "pos")
    edges = sorted((place[u], place[v], round(data["length"], 3)) for u, v, data in graph.edges(data=True))
    return sorted(place.values()), edges


def test_a_line_and_a_corner():
    graph = mask_to_graph(drawn("..... .###. ....."), spur=0)
    assert shape_of(graph) == ([(1, 1), (1, 3)], [((1, 1), (1, 3), 2)])
    (points,) = (points for *_, points in graph.edges(data="points"))
    assert points.tolist() == [[1, 1], [1, 3]] and points.dtype == np.float64
    corner = torch.zeros(30, 30, dtype=torch.bool)
    corner[5, 5:26] = corner[5:26, 25] = True
    graph = mask_to_graph(corner)
    assert graph.number_of_edges() == 1  # a corner is no junction
    assert graph.edges[0, 1, 0]["length"] == pytest.approx(40, abs=1)


def test_crossing_and_branch():
    cross = torch.zeros(41, 41, dtype=torch.bool)
    cross[20] = cross[:, 20] = True
    nodes, edges = shape_of(mask_to_graph(cross))
    assert nodes == [(0, 20), (20, 0), (20, 20), (20, 40), (40, 20)]
    assert [length for *_, length in edges] == [20, 20, 20, 20]
    cross[:20, 20] = False
    nodes, edges = shape_of(mask_to_graph(cross))
    assert nodes == [(20, 0), (20, 20), (20, 40), (40, 20)] and len(edges) == 3


def test_rings():
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    radius = ((y - 30) ** 2 + (x - 25) ** 2).float().sqrt()
    ring = (radius - 15).abs() < 2
    graph = mask_to_graph(ring)
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (1, 1)
    ((start, stop, data),) = graph.edges(data=True)
    assert start == stop and data["length"] == pytest.approx(2 * math.pi * 15, rel=0.05)
    assert data["points"][0].tolist() == data["points"][-1].tolist() == list(graph.nodes[0]["pos"])
    ring[28:33, 40:] = True  # a lollipop
    graph = mask_to_graph(ring)
    assert sorted(degree for _, degree in graph.degree()) == [1, 3]
    assert nx.number_of_selfloops(graph) == 1


def test_two_ways_between_two_junctions():
    eye = torch.zeros(40, 80, dtype=torch.bool)
    eye[20, :21] = eye[20, 60:] = eye[10, 20:61] = eye[30, 20:61] = True
    eye[10:31, 20] = eye[10:31, 60] = True
    graph = mask_to_graph(eye)
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (4, 4)
    (double,) = ((u, v) for u, v in set(graph.edges()) if graph.number_of_edges(u, v) == 2)
    assert all(graph.degree(node) == 3 for node in double)


def test_specks_and_hairs_are_pruned():
    mask = torch.zeros(60, 120, dtype=torch.bool)
    mask[30, 5:115] = True
    mask[23:30, 60] = True  # a hair of 7
    mask[45, 50:56] = True  # a speck of 5
    mask[5, 5] = True  # a pixel
    assert mask_to_graph(mask, spur=0).number_of_edges() == 4
    graph = mask_to_graph(mask, spur=8)
    assert shape_of(graph) == ([(30, 5), (30, 114)], [((30, 5), (30, 114), 109)])
    mask[15:30, 60] = True  # a street of 15
    assert mask_to_graph(mask, spur=8).number_of_edges() == 3
    loop = torch.zeros(40, 60, dtype=torch.bool)
    loop[20, 5:50] = True
    loop[18:23, 30] = loop[18:23, 32] = loop[18, 30:33] = loop[22, 30:33] = True  # two little loops on a street
    assert mask_to_graph(loop, spur=0).number_of_edges() > 2
    assert shape_of(mask_to_graph(loop))[0] == [(20, 5), (20, 49)]  # of two ways around a hole one is enough
    assert mask_to_graph(loop).number_of_edges() == 1


def test_blocks_of_four_pixels_are_no_rings():
    block = np.zeros((9, 12), bool)
    block[3:5, 3:5] = True
    assert not trace(block).edges
    block[3, :4] = block[4, 4:] = True  # a line through it
    lines = trace(block)
    lines.prune(0)
    ((_, _, points),) = lines.edges.values()
    assert points[[0, -1]].tolist() in ([[3, 0], [4, 11]], [[4, 11], [3, 0]])
    assert length_of(points) == pytest.approx(11, abs=0.5)


def test_the_shortest_hair_goes_first():
    fork = torch.zeros(60, 60, dtype=torch.bool)
    fork[30, :41] = True
    for step in range(1, 7):
        fork[30 - step, 40 + step] = True
    for step in range(1, 5):
        fork[30 + step, 40 + step] = True
    nodes, edges = shape_of(mask_to_graph(fork, smooth=0))
    assert nodes == [(24, 46), (30, 0)]  # the longer tine has become the end of the road
    assert [length for *_, length in edges] == [round(40 + 6 * math.sqrt(2), 3)]


def test_smoothing():
    slanted = torch.zeros(80, 200, dtype=torch.bool)
    x = torch.arange(5, 195)
    slanted[(x * 0.35).round().long() + 3, x] = True
    rough, straight = (mask_to_graph(slanted, smooth=smooth) for smooth in (0, 2))
    length = [graph.edges[0, 1, 0]["length"] for graph in (rough, straight)]
    true = 189 * math.hypot(1, 0.35)
    assert length[1] == pytest.approx(true, abs=1) and length[0] > 1.02 * true
    assert len(straight.edges[0, 1, 0]["points"]) == 2


def links(skeleton):
    """The pixel graph, by the rule as it stands in the documentation."""
    on = {tuple(at) for at in np.argwhere(skeleton).tolist()}
    graph = nx.Graph()
    graph.add_nodes_from(on)
    for y, x in on:
        graph.add_edges_from(((y, x), at) for at in [(y, x + 1), (y + 1, x)] if at in on)
        for side in (-1, 1):
            if (y + 1, x + side) in on and not {(y, x + side), (y + 1, x)} & on:
                graph.add_edge((y, x), (y + 1, x + side))
    return graph


@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 25), st.sampled_from([0.2, 0.5, 0.9]), st.booleans())
@settings(max_examples=60)
def test_tracing_keeps_every_line(seed, height, width, density, thin):
    from skimage.morphology import skeletonize

    skeleton = np.random.default_rng(seed).random((height, width)) < density
    if thin:
        skeleton = skeletonize(skeleton)
    pixels, lines = links(skeleton), trace(skeleton)
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(len(lines.positions)))
    graph.add_edges_from((start, stop) for start, stop, _ in lines.edges.values())
    parts = [part for part in nx.connected_components(pixels) if len(part) > 1]
    assert nx.number_connected_components(graph) == len(parts) if len(graph) else not parts
    for start, stop, points in lines.edges.values():
        assert points[0].tolist() == lines.positions[start].tolist()
        assert points[-1].tolist() == lines.positions[stop].tolist()
        between = [tuple(at) for at in points[1:-1].astype(int).tolist()]
        assert all(pixels.has_edge(*pair) for pair in pairwise(between))
        assert all(pixels.degree(at) == 2 for at in between)
    passed = [tuple(at) for *_, points in lines.edges.values() for at in points[1:-1].tolist()]
    assert len(passed) == len(set(passed))  # no pixel twice
    ends = [at for at in pixels if pixels.degree(at) == 1]
    assert all(at in {tuple(position) for position in lines.positions} for at in ends)
    blocks = {
        (y + v, x + u)
        for y, x in pixels
        if all((y + v, x + u) in pixels for v in (0, 1) for u in (0, 1))
        for v in (0, 1)
        for u in (0, 1)
    }
    plain = {at for at in pixels if pixels.degree(at) == 2} - blocks
    ring_starts = plain - set(passed)  # a ring's first pixel has become its node
    assert all(at in {tuple(position) for position in lines.positions} for at in ring_starts)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 4.0, 50.0]))
@settings(max_examples=30)
def test_pruning_leaves_nothing_to_prune(seed, spur):
    skeleton = np.random.default_rng(seed).random((20, 20)) < 0.4
    before, after = trace(skeleton), trace(skeleton)
    after.prune(spur)
    for start, stop, points in after.edges.values():
        if length_of(points) < spur:
            assert start != stop and 1 not in (len(after.incident[start]), len(after.incident[stop]))
            beside = [other for *ends, other in after.edges.values() if {*ends} == {start, stop}]
            assert length_of(points) == min(map(length_of, beside))
    for edges in after.incident:
        assert len(edges) != 2 or len(set(edges)) == 1
    total = [sum(length_of(points) for *_, points in lines.edges.values()) for lines in (before, after)]
    assert total[1] <= total[0] + 1e-9 and (spur or total[1] == pytest.approx(total[0]))


def test_order_and_determinism():
    mask = torch.rand(40, 50) < 0.45
    graph = mask_to_graph(mask, spur=2, smooth=0.5)
    place = nx.get_node_attributes(graph, "pos")
    assert list(place) == list(range(len(place))) and list(place.values()) == sorted(place.values())
    for u, v, data in graph.edges(data=True):
        assert u <= v
        assert data["points"][0].tolist() == list(place[u]) and data["points"][-1].tolist() == list(place[v])
        assert data["length"] == pytest.approx(length_of(data["points"]))
    again = mask_to_graph(mask.mT.contiguous().mT.to(torch.uint8), spur=2, smooth=0.5)
    assert list(again.edges(keys=True)) == list(graph.edges(keys=True))
    assert all(
        (data["points"] == again.edges[edge]["points"]).all() for *edge, data in graph.edges(keys=True, data=True)
    )


def literal_map(graph, size, thickness, bins):
    label = torch.full(size, bins)
    for y in range(size[0]):
        for x in range(size[1]):
            best = math.inf
            for *_, points in graph.edges(data="points"):
                line = points.tolist()
                if math.hypot(*line[0]) < math.hypot(*line[-1]):
                    line = line[::-1]
                for a, b in pairwise(line):
                    dy, dx = b[0] - a[0], b[1] - a[1]
                    share = min(max(((y - a[0]) * dy + (x - a[1]) * dx) / (dy * dy + dx * dx), 0), 1)
                    distance = math.hypot(y - a[0] - share * dy, x - a[1] - share * dx)
                    if distance < best - 1e-9 and distance <= thickness + 1e-9:
                        best = distance
                        label[y, x] = int(math.degrees(math.atan2(dy, dx)) % 360 / 360 * bins)
    return label


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_orientation_against_a_literal_loop(seed):
    mask = torch.zeros(40, 48, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        y, x = torch.rand(2, generator=generator) * 40
        dy, dx = torch.rand(2, generator=generator) * 2 - 1
        for step in torch.arange(0, 60, 0.5):
            at = (int(y + step * dy), int(x + step * dx))
            if 0 <= at[0] < 40 and 0 <= at[1] < 48:
                mask[at] = 1
    got = orientation_map(mask, half_thickness=3, spur=3, smooth=1)
    want = literal_map(mask_to_graph(mask, spur=3, smooth=1), (40, 48), 3, 36)
    assert got.dtype == torch.int64
    assert (got != want).float().mean() < 0.005  # pixels as near to one segment as to another
    assert len(got.unique()) > 3


@pytest.mark.parametrize(
    ("start", "stop", "label"),
    [
        ((0, 5), (59, 5), 27),  # up: 270 degrees
        ((5, 0), (5, 59), 18),  # to the left: 180
        ((0, 0), (59, 59), 22),  # up and left: 225
        ((59, 0), (0, 58), 31),  # the lower left end is farther: up and right, -45.5
        ((58, 0), (0, 59), 13),  # the upper right end is: down and left, 134.5
    ],
)
def test_directions(start, stop, label):
    mask = torch.zeros(60, 60, dtype=torch.bool)
    for step in torch.linspace(0, 1, 200):
        at = torch.lerp(torch.tensor(start).float(), torch.tensor(stop).float(), step).round().long()
        mask[at[0], at[1]] = True
    result = orientation_map(mask, half_thickness=2)
    assert result.unique().tolist() == [label, 36]
    assert (result[mask] == label).all()


def test_band_ignored_and_bins():
    mask = torch.zeros(50, 50, dtype=torch.uint8)
    mask[:, 25] = 1
    mask[:10, :10] = 255
    result = orientation_map(mask)
    assert (result[20] != 36).nonzero().flatten().tolist() == list(range(15, 36))  # 10 to either side
    assert (result[:10, :10] == 255).all() and (result == 255).sum() == 100
    assert orientation_map(mask.int(), bins=4, half_thickness=0).unique().tolist() == [3, 4, 255]


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (1, 1), (1, 9), (3, 3)])
def test_nothing_to_find(size):
    for mask in (torch.zeros(size, dtype=torch.bool), torch.full(size, 255, dtype=torch.uint8)):
        graph = mask_to_graph(mask)
        assert isinstance(graph, nx.MultiGraph) and not graph.is_directed() and len(graph) == 0
        assert orientation_map(mask).shape == size
    assert len(mask_to_graph(torch.ones(size, dtype=torch.bool))) in (0, 2)


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match=r"`mask` must have shape \(H, W\), got \(1, 4, 4\)"):
        mask_to_graph(torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="threshold it first"):
        mask_to_graph(torch.zeros(4, 4))
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, got ndarray"):
        mask_to_graph(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"0, 1 \(road\) and 255 \(ignored\) alone, got \[0, 128\]"):
        mask_to_graph(torch.tensor([[0, 128]]))
    with pytest.raises(ValueError, match="`spur` and `smooth` must be at least 0"):
        mask_to_graph(torch.zeros(4, 4, dtype=torch.bool), smooth=-1)
    for option in ({"bins": 255}, {"half_thickness": -1}):
        with pytest.raises(ValueError, match=r"`bins` must be in \[1, 254\]"):
            orientation_map(torch.zeros(4, 4, dtype=torch.bool), **option)
    monkeypatch.setitem(__import__("sys").modules, "skimage.morphology", None)
    with pytest.raises(ImportError, match=r'pip install "hggraph\[road\]"'):
        mask_to_graph(torch.ones(4, 4, dtype=torch.bool))
