"""Deformable convolution against torchvision's, plain convolution and gradients."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hggraph.nn import DeformConv2d
from hggraph.ops import deform_conv2d


@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel_size=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    spread=st.sampled_from([0.0, 0.7, 20.0]),
)
def test_equals_torchvision(size, kernel_size, stride, padding, dilation, spread):
    out = [(side + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for side in size]
    if min(out) < 1:
        return
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    offset = (spread * torch.randn(2, 2 * kernel_size**2, *out, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(4, 3, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    ours = deform_conv2d(x, offset, weight, bias, stride=stride, padding=padding, dilation=dilation)
    theirs = torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(ours)
    given_tensors = (x, offset, weight, bias)
    for a, b in zip(
        torch.autograd.grad(ours, given_tensors, cotangent),
        torch.autograd.grad(theirs, given_tensors, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients():
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    offset = (0.3 + 0.1 * torch.randn(1, 18, 4, 3, dtype=torch.float64)).requires_grad_()  # not at a pixel: a kink
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: deform_conv2d(*args, padding=1), (x, offset, weight))


def test_layouts_and_nan_around():
    big = torch.full((2, 3, 9, 9), torch.nan)
    big[..., 2:7, 1:8] = torch.randn(2, 3, 5, 7)
    x = big[..., 2:7, 1:8]
    offset, weight = torch.randn(1, 18, 5, 7).expand(2, -1, -1, -1), torch.randn(4, 3, 3, 3)
    want = deform_conv2d(x.contiguous(), offset, weight, padding=1)
    torch.testing.assert_close(deform_conv2d(x, offset, weight, padding=1), want)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(deform_conv2d(last, offset, weight, padding=1), want)
    assert deform_conv2d(x[:0], offset[:0], weight, padding=1).shape == (0, 4, 5, 7)


def test_layer_starts_as_the_convolution():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2)
    layer = DeformConv2d.from_conv(conv)
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), conv(x))
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in conv.parameters()) + 18 * (4 * 9 + 1)
    layer.offset.bias.data.fill_(1.0)  # every tap a pixel further down and right
    shifted = F.pad(x, (2, 3, 2, 3))[..., 1:, 1:]
    want = F.conv2d(shifted, conv.weight, conv.bias, 2, 0, 2)[..., : layer(x).shape[2], : layer(x).shape[3]]
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = DeformConv2d(8, 4, 3, padding=1)
    nn.init.normal_(layer.offset.weight, std=0.1)
    x = torch.randn(1, 8, 6, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    assert out.dtype == dtype
    out.float().square().mean().backward()
    assert all(t.grad.isfinite().all() for t in (x, *layer.parameters()))
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)  # positions of 8 bits


def test_errors():
    x, offset, weight = torch.rand(1, 3, 5, 5), torch.rand(1, 18, 5, 5), torch.rand(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"`offset` must have shape \(B, 2 k k, H', W'\) = \(1, 18, 3, 3\)"):
        deform_conv2d(x, offset, weight)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(O, C, k, k\) with C = 3"):
        deform_conv2d(x, offset, weight[:, :2], padding=1)
    for conv in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, (3, 1)), nn.Conv2d(4, 4, 3, padding_mode="reflect")):
        with pytest.raises(ValueError, match="square, ungrouped convolution padded with zeros"):
            DeformConv2d.from_conv(conv)
