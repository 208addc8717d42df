"""Soft SLIC against Algorithm 1 line by line, over all pairs and over the nearest centres only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hggraph.cluster import soft_slic


def algorithm_1(x, seeds, iterations, threshold, candidates=None):
    """Return S (P, R) and centres (R, C) of one image (C, H, W), differentiable in `x`.

    With candidates, a pixel's weights over all but its T nearest seeds are 0 from the first line on; of equally
    near seeds the lower number counts.
    """
    _, height, width = x.shape
    features = x.flatten(1).T
    places = [(p // width, p % width) for p in range(height * width)]
    ranked = []
    for py, px in places:  # squared distances of whole pixels: exact
        far = [(py - s // width) ** 2 + (px - s % width) ** 2 for s in seeds.tolist()]
        ranked.append(sorted(range(len(far)), key=lambda r, far=far: (far[r], r)))
    allowed = torch.zeros(len(places), len(seeds), dtype=torch.bool)
    s = torch.zeros(len(places), len(seeds), dtype=x.dtype)
    for p, order in enumerate(ranked):
        s[p, order[0]] = 1
        allowed[p, order[:candidates]] = True
    for _ in range(iterations):
        s_bar = s / s.sum(0)
        centers = s_bar.T @ features
        distance = (features[:, None] - centers).square().sum(2)
        s = torch.exp(-distance) * allowed
    s = s * (s > threshold)
    nearest = distance.masked_fill(~allowed, torch.inf).argmin(1)
    left_out = s.sum(1) == 0
    s = torch.where(left_out[:, None], torch.eye(len(seeds), dtype=x.dtype)[nearest], s)
    return s / s.sum(1, keepdim=True), centers


def random_seeds(batch, pixels, regions):
    return torch.rand(batch, pixels).argsort(1)[:, :regions]


def surrounded(x):
    buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
    buffer[1:-1, 1:-1, 1:-1, 1:-1] = x
    return buffer[1:-1, 1:-1, 1:-1, 1:-1]


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand_as(x),
    "surrounded": surrounded,
}


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 6),
    st.sampled_from([None, 1, 2, 4]),
    st.integers(1, 4),
    st.sampled_from([0.0, 1e-3, 0.3]),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 1000),
)
def test_literally(size, regions, candidates, iterations, threshold, scale, layout, seed):
    """Weights, centres and the gradient for random cotangents."""
    torch.manual_seed(seed)
    regions = min(regions, size[0] * size[1])
    x = LAYOUTS[layout](scale * torch.randn(2, 3, *size, dtype=torch.float64)).requires_grad_()
    seeds = random_seeds(2, size[0] * size[1], regions)
    options = {"iterations": iterations, "threshold": threshold}
    assignment = soft_slic(x, seeds, candidates=candidates, **options)
    # a literal exponential over features this far apart would underflow and leave no column to divide by
    literal = [list(algorithm_1(x[b], seeds[b], candidates=candidates, **options)) for b in range(2)]
    for b, (s, centers) in enumerate(literal):  # a region that has lost all its pixels is back at its seed
        literal[b][1] = torch.where((s.sum(0) > 0)[:, None], centers, x[b].flatten(1).T[seeds[b]])
    expected = [torch.stack(parts) for parts in zip(*literal, strict=True)]
    actual = [assignment.to_dense(), assignment.centers]
    assert_close(actual, expected, rtol=0, atol=1e-10)
    cotangents = [torch.randn_like(value) for value in expected]
    grads = torch.autograd.grad(actual, x, cotangents)
    assert_close(grads, torch.autograd.grad(expected, x, cotangents), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("candidates", [None, 1, 9])
def test_larger_image(candidates):
    """Many tiles with regions crowded in a corner and one far away."""
    size, generator = (37, 41), torch.Generator().manual_seed(3)
    crowd = torch.randperm(15 * 41, generator=generator)[:70]
    seeds = torch.cat([crowd, torch.tensor([36 * 41 + 40])])
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    assignment = soft_slic(x, seeds[None], candidates=candidates)
    expected, centers = algorithm_1(x[0], seeds, 3, 1e-3, candidates)
    assert_close(assignment.to_dense()[0], expected, rtol=0, atol=1e-10)
    assert_close(assignment.centers[0], centers, rtol=0, atol=1e-10)


@pytest.mark.parametrize("candidates", [None, 2])
@pytest.mark.parametrize("iterations", [1, 3])
def test_gradcheck(candidates, iterations):
    """Numerically, without the literal version's help."""
    x = torch.randn(1, 2, 2, 5, dtype=torch.float64, requires_grad=True)
    seeds = torch.tensor([[1, 4, 6]])

    def weights(x):
        out = soft_slic(x, seeds, iterations=iterations, candidates=candidates)
        return out.to_dense(), out.centers

    assert torch.autograd.gradcheck(weights, (x,), fast_mode=True)


