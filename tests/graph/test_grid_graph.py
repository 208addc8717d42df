"""The pixel graph against a literal loop over targets and displacements."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch

from hggraph import Stencil, grid_graph


def literal(size, offsets, strides, batch_size):
    """Return sources, targets and types in the promised order, pixels, and targets per image."""
    pixels = list(product(*map(range, size)))
    number = {pixel: n for n, pixel in enumerate(pixels)}
    steps = [range(0, length, stride) for length, stride in zip(size, strides, strict=True)]
    targets = list(product(*steps))
    edges = []
    for image in range(batch_size):
        for t, place in enumerate(targets):
            for k, offset in enumerate(offsets):
                read = tuple(p + o for p, o in zip(place, offset, strict=True))
                if read in number:
                    source = image * len(pixels) + number[read]
                    edges.append((source, image * len(targets) + t, k))
    return edges, pixels, len(targets)


def check(size, stencil, strides, batch_size, stride=None):
    stride = strides if stride is None else stride
    graph = grid_graph(size, stencil, stride=stride, batch_size=batch_size)
    edges, pixels, num_targets = literal(size, stencil.offsets, strides, batch_size)
    assert list(zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), strict=True)) == edges
    assert graph.edge_index.dtype == graph.edge_type.dtype == torch.long
    assert graph.pos.dtype == torch.float32
    assert graph.pos.tolist() == [list(pixel) for pixel in pixels] * batch_size
    assert graph.batch.tolist() == [b for b in range(batch_size) for _ in pixels]
    assert graph.num_nodes == batch_size * len(pixels)
    assert graph.num_targets == batch_size * num_targets
    graph.validate()


@st.composite
def grids(draw):
    ndim = draw(st.integers(1, 3))
    axis = st.integers(1, {1: 9, 2: 6, 3: 4}[ndim])
    size = draw(st.tuples(*[axis] * ndim))
    offset = st.tuples(*[st.integers(-3, 3)] * ndim)
    offsets = draw(st.lists(offset, min_size=1, max_size=9, unique=True))
    strides = draw(st.tuples(*[st.integers(1, 4)] * ndim))
    return size, Stencil(offsets), strides, draw(st.integers(1, 3))


@settings(max_examples=100)
@given(grids())
def test_any_grid(grid):
    check(*grid)


@pytest.mark.parametrize(
    ("size", "stencil"),
    [
        ((5, 7), Stencil.square(3)),
        ((1, 9), Stencil.square(3)),
        ((9, 1), Stencil.square(3, dilation=2)),
        ((4, 6), Stencil.square(2)),
        ((3, 3), Stencil.square(7, dilation=3)),
        ((3, 4, 5), Stencil.square(3, ndim=3)),
        ((1, 1), Stencil.square(3)),
        ((1, 1, 1), Stencil.square(5, ndim=3)),
    ],
)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolutions(size, stencil, stride):
    check(size, stencil, (stride,) * len(size), 2, stride=stride)


def test_one_pixel_without_a_neighbour():
    graph = grid_graph((1, 1), Stencil.square(3).without_center(), batch_size=2)
    assert graph.edge_index.shape == (2, 0)
    assert graph.edge_type.shape == (0,)
    assert graph.edge_index.dtype == graph.edge_type.dtype == torch.long
    assert graph.num_nodes == graph.num_targets == 2


def test_batch_is_pyg_s_batch():
    single = grid_graph((3, 4), Stencil.square(3))
    both, expected = (
        grid_graph((3, 4), Stencil.square(3), batch_size=2),
        Batch.from_data_list([single, single]),
    )
    for key in ("edge_index", "edge_type", "pos", "batch", "num_nodes"):
        assert torch.equal(torch.as_tensor(both[key]), torch.as_tensor(expected[key])), key


def test_sequences_and_device():
    size = torch.zeros(3, 4).shape
    graph = grid_graph(size, Stencil.square(3), stride=[1, 2], device="cpu")
    expected = grid_graph([3, 4], Stencil.square(3), stride=(1, 2))
    assert torch.equal(graph.edge_index, expected.edge_index)
    assert graph.num_targets == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 3)}, "`size` must be a whole number >= 1, got 0"),
        ({"size": (3, -1)}, "`size` must be a whole number >= 1, got -1"),
        ({"size": (3,)}, r"`size` \(3,\) .* one number for each of the 2 axes"),
        ({"size": (3, 3, 3)}, r"`size` \(3, 3, 3\) .* one number for each of the 2 axes"),
        ({"stride": 0}, "`stride` must be a whole number >= 1, got 0"),
        ({"stride": 1.5}, "`stride` must be a whole number >= 1, got 1.5"),
        ({"stride": (1, 2, 1)}, r"`stride` \(1, 2, 1\) .* one number for each of the 2 axes"),
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1, got 0"),
        ({"batch_size": True}, "`batch_size` must be a whole number >= 1, got True"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        grid_graph(**{"size": (3, 3), "stencil": Stencil.square(3), **arguments})
