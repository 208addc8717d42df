"""Local attention in half precision, at large logits, empty, compiled, within its memory; and its errors."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hggraph import Stencil
from hggraph.ops import local_attention
from hggraph.ops._local_attention import _rows, attend, attend_backward
from hggraph.ops._window import BORDERS, flat_offsets
from hggraph.ops.local_attention import local_attention_reference

OFFSETS = [(-1, 0), (0, 1), (1, -1), (2, 2)]
FLAT = flat_offsets(OFFSETS)


def images(batch=2, channels=3, depth=2, size=(5, 6), dtype=torch.float32):
    return (torch.randn(batch, count, *size, dtype=dtype) for count in (channels, channels, depth))


@pytest.mark.parametrize("border", BORDERS)
def test_gradcheck(border):
    inputs = [x.requires_grad_() for x in (*images(1, size=(4, 4), dtype=torch.float64),)]
    bias = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)

    def function(q, k, v, bias):
        return local_attention(q, k, v, OFFSETS, border=border, bias=bias)

    assert torch.autograd.gradcheck(function, (*inputs, bias))
    assert torch.autograd.gradcheck(function, (*inputs, bias[0].detach().requires_grad_()))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(near_float32, dtype, border):
    def function(q, k, v, bias):
        return local_attention(q, k, v, OFFSETS, border=border, bias=bias)

    inputs = *images(), torch.randn(4)
    near_float32(function, dtype, *inputs)
    near_float32(function, dtype, *inputs, autocast=False)


def test_half_precision():
    """Only inputs and result are rounded: products of 300 x 300 leave float16, their differences do not."""
    q = torch.full((1, 4, 1, 3), 300.0, dtype=torch.float16)
    k = q + torch.tensor([0.0, 0.25, 0.5], dtype=torch.float16)
    v = torch.tensor([[[[1.0, 2.0, 3.0]]]], dtype=torch.float16)
    offsets = [(0, -1), (0, 0), (0, 1)]
    out = local_attention(q, k, v, offsets, scale=1e-3, border="mask")
    expected = local_attention_reference(*(x.double() for x in (q, k, v)), None, offsets, 1e-3, "mask")
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-3)


def test_autocast():
    """Products as in scaled_dot_product_attention; float64 stays."""
    q, k, v = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert local_attention(q, k, v, OFFSETS).dtype == torch.bfloat16
        assert local_attention(q.double(), k.double(), v.double(), OFFSETS).dtype == torch.float64


@pytest.mark.parametrize("border", BORDERS)
def test_large(border):
    """Logits of 1e8 neither overflow nor lose the others."""
    q, k, v = (x.requires_grad_() for x in images(dtype=torch.float64))
    out = local_attention(1e4 * q, 1e4 * k, v, OFFSETS, border=border)
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(t.isfinite().all() for t in (out, *grads))
    expected = local_attention_reference(1e4 * q, 1e4 * k, v, None, OFFSETS, 3**-0.5, border)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    single = local_attention(1e4 * q.float(), 1e4 * k.float(), v.float(), OFFSETS, border=border)
    assert single.isfinite().all()


@pytest.mark.parametrize("border", BORDERS)
def test_log_sum(border):
    """The logarithm of the softmax denominator, without a gradient, -1e30 where nothing is left."""
    q, k, v = (x.requires_grad_() for x in images(dtype=torch.float64))
    out, log_sum = torch.ops.hggraph.local_attention(q, k, v, None, [0, 1, 0, 2], 0.5, border)
    assert out.requires_grad
    assert not log_sum.requires_grad
    ones = local_attention_reference(q, k, torch.ones_like(v), None, [(0, 1), (0, 2)], 0.5, border)
    assert torch.equal(log_sum == -1e30, (ones[:, 0] == 0) if border == "mask" else torch.zeros_like(log_sum).bool())
    expected = torch.stack([(q[..., 0:3] * k[..., 1:4]).sum(1), (q[..., 0:3] * k[..., 2:5]).sum(1)]) * 0.5
    torch.testing.assert_close(log_sum[..., :3], expected.logsumexp(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
@pytest.mark.parametrize("border", BORDERS)
def test_empty(shape, border):
    leaves = [torch.rand(shape, requires_grad=True) for _ in range(3)]
    bias = torch.rand(4, requires_grad=True)
    out = local_attention(*leaves, OFFSETS, border=border, bias=bias)
    assert out.shape == shape
    grads = torch.autograd.grad(out.sum(), [*leaves, bias])
    assert [grad.shape for grad in grads] == [shape, shape, shape, (4,)]
    assert not grads[3].any()
    assert local_attention(*images(depth=0), OFFSETS, border=border).shape == (2, 0, 5, 6)


class Largest(TorchDispatchMode):
    """Notes the most bytes of a tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.bytes = max(self.bytes, part.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory(layout, border):
    """No tensor is larger than an image or the table of neighbours; an unfolded one would be 9 times an image."""
    q, k, v = (x.contiguous(memory_format=layout) for x in images(1, 32, 32, (12, 12)))
    flat = flat_offsets(list(Stencil.square(3)))
    with Largest() as seen:
        out, _ = attend(q, k, v, None, flat, 0.1, border)
        attend_backward(out, q, k, v, None, flat, 0.1, border)
    assert seen.bytes <= max(4 * q.numel(), 8 * 9 * 12 * 12)


def test_no_copy():
    """Channels-last images are read where they lie."""
    q = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert _rows(q, torch.float32).data_ptr() == q.data_ptr()
    torch.testing.assert_close(_rows(q.contiguous(), torch.float32), _rows(q, torch.float32), rtol=0, atol=0)


def test_deterministic():
    inputs = [x.requires_grad_() for x in images(2, 33, 17, (20, 20))]
    runs = []
    for _ in range(3):
        out = local_attention(*inputs, OFFSETS, border="shift")
        runs.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_compile():
    def step(q, k, v, bias):
        return local_attention(q, k, v, OFFSETS, border="shift", bias=bias)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for size in [(5, 6), (7, 4)]:
        leaves = [x.requires_grad_() for x in (*images(size=size), torch.randn(4))]
        expected, actual = step(*leaves), compiled(*leaves)
        cotangent = torch.randn_like(expected)
        grads = [torch.autograd.grad(out, leaves, cotangent) for out in (actual, expected)]
        torch.testing.assert_close((actual, *grads[0]), (expected, *grads[1]))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(3, 5, 6)}, ValueError, "`q` must have shape"),
        ({"v": torch.zeros(2, 2, 5, 6).long()}, TypeError, "`v` must be floating point"),
        ({"bias": torch.zeros(4).long()}, TypeError, "`bias` must be floating point"),
        ({"k": torch.zeros(2, 4, 5, 6)}, ValueError, "`k` must have the shape of `q`"),
        ({"q": torch.zeros(2, 0, 5, 6), "k": torch.zeros(2, 0, 5, 6)}, ValueError, "at least one channel"),
        ({"v": torch.zeros(2, 2, 6, 5)}, ValueError, "`v` must have shape"),
        ({"v": torch.zeros(1, 2, 5, 6)}, ValueError, "`v` must have shape"),
        ({"offsets": []}, ValueError, "`offsets` must be at least one"),
        ({"border": "reflect"}, ValueError, "`border` must be one of"),
        ({"bias": torch.zeros(3)}, ValueError, r"`bias` must have shape \(4,\) or \(2, 4\)"),
        ({"bias": torch.zeros(1, 4)}, ValueError, "`bias` must have shape"),
        (
            {"border": "shift", "offsets": [(0, -4), (0, 0), (0, 4)]},
            ValueError,
            "3 taps times dilation 4 must be at most the width, 6 pixels, got 12",
        ),
    ],
)
def test_errors(change, error, message):
    q, k, v = images()
    arguments = {"q": q, "k": k, "v": v, "offsets": OFFSETS} | change
    with pytest.raises(error, match=message):
        local_attention(**arguments)
