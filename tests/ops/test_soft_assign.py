"""The soft assignment, against number-by-number loops and PyTorch's own distances."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hggraph.ops import soft_assign
from hggraph.ops.soft_assign import soft_assign_reference

close = {"rtol": 1e-10, "atol": 1e-10}
seeds = st.integers(0, 2**32 - 1)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def chosen(batch, regions, some, pixels):
    """Return for each pixel `some` different centres in random order, every second of a buffer."""
    index = torch.rand(batch, regions, pixels).argsort(1)[:, :some]
    buffer = torch.full((*index.shape[:2], 2 * pixels), regions)  # out of range between
    buffer[..., ::2] = index
    return buffer[..., ::2]


def loop(x, centers, index, threshold):
    """Assign pixel by pixel, in plain Python."""
    everyone = torch.arange(centers.shape[1])[None, :, None].expand(len(x), -1, x.shape[2])
    index = everyone if index is None else index
    out = torch.zeros(index.shape, dtype=torch.float64)
    for b in range(x.shape[0]):
        for p in range(x.shape[2]):
            distances = []
            for r in index[b, :, p].tolist():
                pairs = zip(x[b, :, p].tolist(), centers[b, r].tolist(), strict=True)
                distances.append(sum((value - center) ** 2 for value, center in pairs))
            weights = [math.exp(-d) if math.exp(-d) > threshold else 0.0 for d in distances]
            if not any(weights):
                weights[distances.index(min(distances))] = 1.0
            out[b, :, p] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return out


@settings(max_examples=40)
@given(
    *[seeds, st.integers(1, 2), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)],
    *[st.sampled_from([0.0, 1e-3, 0.1, 0.6]), st.integers(0, 5), st.sampled_from([0.3, 1, 3])],
)
@example(0, 2, 3, 5, 6, 1e-3, 3, 1)  # nothing small
def test_loop(seed, batch, channels, regions, pixels, threshold, some, scale):
    torch.manual_seed(seed)
    x, centers = scale * double(batch, channels, pixels), scale * double(batch, regions, channels)
    index = chosen(batch, regions, min(some, regions), pixels) if some else None
    out = soft_assign(x, centers, index, threshold=threshold)
    torch.testing.assert_close(out, loop(x, centers, index, threshold), **close)
    reference = soft_assign_reference(x, centers, index, threshold)
    torch.testing.assert_close(reference, out, **close)
    torch.testing.assert_close(out.sum(1), torch.ones(batch, pixels, dtype=torch.float64), **close)


def test_softmax():
    """With nothing dropped it is the softmax of negative squared distances, at any scale."""
    for scale in (1e-3, 1, 30, 1e4):
        x, centers = scale * double(2, 3, 7), scale * double(2, 4, 3)
        expected = (-torch.cdist(centers, x.mT).square()).softmax(1)
        # exponents of up to 1e9 carry 1e-7 of float64's rounding
        tolerance = {"rtol": 1e-6, "atol": 1e-10}
        torch.testing.assert_close(soft_assign(x, centers, threshold=0.0), expected, **tolerance)


@pytest.mark.parametrize("channels_last", [False, True])
def test_many_channels(agree, channels_last):
    """More channels than one piece of the squared norms has."""
    x, centers = double(2, 300, 5) / 15, double(2, 4, 300) / 15
    x = x.mT.contiguous().mT if channels_last else x
    operator = torch.ops.hggraph.soft_assign  # the threshold lies among the weights
    agree(operator, soft_assign_reference, x, centers, None, 0.06)


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("some", [None, 1, 3])
def test_layouts(agree_everywhere, threshold, some):
    x, centers = double(2, 3, 6), double(2, 4, 3)
    index = None if some is None else chosen(2, 4, some, 6)
    operator = torch.ops.hggraph.soft_assign
    agree_everywhere(operator, soft_assign_reference, x, centers, index, threshold)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("some", [None, 2])
def test_gradcheck(threshold, some):
    x, centers = double(2, 2, 4).requires_grad_(), double(2, 3, 2).requires_grad_()
    index = None if some is None else chosen(2, 3, some, 4)

    def assign(x, centers):
        return soft_assign(x, centers, index, threshold=threshold)

    assert torch.autograd.gradcheck(assign, (x, centers))


def test_at_threshold():
    """A weight equal to the threshold is dropped, one above it stays."""
    x, centers = torch.tensor([[[0.0]]]), torch.tensor([[[0.0], [1.0]]])
    assert soft_assign(x, centers, threshold=math.exp(-1))[0, :, 0].tolist() == [1, 0]
    kept = soft_assign(x, centers, threshold=math.exp(-1.001))[0, :, 0]
    torch.testing.assert_close(kept, torch.tensor([0.0, -1.0]).softmax(0))


def test_no_threshold():
    """A threshold of 0 drops nothing, not even beside weights that are all 0 as numbers."""
    x, centers = torch.tensor([[[0.0, 50.0]]]).double(), torch.tensor([[[0.0], [5.0], [5.1]]]).double()
    weight = soft_assign(x, centers, threshold=0.0)[0]
    distance = (x[0] - centers[0]).square()
    torch.testing.assert_close(weight.log(), (-distance).log_softmax(0), **close)


def test_far():
    """A pixel far from every centre goes to the nearest, and its gradient is 0, not NaN."""
    x = torch.tensor([[[50.0, 0.1, -70.0]]], requires_grad=True)
    centers = torch.tensor([[[0.0], [1.0], [-1.0]]], requires_grad=True)
    out = soft_assign(x, centers)
    assert out[0, :, 0].tolist() == [0, 1, 0]
    assert out[0, :, 2].tolist() == [0, 0, 1]
    grad_x, grad_centers = torch.autograd.grad(out, (x, centers), torch.randn(1, 3, 3))
    assert grad_x[0, 0, ::2].tolist() == [0, 0]
    assert grad_x[0, 0, 1] != 0
    assert grad_centers.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.3, 1000.0])
def test_constant(dtype, value):
    """On a constant image every region has an equal share, and the gradients are finite."""
    x = torch.full((1, 3, 5), value, dtype=dtype, requires_grad=True)
    centers = x.detach()[:, :, :4].mT.clone().requires_grad_()
    out = soft_assign(x, centers)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out, torch.full_like(out, 0.25))
    grads = torch.autograd.grad(out, (x, centers), torch.randn_like(out))
    assert [g.dtype for g in grads] == [dtype, dtype]
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_float32(scale):
    """Against float64; rows sum to 1 and nothing is NaN at any scale."""
    x, centers = scale * torch.randn(1, 8, 40), scale * torch.randn(1, 6, 8)
    leaves = x.clone().requires_grad_(), centers.clone().requires_grad_()
    out = soft_assign(*leaves)
    if scale <= 1:
        expected = soft_assign_reference(x.double(), centers.double(), None, 1e-3)
        # squares of about 16 are expanded and cancel: 1e-6 each in float32
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.sum(1), torch.ones(1, 40))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out, leaves, torch.randn_like(out)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half(near_float32, dtype, autocast):
    """Distances and exponents stay in float32, under autocast and for half features alike."""
    x, centers = torch.randn(2, 3, 6).to(dtype).float(), torch.randn(2, 4, 3).to(dtype).float()
    near_float32(soft_assign, dtype, x, centers, autocast=autocast)
    given_dtype = torch.float32 if autocast else dtype
    with torch.autocast("cpu", dtype, enabled=autocast):
        out = soft_assign(x.to(given_dtype), centers.to(given_dtype))
    # The features are equal, so the result is, to float32's rounding.
    torch.testing.assert_close(out, soft_assign(x, centers))


def test_all_in_the_index():
    """All centres in the index, in any order, are as without one; the nearest alone has weight 1."""
    x, centers = double(2, 3, 6), double(2, 4, 3)
    index, full = chosen(2, 4, 4, 6), soft_assign(x, centers)
    torch.testing.assert_close(soft_assign(x, centers, index), full.gather(1, index))
    assert torch.equal(soft_assign(x, centers, index.int()), soft_assign(x, centers, index))
    nearest = soft_assign(x, centers, full.argmax(1, keepdim=True))
    assert torch.equal(nearest, torch.ones(2, 1, 6, dtype=torch.float64))


def test_batch():
    """A batch is its items, and NaN in one stays there."""
    x, centers = double(3, 2, 5), double(3, 4, 2)
    alone = [soft_assign(x[b : b + 1], centers[b : b + 1])[0] for b in range(3)]
    torch.testing.assert_close(soft_assign(x, centers), torch.stack(alone), **close)
    x[1] = float("nan")
    x.requires_grad_()
    out = soft_assign(x, centers)
    torch.testing.assert_close(out[::2], torch.stack(alone[::2]), **close)
    (grad,) = torch.autograd.grad(out, x, double(3, 4, 5))
    assert grad[::2].isfinite().all()


@pytest.mark.parametrize(("batch", "channels", "pixels"), [(0, 2, 3), (1, 2, 0), (1, 0, 3), (1, 1, 1)])
def test_little(batch, channels, pixels):
    leaves = double(batch, channels, pixels), double(batch, 2, channels)
    expected = loop(*leaves, None, 1e-3)
    out = soft_assign(*[t.requires_grad_() for t in leaves])
    torch.testing.assert_close(out, expected, **close)
    assert [g.shape for g in torch.autograd.grad(out.sum(), leaves)] == [t.shape for t in leaves]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, "`x` must have shape"),
        ({"centers": torch.zeros(2, 3)}, "`centers` must have shape"),
        ({"centers": torch.zeros(1, 2, 4)}, "with B = 1, C = 3, R >= 1"),
        ({"centers": torch.zeros(2, 2, 3)}, "with B = 1, C = 3, R >= 1"),
        ({"centers": torch.zeros(1, 0, 3)}, "R >= 1"),
        ({"index": torch.zeros(1, 2).long()}, "`index` must have shape"),
        ({"index": torch.zeros(1, 2, 4).long()}, r"`index` must have .* P = 5"),
        ({"index": torch.zeros(1, 0, 5).long()}, "T >= 1"),
        ({"index": torch.zeros(2, 2, 5).long()}, "with B = 1"),
        ({"index": torch.full((1, 2, 5), 2)}, r"`index` must be in \[0, 2\)"),
        ({"threshold": 1.0}, r"`threshold` must be in \[0, 1\)"),
        ({"threshold": -0.1}, r"`threshold` must be in \[0, 1\)"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.zeros(1, 3, 5), "centers": torch.zeros(1, 2, 3)}
    with pytest.raises(ValueError, match=message):
        soft_assign(**arguments | change)


def test_index_of_fractions():
    with pytest.raises(TypeError, match="`index` must be int32 or int64"):
        soft_assign(torch.zeros(1, 3, 5), torch.zeros(1, 2, 3), torch.zeros(1, 2, 5))


@pytest.mark.parametrize("some", [None, 2])
def test_padded_rows(some):
    """Rows begin at multiples of 128 bytes, so that kernels load 16 bytes at once."""
    index = None if some is None else chosen(2, 4, some, 33)
    out = soft_assign(torch.randn(2, 3, 33), torch.randn(2, 4, 3), index)
    assert out.shape[2] == 33
    assert out.stride()[1:] == (64, 1)


def test_many_channels_of_an_index(agree):
    """Positions far from 0, the last two channels, beside many features near it, in float32 too."""
    x, centers = torch.cat([double(1, 60, 8) / 9, 300 + double(1, 2, 8)], 1), None
    centers = x[..., :5].mT + double(1, 5, 62) / 20
    index = chosen(1, 5, 3, 8)
    agree(torch.ops.hggraph.soft_assign, soft_assign_reference, x, centers, index, 0.0)
    expected = soft_assign(x.float().double(), centers.float().double(), index, threshold=0.0)
    actual = soft_assign(x.float(), centers.float(), index, threshold=0.0)
    # a square of 90,000 would leave 1e-2 of a distance
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


def test_gradient_in_float32_with_an_index():
    """Where loops over pixels skip weights of zero they must not skip the negative ones that gradients have."""
    torch.manual_seed(0)
    x, centers, index = torch.randn(1, 4, 600), torch.randn(1, 9, 4), chosen(1, 9, 3, 600)
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = x.to(dtype).requires_grad_(), centers.to(dtype).requires_grad_()
        weight = soft_assign(*inputs, index, threshold=0.0)
        found.append(torch.autograd.grad((weight * weight.detach().roll(7, 2).to(dtype)).sum(), inputs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
