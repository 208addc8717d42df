"""Gather and scatter equal PyTorch's indexing and PyG's scatter, in value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import utils as pyg

from hggraph.ops import gather, scatter

close = {"rtol": 1e-12, "atol": 1e-12}


def pair(*shape):
    x = torch.randn(shape, dtype=torch.float64)
    return x.clone().requires_grad_(), x.clone().requires_grad_()


def same(actual, expected, x, y):
    torch.testing.assert_close(actual, expected, **close)
    cotangent = torch.randn_like(expected)
    grads = torch.autograd.grad(actual, x, cotangent), torch.autograd.grad(expected, y, cotangent)
    torch.testing.assert_close(*grads, **close)


@given(rows=st.integers(1, 6), entries=st.integers(0, 9), channels=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_gather(rows, entries, channels, seed):
    torch.manual_seed(seed)
    (x, y), index = pair(rows, channels), torch.randint(rows, (entries,))
    same(gather(x, index), y[index], x, y)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@given(entries=st.integers(0, 9), segments=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_scatter(reduce, entries, segments, seed):
    """An index in any order, some segments empty."""
    torch.manual_seed(seed)
    (x, y), index = pair(entries, 3), torch.randint(segments, (entries,))
    same(scatter(x, index, segments, reduce=reduce), pyg.scatter(y, index, 0, segments, reduce), x, y)


def test_vectors_and_columns():
    index = torch.tensor([2, 0, 2, 1])
    x = torch.arange(4.0)
    assert scatter(x, index, 4).tolist() == [1, 3, 2, 0]
    assert gather(x, index).tolist() == [2, 0, 2, 1]
    columns = torch.randn(3, 4).t()
    torch.testing.assert_close(scatter(columns, index, 3), pyg.scatter(columns, index, 0, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gather(torch.ones(3), torch.tensor([[0]])), r"`index` must have shape \(E,\)"),
        (lambda: gather(torch.ones(3), torch.tensor([3])), "`index`.*3"),
        (lambda: scatter(torch.ones(3), torch.tensor([0, 1]), 2), r"`index` must have shape \(3,\)"),
        (lambda: scatter(torch.ones(2), torch.tensor([0, 2]), 2), "`index`.*2"),
        (lambda: scatter(torch.ones(2), torch.tensor([0, 1]), 2, reduce="min"), "`reduce` must be one of"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