@pytest.mark.parametrize("candidates", [None, 2])
def test_threshold(candidates):
    """Two plateaus 2 apart: the foreign weight is exp(-4) = 0.0183, kept below and dropped above."""
    x = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64).view(1, 1, 1, 4)
    foreign = torch.tensor(-4.0).double().exp()

    def weights(threshold):
        seeds = torch.tensor([[0, 3]])
        out = soft_slic(x, seeds, iterations=1, threshold=threshold, candidates=candidates)
        return out.to_dense()[0, 0]

    kept = torch.stack([1 / (1 + foreign), foreign / (1 + foreign)])
    for threshold in (0.0, 1e-3, 0.018):
        assert_close(weights(threshold), kept, rtol=0, atol=1e-12)
    for threshold in (0.0184, 0.5):
        assert weights(threshold).tolist() == [1, 0]


@pytest.mark.parametrize("candidates", [None, 2])
def test_pixel_far_from_all_goes_to_the_nearest(candidates):
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 30.0]).double().view(1, 1, 1, 5).requires_grad_()
    assignment = soft_slic(x, torch.tensor([[0, 3]]), iterations=1, candidates=candidates)
    # region 1 starts with the pixels 1, 1, 30, and none of the three is within exp(-6.9) of 32 / 3
    assert_close(assignment.centers.flatten(), torch.tensor([0, 32 / 3]).double())
    assert assignment.to_dense()[0].tolist() == [[1, 0]] * 4 + [[0, 1]]
    (grad,) = torch.autograd.grad(assignment.to_dense()[..., 1].sum(), x)
    assert not grad.any()  # a hard choice has none


