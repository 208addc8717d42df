"""Local attention against literal loops, unfolded and masked attention, in every layout and form of stencil."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph import Stencil
from hggraph.ops import _local_attention, local_affinity, local_attention
from hggraph.ops._window import BORDERS, check_window, flat_offsets, neighbours
from hggraph.ops.local_attention import local_attention_reference

IRREGULAR = [(-2, 0), (0, 1), (1, -1), (2, 2)]  # no centre, no opposites
FAR = [(0, 0), (9, 0), (0, -9)]  # larger than any image here
STENCILS = {
    "square": list(Stencil.square(3)),
    "even": list(Stencil.square((2, 4))),
    "dilated": list(Stencil.square((1, 3), dilation=(1, 2))),
    "irregular": IRREGULAR,
    "far": FAR,
    "single": [(0, 1)],
    "twice": [(0, 1), (0, 1), (1, 0)],
}
close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def images(batch=2, channels=3, depth=2, size=(5, 6)):
    return double(batch, channels, *size), double(batch, channels, *size), double(batch, depth, *size)


def ours(offsets, border="zero", scale=0.7):
    return lambda q, k, v, bias=None: local_attention(q, k, v, offsets, border=border, scale=scale, bias=bias)


def reference(offsets, border="zero", scale=0.7):
    return lambda q, k, v, bias=None: local_attention_reference(q, k, v, bias, offsets, scale, border)


def fits(size, offsets):
    try:
        check_window(size, flat_offsets(offsets), "shift")
    except ValueError:
        return False
    return True


def dense(q, k, v, near):
    """Attend over all pixels, those left out that are no neighbour."""
    mask = torch.zeros(near.shape[0], near.shape[0] + 1, dtype=torch.bool)
    mask = mask.scatter_(1, near + 1, True)[:, 1:]
    q, k, v = (x.flatten(2).mT for x in (q, k, v))
    out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)
    return out[:, 0].mT


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=4),
    st.sampled_from(BORDERS),
    st.sampled_from([None, 1, 2]),
)
def test_reference(seed, counts, size, offsets, border, bias_dim):
    torch.manual_seed(seed)
    if border == "shift" and not fits(size, offsets):
        return
    q, k, v = images(*counts, size)
    bias = None if bias_dim is None else double(counts[0], len(offsets))[0 if bias_dim == 1 else slice(None)]
    expected = reference(offsets, border)(q, k, v, bias)
    torch.testing.assert_close(ours(offsets, border)(q, k, v, bias), expected, **close)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("name", STENCILS)
def test_gradients(agree, name, border):
    offsets = STENCILS[name]
    if border == "shift" and not fits((5, 6), offsets):
        offsets = [(9, -9), (9, -8)]
    agree(ours(offsets, border), reference(offsets, border), *images())
    agree(ours(offsets, border), reference(offsets, border), *images(), double(len(offsets)))
    agree(ours(offsets, border), reference(offsets, border), *images(), double(2, len(offsets)))


@pytest.mark.parametrize("border", BORDERS)
def test_layouts(agree_everywhere, border):
    """Also channels_last, and NaN around the images."""
    inputs = *images(size=(5, 5)), double(2, 4)
    agree_everywhere(ours(IRREGULAR, border), reference(IRREGULAR, border), *inputs)
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in images(depth=1)]
    assert local_attention(*inputs, IRREGULAR).is_contiguous(memory_format=torch.channels_last)
    expected = local_attention(*(x.contiguous() for x in inputs), IRREGULAR, border=border)
    torch.testing.assert_close(local_attention(*inputs, IRREGULAR, border=border), expected, **close)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("piece", [1, 40, 150, 250])
def test_pieces(monkeypatch, agree, piece, border):
    """Whatever the images are cut into: single lines, several, one image, several."""
    monkeypatch.setattr(_local_attention, "_PIECE", piece)
    inputs = *images(3, size=(5, 5)), double(3, 4)
    agree(ours(IRREGULAR, border), reference(IRREGULAR, border), *inputs)


@pytest.mark.parametrize(("size", "dilation"), [(3, 1), (3, 6), (5, 2)])
@pytest.mark.parametrize("shape", [(7, 9), (1, 8), (8, 1), (1, 1)])
def test_unfold(agree, size, dilation, shape):
    """Neighbours outside are what zero padding makes them."""

    def unfolded(q, k, v):
        keys, values = (
            F.unfold(x, size, dilation=dilation, padding=dilation * (size // 2)).unflatten(1, (x.shape[1], size**2))
            for x in (k, v)
        )
        weight = (torch.einsum("bcp,bckp->bkp", q.flatten(2), keys) * q.shape[1] ** -0.5).softmax(1)
        return torch.einsum("bkp,bdkp->bdp", weight, values).view_as(v)

    offsets = Stencil.square(size, dilation=dilation).offsets
    agree(lambda q, k, v: local_attention(q, k, v, offsets), unfolded, *images(size=shape))


@pytest.mark.parametrize("name", ["square", "even", "dilated", "far"])
def test_masked(agree, name):
    offsets = STENCILS[name]
    near = neighbours((5, 6), flat_offsets(offsets), "mask")
    agree(
        lambda q, k, v: local_attention(q, k, v, offsets, border="mask").flatten(2),
        lambda q, k, v: dense(q, k, v, near),
        *images(),
    )


@pytest.mark.parametrize(("size", "dilation"), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("shape", [(6, 7), (8, 9)])
def test_natten(agree, size, dilation, shape):
    """Every query sees size x size keys of its residue class, the nearest inside the image."""

    def nearest(position, length):
        same = [p for p in range(length) if p % dilation == position % dilation]
        starts = range(len(same) - size + 1)
        at = min(starts, key=lambda s: abs(same[s + size // 2] - position))
        return same[at : at + size]

    rows, columns = ([nearest(p, length) for p in range(length)] for length in shape)
    near = [[y * shape[1] + x for y, x in itertools.product(*axes)] for axes in itertools.product(rows, columns)]
    offsets = Stencil.square(size, dilation=dilation).offsets
    agree(
        lambda q, k, v: local_attention(q, k, v, offsets, border="shift").flatten(2),
        lambda q, k, v: dense(q, k, v, torch.tensor(near)),
        *images(size=shape),
    )


def test_shift_bias():
    """A tap keeps its bias where the window moves: at the left border tap 0 reads the query itself."""
    v = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    bias = torch.tensor([100.0, 0.0, 0.0])
    out = local_attention(0 * v, v, v, [(0, -1), (0, 0), (0, 1)], border="shift", bias=bias)
    assert out.tolist() == [[[[1, 1, 1]]]]


def test_constant():
    """Weights sum to 1 over the neighbours inside, or over all of them."""
    q, k, v = images()
    v = torch.full_like(v, 3.0)
    for border in ("mask", "shift"):
        torch.testing.assert_close(local_attention(q, k, v, Stencil.square(3), border=border), v, **close)
    count = F.conv2d(torch.ones_like(v[:, :1]), torch.ones(1, 1, 3, 3, dtype=v.dtype), padding=1)
    torch.testing.assert_close(local_attention(0 * q, k, v, Stencil.square(3)), v * count / 9, **close)


@pytest.mark.parametrize("border", ["zero", "mask"])
def test_all_outside(border):
    leaves = [x.requires_grad_() for x in (*images(), double(2))]
    out = ours([(9, 0), (0, -9)], border)(*leaves)
    assert not out.any()
    assert not any(grad.any() for grad in torch.autograd.grad(out, leaves, torch.randn_like(out)))


def test_unread():
    """NaN in keys and values that no query reads goes nowhere."""
    q, k, v = images()
    k[..., 0] = v[..., 0] = float("nan")
    leaves = [q.requires_grad_(), k.requires_grad_(), v.requires_grad_()]
    for border in ("zero", "mask"):
        out = ours([(0, 1), (1, 1), (0, 2)], border)(*leaves)
        grads = torch.autograd.grad(out, leaves, torch.randn_like(out))
        assert all(t.isfinite().all() for t in (out, *grads))
        assert not any(grad[..., 0].any() for grad in grads[1:])


@pytest.mark.parametrize("border", BORDERS)
def test_batch(border):
    inputs = [x.requires_grad_() for x in (*images(3), double(3, 4))]
    function = ours(IRREGULAR, border)
    out, cotangent = function(*inputs), double(3, 2, 5, 6)
    grads = torch.autograd.grad(out, inputs, cotangent)
    for b in range(3):
        single = [x[b : b + 1].detach().requires_grad_() for x in inputs]
        alone = function(*single)
        torch.testing.assert_close(out[b : b + 1], alone, **close)
        alone = torch.autograd.grad(alone, single, cotangent[b : b + 1])
        torch.testing.assert_close(tuple(grad[b : b + 1] for grad in grads), alone, **close)


@pytest.mark.parametrize("border", BORDERS)
def test_affinity(border):
    """These weights sum to 1, and the neighbours' values with them are the attention."""
    q, k, v = images(size=(5, 6))
    bias = double(2, 4)
    weight = local_affinity(q, k, IRREGULAR, border=border, bias=bias)
    near = neighbours((5, 6), flat_offsets(IRREGULAR), border)
    assert weight.shape == (2, 4, 5, 6)
    reached = (near >= 0).any(1).view(5, 6) if border == "mask" else torch.ones(5, 6, dtype=torch.bool)
    torch.testing.assert_close(weight.sum(1)[:, reached], torch.ones(2, int(reached.sum()), dtype=weight.dtype))
    values = F.pad(v.flatten(2), (0, 1))[:, :, near]  # (B, D, P, K), zero outside
    expected = (values * weight.flatten(2).mT[:, None]).sum(3).view_as(v)
    torch.testing.assert_close(local_attention(q, k, v, IRREGULAR, border=border, bias=bias), expected, **close)
    with pytest.raises(ValueError, match="`k` must have the shape of `q`"):
        local_affinity(q, k[:, :1], IRREGULAR)
