"""Region adjacency against ``S^T A S`` written out with every clean-up step, as matrices and as edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hggraph import Assignment, RegionAdjacency, Stencil
from hggraph.cluster import soft_slic

STENCILS = [
    Stencil.square(3),
    Stencil.square(5),
    Stencil.square(3, dilation=2),
    Stencil.square(2),  # lacks most opposites
    Stencil.square(1),
    Stencil.square(3).without_center(),
    Stencil([(0, 1), (2, -1), (0, -1), (-1, 3)]),
]
flags = st.tuples(st.booleans(), st.booleans())


def literal(s, size, offsets, noise_cancel, max_direction):
    """Return A of one image from S (P, R) as nested lists of Python floats: Eq. 4, 7, appendix B."""
    (height, width), regions = size, s.shape[1]
    s, around = s.tolist(), range(regions)
    out = []
    for dy, dx in offsets:
        raw = [[0.0] * regions for _ in around]
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    target, source = s[y * width + x], s[(y + dy) * width + x + dx]
                    for i in around:
                        for j in around:
                            raw[i][j] += target[i] * source[j]
        # the opposite direction's matrix is the transpose, from the matrix before cancelling
        clean = [[max(0.0, raw[i][j] - raw[j][i] * noise_cancel) for j in around] for i in around]
        for i in around:
            for j in around:
                if clean[i][j] < 1e-7 or i == j:
                    clean[i][j] = 0.0
        if dy == dx == 0:
            clean = [[0.0] * regions for _ in around]
        out.append(clean)
    if max_direction:
        for i in around:
            for j in around:
                column = [matrix[i][j] for matrix in out]
                # of those equal up to rounding the first: with two regions sums often telescope alike
                best = next(k for k, a in enumerate(column) if a >= max(column) * (1 - 1e-12))
                for k, matrix in enumerate(out):
                    matrix[i][j] *= k == best
    for k, offset in enumerate(offsets):
        if not any(offset):
            out[k] = [[float(i == j) for j in around] for i in around]
    return torch.tensor(out, dtype=torch.float64)


@st.composite
def assignments(draw):
    """Return a random S, with one region so faint that the 1e-7 filter takes some of its entries."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    batch, regions = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    weight = torch.rand(batch, regions, size[0] * size[1], dtype=torch.float64)
    weight[:, 0] *= draw(st.sampled_from([1.0, 1e-4, 3e-7]))
    return Assignment(weight / weight.sum(1, keepdim=True), size)


@st.composite
def stencils(draw):
    offset = st.tuples(st.integers(-2, 2), st.integers(-2, 2))
    return Stencil(draw(st.lists(offset, min_size=1, max_size=9, unique=True)))


@settings(max_examples=60)
@given(assignments(), st.one_of(st.sampled_from(STENCILS), stencils()), flags)
def test_literally(assignment, stencil, flags):
    adjacency = assignment.adjacency(stencil, noise_cancel=flags[0], max_direction=flags[1])
    expected = [literal(s, assignment.size, stencil, *flags) for s in assignment.to_dense()]
    assert_close(adjacency.to_dense(), torch.stack(expected), rtol=0, atol=1e-12)


def test_each_step_by_hand():
    """Two pixels side by side, S = [[1 - e, e], [e, 1 - e]]: A of (0, 1) is the product of the rows."""
    e = 1e-4
    weight = torch.tensor([[[1 - e, e], [e, 1 - e]]], dtype=torch.float64)
    assignment, left, right = Assignment(weight, (1, 2)), 3, 5
    raw = assignment.adjacency(noise_cancel=False, max_direction=False).to_dense()[0]
    # e^2 = 1e-8 is filtered, the diagonal (1 - e) e is set to 0
    expected = torch.tensor([[0, (1 - e) ** 2], [0, 0]], dtype=torch.float64)
    assert_close(raw[right], expected, rtol=0, atol=1e-15)
    assert_close(raw[left], expected.T, rtol=0, atol=1e-15)
    assert torch.equal(raw[4], torch.eye(2).double())
    # the opposite is subtracted before the filter looks
    cancelled = assignment.adjacency().to_dense()[0]
    assert cancelled[right, 0, 1].item() == pytest.approx((1 - e) ** 2 - e**2, rel=0, abs=1e-15)


def test_strongest_direction_by_hand():
    """Region 1 lies right of region 0 at three pixels, as often to the upper right."""
    labels = torch.tensor([[[0, 1, 1], [0, 1, 1], [0, 0, 1]]])
    every = Assignment.from_labels(labels, 2).adjacency(max_direction=False).to_dense()[0]
    assert every[:, 0, 1].tolist() == [0, 1, 3, 0, 0, 3, 0, 0, 1]
    one = Assignment.from_labels(labels, 2).adjacency().to_dense()[0]
    assert one[:, 0, 1].tolist() == [0, 0, 3, 0, 0, 0, 0, 0, 0]  # of equals the first


def random_dense(batch, stencil, regions):
    dense = torch.rand(batch, len(stencil), regions, regions, dtype=torch.float64)
    return dense * (torch.rand_like(dense) < 0.3)


