"""Region graphs as a PyG transform, in data sets and loaders."""

import pickle

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import BaseTransform, Compose, Constant

from hggraph import SoftSLIC, Stencil, ToRegionGraph, region_graph

FIELDS = ("x", "pos", "area", "edge_index", "edge_type", "edge_weight", "edge_attr")


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in FIELDS)


def test_is_region_graph():
    image = torch.rand(3, 18, 20)
    transform = ToRegionGraph(num_regions=8)
    assert isinstance(transform, BaseTransform)
    clusterer = SoftSLIC(num_regions=8, feature_scale="photo").eval()
    expected = region_graph(image[None], clusterer=clusterer)[0]
    for given in (image, image[None], Data(image=image), Data(image=image[None])):
        graph = transform(given)
        assert type(graph) is Data
        assert same(graph, expected)
    assert ToRegionGraph(downsample=36)(image).num_nodes == 10
    assert ToRegionGraph(num_regions=5)(image[:1]).x.shape == (5, 1)


def test_options():
    image = torch.rand(3, 12, 12)
    clusterer, stencil = SoftSLIC(num_regions=4).eval(), Stencil.square(5)
    graph = ToRegionGraph(clusterer=clusterer, stencil=stencil, key="photo")(Data(photo=image))
    assert same(graph, region_graph(image[None], clusterer=clusterer, stencil=stencil)[0])
    assert "photo" not in graph


def test_keeps_the_rest_and_its_input():
    image, y = torch.rand(3, 12, 12), torch.tensor([3])
    data = Data(image=image, y=y, name="seven", train=True)
    graph = ToRegionGraph(num_regions=4)(data)
    assert graph.y is y and graph.name == "seven" and graph.train is True
    assert "image" not in graph and graph.num_nodes == 4
    assert data.image is image and sorted(data.keys()) == ["image", "name", "train", "y"]


def test_in_a_loader():
    torch.manual_seed(0)
    images = torch.rand(5, 1, 8, 8)
    transform = ToRegionGraph(num_regions=6)
    data = [transform(Data(image=image, y=torch.tensor([n]))) for n, image in enumerate(images)]
    batches = list(DataLoader(data, batch_size=2))
    assert [batch.num_graphs for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.y for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    for n, graph in enumerate(graph for batch in batches for graph in batch.to_data_list()):
        assert same(graph, region_graph(images[n : n + 1], clusterer=transform.clusterer)[0])
    together = region_graph(images, clusterer=transform.clusterer)
    assert torch.equal(batches[1].batch, together.batch[:12])


def test_repeats_itself_and_pickles():
    """A worker of a loader gets a copy, and makes the same graph from the same image."""
    image, transform = torch.rand(3, 16, 16), ToRegionGraph(num_regions=6)
    assert same(transform(image), transform(image))
    assert same(pickle.loads(pickle.dumps(transform))(image), transform(image))


def test_in_a_chain():
    graph = Compose([ToRegionGraph(num_regions=6), Constant()])(torch.rand(3, 9, 9))
    assert graph.x.shape == (6, 4) and (graph.x[:, 3] == 1).all()


def test_repr():
    assert repr(ToRegionGraph(num_regions=6)) == f"ToRegionGraph({ToRegionGraph(6).clusterer})"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Data(y=torch.tensor([1])), ValueError, "`data` must hold an image as 'image'"),
        (torch.rand(2, 3, 8, 8), ValueError, "takes one image, got 2; use `region_graph`"),
        (torch.zeros(3, 8, 8).byte(), TypeError, "floating point, got torch.uint8"),
        (torch.rand(4, 8, 8), ValueError, "3 channels"),
        (torch.rand(3, 1, 2), ValueError, "at most the number of pixels, 1 x 2 = 2, got 4"),
    ],
)
def test_errors(data, error, message):
    with pytest.raises(error, match=message):
        ToRegionGraph(num_regions=4)(data)
