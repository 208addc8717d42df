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
    candidates = torch.rand(batch, regions, pixels).argsort(1)[:, :some]
    buffer = torch.full((*candidates.shape[:2], 2 * pixels), regions)  # out of range between
    buffer[..., ::2] = candidates
    return buffer[..., ::2]


def loop(x, centers, candidates, values):
    """Return means and logarithms of column sums number by number, in plain Python."""
    values = x if values is None else values
    means = torch.zeros(*centers.shape[:2], values.shape[1], dtype=torch.float64)
    log_sums = torch.zeros(centers.shape[:2], dtype=torch.float64)
    for b in range(x.shape[0]):
        for r in range(centers.shape[1]):
            weights = []
            for p in range(x.shape[2]):
                pairs = zip(x[b, :, p].tolist(), centers[b, r].tolist(), strict=True)
                left_out = candidates is not None and r not in candidates[b, :, p]
                weights.append(0.0 if left_out else math.exp(-sum((u - v) ** 2 for u, v in pairs)))
            log_sums[b, r] = math.log(sum(weights)) if any(weights) else -1e30
            weights = weights if any(weights) else [1.0] * len(weights)
            for d, row in enumerate(values[b].tolist()):
                total = sum(w * v for w, v in zip(weights, row, strict=True))
                means[b, r, d] = total / sum(weights)
    return means, log_sums


@settings(max_examples=40)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)],
    *[st.integers(1, 6), st.integers(0, 3), st.sampled_from([None, 1, 3])],
)
@example(0, 2, 3, 4, 6, 2, 3)  # nothing small
def test_loop(seed, batch, channels, regions, pixels, some, depth):
    torch.manual_seed(seed)
    x, centers = double(batch, channels, pixels), double(batch, regions, channels)
    values = None if depth is None else double(batch, depth, pixels)
    candidates = chosen(batch, regions, min(some, regions), pixels) if some else None
    actual = mean, log_sum = centre_update(x, centers, candidates, values)
    torch.testing.assert_close(actual, loop(x, centers, candidates, values), **close)
    known = log_sum > -1e30  # of a centre that no pixel considers the algorithm says nothing
    reference = centre_update_reference(x, centers, candidates, values)
    torch.testing.assert_close(reference[0][known], mean[known], **close)
    torch.testing.assert_close(reference[1][known], log_sum[known], **close)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_attention(scale):
    """It is softmax attention of centres over pixels, as ||c||^2 cancels: stable at any scale."""
    x, centers, values = scale * double(2, 3, 9), scale * double(2, 4, 3), double(2, 5, 9)
    mask = -x.square().sum(1)[:, None].expand(2, 4, 9)
    attention = F.scaled_dot_product_attention
    expected = attention(2 * centers, x.mT, values.mT, attn_mask=mask, scale=1.0)
    mean, log_sum = centre_update(x, centers, None, values)
    # exponents of up to 1e9 carry 1e-7 of float64's rounding
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-10)
    distance = (x.mT[:, None] - centers[:, :, None]).square().sum(-1)
    torch.testing.assert_close(log_sum, (-distance).logsumexp(-1), **close)


@pytest.mark.parametrize("some", [None, 1, 3])
@pytest.mark.parametrize("depth", [None, 2])
def test_layouts(agree_everywhere, some, depth):
    candidates = None
    if some is not None:  # pixel p considers p, p + 1, ..., so that no centre is left out
        candidates = (torch.arange(6) + torch.arange(some)[:, None]).remainder(4).expand(2, -1, -1)
    values = None if depth is None else double(2, depth, 6)
    inputs = [double(2, 3, 6), double(2, 4, 3), candidates, values]
    agree_everywhere(centre_update, centre_update_reference, *inputs)


@pytest.mark.parametrize("depth", [None, 2])
@pytest.mark.parametrize("some", [None, 1, 2])
def test_gradcheck(depth, some):
    """Both results, with a centre in the first image that no pixel considers."""
    leaves = [double(2, 2, 4), double(2, 3, 2), *([] if depth is None else [double(2, depth, 4)])]
    leaves = [t.requires_grad_() for t in leaves]
    candidates = None
    if some is not None:
        candidates = chosen(2, 3, some, 4)
        candidates[0] = torch.tensor([1, 2])[:some, None]

    def update(x, centers, values=None):
        mean, log_sum = centre_update(x, centers, candidates, values)
        return mean, log_sum.clamp(min=-1e9)  # differences of 1e30 have no digits left

    assert torch.autograd.gradcheck(update, leaves)


def test_no_pixels():
    """A centre without a pixel gets the plain mean and -1e30, and gradients as of a mean."""
    x, centers = double(1, 2, 4).requires_grad_(), double(1, 2, 2).requires_grad_()
    mean, log_sum = centre_update(x, centers, torch.zeros(1, 1, 4, dtype=torch.long))
    torch.testing.assert_close(mean[0, 1], x[0].mean(1), **close)
    assert log_sum[0, 1] == -1e30
    grad_x, grad_centers = torch.autograd.grad(mean[0, 1].sum() + log_sum[0, 1], (x, centers))
    torch.testing.assert_close(grad_x, torch.full_like(x, 0.25), **close)
    assert not grad_centers.any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_many_channels(agree, channels_last):
    """More channels than one piece of the squared norms has."""
    x, centers = double(2, 300, 5) / 15, double(2, 4, 300) / 15
    x = x.mT.contiguous().mT if channels_last else x
    agree(centre_update, centre_update_reference, x, centers, None, None)


