"""Importance and active focus against literal loops over pixels and Eq. 11 to 13."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hggraph.cluster import active_focus, importance_map, object_attention, uncertainty_attention

STEPS = {
    4: [(-1, 0), (0, -1), (0, 1), (1, 0)],
    8: [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx],
}


def surrounded(x):
    buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
    buffer[1:-1, 1:-1, 1:-1, 1:-1] = x
    return buffer[1:-1, 1:-1, 1:-1, 1:-1]


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "flipped": lambda x: x[:, :, ::2, 1:],
    "expanded": lambda x: x[:1, :, :, :1].expand_as(x),
    "surrounded": surrounded,
}


def literal(x, neighbors):
    batch, _, height, width = x.shape
    out = torch.zeros(batch, height, width, dtype=x.dtype)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                distances = [
                    math.dist(x[b, :, i, j].tolist(), x[b, :, i + dy, j + dx].tolist())
                    for dy, dx in STEPS[neighbors]
                    if 0 <= i + dy < height and 0 <= j + dx < width
                ]
                out[b, i, j] = sum(distances) / max(1, len(distances))
    return out


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 6), st.integers(2, 6)),
    st.sampled_from([4, 8]),
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 1000),
)
def test_literally(shape, neighbors, layout, seed):
    torch.manual_seed(seed)
    x = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64))
    assert_close(importance_map(x, neighbors=neighbors), literal(x, neighbors), rtol=0, atol=1e-12)


@pytest.mark.parametrize("neighbors", [4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_narrow_images(neighbors, size):
    x = torch.randn(2, 130, *size, dtype=torch.float64)  # more channels than are summed at once
    out = importance_map(x, neighbors=neighbors)
    assert_close(out, literal(x, neighbors), rtol=0, atol=1e-12)


@pytest.mark.parametrize("neighbors", [4, 8])
def test_gradcheck(neighbors):
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: importance_map(x, neighbors=neighbors), (x,))


def test_constant_image():
    """Equal neighbours give 0, and a gradient of 0 where that of the root is infinite."""
    x = torch.full((1, 3, 4, 5), 0.7, requires_grad=True)
    out = importance_map(x, neighbors=8)
    assert not out.any()
    (grad,) = torch.autograd.grad(out, x, torch.randn_like(out))
    assert not grad.any()
    step = torch.tensor([[[[1.0, 1.0, 1.0, 5.0]]]], requires_grad=True)
    (grad,) = torch.autograd.grad(importance_map(step).sum(), step)
    # the last two pixels have mean distances 4 / 2 and 4 / 1
    assert grad.flatten().tolist() == [0, 0, -1.5, 1.5]


@pytest.mark.parametrize(("dtype", "difference"), [(torch.float16, 6e4), (torch.bfloat16, 1e30)])
def test_half_keeps_large_and_small_differences(dtype, difference):
    """The distance fits a half; its square, 3.6e9 or 1e-14, would not."""
    for value in (difference, 1e-7) if dtype == torch.float16 else (1e15, 1e-15):
        x = torch.tensor([[[[0.0, value]]]], dtype=dtype).requires_grad_()
        out = importance_map(x)
        assert out.dtype == dtype
        assert torch.equal(out.detach(), x[:, 0, :, 1:].detach().expand_as(out))
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.flatten().tolist() == [-2, 2]


def test_batch_of_k_is_k_singles():
    x = torch.randn(3, 4, 5, 6)
    together = importance_map(x)
    for b in range(3):
        assert torch.equal(together[b : b + 1], importance_map(x[b : b + 1]))


@pytest.mark.parametrize(
    ("x", "neighbors", "error", "message"),
    [
        (torch.rand(1, 1, 2, 2), 6, ValueError, "`neighbors` must be 4 or 8, got 6"),
        (torch.rand(1, 2, 2), 4, ValueError, r"`x` must have shape \(B, C, H, W\)"),
        (torch.rand(1, 1, 0, 2), 4, ValueError, "`x` must have at least one channel and one pixel"),
        (torch.rand(1, 0, 2, 2), 4, ValueError, "`x` must have at least one channel and one pixel"),
        (torch.zeros(1, 1, 2, 2).byte(), 4, TypeError, r"`x` .* floating point, got torch.uint8"),
        ([[[[1.0]]]], 4, TypeError, "`x` must be a torch.Tensor, got list"),
    ],
)
def test_errors(x, neighbors, error, message):
    with pytest.raises(error, match=message):
        importance_map(x, neighbors=neighbors)


@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 10.0]))
def test_active_focus(seed, alpha):
    """Eq. 11 for each image on its own: divided by its largest importance, plus alpha attention."""
    torch.manual_seed(seed)
    importance = torch.rand(3, 4, 5, dtype=torch.float64) * torch.tensor([1.0, 0, 1e5])[:, None, None]
    attention = torch.rand(3, 4, 5, dtype=torch.float64)
    focus = active_focus(importance, attention, alpha)
    for b in range(3):
        largest = max(importance[b].flatten().tolist())
        expected = importance[b] / (largest or 1.0) + alpha * attention[b]
        assert_close(focus[b], expected, rtol=0, atol=1e-12)


def test_active_focus_gradcheck():
    importance = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    attention = (torch.rand(2, 2, 3).double() * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(active_focus, (importance, attention))


@pytest.mark.parametrize(
    ("attention", "error", "message"),
    [
        (torch.rand(1, 3, 2), ValueError, r"size of the map, \(1, 2, 3\), got \(1, 3, 2\). Resize"),
        (torch.rand(2, 3), ValueError, r"`attention` must have shape \(B, H, W\)"),
        (torch.full((1, 2, 3), 1.01), ValueError, r"in \[0, 1\], got values from 1.01 to 1.01"),
        (torch.full((1, 2, 3), -0.5), ValueError, r"in \[0, 1\], got values from -0.5"),
        (torch.full((1, 2, 3), math.nan), ValueError, r"in \[0, 1\], got values from nan"),
        (torch.ones(1, 2, 3).int(), TypeError, r"floating point in \[0, 1\], got torch.int32"),
    ],
)
def test_bad_attention(attention, error, message):
    with pytest.raises(error, match=message):
        active_focus(torch.rand(1, 2, 3), attention)


def test_object_attention():
    prob = torch.rand(2, 4, 3, 5).softmax(1)
    for index in range(4):
        assert torch.equal(object_attention(prob, index), prob[:, index])
    for index in (-1, 4):
        with pytest.raises(ValueError, match=rf"`index` must be a class in \[0, 4\), got {index}"):
            object_attention(prob, index)


def test_uncertainty_attention():
    """Eq. 13 by Python's logarithm; certainty is 0, a uniform distribution 1."""
    prob = torch.rand(2, 5, 3, 4, dtype=torch.float64).mul(6).softmax(1)
    prob[0, :, 0, 0], prob[0, :, 0, 1] = 0.2, torch.tensor([0, 0, 1, 0, 0])
    attention = uncertainty_attention(prob)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).tolist():
        entropy = sum(-p * math.log(p) for p in prob[b, :, i, j].tolist() if p > 0)
        assert attention[b, i, j].item() == pytest.approx(entropy / math.log(5), abs=1e-12)
    assert attention[0, 0, 1] == 0
    assert not uncertainty_attention(torch.ones(1, 1, 2, 2)).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_uncertainty_attention_at_zero(dtype):
    prob = torch.tensor([0.0, 0.75, 0.25], dtype=dtype).view(1, 3, 1, 1).requires_grad_()
    attention = uncertainty_attention(prob)
    assert 0 <= attention <= 1
    assert torch.isfinite(torch.autograd.grad(attention.sum(), prob)[0]).all()
    inner = torch.tensor([0.2, 0.5, 0.3]).double().view(1, 3, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(uncertainty_attention, (inner,))
