"""Attention over edges against a loop, PyG's softmax, and attention over the pixels of a grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.utils import softmax

from hggraph import Stencil, grid_graph, ops
from hggraph.ops.edge_attention import edge_attention_reference

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def graph(targets=5, sources=4, edges=11):
    """Return edges in any order; the last target has none."""
    return torch.stack([torch.randint(sources, (edges,)), torch.randint(targets - 1, (edges,))])


def ours(edge_index, scale=0.7):
    return lambda q, k, v, bias=None: ops.edge_attention(q, k, v, edge_index, scale=scale, bias=bias)


def reference(edge_index, scale=0.7):
    return lambda q, k, v, bias=None: edge_attention_reference(q, k, v, edge_index, scale, bias)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
)
def test_reference(seed, counts, channels, biased):
    torch.manual_seed(seed)
    targets, sources, edges = counts
    edge_index = torch.stack([torch.randint(sources, (edges,)), torch.randint(targets, (edges,))])
    q, k, v = double(targets, channels[0]), double(sources, channels[0]), double(sources, channels[1])
    bias = double(edges) if biased else None
    torch.testing.assert_close(ours(edge_index)(q, k, v, bias), reference(edge_index)(q, k, v, bias), **close)


def test_gradients_and_layouts(agree_everywhere):
    edge_index = graph()
    inputs = double(5, 3), double(4, 3), double(4, 2), double(11)
    agree_everywhere(ours(edge_index), reference(edge_index), *inputs)
    agree_everywhere(ours(edge_index.t().contiguous().t()), reference(edge_index), *inputs)


def test_gradcheck():
    edge_index = graph()
    inputs = [x.requires_grad_() for x in (double(5, 3), double(4, 3), double(4, 2), double(11))]
    assert torch.autograd.gradcheck(ours(edge_index), inputs)


def test_pyg():
    edge_index = graph(6, 6, 20)
    q, k, v = double(6, 4), double(6, 4), double(6, 3)
    source, target = edge_index
    weight = softmax((q[target] * k[source]).sum(1) / 2, target, num_nodes=6)
    expected = torch.zeros(6, 3, dtype=torch.float64).index_add_(0, target, weight[:, None] * v[source])
    torch.testing.assert_close(ops.edge_attention(q, k, v, edge_index), expected, **close)
    assert not expected[5].any()  # isolated


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_pixel_a_node(agree, dilation):
    """On the grid graph this is local attention whose neighbours outside are left out."""
    stencil, size = Stencil.square(3, dilation=dilation), (4, 5)
    graph = grid_graph(size, stencil, batch_size=2)

    def on_nodes(q, k, v, bias):
        rows = [x.movedim(1, -1).flatten(0, 2) for x in (q, k, v)]
        out = ops.edge_attention(*rows, graph.edge_index, bias=bias[graph.edge_type])
        return out.view(2, *size, -1).movedim(-1, 1)

    def on_pixels(q, k, v, bias):
        return ops.local_attention(q, k, v, stencil.offsets, border="mask", bias=bias)

    agree(on_nodes, on_pixels, double(2, 3, *size), double(2, 3, *size), double(2, 2, *size), double(9))


def test_little():
    """Without edges, without nodes, with one; one edge is the source's value."""
    none = torch.zeros(2, 0, dtype=torch.long)
    q, k, v = (double(3, 2).requires_grad_() for _ in range(3))
    out = ops.edge_attention(q, k, v, none)
    out.sum().backward()
    assert not out.any() and not q.grad.any() and not v.grad.any()
    assert ops.edge_attention(double(0, 2), double(0, 2), double(0, 4), none).shape == (0, 4)
    torch.testing.assert_close(ops.edge_attention(q, k, v, torch.tensor([[2], [1]]))[1], v[2], **close)


def test_large_logits_do_not_overflow():
    q = k = torch.full((2, 1), 200.0)
    out = ops.edge_attention(q, k, torch.tensor([[1.0], [3.0]]), torch.tensor([[0, 1], [0, 0]]))
    torch.testing.assert_close(out, torch.tensor([[2.0], [0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half(near_float32, dtype, autocast):
    edge_index = graph()
    inputs = [torch.rand(shape) for shape in ((5, 8), (4, 8), (4, 2), (11,))]
    near_float32(ours(edge_index), dtype, *inputs, autocast=autocast)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.rand(5)}, ValueError, r"`q` must have shape \(N, C\), got \(5,\)"),
        ({"k": torch.rand(4, 2)}, ValueError, r"got \(5, 3\), \(4, 2\) and \(4, 2\)"),
        ({"v": torch.rand(3, 2)}, ValueError, "must have shapes"),
        ({"q": torch.rand(5, 0), "k": torch.rand(4, 0)}, ValueError, "C >= 1"),
        ({"v": torch.ones(4, 2, dtype=torch.long)}, TypeError, "`v` must be floating point, got torch.int64"),
        ({"bias": torch.rand(3)}, ValueError, r"`bias` must have shape \(11,\), one for each edge, got \(3,\)"),
        ({"edge_index": torch.zeros(3, 4, dtype=torch.long)}, ValueError, r"must have shape \(2, E\), got \(3, 4\)"),
        ({"edge_index": torch.full((2, 11), 4)}, ValueError, r"`edge_index\[0\]` must be in \[0, 4\)"),
        ({"edge_index": torch.full((2, 11), 5) - torch.tensor([[5], [0]])}, ValueError, r"`edge_index\[1\]` must be"),
    ],
)
def test_errors(change, error, message):
    inputs = {"q": torch.rand(5, 3), "k": torch.rand(4, 3), "v": torch.rand(4, 2), "edge_index": graph()}
    with pytest.raises(error, match=message):
        ops.edge_attention(**(inputs | change))
