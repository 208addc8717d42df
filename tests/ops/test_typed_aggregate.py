"""The typed aggregation on edges, against loops, convolutions and PyG."""

import importlib
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch_geometric.nn import RGCNConv

from hggraph import Stencil
from hggraph.ops import typed_aggregate
from hggraph.ops.segment import csr_pointer
from hggraph.ops.typed_aggregate import typed_aggregate_reference

# The attribute of that name is the function.
MODULE = importlib.import_module("hggraph.ops.typed_aggregate")
close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def graph(nodes, targets, edges, directions, soft=None):
    """Return random edges, types and positive strengths; some targets and directions get none."""
    edge_index = torch.stack([torch.randint(nodes, (edges,)), torch.randint(targets, (edges,))])
    shape = (edges,) if soft is None else (edges, soft)
    strengths = torch.rand(shape, dtype=torch.float64) + 0.1
    return edge_index, torch.randint(directions, shape), strengths


def loop(x, weight, edge_index, edge_type, edge_weight, num_targets, groups, normalize):
    """Return the sum of messages edge by edge, with degrees from a loop of their own."""
    num_directions, size, channels = weight.shape
    edges = []
    for e, (j, i) in enumerate(edge_index.t().tolist()):
        for s, k in enumerate(edge_type[e].reshape(-1).tolist()):
            edges.append((j, i, k, 1.0 if edge_weight is None else edge_weight[e].reshape(-1)[s]))
    out = x.new_zeros(num_targets, channels)
    for i, k in product(range(num_targets), range(num_directions)):
        mine = [(a, x[j]) for j, to, type_, a in edges if (to, type_) == (i, k)]
        degree = max(sum(float(a) for a, _ in mine), 1e-7) if normalize else 1.0
        for a, source in mine:
            for o in range(channels):
                g = o // (channels // groups)
                out[i, o] += float(a / degree * source[g * size : (g + 1) * size] @ weight[k, :, o])
    return out


