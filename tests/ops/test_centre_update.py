"""The centre update, against number-by-number loops and PyTorch's attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hggraph.ops import centre_update
from hggraph.ops.centre_update import centre_update_reference

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def chosen(batch, regions, some, pixels):
    """Return `some` different centres for each pixel, as every second number of a buffer."""
    index = torch.rand(batch, regions, pixels).argsort(1)[:, :some]
    buffer = torch.full((*index.shape[:2], 2 * pixels), regions)  # out of range between
    buffer[..., ::2] = index
    return buffer[..., ::2]


def loop(x, centers, index):
    """Return means number by number, in plain Python."""
    means = torch.zeros(*centers.shape, dtype=torch.float64)
    for b in range(x.shape[0]):
        for r in range(centers.shape[1]):
            weights = []
            for p in range(x.shape[2]):
                pairs = zip(x[b, :, p].tolist(), centers[b, r].tolist(), strict=True)
                left_out = index is not None and r not in index[b, :, p]
                weights.append(0.0 if left_out else math.exp(-sum((u - v) ** 2 for u, v in pairs)))
            for c, row in enumerate(x[b].tolist()):
                total = sum(w * v for w, v in zip(weights, row, strict=True))
                means[b, r, c] = total / sum(weights) if any(weights) else centers[b, r, c]
    return means


@settings(max_examples=40)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)],
    *[st.integers(1, 6), st.integers(0, 3)],
)
@example(0, 2, 3, 4, 6, 2)  # nothing small
def test_loop(seed, batch, channels, regions, pixels, some):
    torch.manual_seed(seed)
    x, centers = double(batch, channels, pixels), double(batch, regions, channels)
    index = chosen(batch, regions, min(some, regions), pixels) if some else None
    actual = centre_update(x, centers, index)
    torch.testing.assert_close(actual, loop(x, centers, index), **close)
    torch.testing.assert_close(centre_update_reference(x, centers, index), actual, **close)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_attention(scale):
    """It is softmax attention of centres over pixels, as ||c||^2 cancels: stable at any scale."""
    x, centers = scale * double(2, 3, 9), scale * double(2, 4, 3)
    mask = -x.square().sum(1)[:, None].expand(2, 4, 9)
    expected = F.scaled_dot_product_attention(2 * centers, x.mT, x.mT, attn_mask=mask, scale=1.0)
    # exponents of up to 1e9 carry 1e-7 of float64's rounding
    torch.testing.assert_close(centre_update(x, centers), expected, rtol=1e-6, atol=scale * 1e-10)
    every = torch.arange(4)[:, None].expand(2, 4, 9)
    torch.testing.assert_close(centre_update(x, centers, every), expected, rtol=1e-6, atol=scale * 1e-10)


@pytest.mark.parametrize("some", [None, 1, 3])
def test_layouts(agree_everywhere, some):
    index = None
    if some is not None:  # pixel p considers p, p + 1, ..., so that no centre is left out
        index = (torch.arange(6) + torch.arange(some)[:, None]).remainder(4).expand(2, -1, -1)
    agree_everywhere(centre_update, centre_update_reference, double(2, 3, 6), double(2, 4, 3), index)


@pytest.mark.parametrize("some", [None, 1, 2])
def test_gradcheck(some):
    """With a centre in the first image that no pixel considers."""
    leaves = [double(2, 2, 4).requires_grad_(), double(2, 3, 2).requires_grad_()]
    index = None
    if some is not None:
        index = chosen(2, 3, some, 4)
        index[0] = torch.tensor([1, 2])[:some, None]
    assert torch.autograd.gradcheck(lambda x, centers: centre_update(x, centers, index), leaves)


def test_no_pixels():
    """A centre that no pixel considers stays, and so does its gradient."""
    x, centers = double(1, 2, 4).requires_grad_(), double(1, 2, 2).requires_grad_()
    mean = centre_update(x, centers, torch.zeros(1, 1, 4, dtype=torch.long))
    assert torch.equal(mean[0, 1], centers[0, 1])
    grad_x, grad_centers = torch.autograd.grad(mean[0, 1].sum(), (x, centers))
    assert not grad_x.any()
    assert grad_centers.tolist() == [[[0, 0], [1, 1]]]


@pytest.mark.parametrize("channels_last", [False, True])
def test_many_channels(agree, channels_last):
    """More channels than one piece of the squared norms has."""
    x, centers = double(2, 300, 5) / 15, double(2, 4, 300) / 15
    x = x.mT.contiguous().mT if channels_last else x
    agree(centre_update, centre_update_reference, x, centers, None)
    agree(centre_update, centre_update_reference, x, centers, torch.arange(5).remainder(4).expand(2, 1, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.3, 1000.0])
def test_constant(dtype, value):
    """Centres on a constant image stay where they are, and the gradients are finite."""
    x = torch.full((1, 3, 5), value, dtype=dtype, requires_grad=True)
    centers = x.detach()[:, :, :2].mT.clone().requires_grad_()
    mean = centre_update(x, centers)
    torch.testing.assert_close(mean, centers.to(mean.dtype))
    grads = torch.autograd.grad(mean, (x, centers), torch.randn_like(mean))
    assert [g.dtype for g in grads] == [dtype, dtype]
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("some", [None, 1])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_far(scale, some):
    """A centre far from every pixel moves among them, where exponentials alone are 0 / 0."""
    x = scale * torch.randn(1, 8, 40)
    centers = torch.full((1, 2, 8), 100.0).requires_grad_()
    index = None if some is None else torch.arange(40).remainder(2).view(1, 1, 40)
    mean = centre_update(x.requires_grad_(), centers, index)
    assert mean.isfinite().all()
    assert (mean >= x.min() * 1.0001 - 1e-6).all()
    assert (mean <= x.max() * 1.0001 + 1e-6).all()
    grads = torch.autograd.grad(mean, (x, centers), torch.randn_like(mean))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half(near_float32, dtype, autocast):
    """Distances, exponents and means stay in float32, under autocast and for half features."""
    inputs = [torch.randn(shape).to(dtype).float() for shape in [(2, 3, 6), (2, 4, 3)]]
    near_float32(centre_update, dtype, *inputs, autocast=autocast)
    with torch.autocast("cpu", dtype, enabled=autocast):
        out = centre_update(*inputs if autocast else [t.to(dtype) for t in inputs])
    # The features are equal, so the result is, to float32's rounding.
    torch.testing.assert_close(out, centre_update(*inputs))


def test_batch():
    """A batch is its items, and NaN in one stays there."""
    x, centers = double(3, 2, 5), double(3, 4, 2)
    together = torch.cat([centre_update(x[b : b + 1], centers[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(centre_update(x, centers), together, **close)
    x[1] = float("nan")
    out = centre_update(x.requires_grad_(), centers)
    torch.testing.assert_close(out[::2], together[::2], **close)
    (grad,) = torch.autograd.grad(out, x, double(3, 4, 2))
    assert grad[::2].isfinite().all()


@pytest.mark.parametrize(("batch", "channels", "pixels"), [(0, 2, 3), (1, 1, 1), (2, 0, 3), (1, 1, 2)])
@pytest.mark.parametrize("some", [None, 1])
def test_little(batch, channels, pixels, some):
    x, centers = double(batch, channels, pixels), double(batch, 2, channels)
    index = None if some is None else chosen(batch, 2, 1, pixels)
    expected = loop(x, centers, index)
    leaves = [t.requires_grad_() for t in (x, centers)]
    actual = centre_update(x, centers, index)
    torch.testing.assert_close(actual, expected, **close)
    assert [g.shape for g in torch.autograd.grad(actual.sum(), leaves)] == [t.shape for t in leaves]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, "`x` must have shape"),
        ({"x": torch.zeros(1, 3, 0)}, "at least one pixel"),
        ({"centers": torch.zeros(1, 2, 4)}, "`centers` must have shape"),
        ({"index": torch.zeros(1, 2, 4).long()}, "`index` must have shape"),
        ({"index": torch.full((1, 2, 5), -1)}, r"`index` must be in \[0, 2\)"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.zeros(1, 3, 5), "centers": torch.zeros(1, 2, 3)}
    with pytest.raises(ValueError, match=message):
        centre_update(**arguments | change)
