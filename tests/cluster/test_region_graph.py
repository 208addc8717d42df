"""Region graphs: each field against its formula, in batches, and in other people's layers."""

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from PIL import Image
from scipy import ndimage
from torch.testing import assert_close
from torch_geometric.data import Batch
from torch_geometric.utils import to_networkx as pyg_to_networkx

from hggraph import Assignment, HGConv, SoftSLIC, Stencil, region_graph
from hggraph.graph import to_networkx
from hggraph.nn import GMMConv, SplineConv


def surrounded(x):
    buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
    buffer[1:-1, 1:-1, 1:-1, 1:-1] = x
    return buffer[1:-1, 1:-1, 1:-1, 1:-1]


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:, :1].expand_as(x),
    "surrounded": surrounded,
}


def random_assignment(batch, regions, size):
    weight = torch.rand(batch, regions, size[0] * size[1], dtype=torch.float64).square()
    return Assignment(weight / weight.sum(1, keepdim=True), size)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(6, 7), (1, 9), (8, 1)])
def test_every_field(layout, size):
    """Means, positions, areas, edges and pseudo-coordinates of a given assignment, by their formulas."""
    assignment = random_assignment(2, 4, size)
    x = LAYOUTS[layout](torch.randn(2, 5, *size, dtype=torch.float64))
    batch = region_graph(x, assignment)
    assert isinstance(batch, Batch) and batch.num_graphs == 2
    assert batch.batch.tolist() == [0] * 4 + [1] * 4
    edge_index, edge_type, edge_weight = assignment.adjacency().to_edges()
    assert torch.equal(batch.edge_index, edge_index)
    assert torch.equal(batch.edge_type, edge_type)
    assert torch.equal(batch.edge_weight, edge_weight)
    s = assignment.to_dense()
    for b, graph in enumerate(batch.to_data_list()):
        graph.validate()
        assert graph.num_nodes == 4
        area = s[b].sum(0)
        assert_close(graph.area, area)
        places = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])).double()
        assert_close(graph.x, s[b].T @ x[b].flatten(1).T / area[:, None], rtol=0, atol=1e-10)
        assert_close(graph.pos, s[b].T @ places / area[:, None], rtol=0, atol=1e-10)
        source, target = graph.edge_index
        displacement = graph.pos[source] - graph.pos[target]
        attr = displacement / (2 * displacement.abs().max()) + 0.5
        assert_close(graph.edge_attr, attr, rtol=0, atol=1e-10)
        assert (graph.edge_attr >= 0).all() and (graph.edge_attr <= 1).all()
        assert ((graph.edge_attr == 0) | (graph.edge_attr == 1)).any()
        assert (graph.edge_attr[source == target] == 0.5).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_defaults(channels):
    """1 or 3 channels are photos, clustered among 6 candidates; everything else is a feature map."""
    x = torch.rand(1, channels, 24, 33)
    options = {} if channels == 4 else {"feature_scale": "photo", "candidates": 6}
    expected = region_graph(x, SoftSLIC(**options).eval()(x))
    graph = region_graph(x)
    assert graph.num_nodes == round(24 * 33 / 64)
    for key in ("x", "pos", "area", "edge_index", "edge_type", "edge_weight", "edge_attr"):
        assert_close(graph[key], expected[key])


def test_clusterer_stencil_and_attention():
    x, attention = torch.rand(2, 3, 16, 18), torch.zeros(2, 16, 18)
    attention[:, :6, :6] = 1
    clusterer = SoftSLIC(num_regions=9, beta=1.0, oversample=32, feature_scale="photo").eval()
    graph = region_graph(x, clusterer=clusterer, attention=attention, stencil=Stencil.square(5))
    assert graph.num_nodes == 18
    itself = graph.edge_index[0] == graph.edge_index[1]
    assert graph.edge_type.max() > 8 and (graph.edge_type[itself] == 12).all()
    focused = clusterer(x, attention)
    assert_close(graph.area, focused.area.flatten())
    # a clusterer that knows no attention serves where none is given
    alone = region_graph(x, clusterer=lambda x: focused)
    assert_close(alone.area, graph.area)


@pytest.fixture(scope="module")
def two_graphs():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 20, 24)
    return region_graph(x, clusterer=SoftSLIC(num_regions=12, feature_scale="photo").eval())