@settings(max_examples=60)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5), st.integers(0, 8)],
    *[st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 1, 3])],
    *[st.booleans(), st.booleans()],
)
@example(0, 5, 4, 8, 3, 2, 3, True, True)  # nothing small
def test_loop(seed, nodes, targets, edges, directions, groups, soft, weighted, normalize):
    torch.manual_seed(seed)
    x, weight = double(nodes, 2 * groups), double(directions, 2, 3 * groups)
    edge_index, edge_type, edge_weight = graph(nodes, targets, edges, directions, soft)
    arguments = [x, weight, edge_index, edge_type, edge_weight if weighted else None]
    out = typed_aggregate(*arguments, num_targets=targets, groups=groups, normalize=normalize)
    torch.testing.assert_close(out, loop(*arguments, targets, groups, normalize), **close)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_convolution(groups, size):
    """Without a degree, over the pixels of an image, it is `conv2d`, value and gradient."""
    edges = [
        ((y + dy) * 3 + x + dx, y * 3 + x, k)
        for y, x, (k, (dy, dx)) in product(range(4), range(3), enumerate(Stencil.square(size)))
        if 0 <= y + dy < 4 and 0 <= x + dx < 3
    ]
    edge_index, edge_type = torch.tensor(edges).t().split([2, 1])
    image = double(1, 4, 4, 3).requires_grad_()
    weight = double(6, 4 // groups, size, size).requires_grad_()
    expected = F.conv2d(image, weight, padding=size // 2, groups=groups)[..., :4, :3]
    x, matrices = image.flatten(2)[0].t(), weight.flatten(2).permute(2, 1, 0)
    out = typed_aggregate(x, matrices, edge_index, edge_type[0], groups=groups, normalize=False)
    out = out.t().reshape(expected.shape)
    cotangent = torch.randn_like(out)
    grads = [torch.autograd.grad(o, (image, weight), cotangent) for o in (out, expected)]
    torch.testing.assert_close((out, *grads[0]), (expected, *grads[1]), **close)


@pytest.mark.parametrize("blocks", [None, 2])
@pytest.mark.parametrize("aggr", ["sum", "mean"])
def test_rgcn(blocks, aggr):
    """PyG's relational convolution is this sum; its mean per relation has unit weights' degree."""
    conv = RGCNConv(4, 6, 3, num_blocks=blocks, aggr=aggr, root_weight=False, bias=False).double()
    x = double(5, 4)
    edge_index, edge_type, _ = graph(5, 5, 20, 3)
    weight = conv.weight if blocks is None else torch.cat(conv.weight.unbind(1), 2)
    options = {"groups": blocks or 1, "normalize": aggr == "mean"}
    out = typed_aggregate(x, weight, edge_index, edge_type, **options)
    torch.testing.assert_close(out, conv(x, edge_index, edge_type), **close)


@pytest.mark.parametrize("groups", [1, 2])
def test_layouts(agree_everywhere, groups):
    key = torch.tensor([1, 1, 3, 4, 4, 4, 9])
    rest = [csr_pointer(key, 12), torch.tensor([0, 2, 2, 1, 3, 0, 3]), groups]
    inputs = [double(4, 4), double(3, 4 // groups, 6), double(7), *rest]
    agree_everywhere(torch.ops.hggraph.typed_aggregate, typed_aggregate_reference, *inputs)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("soft", [None, 2])
def test_gradcheck(soft, groups, normalize):
    """Through the degree, with a target and a direction that no edge reaches."""
    x, weight = double(3, 2).requires_grad_(), double(3, 2 // groups, 2).requires_grad_()
    edge_index, edge_type, edge_weight = graph(3, 2, 5, 2, soft)
    options = {"num_targets": 3, "groups": groups, "normalize": normalize}

    def aggregate(x, weight, strengths):
        return typed_aggregate(x, weight, edge_index, edge_type, strengths, **options)

    assert torch.autograd.gradcheck(aggregate, (x, weight, edge_weight.requires_grad_()))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_order(seed):
    """The order of the edges and their strides do not matter; renumbered nodes renumber rows."""
    torch.manual_seed(seed)
    x, weight = double(5, 2), double(3, 2, 2)
    edge_index, edge_type, edge_weight = graph(5, 5, 12, 3, soft=2)
    expected = typed_aggregate(x, weight, edge_index, edge_type, edge_weight)
    order, new = torch.randperm(12), torch.randperm(5)
    out = typed_aggregate(x, weight, edge_index[:, order], edge_type[order], edge_weight[order])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    columns = edge_index.t().contiguous().t(), edge_type.t().contiguous().t()
    assert torch.equal(typed_aggregate(x, weight, *columns, edge_weight), expected)
    out = typed_aggregate(x[new.argsort()], weight, new[edge_index], edge_type, edge_weight)
    torch.testing.assert_close(out[new], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("buffer", [1, 13, 40])
def test_chunks(agree, monkeypatch, buffer):
    """Pieces of 1, 2 and 6 targets, forward and backward, some of them without an edge."""
    monkeypatch.setattr(MODULE, "_BUFFER", buffer)
    pieces = list(MODULE._pieces(torch.zeros(1, 3), torch.zeros(23, dtype=torch.long), 2, 0))
    assert pieces[0].targets == slice(0, {1: 1, 13: 2, 40: 6}[buffer])
    target = torch.tensor([0, 0, 1, 7, 7, 8, 10]).repeat_interleave(2)
    key = (target * 3 + torch.randint(3, (14,))).sort().values
    rest = [csr_pointer(key, 33), torch.randint(6, (14,)), 2]
    inputs = [double(6, 2), double(3, 1, 4), double(14), *rest]
    agree(torch.ops.hggraph.typed_aggregate, typed_aggregate_reference, *inputs)


def test_degree():
    """Strengths far under 1e-7 are divided by 1e-7, others by their sum."""
    x, one = torch.tensor([[2.0], [6.0]]).double(), torch.ones(1, 1, 1).double()
    edges = torch.tensor([[0, 1], [0, 0]]), torch.tensor([0, 0])
    for a, b, expected in [(1, 3, 5.0), (1e-6, 3e-6, 5.0), (1e-9, 3e-9, 0.2), (0, 0, 0.0)]:
        strength = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
        out = typed_aggregate(x, one, *edges, strength)
        torch.testing.assert_close(out[0, 0].item(), expected, **close)
        assert torch.autograd.grad(out.sum(), strength)[0].isfinite().all()


def test_isolated():
    """A node and a direction without edges add exactly 0, even where the weights are huge."""
    x, weight = double(4, 2).requires_grad_(), double(3, 2, 2)
    weight[2] = 1e300
    weight.requires_grad_()
    out = typed_aggregate(x, weight, torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.tensor([0, 1, 0]))
    assert torch.equal(out[2:], torch.zeros(2, 2, dtype=torch.float64))
    grads = torch.autograd.grad(out, (x, weight), double(4, 2))
    assert out.isfinite().all()
    assert not grads[0][3].any()  # no edge reads node 3
    assert not grads[1][2].any()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("nodes", "targets", "channels"), [(3, 2, 2), (0, 2, 2), (3, 0, 2), (1, 1, 0), (0, 0, 2)])
def test_no_edges(groups, nodes, targets, channels):
    x = double(nodes, channels).requires_grad_()
    weight, none = double(2, channels // groups, 4).requires_grad_(), torch.zeros(2, 0).long()
    out = typed_aggregate(x, weight, none, none[0], num_targets=targets, groups=groups)
    assert torch.equal(out, torch.zeros(targets, 4, dtype=torch.float64))
    assert not any(g.any() for g in torch.autograd.grad(out.sum(), (x, weight)))


def test_batch():
    """A union of graphs is its graphs, and NaN in one stays there."""
    x, weight = double(3, 4, 2), double(2, 2, 3)
    graphs = [graph(4, 4, 9, 2) for _ in range(3)]
    alone = [typed_aggregate(x[b], weight, *graphs[b]) for b in range(3)]
    edges = torch.cat([4 * b + index for b, (index, _, _) in enumerate(graphs)], 1)
    rest = [torch.cat(parts) for parts in list(zip(*graphs, strict=True))[1:]]
    out = typed_aggregate(x.flatten(0, 1), weight, edges, *rest)
    torch.testing.assert_close(out, torch.cat(alone), **close)
    x[1] = float("nan")
    x.requires_grad_()
    out = typed_aggregate(x.flatten(0, 1), weight, edges, *rest).view(3, 4, 3)
    torch.testing.assert_close(out[::2], torch.stack(alone[::2]), **close)
    (grad,) = torch.autograd.grad(out, x, double(3, 4, 3))
    assert grad[::2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_half(near_float32, dtype, autocast, groups):
    x, weight = torch.randn(5, 4), torch.randn(3, 4 // groups, 4)
    edge_index, edge_type, edge_weight = graph(5, 5, 40, 3)

    def aggregate(x, weight, strengths):
        return typed_aggregate(x, weight, edge_index, edge_type, strengths, groups=groups)

    near_float32(aggregate, dtype, x, weight, edge_weight.float(), autocast=autocast)
    rest = edge_weight.float()  # as adjacencies are, whatever the features
    near_float32(lambda x, w: aggregate(x, w, rest), dtype, x, weight, autocast=autocast)
    with torch.autocast("cpu", dtype):
        assert aggregate(x, weight, rest).dtype == dtype
        assert aggregate(x.double(), weight.double(), rest).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [1e-9, 3e-8, 1.0, 1e5])
def test_half_degree(dtype, strength):
    """Degrees are sums in float32: 301 edges of strengths that float16 cannot hold have a mean."""
    edge_index = torch.stack([torch.arange(301), torch.zeros(301, dtype=torch.long)])
    edge_type, edge_weight = torch.zeros(301, dtype=torch.long), torch.full((301,), strength)
    x, one = torch.ones(301, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype)
    for strengths in (edge_weight, None):
        out = typed_aggregate(x, one, edge_index, edge_type, strengths, num_targets=1)
        assert out.dtype == dtype
        # 1 / 301 is rounded alike for all edges, by half a unit at most, and the result again
        error = torch.finfo(dtype).eps
        torch.testing.assert_close(out.float(), torch.ones(1, 1), rtol=0, atol=error)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3)}, ValueError, "`x` must have shape"),
        ({"weight": torch.zeros(2, 3, 2)}, ValueError, "does not fit 2 channels in 1 groups"),
        ({"groups": 2}, ValueError, "does not fit 2 channels in 2 groups"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.long)}, ValueError, r"shape \(2, E\)"),
        ({"edge_type": torch.zeros(3, dtype=torch.long)}, ValueError, "with E = 2"),
        ({"edge_weight": torch.ones(2, 1)}, ValueError, "must have the shape of `edge_type`"),
        ({"edge_type": torch.tensor([0, 2])}, ValueError, r"in \[0, 2\).*another stencil"),
        ({"edge_type": torch.tensor([0.0, 1.0])}, TypeError, "must hold integers"),
        ({"edge_index": torch.tensor([[3, 0], [0, 0]])}, ValueError, r"index\[0\]` .* \[0, 3\)"),
        ({"edge_index": torch.tensor([[0, 0], [3, 0]])}, ValueError, "Give `num_targets`"),
        ({"num_targets": 1}, ValueError, r"`edge_index\[1\]` must be in \[0, 1\)"),
    ],
)
def test_errors(change, error, message):
    arguments = {
        "x": torch.zeros(3, 2),
        "weight": torch.zeros(2, 2, 2),
        "edge_index": torch.tensor([[2, 0], [1, 1]]),
        "edge_type": torch.tensor([0, 1]),
    }
    typed_aggregate(**arguments)
    with pytest.raises(error, match=message):
        typed_aggregate(**arguments | change)