@pytest.mark.parametrize("candidates", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_constant_image(candidates, dtype):
    """All regions are one: each pixel belongs to its candidates alike, at whatever value."""
    for value in (0.0, 1.0, 1e4):
        x = torch.full((1, 4, 6, 7), value, dtype=dtype, requires_grad=True)
        assignment = soft_slic(x, torch.tensor([[0, 10, 40]]), candidates=candidates)
        weight = assignment.weight
        assert_close(weight, torch.full_like(weight, 1 / weight.shape[1]))
        assert_close(assignment.centers, torch.full_like(assignment.centers, value))
        cotangents = (torch.randn_like(weight), torch.randn_like(assignment.centers))
        (grad,) = torch.autograd.grad((weight, assignment.centers), x, cotangents)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("candidates", [None, 4])
@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e-2, 1e2, 1e6, 1e15])
def test_any_feature_scale(candidates, scale):
    """Forward and backward stay finite in float32; at both ends the weights are known."""
    x = (scale * torch.randn(1, 3, 8, 9)).requires_grad_()
    seeds = random_seeds(1, 72, 5)
    assignment = soft_slic(x, seeds, candidates=candidates)
    weight, pooled = assignment.weight, assignment.pool(x)
    assert_close(weight.sum(1), torch.ones(1, 72))
    if scale <= 1e-6:
        assert_close(weight, torch.full_like(weight, 1 / weight.shape[1]))
    if scale >= 1e6:
        # hard, but for regions whose centres have become the same pixel
        shares = (1 / weight[weight > 0]).detach()
        assert_close(shares, shares.round(), rtol=1e-6, atol=0)
    assert assignment.area.sum().item() == pytest.approx(72)
    (grad,) = torch.autograd.grad((weight, pooled), x, (torch.randn_like(weight), pooled / scale))
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("candidates", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(candidates, dtype):
    """Half features give the float32 weights of the rounded values, inside autocast too."""
    x = torch.randn(2, 3, 24, 25).to(dtype).requires_grad_()
    seeds = random_seeds(2, 600, 5)
    expected = soft_slic(x.detach().float(), seeds, candidates=candidates)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            assignment = soft_slic(x, seeds, candidates=candidates)
            in_float = soft_slic(100 * x.detach().float(), seeds, candidates=candidates)
        assert assignment.weight.dtype == assignment.centers.dtype == torch.float32
        assert_close(assignment.to_dense(), expected.to_dense(), rtol=0, atol=0)
        assert_close(assignment.centers, expected.centers, rtol=0, atol=0)
        (grad,) = torch.autograd.grad(assignment.weight, x, torch.randn_like(assignment.weight))
        assert grad.dtype == dtype and torch.isfinite(grad).all() and grad.any()
        hard = soft_slic(100 * x.detach().float(), seeds, candidates=candidates)
        assert torch.equal(in_float.to_dense(), hard.to_dense())


@pytest.mark.parametrize("candidates", [None, 3])
def test_one_region_and_one_pixel_per_region(candidates):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    seeds = torch.tensor([[7], [0]])
    whole = soft_slic(x, seeds, iterations=1, candidates=candidates)
    assert_close(whole.centers, x.mean((2, 3))[:, None], rtol=0, atol=1e-12)
    assert (whole.to_dense() == 1).all()
    apart = 100 * torch.arange(20.0).view(1, 1, 4, 5)
    single = soft_slic(apart, torch.arange(20)[None], candidates=candidates)
    assert torch.equal(single.to_dense()[0], torch.eye(20))
    pixel = soft_slic(x[:, :, :1, :1], torch.zeros(2, 1).long(), candidates=candidates)
    assert (pixel.to_dense() == 1).all() and torch.equal(pixel.centers, x[:, :, 0, :1].mT)


@pytest.mark.parametrize("candidates", [None, 3])
def test_deterministic(candidates):
    x, seeds = torch.randn(1, 3, 30, 31), random_seeds(1, 930, 20)
    first, second = (soft_slic(x, seeds, candidates=candidates) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.centers, second.centers)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.full((1, 2, 3, 3), torch.nan)}, ValueError, "`x` must be finite, got NaN"),
        ({"x": torch.full((1, 2, 3, 3), -torch.inf)}, ValueError, "`x` must be finite, got NaN"),
        ({"x": torch.zeros(1, 2, 3, 3).byte()}, TypeError, r"`x` .* floating point, .* / 255"),
        ({"x": torch.rand(1, 2, 0, 3)}, ValueError, "at least one channel and one pixel, got"),
        ({"x": torch.rand(2, 3, 3)}, ValueError, r"`x` must have shape \(B, C, H, W\)"),
        ({"x": torch.rand(2, 2, 3, 3)}, ValueError, r"`centers` .* with B = 2, got \(1, 2\)"),
        ({"centers": torch.arange(10)[None]}, ValueError, r"number of pixels, 3 x 3 = 9, got 10"),
        ({"centers": torch.tensor([[0, 9]])}, ValueError, r"`centers` must be in \[0, 9\)"),
        ({"centers": torch.tensor([[-1, 2]])}, ValueError, r"`centers` must be in \[0, 9\)"),
        ({"centers": torch.tensor([[4, 4]])}, ValueError, "`centers` must be different pixels"),
        ({"centers": torch.tensor([[0.0, 2.0]])}, TypeError, "`centers` must hold integers"),
        ({"centers": torch.tensor([0, 2])}, ValueError, r"`centers` must have shape \(B, R\)"),
        ({"centers": torch.zeros(1, 0).long()}, ValueError, r">= 1, got 0"),
        ({"iterations": 0}, ValueError, "`iterations` must be a whole number >= 1, got 0"),
        ({"candidates": 0}, ValueError, "`candidates` must be a whole number >= 1, got 0"),
        ({"threshold": 1.0}, ValueError, r"`threshold` must be in \[0, 1\), got 1.0"),
        ({"threshold": -0.1}, ValueError, r"`threshold` must be in \[0, 1\), got -0.1"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        soft_slic(**{"x": torch.rand(1, 2, 3, 3), "centers": torch.tensor([[0, 8]]), **arguments})
