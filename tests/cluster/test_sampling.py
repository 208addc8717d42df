"""Sampling of centres: counts, order, repeatability, and how often each pixel is drawn."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hggraph.cluster import sample_centers
from hggraph.cluster.sampling import density_centers

METHODS = ["topk_random", "importance", "random"]


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from(METHODS),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 0.75, 1.0]),
    st.data(),
)
def test_different_pixels_in_order(shape, method, oversample, beta, data):
    pixels = shape[1] * shape[2]
    num_regions = data.draw(st.integers(1, pixels))
    importance = torch.rand(shape) * (torch.rand(shape) < 0.5)  # many ties at 0
    out = sample_centers(importance, num_regions, method=method, oversample=oversample, beta=beta)
    assert out.shape == (shape[0], num_regions)
    assert out.dtype == torch.long
    assert (out >= 0).all() and (out < pixels).all()
    assert (out.diff(dim=1) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_pixel(method):
    """With as many regions as pixels each is one."""
    out = sample_centers(torch.rand(2, 3, 4), 12, method=method)
    assert torch.equal(out, torch.arange(12).expand(2, 12))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_no_gradient(method, dtype):
    importance = torch.rand(2, 6, 6).to(dtype).requires_grad_()
    out = sample_centers(importance, 5, method=method)
    assert out.shape == (2, 5) and not out.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_seeded(method):
    importance = torch.rand(2, 9, 9)
    draws = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        draws.append(sample_centers(importance, 10, method=method, generator=generator))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(5)
    first = sample_centers(importance, 10, method=method)
    assert not torch.equal(first, sample_centers(importance, 10, method=method))
    torch.manual_seed(5)
    assert torch.equal(first, sample_centers(importance, 10, method=method))


def test_images_of_a_batch_are_drawn_apart():
    same = torch.rand(1, 12, 12).expand(2, 12, 12)
    for method in METHODS:
        out = sample_centers(same, 10, method=method)
        assert not torch.equal(out[0], out[1])


def frequencies(importance, num_regions, draws, **options):
    """Return how often each pixel is drawn over `draws` images of a batch."""
    batch = importance.expand(draws, *importance.shape)
    out = sample_centers(batch, num_regions, **options)
    return torch.bincount(out.flatten(), minlength=importance.numel()).double() / draws


def assert_probabilities(observed, expected, draws):
    """Each count is binomial: 5 standard deviations fail by chance once in 1.7 million."""
    deviation = (expected * (1 - expected) / draws).sqrt().clamp(min=1e-12)
    assert (((observed - expected).abs() / deviation) < 5).all(), (observed, expected)


def inclusion(weights, num_regions):
    """Return each pixel's chance in successive draws without replacement, by all sequences."""

    def visit(chosen, probability):
        if len(chosen) == num_regions:
            for pixel in chosen:
                chance[pixel] += probability
            return
        left = sum(w for p, w in enumerate(weights) if p not in chosen)
        for pixel, weight in enumerate(weights):
            if pixel not in chosen:
                visit((*chosen, pixel), probability * weight / left)

    chance = [0.0] * len(weights)
    visit((), 1.0)
    return torch.tensor(chance, dtype=torch.float64)


@pytest.mark.parametrize("num_regions", [1, 2, 3])
def test_importance_draws_in_proportion(num_regions):
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 10.0, 0.5]])
    draws = 40_000
    observed = frequencies(weights, num_regions, draws, method="importance")
    expected = inclusion(weights.flatten().tolist(), num_regions)
    if num_regions == 1:
        assert torch.allclose(expected, weights.flatten().double() / 20.5)
    assert_probabilities(observed, expected, draws)


def test_importance_takes_zero_only_when_nothing_is_left():
    weights = torch.tensor([[0.0, 5.0, 0.0, 1.0]])
    observed = frequencies(weights, 2, 2000, method="importance")
    assert observed.tolist() == [0, 1, 0, 1]
    observed = frequencies(weights, 3, 2000, method="importance")
    assert_probabilities(observed, torch.tensor([0.5, 1, 0.5, 1]).double(), 2000)


