"""Edges of a sparse assignment, against the matrices of the same assignment made dense."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hggraph import Stencil
from hggraph.ops import _region_pairs, region_adjacency, region_edges
from hggraph.ops._region_pairs import region_pairs

SQUARE = Stencil.square(3).offsets
STENCILS = [
    SQUARE,
    Stencil.square(5).offsets,
    Stencil.square(2).offsets,  # three of four have no opposite
    Stencil.square(3).without_center().offsets,
    ((0, 0),),
    ((2, -1), (0, 3), (-2, 1), (0, 0), (1, 1)),
    ((9, 0), (0, -19), (-9, 0), (0, 19), (0, 1)),  # most leave the image
]
FLAGS = [(True, True), (True, False), (False, True), (False, False)]
close = {"rtol": 1e-10, "atol": 1e-10}


def sparse(batch, entries, regions, size, filled=0.6):
    """Weights of which some are 0, and regions of which some are named twice by a pixel."""
    shape = (batch, entries, size[0] * size[1])
    weight = torch.rand(shape, dtype=torch.float64) * (torch.rand(shape) < filled)
    return weight, torch.randint(regions, shape, dtype=torch.int32)


def densified(weight, index, regions):
    out = weight.new_zeros(weight.shape[0], regions, weight.shape[2])
    return out.scatter_add(1, index.long(), weight)


def edges_of_matrices(dense):
    """List the nonzero entries number by number: by target, then type, then source."""
    batch, directions, regions, _ = dense.shape
    values = dense.tolist()
    found = [
        (b * regions + j, b * regions + i, k, b, i, j)
        for b in range(batch)
        for i in range(regions)
        for k in range(directions)
        for j in range(regions)
        if values[b][k][i][j] != 0
    ]
    source, target, types, b, i, j = torch.tensor(found, dtype=torch.long).view(-1, 6).t()
    return torch.stack([source, target]), types, dense[b, types, i, j]


def run(weight, index, size, offsets, regions, choices):
    return region_edges(weight, index, size, offsets, regions, noise_cancel=choices[0], max_direction=choices[1])


@settings(max_examples=40)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 4), st.integers(1, 9)],
    *[st.integers(1, 20), st.integers(1, 20), st.sampled_from(STENCILS), st.sampled_from(FLAGS)],
)
@example(0, 2, 3, 5, 17, 19, SQUARE, (True, True))
def test_dense(seed, batch, entries, regions, height, width, offsets, choices):
    """Edges, their order, weights and gradients; an entry of weight 0 has none."""
    torch.manual_seed(seed)
    size = (height, width)
    weight, index = sparse(batch, entries, regions, size)
    weight[:, :1] *= 1e-4  # so that the filter takes some
    weight.requires_grad_()
    dense = densified(weight, index, regions)
    dense = region_adjacency(dense, size, offsets, noise_cancel=choices[0], max_direction=choices[1])
    expected, actual = edges_of_matrices(dense), run(weight, index, size, offsets, regions, choices)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    torch.testing.assert_close(actual[2], expected[2], **close)
    cotangent = torch.randn_like(actual[2])
    grads = [torch.autograd.grad(edges[2], weight, cotangent)[0] for edges in (actual, expected)]
    torch.testing.assert_close(grads[0], torch.where(weight != 0, grads[1], 0), **close)


@pytest.mark.parametrize("choices", FLAGS)
@pytest.mark.parametrize("offsets", STENCILS[:3])
def test_gradcheck(offsets, choices):
    weight, index = sparse(1, 2, 3, (3, 4), filled=1.0)
    weight = (weight + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: run(w, index, (3, 4), offsets, 3, choices)[2], (weight,))


def test_by_hand():
    """Region 1 right of region 0 at a pixel shared half and half, which names region 1 twice."""
    weight = torch.tensor([[[1.0, 0.5, 1.0], [0.0, 0.25, 0.0], [0.0, 0.25, 0.0]]], requires_grad=True)
    index = torch.tensor([[[0, 0, 1], [-7, 1, 99], [5, 1, -1]]])  # what has no weight may name anything
    edges = region_edges(weight, index, (1, 3), [(0, -1), (0, 0), (0, 1)], 2)
    assert edges[0].tolist() == [[0, 1, 0, 1], [0, 0, 1, 1]]
    assert edges[1].tolist() == [1, 2, 0, 1]
    assert edges[2].tolist() == [1, 1, 1, 1]  # 1 * 0.5 + 0.5 * 1 each way
    (grad,) = torch.autograd.grad(edges[2][1], weight)
    assert grad.tolist() == [[[0.5, 1.0, 0.5], [0, 1, 0], [0, 1, 0]]]


@pytest.mark.parametrize("limits", [(1, 1), (300, 700)])
def test_pieces(monkeypatch, limits):
    """Images in pieces, and tiles with very different numbers of regions, give the same bits."""
    weight, index = sparse(2, 3, 50, (41, 37))
    index[:, :, : 37 * 16] %= 3
    weight.requires_grad_()
    results = []
    for _ in range(2):
        edges = region_edges(weight, index, (41, 37), SQUARE, 50)
        (grad,) = torch.autograd.grad(edges[2], weight, torch.linspace(-1, 1, len(edges[1])).double())
        results.append((*edges, grad))
        monkeypatch.setattr(_region_pairs, "_ENTRIES", limits[0])
        monkeypatch.setattr(_region_pairs, "_VALUES", limits[1])
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(dtype):
    """Of float32, only the result is rounded; autocast changes nothing."""
    weight, index = sparse(1, 2, 9, (20, 30))
    leaves = [weight.to(dtype).requires_grad_(), weight.to(dtype).float().requires_grad_()]
    (half, whole) = (region_edges(leaf, index, (20, 30), SQUARE, 9) for leaf in leaves)
    with torch.autocast("cpu", dtype):
        again = region_edges(leaves[0], index, (20, 30), SQUARE, 9)
    for edges in (half, again):
        assert torch.equal(edges[0], whole[0])
        assert torch.equal(edges[1], whole[1])
        assert torch.equal(edges[2], whole[2].to(dtype))
    grads = [torch.autograd.grad(edges[2].sum(), leaf)[0] for edges, leaf in zip((half, whole), leaves, strict=True)]
    assert torch.equal(grads[0], grads[1].to(dtype))


class Largest(TorchDispatchMode):
    """The most elements of a tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def test_no_large_matrix(monkeypatch):
    """A quarter of the pixels are regions: nothing of R x R, and pieces that do not grow with the image."""
    monkeypatch.setattr(_region_pairs, "_ENTRIES", 20_000)
    monkeypatch.setattr(_region_pairs, "_VALUES", 100_000)
    size, regions = (128, 128), 64 * 64
    y, x = torch.meshgrid(torch.arange(128) // 2, torch.arange(128) // 2, indexing="ij")
    index = torch.stack([y * 64 + x, y * 64 + (x + 1) % 64]).flatten(1)[None]
    weight = torch.rand(1, 2, 128 * 128, requires_grad=True)
    with Largest() as largest:
        edges = region_edges(weight, index, size, SQUARE, regions)
        edges[2].sum().backward()
    assert largest.elements < 20 * regions * len(SQUARE)  # the pairs with their strengths; R x R is 20 times this


@pytest.mark.parametrize(("batch", "entries", "size"), [(0, 2, (2, 2)), (1, 0, (2, 2)), (2, 1, (0, 3)), (1, 1, (1, 1))])
def test_little(batch, entries, size):
    """Regions without pixels have themselves alone."""
    weight, index = sparse(batch, entries, 3, size, filled=1.0)
    weight.requires_grad_()
    edge_index, edge_type, edge_weight = region_edges(weight, index, size, SQUARE, 3)
    assert torch.equal(edge_index, torch.arange(3 * batch).expand(2, -1))
    assert edge_type.tolist() == [4] * 3 * batch
    assert edge_weight.tolist() == [1.0] * 3 * batch
    nothing = region_edges(weight, index, size, [(0, 1)], 3)
    assert [x.shape for x in nothing] == [(2, 0), (0,), (0,)]
    assert not torch.autograd.grad(nothing[2].sum(), weight)[0].any()


def test_pairs():
    """Sorted, each once, and only what touches."""
    weight, index = sparse(2, 2, 12, (30, 33))
    low, high, forward, backward = region_pairs(weight, index, (30, 33), [0, 1, 1, -1], 12)
    assert (low < high).all()
    assert (low // 12 == high // 12).all()
    assert ((low * 24 + high).diff() > 0).all()
    assert ((forward + backward).sum(1) > 0).all()
    assert forward.shape == backward.shape == (len(low), 2)


def test_forward_mode():
    weight, index = sparse(1, 1, 2, (2, 2), filled=1.0)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        region_edges(forward_ad.make_dual(weight, weight), index, (2, 2), SQUARE, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"assignment": torch.ones(2, 6)}, ValueError, "`assignment` must have shape"),
        ({"index": torch.zeros(1, 2, 5).int()}, ValueError, r"shape of `assignment`, \(1, 2, 6\)"),
        ({"index": torch.zeros(1, 2, 6)}, TypeError, "`index` must be int32 or int64, got torch.float32"),
        ({"size": (2, 4)}, ValueError, r"`size` \(2, 4\) must multiply to the 6 pixels"),
        ({"offsets": [(0, 0.5)]}, ValueError, "whole pixels"),
        ({"index": torch.full((1, 2, 6), 3)}, ValueError, r"`index` must be in \[0, 3\), got values from 3 to 3"),
        ({"index": torch.full((1, 2, 6), -1)}, ValueError, r"`index` must be in \[0, 3\)"),
    ],
)
def test_errors(change, error, message):
    arguments = {"assignment": torch.ones(1, 2, 6), "index": torch.zeros(1, 2, 6).long(), "size": (2, 3)}
    arguments |= {"offsets": SQUARE, "num_regions": 3}
    with pytest.raises(error, match=message):
        region_edges(**arguments | change)
