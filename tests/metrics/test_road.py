"""Average path length similarity against hand-computed graphs, its published properties and a literal rewriting."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.metrics.road import APLS, path_similarity
from hggraph.metrics.road_routes import OnRoads, Roads


def road(*lines):
    """Return a graph of polylines [(y, x), ...]; equal ends are one node."""
    graph, number = nx.MultiGraph(), {}
    for line in lines:
        ends = [number.setdefault(tuple(map(float, at)), len(number)) for at in (line[0], line[-1])]
        graph.add_nodes_from(ends)
        graph.add_edge(*ends, points=np.array(line, dtype=float))
    for at, node in number.items():
        graph.nodes[node]["pos"] = at
    return graph


def literal(target, prediction, spacing, tolerance, shortest):
    """The rule of `path_similarity`, written down step by step with networkx."""

    def steps(graph):
        for edge in graph.edges(keys=True, data="points"):
            yield (*edge[:3], edge[3] if edge[3][0].tolist() == list(graph.nodes[edge[0]]["pos"]) else edge[3][::-1])

    def length(points):
        return sum(math.dist(a, b) for a, b in itertools.pairwise(points))

    def control(graph):
        points = [(graph.nodes[node]["pos"]) for node in graph if graph.degree(node)]
        for *_, line in steps(graph):
            total = length(line)
            pieces = math.ceil(total / spacing)
            if 0.75 * spacing <= total <= spacing:
                pieces = 2
            for k in range(1, pieces):
                left = total * k / pieces
                for a, b in itertools.pairwise(line):
                    if left <= math.dist(a, b):
                        points.append(tuple(a + (b - a) * left / math.dist(a, b)))
                        break
                    left -= math.dist(a, b)
        return points

    def nearest(graph, point):
        best = (math.inf, None)
        for u, v, key, line in steps(graph):
            way = 0.0
            for a, b in itertools.pairwise(line):
                share = min(max(np.dot(point - a, b - a) / np.dot(b - a, b - a), 0), 1)
                distance = math.dist(point, a + share * (b - a))
                if distance < best[0] - 1e-9:
                    best = (distance, (u, v, key, way + share * math.dist(a, b)))
                way += math.dist(a, b)
        return best[1] if best[0] <= tolerance + 1e-9 else None

    def ways(graph, places):
        cut = nx.Graph()
        for u, v, key, line in steps(graph):
            stops = sorted({p[3] for p in places if p is not None and p[:3] == (u, v, key)} | {0.0, length(line)})
            names = [(u, v, key, stop) for stop in stops]
            cut.add_edge(("node", u), names[0], weight=0.0)
            cut.add_edge(("node", v), names[-1], weight=0.0)
            for a, b in itertools.pairwise(names):
                cut.add_edge(a, b, weight=b[3] - a[3])
        return lambda a, b: (
            nx.dijkstra_path_length(cut, a, b) if None not in (a, b) and nx.has_path(cut, a, b) else math.inf
        )

    def one_way(graph, other):
        points = control(graph)
        own_places = [nearest(graph, np.array(point)) for point in points]
        places = [nearest(other, np.array(point)) for point in points]
        own, found = ways(graph, own_places), ways(other, places)
        loss = []
        for a, b in itertools.combinations(range(len(points)), 2):
            expected = own(own_places[a], own_places[b])
            if max(shortest, 1e-9) <= expected < math.inf:
                loss.append(min(1.0, abs(expected - found(places[a], places[b])) / expected))
        return 1 - sum(loss) / len(loss) if loss else None

    there, back = one_way(target, prediction), one_way(prediction, target)
    if there is None and back is None:
        return 1.0, 1.0, 1.0
    there, back = there or 0.0, back or 0.0
    return (2 * there * back / (there + back) if there * back else 0.0), there, back


@st.composite
def networks(draw):
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    nodes = generator.integers(0, 60, (draw(st.integers(2, 6)), 2)).astype(float)
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        a, b = generator.integers(len(nodes), size=2)
        bends = generator.integers(0, 60, (generator.integers(3) + (a == b), 2)).astype(float)
        line = np.concatenate([nodes[[a]], bends, nodes[[b]]])
        line = line[np.concatenate([[True], (np.diff(line, axis=0) != 0).any(1)])]
        if len(line) > 1 and (len(line) > 2 or (line[0] != line[1]).any()):
            lines.append([tuple(at) for at in line])
    jitter = generator.normal(0, 1, (len(lines), 1, 2)) * draw(st.sampled_from([0, 1]))
    kept = [i for i in range(len(lines)) if generator.random() < 0.8]
    return road(*lines), road(*[[tuple(np.add(at, jitter[i, 0])) for at in lines[i]] for i in kept])


@given(networks(), st.sampled_from([15.0, 40.0, 500.0]), st.sampled_from([0.0, 4.0]), st.sampled_from([0.0, 10.0]))
@settings(max_examples=20)
def test_literal_rewriting(graphs, spacing, tolerance, shortest):
    got = path_similarity(*graphs, spacing=spacing, tolerance=tolerance + 0.001, shortest=shortest)
    want = literal(*graphs, spacing, tolerance + 0.001, shortest)
    assert got == pytest.approx(want, abs=1e-6), [list(graph.edges(data="points")) for graph in graphs]


@given(networks())
@settings(max_examples=25)
def test_published_properties(graphs):
    for graph in graphs:
        if graph.size():
            assert path_similarity(graph, graph) == (1, 1, 1)
        place = nx.get_node_attributes(graph, "pos")
        if any(math.dist(place[u], place[v]) >= 10 for u, v in graph.edges()):
            assert path_similarity(graph, nx.MultiGraph()) == path_similarity(nx.Graph(), graph) == (0, 0, 0)
    there, back = path_similarity(*graphs), path_similarity(*graphs[::-1])
    assert there == (back[0], back[2], back[1])
    assert all(0 <= value <= 1 for value in there)
    assert path_similarity(nx.Graph(), nx.MultiGraph()) == (1, 1, 1)


def test_a_detour():
    straight, bent = road([(0, 0), (0, 100)]), road([(0, 0), (37.5, 50), (0, 100)])  # 100 and 125 long
    score = path_similarity(straight, bent, spacing=1000)
    assert score.target_to_prediction == pytest.approx(1 - 25 / 100)
    assert score.prediction_to_target == pytest.approx(1 - 25 / 125)
    assert score.apls == pytest.approx(2 * 0.75 * 0.8 / 1.55)
    long_way = road([(0, 0), (200, 50), (0, 100)])  # more than twice as long: counts 1, not more
    assert path_similarity(straight, long_way, spacing=1000).target_to_prediction == 0


def test_a_gap():
    # control points at 0, 50 and 100; that at 50 has no counterpart, and 0 and 100 no way between them
    target, broken = road([(0, 0), (0, 100)]), road([(0, 0), (0, 40)], [(0, 60), (0, 100)])
    assert path_similarity(target, broken) == (0, 0, 1)
    # one of the two ends is lost: 1 of 3 routes is left
    assert path_similarity(target, road([(0, 0), (0, 50)])) == pytest.approx((0.5, 1 / 3, 1))


def test_missing_branch():
    # T of three arms of 30: 4 points, 6 routes; without an arm 3 routes are left
    arms = [[(0, 0), (0, 30)], [(0, 30), (0, 60)], [(0, 30), (30, 30)]]
    assert path_similarity(road(*arms), road(*arms[:2])) == pytest.approx((2 * 0.5 / 1.5, 0.5, 1))


def test_shortest_way_on_parallel_roads_and_loops():
    two = road([(0, 0), (0, 100)], [(0, 0), (75, 50), (0, 100)], [(0, 0), (-9, 5), (-9, -5), (0, 0)])
    assert path_similarity(two, road([(0, 0), (0, 100)]), spacing=1000).target_to_prediction == 1
    roads = Roads(two)
    assert next(roads.distances(roads.control_points(1000))).tolist() == [[0, 100], [100, 0]]


def test_control_points():
    for length, count in [(37, 0), (38, 1), (50, 1), (50.1, 1), (100, 1), (101, 2), (150, 2), (151, 3)]:
        roads = Roads(road([(0, 0), (0, length)]))
        at = roads.positions(roads.control_points(50))
        assert len(at) == 2 + count, length
        assert at[:2].tolist() == [[0, 0], [0, length]]
        assert at[2:, 1].tolist() == pytest.approx([length * k / (count + 1) for k in range(1, count + 1)])


@pytest.mark.parametrize(("aside", "want"), [(0, 1), (3.9, 1), (4, 1), (4.1, 0)])
def test_tolerance(aside, want):
    target, moved = road([(0, 0), (0, 100)]), road([(aside, 0), (aside, 100)])
    assert path_similarity(target, moved).apls == want
    assert path_similarity(target, moved, tolerance=4.2).apls == 1


def test_routes_that_are_too_short_do_not_count():
    tiny = road([(0, 0), (0, 9)])
    assert path_similarity(tiny, nx.Graph()) == (1, 1, 1)  # neither has a route
    assert path_similarity(tiny, nx.Graph(), shortest=9) == (0, 0, 0)
    assert path_similarity(road([(0, 0), (0, 9), (9, 9)]), tiny) == (0, 0, 0)


def test_snapping_to_a_junction_and_between_points():
    roads = Roads(road([(0, 0), (0, 30)], [(0, 30), (0, 60), (40, 60)]))
    snapped = roads.snap(np.array([[1.0, 30.0], [20.0, 63.0], [20.0, 66.0], [0.0, 10.0]]), 4.0)
    assert snapped.edge.tolist() == [0, 1, -1, 0]
    assert snapped.along.tolist()[:2] == [30, 50]
    lengths = next(roads.distances(snapped))
    assert lengths[0].tolist() == [0, 50, math.inf, 20]
    assert np.isinf(lengths[2]).all()
    blocks = list(roads.distances(snapped, block=3))
    assert [len(block) for block in blocks] == [3, 1] and np.array_equal(np.concatenate(blocks), lengths)
    assert Roads(nx.Graph()).snap(np.zeros((2, 2)), 1.0).edge.tolist() == [-1, -1]
    assert list(roads.distances(OnRoads(np.zeros(0, dtype=np.int64), np.zeros(0)))) == []


def test_most_points():
    target, other = road([(0, 0), (0, 1000)]), road([(0, 0), (0, 500)])
    few, many = path_similarity(target, other, max_points=5), path_similarity(target, other)
    assert few.target_to_prediction == pytest.approx(many.target_to_prediction, abs=0.15)
    assert path_similarity(target, target, max_points=2) == (1, 1, 1)


def test_more_points_than_one_block():
    # 301 points on the target, 201 of them found: of all pairs those among them
    target, found = road([(0, 0), (0, 3000)]), road([(0, 0), (0, 2000)])
    score = path_similarity(target, found, spacing=10, shortest=5)
    assert score == pytest.approx((2 / (1 + 301 * 300 / (201 * 200)), 201 * 200 / (301 * 300), 1))


def test_plain_graphs_and_reversed_points():
    line = [(0, 0), (30, 40), (30, 90)]
    graph = nx.Graph([("b", "a")])
    graph.nodes["a"]["pos"], graph.nodes["b"]["pos"] = line[0], torch.tensor(line[-1])
    graph.edges["a", "b"]["points"] = line  # from a to b, though networkx says b and a
    assert path_similarity(graph, road(line)) == (1, 1, 1)
    same = nx.Graph([(0, 1)])
    nx.set_node_attributes(same, (0, 0), "pos")
    assert len(Roads(same).lengths) == 0


@pytest.mark.parametrize(
    ("graph", "error", "text"),
    [
        (nx.DiGraph(), TypeError, "undirected networkx graph, got DiGraph"),
        ([(0, 1)], TypeError, "got list"),
        (nx.Graph([(0, 1)]), ValueError, r'Node 0 .* must have "pos" = \(y, x\), got None'),
    ],
)
def test_bad_graphs(graph, error, text):
    with pytest.raises(error, match=text):
        path_similarity(graph, nx.Graph())


def test_bad_positions_and_options():
    graph = road([(0, 0), (0, 50)])
    graph.edges[0, 1, 0]["points"] = [(0, 0), (0, 40)]
    with pytest.raises(ValueError, match="must begin and end at its nodes"):
        Roads(graph)
    graph.edges[0, 1, 0]["points"] = [(0, 0)]
    with pytest.raises(ValueError, match=r"must have shape \(n, 2\)"):
        Roads(graph)
    graph.nodes[0]["pos"] = (0, math.nan)
    with pytest.raises(ValueError, match="must be finite"):
        Roads(graph)
    for option in ({"spacing": 0}, {"tolerance": -1}, {"shortest": math.nan}):
        with pytest.raises(ValueError, match="`spacing` must be positive"):
            path_similarity(nx.Graph(), nx.Graph(), **option)
    with pytest.raises(ValueError, match="`max_points`"):
        path_similarity(nx.Graph(), nx.Graph(), max_points=1)


@pytest.fixture
def masks():
    pytest.importorskip("skimage", reason="needs the extra `road`")
    mask = torch.zeros(3, 120, 120, dtype=torch.long)
    mask[0, 58:63] = 1
    mask[0, :, 38:43] = 1
    mask[1, :, 78:83] = 1
    return mask


def test_masks(masks):
    metric = APLS()
    metric.update(masks, masks)  # the third has no road in either
    assert [value.item() for value in metric.compute().values()] == [1, 1, 1]
    metric.update(torch.zeros_like(masks[:2]), masks[:2])
    metric.update(masks[:1].bool(), torch.zeros_like(masks[:1]))
    assert [value.item() for value in metric.compute().values()] == [0.5, 0.5, 0.5]
    broken = masks.clone()
    broken[0, 50:75, 38:43] = 0
    metric = APLS()
    metric.update(broken, masks)
    result = metric.compute()
    assert 0.5 < result["apls_target_to_prediction"] < 0.9 < result["apls_prediction_to_target"]


def test_logits_threshold_and_ignored(masks):
    logits = torch.where(masks == 1, 1.0, -1.0)[:, None]  # a sigmoid of 0.73
    for prediction in (logits, torch.cat([-logits / 2, logits / 2], 1), torch.cat([0 * logits, logits], 1).bfloat16()):
        for threshold, want in [(0.5, 1.0), (0.76, 1 / 3)]:
            metric = APLS(threshold=threshold)
            metric.update(prediction, masks.to(torch.uint8))
            assert metric.compute()["apls"] == pytest.approx(want)
    ignored = masks.clone()
    ignored[:, :, 70:] = 255
    metric = APLS()
    metric.update(torch.where(ignored == 255, 1, masks), ignored)
    metric.update(torch.where(ignored == 255, 255, masks), ignored)
    assert metric.compute()["apls"] == 1


def test_order_partition_and_pixel_size(masks):
    found = masks.roll(1, 2)
    found[:, 50:60] = 0
    whole, parts = APLS(), APLS(pixel_size=0.5, spacing=25, tolerance=2, shortest=5)
    whole.update(found, masks)
    for index in (2, 0, 1):
        parts.update(found[index : index + 1], masks[index : index + 1])
    assert torch.equal(whole.total, parts.total) and whole.images == parts.images == 3
    assert whole.compute() == parts.compute()
    finer = APLS(pixel_size=0.25)
    finer.update(found, masks)
    assert finer.compute() != whole.compute()


@pytest.mark.parametrize("feed", [None, (0, 8, 8), (0, 0, 8)])
def test_no_data(feed):
    metric = APLS()
    if feed is not None:
        metric.update(torch.zeros(feed).long(), torch.zeros(feed).long())
    assert all(value.isnan() for value in metric.compute().values())


@pytest.mark.parametrize(
    ("prediction", "target", "error", "text"),
    [
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8).long(), ValueError, r"must be logits \(B, 2, H, W\)"),
        (torch.zeros(1, 2, 8, 9), torch.zeros(1, 8, 8).long(), ValueError, "must be logits"),
        (torch.zeros(1, 8, 9).long(), torch.zeros(1, 8, 8).long(), ValueError, "must be logits"),
        (torch.full((1, 8, 8), 2), torch.zeros(1, 8, 8).long(), ValueError, r"`prediction` must be in \[0, 2\)"),
        (torch.zeros(1, 8, 8).long(), torch.full((1, 8, 8), 2), ValueError, r"`target` must be in \[0, 2\)"),
        (torch.zeros(1, 8, 8).long(), torch.zeros(1, 8, 8), TypeError, "labels"),
        (torch.zeros(8, 8).long(), torch.zeros(8, 8).long(), ValueError, r"`target` must have shape \(B, H, W\)"),
        (torch.full((1, 2, 8, 8), torch.nan), torch.zeros(1, 8, 8).long(), ValueError, "NaN at 128"),
    ],
)
def test_bad_batches_change_nothing(prediction, target, error, text):
    metric = APLS()
    with pytest.raises(error, match=text):
        metric.update(prediction, target)
    assert metric.images == 0


def test_bad_options():
    for option in ({"pixel_size": 0}, {"threshold": 1}, {"ignore_index": 1}):
        with pytest.raises(ValueError, match="`pixel_size` must be positive"):
            APLS(**option)