@pytest.mark.parametrize("method", METHODS)
def test_constant_importance_is_uniform(method):
    draws = 20_000
    observed = frequencies(torch.zeros(2, 4), 3, draws, method=method, beta=0.0)
    assert_probabilities(observed, torch.full((8,), 3 / 8).double(), draws)


def test_random_ignores_importance():
    draws = 20_000
    observed = frequencies(torch.arange(8.0).view(2, 4), 3, draws, method="random")
    assert_probabilities(observed, torch.full((8,), 3 / 8).double(), draws)


def test_topk_random_is_the_best_of_random_candidates():
    """One region, beta 1, oversample 3 of 8 pixels: the best of 3 drawn, by all draws of 3."""
    draws, importance = 20_000, torch.tensor([[3.0, 1, 4, 1.5], [9, 2, 6, 5]])
    observed = frequencies(importance, 1, draws, oversample=3, beta=1.0)
    chance, values = torch.zeros(8, dtype=torch.float64), importance.flatten().tolist()
    for drawn in combinations(range(8), 3):
        chance[max(drawn, key=values.__getitem__)] += 1 / math.comb(8, 3)
    assert_probabilities(observed, chance, draws)


def test_topk_random_fills_up_with_others():
    """Four regions, beta 0.5, all pixels candidates: the best two always, any two of the rest."""
    draws, importance = 20_000, torch.tensor([[3.0, 1, 4, 1.5], [9, 2, 6, 5]])
    observed = frequencies(importance, 4, draws, oversample=2, beta=0.5)
    expected = torch.full((8,), 2 / 6, dtype=torch.float64)
    expected[[4, 6]] = 1
    assert_probabilities(observed, expected, draws)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_regions": 7}, "at most the number of pixels, 2 x 3 = 6, got 7"),
        ({"num_regions": 0}, "`num_regions` must be a whole number >= 1, got 0"),
        ({"num_regions": 1.5}, "`num_regions` must be a whole number >= 1, got 1.5"),
        ({"method": "best"}, r"`method` must be one of .*'warp'\), got 'best'"),
        ({"oversample": 0}, "`oversample` must be a whole number >= 1, got 0"),
        ({"beta": 1.5}, r"`beta` must be in \[0, 1\], got 1.5"),
        ({"beta": math.nan}, r"`beta` must be in \[0, 1\], got nan"),
        ({"importance": torch.rand(2, 3)}, r"`importance` must have shape \(B, H, W\)"),
        ({"importance": torch.full((1, 2, 3), math.nan)}, "`importance` must be finite and not negative"),
        ({"importance": -torch.ones(1, 2, 3), "method": "density"}, "`importance` must be finite and not negative"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_centers(**{"importance": torch.rand(1, 2, 3), "num_regions": 2, **arguments})


@pytest.mark.parametrize(
    ("size", "regions"), [((12, 20), 15), ((9, 7), 63), ((1, 30), 4), ((30, 1), 30), ((33, 21), 50)]
)
@pytest.mark.parametrize("method", ["grid", "density"])
def test_seeds_without_randomness(method, size, regions):
    """Different pixels, the same each time; a constant importance leaves about a seed in each part of the image."""
    importance = torch.ones(2, *size)
    seeds = sample_centers(importance, regions, method=method)
    assert seeds.shape == (2, regions) and torch.equal(seeds, sample_centers(importance, regions, method=method))
    assert all(len(one.unique()) == regions for one in seeds)
    assert seeds.min() >= 0 and seeds.max() < size[0] * size[1]
    upper = (seeds[0] // size[1] < size[0] / 2).sum() / regions
    assert size[0] == 1 or 0.3 <= upper <= 0.7


def test_density_follows_importance():
    """Seeds are closer where importance, blurred, is high, and never leave the flat part."""
    importance = torch.full((1, 60, 60), 0.01)
    importance[:, :, 30:] = 1
    seeds = density_centers(importance, 36, spread=True)[0]
    right = int((seeds % 60 >= 30).sum())
    assert 21 <= right <= 32
    assert torch.equal(density_centers(torch.zeros(1, 60, 60), 36), density_centers(torch.ones(1, 60, 60), 36))