@pytest.mark.parametrize(
    ("layer", "attributes"),
    [
        (pyg.GCNConv(3, 4), ("edge_weight",)),
        (pyg.GraphConv(3, 4), ("edge_weight",)),
        (pyg.RGCNConv(3, 4, 9), ("edge_type",)),
        (pyg.FastRGCNConv(3, 4, 9), ("edge_type",)),
        (pyg.GMMConv(3, 4, 2, 5), ("edge_attr",)),
        (GMMConv(3, 4, 2, 5), ("edge_attr",)),
        (SplineConv(3, 4, 2, 3), ("edge_attr",)),
        (HGConv(3, 4), ("edge_type", "edge_weight")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_in_layers(layer, attributes, two_graphs):
    """Each takes the batch as it is, and gives what it gives for the graphs one by one."""

    def run(graph):
        return layer(graph.x, graph.edge_index, *(graph[key] for key in attributes))

    together = run(two_graphs)
    assert torch.isfinite(together).all()
    alone = torch.cat([run(graph) for graph in two_graphs.to_data_list()])
    assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_networkx(two_graphs):
    ours, theirs = to_networkx(two_graphs), pyg_to_networkx(two_graphs, to_multi=True)
    assert sorted(ours.edges()) == sorted(theirs.edges())
    assert len(ours) == len(theirs) == 24


@pytest.mark.parametrize(("channels", "candidates"), [(3, 9), (8, None), (8, 4)])
def test_batch_of_k_is_k_singles(channels, candidates):
    x = torch.rand(3, channels, 15, 17, dtype=torch.float64)
    scale = "photo" if channels == 3 else "auto"
    layer = SoftSLIC(num_regions=11, feature_scale=scale, candidates=candidates).eval()
    together = region_graph(x, clusterer=layer).to_data_list()
    for b, graph in enumerate(together):
        alone = region_graph(x[b : b + 1], clusterer=layer)[0]
        assert torch.equal(graph.edge_index, alone.edge_index)
        assert torch.equal(graph.edge_type, alone.edge_type)
        for key in ("x", "pos", "area", "edge_weight", "edge_attr"):
            assert_close(graph[key], alone[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("candidates", [None, 3])
def test_gradients(candidates):
    """Of features, positions, areas, strengths and displacements, numerically and all at once."""
    layer = SoftSLIC(num_regions=4, iterations=2, candidates=candidates).eval()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)

    def run(x):
        graph = region_graph(x, clusterer=layer)
        return graph.x, graph.pos, graph.area, graph.edge_weight, graph.edge_attr

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    for value in run(x):
        assert torch.autograd.grad(value, x, torch.randn_like(value), retain_graph=True)[0].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 1), (16, 16)])
@pytest.mark.parametrize("channels", [3, 5])
def test_constant_and_narrow_images(size, channels):
    x = torch.full((2, channels, *size), 0.5, requires_grad=True)
    graph = region_graph(x, clusterer=SoftSLIC(8, candidates=3).eval())
    regions = SoftSLIC(8).regions_for(size)
    assert graph.num_nodes == 2 * regions
    assert_close(graph.x, torch.full((2 * regions, channels), 0.5))
    assert_close(graph.area.sum(), torch.tensor(2.0 * size[0] * size[1]))
    assert torch.isfinite(graph.edge_attr).all()
    if regions == 1:
        assert graph.edge_attr.tolist() == [[0.5, 0.5]] * 2
        assert graph.pos.tolist() == [[(size[0] - 1) / 2, (size[1] - 1) / 2]] * 2
    outputs = (graph.x, graph.pos, graph.edge_weight, graph.edge_attr)
    grads = torch.autograd.grad(outputs, x, [torch.randn_like(value) for value in outputs])
    assert torch.isfinite(grads[0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("candidates", [None, 9])
def test_half_keeps_whole_positions(dtype, candidates):
    """A bfloat16 counts to 256 only; positions are in float32."""
    x = torch.rand(1, 3, 4, 700).to(dtype)
    layer = SoftSLIC(num_regions=20, feature_scale="photo", candidates=candidates).eval()
    graph, expected = (region_graph(values, clusterer=layer) for values in (x, x.float()))
    assert graph.x.dtype == dtype
    assert torch.equal(graph.edge_index, expected.edge_index)
    for key in ("pos", "area", "edge_weight", "edge_attr"):
        assert graph[key].dtype == torch.float32
        assert_close(graph[key], expected[key])
    assert_close(graph.x.float(), expected.x, rtol=torch.finfo(dtype).eps, atol=0)


IMAGE = torch.rand(1, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(1, 3, 4, 5).byte()}, TypeError, r"`x` .* floating point, .* / 255"),
        ({"x": torch.full((1, 3, 4, 5), torch.nan)}, ValueError, "must be finite, got NaN"),
        ({"x": torch.full((1, 3, 4, 5), torch.inf)}, ValueError, "must be finite, got NaN"),
        ({"x": torch.rand(1, 3, 0, 5)}, ValueError, "`x` must have at least one channel and one"),
        ({"x": torch.rand(1, 3, 4, 0)}, ValueError, "`x` must have at least one channel and one"),
        ({"x": torch.rand(0, 3, 4, 5)}, ValueError, "`x` must have at least one image, got shape"),
        ({"x": torch.rand(4, 5)}, ValueError, r"`x` must have shape \(B, C, H, W\)"),
        ({"x": 255 * torch.rand(1, 3, 8, 9)}, ValueError, r"values in \[0, 1\], got .* Divide bytes by 255"),
        ({"x": np.zeros((4, 5, 3))}, ValueError, r"must be a photo of bytes, .* got float64 \(4, 5, 3\)"),
        ({"x": np.zeros((4, 5, 2), np.uint8)}, ValueError, r"must be a photo of bytes, .* got uint8 \(4, 5, 2\)"),
        ({"x": "photo.jpg"}, TypeError, "must be a tensor, a PIL image or a NumPy array, got str"),
        ({"num_regions": 21}, ValueError, "4 x 5 = 20, got 21"),
        ({"num_regions": 2, "clusterer": SoftSLIC()}, ValueError, "leave `num_regions` out"),
        ({"clusterer": SoftSLIC(num_regions=21)}, ValueError, "4 x 5 = 20, got 21"),
        ({"attention": torch.rand(1, 5, 4)}, ValueError, r"`attention` .* \(1, 4, 5\), got"),
        ({"attention": 2 + torch.rand(1, 4, 5)}, ValueError, r"`attention` must be in \[0, 1\]"),
        ({"stencil": Stencil.square(3, ndim=3), "num_regions": 2}, ValueError, "`stencil` must have 2 axes"),
        (
            {"assignment": random_assignment(1, 2, (5, 4))},
            ValueError,
            "`x` must have 1 images of 5",
        ),
        (
            {"assignment": random_assignment(2, 2, (4, 5))},
            ValueError,
            "`x` must have 2 images of 4",
        ),
        (
            {"assignment": random_assignment(1, 2, (4, 5)), "x": torch.full((1, 3, 4, 5), torch.nan)},
            ValueError,
            "`x` must be finite, got 60 NaN",
        ),
        (
            {"assignment": random_assignment(1, 2, (4, 5)), "attention": torch.rand(1, 4, 5)},
            ValueError,
            "leave them out when there is one",
        ),
        (
            {"assignment": random_assignment(1, 2, (4, 5)), "clusterer": SoftSLIC()},
            ValueError,
            "leave them out when there is one",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        region_graph(**{"x": IMAGE, **arguments})


def test_any_photo_in_everything_out():
    """A PIL image, bytes of NumPy and tensors of three or four axes are one photo."""
    bytes_ = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    x = torch.from_numpy(bytes_).permute(2, 0, 1).float() / 255
    expected, assignment = region_graph(x[None], num_regions=9, return_assignment=True)
    assert isinstance(assignment, Assignment) and assignment.num_regions == expected.num_nodes == 9
    for photo in (x, bytes_, Image.fromarray(bytes_), Image.fromarray(bytes_).convert("RGBA")):
        graph = region_graph(photo, num_regions=9)
        assert torch.equal(graph.x, expected.x) and torch.equal(graph.edge_index, expected.edge_index)
    grey = Image.fromarray(bytes_[..., 0])
    assert region_graph(grey, num_regions=9).x.shape == region_graph(bytes_[..., 0], num_regions=9).x.shape == (9, 1)
    again = region_graph(x, assignment)
    assert torch.equal(again.edge_weight, expected.edge_weight)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("size", [(24, 30), (1, 50), (50, 1)])
def test_all_of_a_graph_agrees(hard, size):
    """Labels, areas, positions and edges are those of the connected assignment, in the fused loops and without."""
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4), size, mode="bilinear")
    clusterer = SoftSLIC(num_regions=7, feature_scale="photo", hard=hard)
    graph, assignment = region_graph(x, clusterer=clusterer, return_assignment=True)
    dense = assignment.to_dense().double()
    for b in range(2):
        one = graph[b]
        for r in range(7):
            assert ndimage.label(assignment.labels[b] == r)[1] == 1
        mass = dense[b].sum(0)
        place = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])).double()
        assert_close(one.area.double(), mass, rtol=1e-5, atol=1e-4)
        assert_close(one.pos.double(), dense[b].T @ place / mass[:, None], rtol=1e-4, atol=1e-4)
        assert_close(one.x.double(), dense[b].T @ x[b].double().flatten(1).T / mass[:, None], rtol=1e-4, atol=1e-4)
    exact = Assignment(assignment.to_dense().mT.double(), size).adjacency().to_edges()
    # weights of float32: an edge near the filter, or two directions near each other, may fall out otherwise
    ours = {
        tuple(key): w for key, w in zip(edge_keys(graph.edge_index, graph.edge_type), graph.edge_weight, strict=True)
    }
    theirs = {tuple(key): w for key, w in zip(edge_keys(*exact[:2]), exact[2], strict=True)}
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= 0.98 * max(len(ours), len(theirs))
    for key in shared:
        assert abs(ours[key] - theirs[key]) < 1e-3 * (1 + abs(theirs[key]))


def edge_keys(edge_index, edge_type):
    return torch.stack([*edge_index, edge_type], 1).tolist()
