"""The region adjacency, against S^T A S written out and a double loop over pixels."""

from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hggraph import Stencil
from hggraph.ops import region_adjacency
from hggraph.ops.region_adjacency import region_adjacency_reference

close = {"rtol": 1e-10, "atol": 1e-10}
SQUARE = Stencil.square(3).offsets
STENCILS = [
    SQUARE,
    Stencil.square(3).without_center().offsets,
    Stencil.square(2).offsets,  # three of four have no opposite
    Stencil.square(3, dilation=2).offsets,
    Stencil.square((1, 3)).offsets,
    ((0, 1),),
    ((0, 0),),
    ((2, -1), (0, 3), (-2, 1), (0, 0), (1, 1)),
    ((9, 0), (0, -9), (-9, 0), (0, 9), (0, 1)),  # four of five leave the image
    ((7, 7), (-9, 3)),  # all leave it
]
FLAGS = [(True, True), (True, False), (False, True), (False, False)]
flags = pytest.mark.parametrize(("noise_cancel", "max_direction"), FLAGS)


def weights(batch, regions, pixels):
    return torch.rand(batch, regions, pixels, dtype=torch.float64)


def hard(batch, regions, pixels):
    labels = torch.randint(regions, (batch, 1, pixels))
    return (labels == torch.arange(regions)[:, None]).double()


def adjacency(assignment, size, offsets, noise_cancel, max_direction):
    choices = {"noise_cancel": noise_cancel, "max_direction": max_direction}
    return region_adjacency(assignment, size, offsets, **choices)


def loop(assignment, size, offsets, noise_cancel, max_direction):
    """Visit pixel after pixel and neighbour after neighbour, then clean entry after entry."""
    (batch, regions, _), (height, width) = assignment.shape, size
    out = torch.zeros(batch, len(offsets), regions, regions, dtype=torch.float64)
    for b in range(batch):
        s = assignment[b].t()
        raw = torch.zeros(len(offsets), regions, regions, dtype=torch.float64)
        for (y, x), (k, (dy, dx)) in product(product(range(height), range(width)), enumerate(offsets)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                raw[k] += torch.outer(s[y * width + x], s[(y + dy) * width + x + dx])
        for i, j in product(range(regions), range(regions)):
            strengths = []
            for k, offset in enumerate(offsets):
                strength = float(raw[k, i, j])
                if noise_cancel:
                    strength = max(0.0, strength - float(raw[k, j, i]))
                strengths.append(0.0 if strength < 1e-7 or i == j or offset == (0, 0) else strength)
            if max_direction:
                best = strengths.index(max(strengths))
                strengths = [strength if k == best else 0.0 for k, strength in enumerate(strengths)]
            for k, offset in enumerate(offsets):
                out[b, k, i, j] = float(i == j) if offset == (0, 0) else strengths[k]
    return out


@settings(max_examples=60)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)],
    *[st.integers(1, 4), st.sampled_from(STENCILS), st.sampled_from(FLAGS), st.booleans()],
)
@example(0, 2, 4, 4, 3, SQUARE, (True, True), False)  # nothing small
def test_loop(seed, batch, regions, height, width, offsets, choices, is_hard):
    """Hard assignments give whole numbers: exactly equal, the first of equal directions too."""
    torch.manual_seed(seed)
    assignment = (hard if is_hard else weights)(batch, regions, height * width)
    expected = loop(assignment, (height, width), offsets, *choices)
    out = adjacency(assignment, (height, width), offsets, *choices)
    tolerance = {"rtol": 0, "atol": 0} if is_hard else close
    torch.testing.assert_close(out, expected, **tolerance)
    reference = region_adjacency_reference(assignment, (height, width), offsets, *choices)
    torch.testing.assert_close(reference, expected, **tolerance)


