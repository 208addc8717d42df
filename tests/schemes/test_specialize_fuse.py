"""Equation 2 by loops over pixels, its ends, its gradient and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.schemes.specialize import fuse, levels_used


def pyramid(levels=3, batch=2, classes=3, size=(1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, classes, size[0] << i, size[1] << i) for i in range(levels)]
    semantic = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    # a few values, so that probabilities also equal thresholds
    unity = [torch.randint(5, (s[0], *s[2:]), generator=generator).double() / 4 for s in shapes[:-1]]
    return semantic, unity


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0.0, 0.25, 0.4, 1.0, 1.1]),
    st.integers(0, 9),
)
def test_fusing_is_a_loop(levels, batch, size, threshold, seed):
    semantic, unity = pyramid(levels, batch, 3, size, seed)
    out = fuse(semantic, unity, threshold)
    used = levels_used(unity, threshold) if unity else torch.zeros(out[:, 0].shape, dtype=torch.long)
    finest = levels - 1
    assert out.shape == semantic[-1].shape and used.shape == out[:, 0].shape
    for b in range(batch):
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                for level in range(levels):
                    y, x = i >> (finest - level), j >> (finest - level)
                    if level == finest or unity[level][b, y, x] >= threshold:
                        break
                assert torch.equal(out[b, :, i, j], semantic[level][b, :, y, x])
                assert used[b, i, j] == level


def test_ends_of_the_threshold():
    semantic, unity = pyramid(4)
    coarsest = semantic[0].repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(fuse(semantic, unity, 0), coarsest)
    assert torch.equal(fuse(semantic, unity, 1.0001), semantic[-1])
    assert fuse(semantic[-1:], []) is semantic[-1]


def test_the_default_is_the_papers():
    semantic, _ = pyramid(2, 1, 3, (1, 2))
    out = fuse(semantic, [torch.tensor([[[0.9, 0.8999]]], dtype=torch.float64)])
    assert torch.equal(out[..., :2], semantic[0][..., :1].expand(1, 3, 2, 2))
    assert torch.equal(out[..., 2:], semantic[1][..., 2:])


def test_layouts_and_precisions():
    semantic, unity = pyramid(3, 2, 5, (2, 3))
    want = fuse(semantic, unity, 0.5)
    channels_last = [y.to(memory_format=torch.channels_last) for y in semantic]
    strided = [y.repeat_interleave(2, 3)[..., ::2] for y in semantic]
    assert torch.equal(fuse(channels_last, unity, 0.5), want) and torch.equal(fuse(strided, unity, 0.5), want)
    half = fuse([y.bfloat16() for y in semantic], [u.float() for u in unity], 0.5)
    assert half.dtype == torch.bfloat16 and torch.equal(half, want.bfloat16())


def test_gradients_reach_what_is_chosen():
    semantic, unity = pyramid(3, 1, 2, (1, 2), seed=1)
    semantic = [y.requires_grad_() for y in semantic]
    assert torch.autograd.gradcheck(lambda *levels: fuse(levels, unity, 0.5), semantic)
    fuse(semantic, unity, 0.5).sum().backward()
    used = levels_used(unity, 0.5)
    assert sorted(used.unique().tolist()) == [0, 1, 2]
    for level, y in enumerate(semantic):
        counts = (used == level).double().unflatten(2, (y.shape[3], -1)).unflatten(1, (y.shape[2], -1)).sum((2, 4))
        assert torch.equal(y.grad, counts[:, None].expand_as(y))


def test_compiled():
    semantic, unity = pyramid(4)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(fuse, fullgraph=True, backend="aot_eager")(semantic, unity), fuse(semantic, unity))


Y, U = pyramid(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fuse(Y, U, -0.1), ValueError, r"`threshold` must be in \[0, 1\], or above 1 for .* got -0.1"),
        (lambda: fuse(Y, U, float("nan")), ValueError, "`threshold` must be .* got nan"),
        (lambda: fuse(Y, U, True), ValueError, "`threshold` must be .* got True"),
        (lambda: fuse([], []), ValueError, "`semantic` must hold logits of at least one level, .* got none"),
        (lambda: fuse(Y, U[:1]), ValueError, "all of the 3 levels of `semantic` but the finest, got 1"),
        (lambda: fuse(Y[1:], U), ValueError, "all of the 2 levels of `semantic` but the finest, got 2"),
        (
            lambda: fuse(Y[::-1], U),
            ValueError,
            r"`semantic\[1\]` must have shape \(2, 3, 8, 16\), .* got \(2, 3, 2, 4\)",
        ),
        (lambda: fuse(Y[::2], U[:1]), ValueError, r"`semantic\[1\]` must have shape \(2, 3, 2, 4\), .* strides double"),
        (lambda: fuse(Y, U[::-1]), ValueError, r"`unity\[1\]` must have shape \(2, 4, 8\), .* got \(2, 1, 2\)"),
        (lambda: fuse(Y[1:], U[:1]), ValueError, r"each cell of `semantic\[0\]` \(2, 3, 2, 4\), got shape \(2, 1, 2\)"),
        (lambda: fuse(Y, [u[:, None] for u in U]), ValueError, r"`unity\[0\]` must have shape \(B, h, w\)"),
        (lambda: fuse([y.long() for y in Y], U), TypeError, r"`semantic\[0\]` must be floating point"),
        (lambda: fuse(Y, [u > 0 for u in U]), TypeError, r"`unity\[0\]` must hold probabilities.* got torch.bool"),
        (lambda: levels_used([]), ValueError, "`unity` must hold at least one level, got none"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