@given(st.integers(0, 3), st.sampled_from(STENCILS), st.integers(1, 5))
def test_edges_and_matrices_are_the_same(batch, stencil, regions):
    """There and back: every nonzero entry once, by target, then type, over b * R + r."""
    dense = random_dense(batch, stencil, regions)
    edge_index, edge_type, edge_weight = edges = RegionAdjacency(stencil, dense).to_edges()
    expected = [
        (b * regions + j, b * regions + i, k, dense[b, k, i, j].item())
        for b in range(batch)
        for i in range(regions)
        for k in range(len(stencil))
        for j in range(regions)
        if dense[b, k, i, j] > 0
    ]
    listed = zip(*edge_index.tolist(), edge_type.tolist(), edge_weight.tolist(), strict=True)
    assert list(listed) == expected
    again = RegionAdjacency(stencil, edges=edges, batch_size=batch, num_regions=regions)
    assert not again.is_dense
    assert all(ours is theirs for ours, theirs in zip(again.to_edges(), edges, strict=True))
    assert torch.equal(again.to_dense(), dense)


@settings(max_examples=30)
@given(
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.sampled_from(STENCILS),
    flags,
    st.integers(0, 1000),
)
def test_candidates_edges_are_dense_edges(size, stencil, flags, seed):
    """The same S as a matrix gives the same adjacency: values, order and gradients."""
    torch.manual_seed(seed)
    regions = min(7, size[0] * size[1])
    # far apart and without a threshold, so that some connections are under the 1e-7 of the filter
    x = (1.5 * torch.randn(2, 2, *size, dtype=torch.float64)).requires_grad_()
    seeds = torch.rand(2, size[0] * size[1]).argsort(1)[:, :regions]
    tiled = soft_slic(x, seeds, candidates=min(4, regions), threshold=0.0)
    dense = Assignment(tiled.to_dense().mT, size)
    options = {"noise_cancel": flags[0], "max_direction": flags[1]}
    ours, theirs = tiled.edges(stencil, **options), dense.adjacency(stencil, **options)
    assert theirs.is_dense and not ours.is_dense
    assert tiled.adjacency(stencil, **options).is_dense  # few regions: matrices of static shape
    (index, types, weight), expected = ours.to_edges(), theirs.to_edges()
    assert torch.equal(index, expected[0])
    assert torch.equal(types, expected[1])
    assert_close(weight, expected[2], rtol=0, atol=1e-12)
    assert_close(ours.to_dense(), theirs.to_dense(), rtol=0, atol=1e-12)
    assert_close(ours.normalized(), theirs.normalized(), rtol=1e-10, atol=1e-12)
    if weight.requires_grad:
        cotangent = torch.randn_like(weight)
        grads = torch.autograd.grad(weight, x, cotangent, retain_graph=True)
        expected = torch.autograd.grad(expected[2], x, cotangent, retain_graph=True)
        assert_close(grads, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("candidates", [None, 5])
def test_every_region_has_itself(candidates):
    x = torch.randn(2, 3, 9, 8)
    seeds = torch.rand(2, 72).argsort(1)[:, :11]
    index, types, weight = soft_slic(x, seeds, candidates=candidates).adjacency().to_edges()
    itself = types == 4
    assert torch.equal(index[:, itself], torch.arange(22).expand(2, 22))
    assert (weight[itself] == 1).all()
    assert (index[0] != index[1])[~itself].all()
    assert ((index[0] < 11) == (index[1] < 11)).all()  # no edge between images
    assert (weight > 0).all()
    key = index[1] * 9 + types
    assert (key.diff() >= 0).all()


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("noise_cancel", [True, False])
@pytest.mark.parametrize("max_direction", [True, False])
def test_constant_image(candidates, noise_cancel, max_direction):
    """Every weight is 1/3, so each direction counts its pixel pairs over 9; ties go to the first."""
    x = torch.full((1, 2, 6, 7), 0.3, dtype=torch.float64, requires_grad=True)
    assignment = soft_slic(x, torch.tensor([[0, 10, 40]]), candidates=candidates)
    adjacency = assignment.adjacency(noise_cancel=noise_cancel, max_direction=max_direction)
    pairs = [30, 35, 30, 36, 0, 36, 30, 35, 30]
    if max_direction:
        pairs = [36 * (k == 3) for k in range(9)]
    if noise_cancel:
        pairs = [0] * 9
    expected = torch.tensor(pairs).double()[:, None, None] / 9 * (1 - torch.eye(3))
    expected[4] = torch.eye(3)
    assert_close(adjacency.to_dense()[0], expected, rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(adjacency.to_edges()[2].sum(), x)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("noise_cancel", [True, False])
def test_candidates_break_ties_as_matrices_do(candidates, noise_cancel):
    x = torch.full((1, 2, 6, 7), 0.3, dtype=torch.float64)
    tiled = soft_slic(x, torch.tensor([[0, 10, 40]]), candidates=candidates)
    dense = Assignment(tiled.to_dense().transpose(1, 2), (6, 7))
    ours, theirs = (a.adjacency(noise_cancel=noise_cancel).to_edges() for a in (tiled, dense))
    assert_close(ours, theirs, rtol=0, atol=1e-12)