@flags
@pytest.mark.parametrize("size", [(1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("offsets", STENCILS)
def test_thin(size, offsets, noise_cancel, max_direction):
    assignment = weights(2, 3, size[0] * size[1])
    expected = loop(assignment, size, offsets, noise_cancel, max_direction)
    out = adjacency(assignment, size, offsets, noise_cancel, max_direction)
    torch.testing.assert_close(out, expected, **close)


def test_directions():
    """Source right of target has type (0, 1); the same borders upside down have type (1, 0)."""
    left, right = torch.tensor([[1.0, 1, 0], [1, 1, 0]]), torch.tensor([[0.0, 0, 1], [0, 0, 1]])
    assignment = torch.stack([left, right])[None]
    out = region_adjacency(assignment.flatten(2), (2, 3), SQUARE)[0]
    expected = torch.zeros(9, 2, 2)
    # Two pairs lie side by side, one on each diagonal: the row wins.
    expected[SQUARE.index((0, 1)), 0, 1] = 2
    expected[SQUARE.index((0, -1)), 1, 0] = 2
    expected[4] = torch.eye(2)
    assert torch.equal(out, expected)
    out = region_adjacency(assignment.mT.flatten(2), (3, 2), SQUARE)[0]
    assert out[SQUARE.index((1, 0)), 0, 1] == 2
    assert out[SQUARE.index((-1, 0)), 1, 0] == 2
    assert out.sum() == 6


@flags
def test_laws(noise_cancel, max_direction):
    """Opposite directions are transposes, a mirrored image mirrors the directions."""
    choices = {"noise_cancel": noise_cancel, "max_direction": max_direction}
    assignment = weights(2, 4, 20)
    out = region_adjacency(assignment, (4, 5), SQUARE, **choices)
    if not max_direction or noise_cancel:
        torch.testing.assert_close(out[:, list(Stencil.square(3).opposite)], out.mT, **close)
    mirrored = assignment.view(2, 4, 4, 5).flip(3).flatten(2)
    order = [SQUARE.index((dy, -dx)) for dy, dx in SQUARE]
    same = region_adjacency(mirrored, (4, 5), SQUARE, **choices)[:, order]
    torch.testing.assert_close(same, out, **close)
    assert (out >= 0).all()
    assert torch.equal(out[:, 4], torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    if max_direction:
        assert ((out > 0).sum(1) <= 1).all()


def test_filter():
    """Entries under 1e-7 are dropped and get no gradient; those over it stay."""
    for strength, kept in [(0.9e-7, 0.0), (1.1e-7, 1.1e-7)]:
        assignment = torch.tensor([[[1.0, 0.0], [0.0, strength]]]).double().requires_grad_()
        out = region_adjacency(assignment, (1, 2), [(0, 1)])
        torch.testing.assert_close(out[0, 0, 0, 1].item(), kept, rtol=1e-6, atol=0)
        (grad,) = torch.autograd.grad(out.sum(), assignment)
        assert grad[0, 1, 1] == (1 if kept else 0)


@pytest.mark.parametrize("offsets", STENCILS[:1] + STENCILS[2:3] + STENCILS[-3:])
@pytest.mark.parametrize(("noise_cancel", "max_direction"), [(True, True), (False, False)])
def test_layouts(agree_everywhere, offsets, noise_cancel, max_direction):
    rest = [(2, 3), offsets, noise_cancel, max_direction]
    agree_everywhere(adjacency, region_adjacency_reference, weights(2, 3, 6), *rest)


@flags
@pytest.mark.parametrize("offsets", STENCILS)
def test_gradcheck(offsets, noise_cancel, max_direction):
    inputs = (weights(2, 2, 6).requires_grad_(), (2, 3), offsets, noise_cancel, max_direction)
    assert torch.autograd.gradcheck(adjacency, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_constant(dtype):
    """Equal shares everywhere touch nothing after cancelling, and backward is finite."""
    assignment = torch.full((1, 4, 12), 0.25, dtype=dtype, requires_grad=True)
    out = region_adjacency(assignment, (3, 4), SQUARE)
    assert out.dtype == dtype
    assert torch.equal(out[0, 4], torch.eye(4, dtype=dtype))
    assert out.sum() == 4
    (grad,) = torch.autograd.grad(out, assignment, torch.randn_like(out))
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@flags
def test_half(dtype, noise_cancel, max_direction):
    """Of float32, only the result is rounded: values, degrees and gradients; under autocast too."""
    assignment = torch.randn(2, 4, 63).mul(2).softmax(1).to(dtype)
    choices = {"noise_cancel": noise_cancel, "max_direction": max_direction, "return_degree": True}
    results = []
    for leaf in (assignment.clone().requires_grad_(), assignment.float().requires_grad_()):
        out, degree = region_adjacency(leaf, (7, 9), SQUARE, **choices)
        assert out.dtype == degree.dtype == leaf.dtype
        cotangents = (torch.linspace(-1, 1, x.numel()).view(x.shape).to(dtype).to(x.dtype) for x in (out, degree))
        results.append((out, degree, *torch.autograd.grad((out, degree), leaf, tuple(cotangents))))
    for half, whole in zip(*results, strict=True):
        assert torch.equal(half, whole.to(dtype))
    expected = loop(assignment.double(), (7, 9), SQUARE, noise_cancel, max_direction)
    torch.testing.assert_close(results[0][0].double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)
    assert ((results[0][0] > 0).sum((0, 2, 3)) > 0).sum() > 5  # not one direction for all
    with torch.autocast("cpu", dtype):
        assert torch.equal(results[1][1], region_adjacency(assignment.float(), (7, 9), SQUARE, **choices)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_strongest(dtype):
    """The strongest direction is the strongest, and degrees are sums of more than a half's digits."""
    labels = torch.zeros(1, 1, 600, dtype=torch.long)
    labels[..., 300:] = 1
    assignment = torch.cat([1 - labels, labels], 1).to(dtype)
    out, degree = region_adjacency(assignment, (2, 300), SQUARE, return_degree=True)
    assert out[0, :, 0, 1].nonzero().item() == SQUARE.index((1, 0))
    assert out[0, SQUARE.index((1, 0)), 0, 1] == torch.tensor(300, dtype=dtype)
    many = torch.full((1, 400, 6), 1 / 64, dtype=dtype)  # 400 * 3 / 4096 each
    _, degree = region_adjacency(many, (2, 3), [(1, 0)], noise_cancel=False, max_direction=False, return_degree=True)
    assert torch.equal(degree, torch.full((1, 1, 400), 399 * 3 / 4096, dtype=torch.float64).to(dtype))


def test_batch():
    """A batch is its items, and NaN in one stays there."""
    assignment = weights(3, 3, 6)
    alone = [region_adjacency(assignment[b : b + 1], (2, 3), SQUARE)[0] for b in range(3)]
    out = region_adjacency(assignment, (2, 3), SQUARE)
    torch.testing.assert_close(out, torch.stack(alone), **close)
    assignment[1] = float("nan")
    out = region_adjacency(assignment.requires_grad_(), (2, 3), SQUARE)
    torch.testing.assert_close(out[::2], torch.stack(alone[::2]), **close)
    (grad,) = torch.autograd.grad(out, assignment, torch.randn_like(out))
    assert grad[::2].isfinite().all()


@pytest.mark.parametrize(("batch", "regions", "size"), [(0, 2, (2, 2)), (1, 0, (2, 2)), (1, 2, (0, 3)), (1, 1, (2, 2))])
def test_little(batch, regions, size):
    assignment = weights(batch, regions, size[0] * size[1]).requires_grad_()
    out = region_adjacency(assignment, size, SQUARE)
    assert torch.equal(out, loop(assignment.detach(), size, SQUARE, True, True))
    assert not torch.autograd.grad(out.sum(), assignment)[0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"assignment": torch.zeros(2, 6)}, "`assignment` must have shape"),
        ({"size": (2, 4)}, r"`size` \(2, 4\) must multiply to the 6 pixels"),
        ({"size": (1, 2, 3)}, "`size`"),
        ({"offsets": []}, "`offsets` must be at least one displacement"),
        ({"offsets": [(0, 0, 1)]}, "`offsets` must be at least one displacement"),
        ({"offsets": [(0, 0.5)]}, "`offsets` must be whole pixels"),
    ],
)
def test_errors(change, message):
    arguments = {"assignment": torch.zeros(1, 2, 6), "size": (2, 3), "offsets": SQUARE}
    with pytest.raises(ValueError, match=message):
        region_adjacency(**arguments | change)
