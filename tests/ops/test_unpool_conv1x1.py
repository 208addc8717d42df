"""Unpool, concatenate, convolve in one, against `nn.Conv2d` on the concatenation."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from hggraph.ops import unpool_conv1x1
from hggraph.ops.unpool_conv1x1 import unpool_conv1x1_reference

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def soft(batch, regions, pixels):
    return double(batch, regions, pixels).softmax(1)


def arguments(batch, channels, regions, depth, pixels, out, bias=True):
    x, z = double(batch, channels, pixels), double(batch, regions, depth)
    weight = double(out, channels + depth)
    return x, z, soft(batch, regions, pixels), weight, double(out) if bias else None


def convolve(conv, x, z, assignment):
    """Give each pixel its mixture of region rows, concatenate as images, convolve."""
    unpooled = [s.t() @ rows for s, rows in zip(assignment, z, strict=True)]
    unpooled = torch.stack(unpooled).unflatten(1, x.shape[2:])  # (B, H, W, D)
    return conv(torch.cat([x, unpooled.permute(0, 3, 1, 2)], 1))


@settings(max_examples=30)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)],
    *[st.integers(0, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 5)],
    *[st.booleans(), st.booleans()],
)
@example(0, 2, 4, 3, 2, (3, 4), 5, True, True)  # nothing small
def test_conv2d(seed, batch, channels, regions, depth, size, out, bias, channels_last):
    """Value and all gradients, NCHW and channels_last."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels + depth, out, 1, bias=bias).double()
    x, z = double(batch, channels, *size), double(batch, regions, depth)
    assignment = soft(batch, regions, size[0] * size[1])
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, z, assignment, *conv.parameters())]
    expected = convolve(conv, x, z, assignment)
    actual = unpool_conv1x1(x.flatten(2), z, assignment, conv.weight.flatten(1), conv.bias)
    actual = actual.unflatten(2, size)
    torch.testing.assert_close(actual, expected, **close)
    cotangent = torch.randn_like(expected)
    grads = [torch.autograd.grad(o, leaves, cotangent) for o in (actual, expected)]
    torch.testing.assert_close(*grads, **close)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_strides(channels, bias):
    """The result is channels_last as an image, whatever the strides of the features."""
    x, *rest = arguments(2, channels, 4, 2, 12, 5, bias)
    for layout in (x, x.mT.contiguous().mT, x.repeat(1, 1, 2)[:, :, :12]):
        out = unpool_conv1x1(layout, *rest).unflatten(2, (3, 4))
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [False, True])
def test_layouts(agree_everywhere, bias):
    agree_everywhere(unpool_conv1x1, unpool_conv1x1_reference, *arguments(2, 3, 4, 2, 6, 5, bias), None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("some", [1, 3])
def test_index(agree_everywhere, bias, some):
    """With an index it is the convolution of the concatenation too."""
    x, z, _, weight, shift = arguments(2, 3, 4, 2, 6, 5, bias)
    share, index = torch.rand(2, some, 6, dtype=torch.float64).softmax(1), torch.randint(4, (2, some, 6))
    agree_everywhere(unpool_conv1x1, unpool_conv1x1_reference, x, z, share, weight, shift, index)
    with pytest.raises(ValueError, match=r"`index` must be in \[0, 4\)"):
        unpool_conv1x1(x, z, share, weight, shift, index + 4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck(bias, channels_last):
    x, *rest = arguments(2, 2, 3, 2, 4, 2, bias)
    x = x.mT.contiguous().mT if channels_last else x
    inputs = [t if t is None else t.requires_grad_() for t in (x, *rest)]
    assert torch.autograd.gradcheck(unpool_conv1x1, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half(near_float32, dtype, autocast, channels_last):
    x, z, assignment, *rest = (t.float() for t in arguments(2, 3, 4, 2, 30, 5))
    x = x.mT.contiguous().mT if channels_last else x
    near_float32(unpool_conv1x1, dtype, x, z, assignment, *rest, autocast=autocast)

    def kept(x, z, *rest):  # the weights S stay float32, as soft_assign makes them
        return unpool_conv1x1(x, z, assignment, *rest)

    near_float32(kept, dtype, x, z, *rest, autocast=autocast)
    with torch.autocast("cpu", dtype):
        assert unpool_conv1x1(x, z, assignment, *rest).dtype == dtype
        doubles = [t.double() for t in (x, z, assignment, *rest)]
        assert unpool_conv1x1(*doubles).dtype == torch.float64


def test_batch():
    """A batch is its items, and NaN in one stays there."""
    x, z, assignment, weight, bias = arguments(3, 3, 4, 2, 6, 5)
    items = [slice(b, b + 1) for b in range(3)]
    alone = [unpool_conv1x1(x[b], z[b], assignment[b], weight, bias)[0] for b in items]
    out = unpool_conv1x1(x, z, assignment, weight, bias)
    torch.testing.assert_close(out, torch.stack(alone), **close)
    z[1] = float("nan")
    out = unpool_conv1x1(x, z.requires_grad_(), assignment, weight, bias)
    torch.testing.assert_close(out[::2], torch.stack(alone[::2]), **close)
    assert out[1].isnan().all()
    (grad,) = torch.autograd.grad(out, z, torch.randn_like(out))
    assert grad[::2].isfinite().all()


@pytest.mark.parametrize(
    ("batch", "channels", "depth", "pixels"),
    [(0, 3, 2, 4), (1, 3, 0, 4), (1, 0, 2, 4), (1, 3, 2, 0), (1, 1, 1, 1)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_little(agree, batch, channels, depth, pixels, bias):
    def plain(x, z, assignment, weight, bias):  # no convolution takes 0 channels or 0 pixels
        out = weight @ torch.cat([x, z.mT @ assignment], 1)
        return out if bias is None else out + bias[:, None]

    agree(unpool_conv1x1, plain, *arguments(batch, channels, 2, depth, pixels, 4, bias))


def test_constant():
    """Equal pixels and equal regions: one column of numbers."""
    x, z = torch.full((1, 3, 6), 2.0), torch.full((1, 4, 2), 3.0)
    out = unpool_conv1x1(x, z, torch.full((1, 4, 6), 0.25), torch.ones(5, 5), torch.ones(5))
    assert torch.equal(out, torch.full((1, 5, 6), 13.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 6)}, "`x` must have shape"),
        ({"x": torch.zeros(2, 3, 5)}, "same number of images and of pixels"),
        ({"z": torch.zeros(2, 4)}, "`z` must have shape"),
        ({"z": torch.zeros(2, 3, 2)}, "`z` must have shape"),
        ({"z": torch.zeros(1, 4, 2)}, "`z` must have shape"),
        ({"assignment": torch.zeros(4, 6)}, "`assignment` must have shape"),
        ({"weight": torch.zeros(5, 4)}, r"`weight` must have shape \(O, 5\)"),
        ({"weight": torch.zeros(5, 5, 1)}, r"`weight` must have shape \(O, 5\)"),
        ({"bias": torch.zeros(4)}, r"`bias` must have shape \(5,\)"),
    ],
)
def test_errors(change, message):
    names = ("x", "z", "assignment", "weight", "bias")
    inputs = dict(zip(names, arguments(2, 3, 4, 2, 6, 5), strict=True))
    with pytest.raises(ValueError, match=message):
        unpool_conv1x1(**inputs | change)