def test_rounding():
    """Far from 0 in float32 no distance is negative: no pixel weighs more than 1."""
    x = 1000 + torch.rand(100, 8, 1)
    _, log_sum = centre_update(x, x.mT)
    assert log_sum.max() <= 0


def test_parts():
    """Updates over two parts of an image are merged by their log-sums."""
    x, centers = double(2, 3, 9), double(2, 4, 3)
    parts = [centre_update(part, centers) for part in x.split([4, 5], 2)]
    log_sums = torch.stack([log_sum for _, log_sum in parts])
    shares = log_sums.softmax(0)[..., None]
    merged = (shares * torch.stack([mean for mean, _ in parts])).sum(0), log_sums.logsumexp(0)
    torch.testing.assert_close(merged, centre_update(x, centers), **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.3, 1000.0])
def test_constant(dtype, value):
    """Centres on a constant image stay where they are, and the gradients are finite."""
    x = torch.full((1, 3, 5), value, dtype=dtype, requires_grad=True)
    centers = x.detach()[:, :, :2].mT.clone().requires_grad_()
    mean, log_sum = centre_update(x, centers)
    torch.testing.assert_close(mean, centers.to(mean.dtype))
    torch.testing.assert_close(log_sum, torch.full_like(log_sum, math.log(5)))
    incoming = torch.randn_like(mean), torch.randn_like(log_sum)
    grads = torch.autograd.grad((mean, log_sum), (x, centers), incoming)
    assert [g.dtype for g in grads] == [dtype, dtype]
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_far(scale):
    """A centre far from every pixel moves among them, where exponentials alone are 0 / 0."""
    x = scale * torch.randn(1, 8, 40)
    centers = torch.full((1, 2, 8), 100.0).requires_grad_()
    mean, log_sum = centre_update(x.requires_grad_(), centers)
    assert mean.isfinite().all()
    assert log_sum.isfinite().all()
    assert (mean >= x.min() * 1.0001 - 1e-6).all()
    assert (mean <= x.max() * 1.0001 + 1e-6).all()
    incoming = torch.randn_like(mean), torch.randn_like(log_sum)
    grads = torch.autograd.grad((mean, log_sum), (x, centers), incoming)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("depth", [None, 2])
def test_half(near_float32, dtype, autocast, depth):
    """Distances, exponents and means stay in float32, under autocast and for half features."""
    shapes = [(2, 3, 6), (2, 4, 3), *([] if depth is None else [(2, depth, 6)])]
    inputs = [torch.randn(shape).to(dtype).float() for shape in shapes]

    def update(x, centers, *values):
        return centre_update(x, centers, None, *values)

    near_float32(update, dtype, *inputs, autocast=autocast)
    with torch.autocast("cpu", dtype, enabled=autocast):
        out = update(*inputs if autocast else [t.to(dtype) for t in inputs])
    # The features are equal, so the result is, to float32's rounding.
    torch.testing.assert_close(out, update(*inputs))


def test_batch():
    """A batch is its items, and NaN in one stays there."""
    x, centers = double(3, 2, 5), double(3, 4, 2)
    alone = [centre_update(x[b : b + 1], centers[b : b + 1]) for b in range(3)]
    together = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    torch.testing.assert_close(list(centre_update(x, centers)), together, **close)
    x[1] = float("nan")
    out = centre_update(x.requires_grad_(), centers)
    torch.testing.assert_close([t[::2] for t in out], [t[::2] for t in together], **close)
    (grad,) = torch.autograd.grad(out, x, (double(3, 4, 2), double(3, 4)))
    assert grad[::2].isfinite().all()


@pytest.mark.parametrize(
    ("batch", "channels", "pixels", "depth"),
    [(0, 2, 3, 1), (1, 1, 1, 1), (2, 0, 3, 2), (1, 1, 2, 0)],
)
def test_little(batch, channels, pixels, depth):
    shapes = [(batch, channels, pixels), (batch, 2, channels), (batch, depth, pixels)]
    leaves = x, centers, values = [double(*shape) for shape in shapes]
    expected = loop(x, centers, None, values)
    leaves = [t.requires_grad_() for t in leaves]
    actual = centre_update(x, centers, None, values)
    torch.testing.assert_close(actual, expected, **close)
    grads = torch.autograd.grad(actual[0].sum() + actual[1].sum(), leaves)
    assert [g.shape for g in grads] == [t.shape for t in leaves]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, "`x` must have shape"),
        ({"x": torch.zeros(1, 3, 0)}, "at least one pixel"),
        ({"centers": torch.zeros(1, 2, 4)}, "`centers` must have shape"),
        ({"candidates": torch.zeros(1, 2, 5)}, "`candidates` must be long"),
        ({"values": torch.zeros(1, 5)}, "`values` must have shape"),
        ({"values": torch.zeros(1, 2, 4)}, "`values` must have shape"),
        ({"values": torch.zeros(2, 2, 5)}, "`values` must have shape"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.zeros(1, 3, 5), "centers": torch.zeros(1, 2, 3)}
    with pytest.raises(ValueError, match=message):
        centre_update(**arguments | change)
