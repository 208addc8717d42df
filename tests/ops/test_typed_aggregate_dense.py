"""The typed aggregation on dense matrices, against loops and the one on edges."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hggraph.ops import typed_aggregate, typed_aggregate_dense
from hggraph.ops.typed_aggregate_dense import typed_aggregate_dense_reference

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def strengths(*shape):
    """Return positive strengths, half of them 0, so that some rows are empty."""
    return torch.rand(shape, dtype=torch.float64) * (torch.rand(shape) < 0.5)


def loop(x, weight, adjacency, groups, normalize):
    """Visit each image, direction and target, each group with its own slice of the weight."""
    out = x.new_zeros(x.shape[0], adjacency.shape[2], weight.shape[2])
    size, width = weight.shape[1], weight.shape[2] // groups
    for b, matrices in enumerate(adjacency):
        for k, matrix in enumerate(matrices):
            for i, row in enumerate(matrix):
                mean = sum((a * x[b, j] for j, a in enumerate(row)), x.new_zeros(x.shape[2]))
                mean = mean / max(float(row.sum()), 1e-7) if normalize else mean
                for g in range(groups):
                    outputs = slice(g * width, (g + 1) * width)
                    out[b, i, outputs] += mean[g * size : (g + 1) * size] @ weight[k, :, outputs]
    return out


@settings(max_examples=40)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)],
    *[st.integers(1, 3), st.integers(1, 3), st.booleans()],
)
@example(0, 2, 4, 3, 3, 2, True)  # nothing small
def test_loop(seed, batch, nodes, targets, directions, groups, normalize):
    torch.manual_seed(seed)
    x, weight = double(batch, nodes, 2 * groups), double(directions, 2, 3 * groups)
    adjacency = strengths(batch, directions, targets, nodes)
    out = typed_aggregate_dense(x, weight, adjacency, groups=groups, normalize=normalize)
    torch.testing.assert_close(out, loop(x, weight, adjacency, groups, normalize), **close)
    plain = loop(x, weight, adjacency, groups, False)
    reference = typed_aggregate_dense_reference(x, weight, adjacency, groups)
    torch.testing.assert_close(reference, plain, **close)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_edges(groups, normalize):
    """The same graph as a list of edges has the same values and gradients."""
    x, weight = double(2, 4, 4).requires_grad_(), double(3, 4 // groups, 6).requires_grad_()
    adjacency = (strengths(2, 3, 4, 4) + 0.1).requires_grad_()
    options = {"groups": groups, "normalize": normalize}
    batch, k, i, j = torch.cartesian_prod(*map(torch.arange, adjacency.shape)).t()
    edge_index = torch.stack([4 * batch + j, 4 * batch + i])
    outs = [
        typed_aggregate_dense(x, weight, adjacency, **options).flatten(0, 1),
        typed_aggregate(x.flatten(0, 1), weight, edge_index, k, adjacency.flatten(), **options),
    ]
    cotangent = torch.randn_like(outs[0])
    grads = [torch.autograd.grad(out, (x, weight, adjacency), cotangent) for out in outs]
    torch.testing.assert_close((outs[0], *grads[0]), (outs[1], *grads[1]), **close)


@pytest.mark.parametrize("groups", [1, 2])
def test_layouts(agree_everywhere, groups):
    inputs = [double(2, 5, 4), double(3, 4 // groups, 6), double(2, 3, 4, 5), groups]
    operator = torch.ops.hggraph.typed_aggregate_dense
    agree_everywhere(operator, typed_aggregate_dense_reference, *inputs)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups, normalize):
    """Through the degree; without it also with an empty row, where the degree has no derivative."""
    adjacency = torch.rand(2, 3, 2, 3, dtype=torch.float64) + 0.1
    if not normalize:
        adjacency[:, 1, 0] = 0
    leaves = double(2, 3, 2), double(3, 2 // groups, 2), adjacency
    assert torch.autograd.gradcheck(
        lambda *leaves: typed_aggregate_dense(*leaves, groups=groups, normalize=normalize),
        [t.requires_grad_() for t in leaves],
    )


@pytest.mark.parametrize(("a", "b", "expected"), [(1, 3, 5.0), (1e-6, 3e-6, 5.0), (1e-9, 3e-9, 0.2), (0, 0, 0.0)])
def test_degree(a, b, expected):
    """Strengths far under 1e-7 are divided by 1e-7, others by their sum; an empty row gives 0."""
    x, one = torch.tensor([[[2.0], [6.0]]]).double(), torch.ones(1, 1, 1).double()
    adjacency = torch.tensor([[[[a, b]]]], dtype=torch.float64, requires_grad=True)
    out = typed_aggregate_dense(x, one, adjacency)
    torch.testing.assert_close(out.item(), expected, **close)
    assert torch.autograd.grad(out.sum(), adjacency)[0].isfinite().all()


def test_empty_direction():
    """A direction without a neighbour adds exactly 0, even where the weights are huge."""
    weight, adjacency = double(2, 2, 3), strengths(1, 2, 4, 4)
    weight[1], adjacency[:, 1] = 1e300, 0
    leaves = [t.requires_grad_() for t in (double(1, 4, 2), weight)]
    out = typed_aggregate_dense(*leaves, adjacency)
    same = typed_aggregate_dense(leaves[0], weight[:1], adjacency[:, :1])
    torch.testing.assert_close(out, same, **close)
    grad_x, grad_weight = torch.autograd.grad(out, leaves, torch.randn_like(out))
    assert grad_x.isfinite().all()
    assert not grad_weight[1].any()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("batch", "nodes", "targets", "channels"),
    [(1, 1, 1, 2), (0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (1, 1, 1, 0)],
)
def test_little(groups, batch, nodes, targets, channels):
    """Nothing to sum is 0, whichever size is the one that is 0."""
    x, weight = double(batch, nodes, channels), double(2, channels // groups, 4)
    leaves = [t.requires_grad_() for t in (x, weight, strengths(batch, 2, targets, nodes) + 0.1)]
    out = typed_aggregate_dense(*leaves, groups=groups, normalize=False)
    expected = loop(*[t.detach() for t in leaves], groups, False)
    torch.testing.assert_close(out, expected, **close)
    assert [g.shape for g in torch.autograd.grad(out.sum(), leaves)] == [t.shape for t in leaves]


def test_batch():
    """A batch is its items, and NaN in one stays there."""
    x, weight, adjacency = double(3, 4, 2), double(2, 2, 3), strengths(3, 2, 4, 4)
    alone = [typed_aggregate_dense(x[b : b + 1], weight, adjacency[b : b + 1])[0] for b in range(3)]
    out = typed_aggregate_dense(x, weight, adjacency)
    torch.testing.assert_close(out, torch.stack(alone), **close)
    x[1] = float("nan")
    out = typed_aggregate_dense(x.requires_grad_(), weight, adjacency)
    torch.testing.assert_close(out[::2], torch.stack(alone[::2]), **close)
    (grad,) = torch.autograd.grad(out, x, double(3, 4, 3))
    assert grad[::2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_half(near_float32, dtype, autocast, groups):
    """With rows of every size, up to 1e6, as borders of large regions have."""
    x, weight = torch.randn(2, 5, 4), torch.randn(3, 4 // groups, 4)
    adjacency = (strengths(2, 3, 5, 5) * torch.logspace(-6, 6, 5)[:, None]).float()

    def aggregate(x, weight):
        return typed_aggregate_dense(x, weight, adjacency, groups=groups)

    near_float32(aggregate, dtype, x, weight, autocast=autocast)
    with torch.autocast("cpu", dtype):
        assert aggregate(x, weight).dtype == dtype
        assert aggregate(x.double(), weight.double()).dtype == torch.float64


def test_errors():
    x, weight = torch.zeros(1, 3, 2), torch.zeros(2, 2, 2)
    for shape in [(1, 2, 3, 4), (1, 1, 3, 3), (2, 2, 3, 3)]:
        with pytest.raises(ValueError, match=r"`adjacency` must have shape \(B, K, T, R\)"):
            typed_aggregate_dense(x, weight, torch.zeros(shape))
    with pytest.raises(ValueError, match="does not fit"):
        typed_aggregate_dense(x, weight[:, :1], torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match="`x` must have shape"):
        typed_aggregate_dense(x[0], weight, torch.zeros(1, 2, 3, 3))
