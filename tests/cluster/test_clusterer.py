"""The clustering layer: its feature scales, its randomness, and what its options choose."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hggraph import SoftSLIC
from hggraph.cluster import active_focus, importance_map, soft_slic
from hggraph.cluster.clusterer import fixed_noise, spread_scale
from hggraph.cluster.color import photo_colors


def spread(features):
    """Return the mean squared distance of each image's pixels from their mean."""
    pixels = features.detach().double().flatten(2)
    return (pixels - pixels.mean(2, keepdim=True)).square().sum(1).mean(1)


@pytest.mark.parametrize("channels", [1, 3, 64, 600])
@pytest.mark.parametrize("factor", [1e-15, 1e-3, 1.0, 1e4, 1e15])
def test_auto_makes_the_spread_nine(channels, factor):
    """Whatever the number of channels and their size, for each image of its own."""
    x = factor * (torch.randn(2, channels, 6, 7) + torch.tensor([0.0, 3.0]).view(2, 1, 1, 1))
    features = SoftSLIC(num_regions=4)._scaled(x)
    # a mean square 3 ** 2 times the spread is subtracted in float32, 1e-6 of it is lost at most
    assert_close(spread(features), torch.full((2,), 9.0).double(), rtol=1e-4, atol=0)


def test_auto_by_hand():
    """Two pixels 2 apart have the spread 1, so distances become 3 times as large."""
    x = torch.tensor([[[[5.0, 7.0]]], [[[-4.0, 4.0]]]])
    assert_close(spread_scale(x), torch.tensor([3.0, 0.75]))


@pytest.mark.parametrize("value", [0.0, 1.0, -1e6, 1e-20])
def test_auto_leaves_a_constant_image(value):
    """Its spread is rounding errors only."""
    x = torch.full((1, 5, 6, 7), value, requires_grad=True)
    assert spread_scale(x).tolist() == [1]
    assert spread_scale(x + 1e-7 * value * torch.randn_like(x)).tolist() == [1]
    assignment = SoftSLIC(num_regions=4).eval()(x)
    (grad,) = torch.autograd.grad(assignment.weight, x, torch.randn_like(assignment.weight))
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("candidates", [None, 3])
def test_auto_does_not_see_the_input_s_scale(candidates):
    """A power of two changes no digit, and no region either."""
    layer = SoftSLIC(num_regions=6, candidates=candidates, sampling="topk_random").eval()
    x = torch.randn(2, 5, 9, 8)
    expected = layer(x)
    for factor in (2.0**-20, 2.0**12):
        assignment = layer(factor * x)
        assert torch.equal(assignment.seeds, expected.seeds)
        assert torch.equal(assignment.weight, expected.weight)


@pytest.mark.parametrize("scale", ["none", 0.5, 3])
@pytest.mark.parametrize("candidates", [None, 3])
def test_other_scales(scale, candidates):
    """As the features are, or times a number, then soft SLIC around the sampled seeds."""
    x = torch.randn(2, 5, 9, 8)
    options = {"iterations": 2, "threshold": 0.05, "candidates": candidates}
    assignment = SoftSLIC(num_regions=6, feature_scale=scale, position=3.0, **options)(x)
    features = x if scale == "none" else scale * x
    position = 3.0 / (72 / 6) ** 0.5
    expected = soft_slic(features, assignment.seeds, update="softmax", position=position, **options)
    assert torch.equal(assignment.weight, expected.weight)
    assert torch.equal(assignment.centers, expected.centers)


def test_paper():
    """Algorithm 1 on the features as they are, all regions, seeds by importance."""
    x = torch.randn(2, 5, 9, 8)
    layer = SoftSLIC.paper(num_regions=6).eval()
    assignment = layer(x)
    assert assignment.index is None and assignment.grid is None
    assert torch.equal(assignment.weight, soft_slic(x, assignment.seeds).weight)
    layer.train()
    assert not torch.equal(layer(x).seeds, assignment.seeds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_photo(dtype):
    """CIELAB in float32 at least, smoothed; importance looks at colour alone."""
    image = torch.rand(2, 3, 12, 300).to(dtype)
    exact = image.dtype == torch.float64
    layer = SoftSLIC(300, feature_scale="photo", connected=False)
    assignment = layer(image)
    assert assignment.num_regions == 12 and assignment.index.shape[1] == 6
    colors = photo_colors(image if exact else image.float(), 1.0)
    position = 2.0 / (12 * 300 / 12) ** 0.5
    options = {"iterations": 4, "threshold": 0.03, "candidates": 6, "update": "softmax", "position": position}
    expected = soft_slic(colors, assignment.seeds, **options)
    assert torch.equal(assignment.weight, expected.weight) and torch.equal(assignment.index, expected.index)
    assert torch.equal(layer.importance(image), importance_map(colors))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(image).weight, assignment.weight)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("size", [(1, 40), (40, 1), (23, 31)])
def test_photos_in_fused_loops(size, connected):
    """In float32 without a gradient a photo may take other loops; the regions are those of float64 to rounding."""
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4, dtype=torch.float64), size, mode="bilinear")
    layer = SoftSLIC(num_regions=8, feature_scale="photo", connected=connected)
    exact, rounded = layer(image), layer(image.float())
    assert (exact.labels != rounded.labels).double().mean() < 0.02  # ties of distances
    same = (exact.labels == rounded.labels).flatten(1)
    gap = (exact.to_dense() - rounded.to_dense()).abs().amax(2)[same]
    assert gap.quantile(0.98) < 2e-3  # CIELAB's cube root by a polynomial
    image.requires_grad_()
    slow = layer(image.float())
    assert slow.weight.requires_grad
    assert (slow.labels != rounded.labels).double().mean() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["photo", "auto"])
def test_hard(dtype, scale):
    """One entry a pixel: the strongest region of the soft ones."""
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4, dtype=dtype), (20, 30), mode="bilinear")
    soft = SoftSLIC(num_regions=12, feature_scale=scale)(image)
    hard = SoftSLIC(num_regions=12, feature_scale=scale, hard=True)(image)
    assert hard.is_hard and not soft.is_hard
    assert torch.equal(hard.labels, soft.labels)
    assert torch.equal(hard.seeds, soft.seeds) and hard.grid == soft.grid


def test_seeds_on_a_grid_keep_their_place():
    assignment = SoftSLIC(16)(torch.randn(2, 4, 45, 60))
    assert assignment.grid == (11, 15) and assignment.num_regions == 165
    seeds = assignment.seeds[0].view(11, 15)
    assert (seeds // 60).diff(dim=0).unique().tolist() == [4] and (seeds % 60).diff(dim=1).unique().tolist() == [4]
    assert (seeds // 60 == seeds[:, :1] // 60).all() and (seeds % 60 == seeds[:1] % 60).all()
    assert SoftSLIC(num_regions=7)(torch.randn(1, 4, 45, 60)).grid is None  # rows of different lengths
    assert SoftSLIC(16, sampling="density")(torch.randn(1, 4, 45, 60)).grid is None


def test_regions_have_a_place():
    """Pixels lie near their region's middle with positions, and anywhere without."""
    x = torch.randn(1, 8, 40, 40).sign()  # the same few values everywhere
    place = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij"))[None]

    def distance(layer):
        assignment = layer(x)
        return (assignment.unpool(assignment.pool(place)) - place).square().sum(1).sqrt().mean()

    assert distance(SoftSLIC(25, candidates=None)) < 8
    assert distance(SoftSLIC(25, candidates=None, position=0.0)) > 10


@pytest.mark.parametrize("scale", ["auto", "none", "photo", 2.0])
def test_gradcheck(scale):
    """Through the assignment, the automatic scale and the pooling."""
    layer = SoftSLIC(num_regions=3, feature_scale=scale, candidates=2)
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64).mul(0.8).add(0.1).requires_grad_()

    def run(x):
        assignment = layer(x)
        return assignment.to_dense(), assignment.pool(x)

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)


def test_training_draws_and_evaluation_repeats():
    x, layer = torch.randn(1, 4, 16, 16), SoftSLIC(16, sampling="topk_random")
    seeds = [layer(x).seeds for _ in range(2)]
    assert not torch.equal(*seeds)
    torch.manual_seed(1)
    first = layer(x).seeds
    torch.manual_seed(1)
    assert torch.equal(first, layer(x).seeds)
    layer.eval()
    expected = layer(x)
    others = (
        layer,
        SoftSLIC(16, sampling="topk_random").eval(),
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
    )
    for other in others:
        torch.manual_seed(torch.randint(100, ()).item())
        layer(torch.randn(1, 4, 5, 5))  # another size in between
        assert torch.equal(other(x).seeds, expected.seeds)
        assert torch.equal(other(x).weight, expected.weight)


@pytest.mark.parametrize("candidates", [None, 4])
@pytest.mark.parametrize("scale", ["auto", "photo"])
def test_batch_of_k_is_k_singles(candidates, scale):
    x = torch.rand(3, 3, 13, 11, dtype=torch.float64)
    attention = torch.rand(3, 13, 11)
    layer = SoftSLIC(num_regions=7, candidates=candidates, feature_scale=scale).eval()
    together = layer(x, attention)
    for b in range(3):
        alone = layer(x[b : b + 1], attention[b : b + 1])
        assert torch.equal(alone.seeds[0], together.seeds[b])
        assert_close(alone.to_dense()[0], together.to_dense()[b], rtol=0, atol=1e-12)
        assert_close(alone.pool(x[b : b + 1])[0], together.pool(x)[b], rtol=0, atol=1e-12)


def test_fixed_noise_is_uniform_and_not_a_pattern():
    noise = fixed_noise(102_400)[0]
    assert noise.shape == (102_400,) and noise.dtype == torch.float32
    assert (noise >= 0).all() and (noise < 1).all()
    assert torch.equal(fixed_noise(1000)[0], noise[:1000])
    counts = torch.histc(noise, 16, 0, 1)
    # 15 degrees of freedom: chance gives more than 44 once in 10,000
    assert ((counts - 6400) ** 2 / 6400).sum() < 44
    for lag in (1, 2, 320, 321, 4096):  # neighbours, also those of an image 320 wide
        pair = torch.stack([noise[lag:], noise[:-lag]])
        assert abs(torch.corrcoef(pair)[0, 1]) < 5 / 320


def test_attention_pulls_the_seeds():
    """All pixels drawn and only the best kept: they are those that attention marks, and no other."""
    x, attention = torch.randn(2, 3, 12, 12), torch.zeros(2, 12, 12)
    attention[0, :3, :4], attention[1, 5:9, 9:] = 1, 1
    layer = SoftSLIC(num_regions=12, sampling="topk_random", oversample=12, beta=1.0)
    seeds = layer(x, attention).seeds
    assert torch.equal(seeds, attention.flatten(1).nonzero()[:, 1].view(2, 12))
    weaker = SoftSLIC(num_regions=12, sampling="topk_random", oversample=12, beta=1.0, alpha=0.0)(x, attention).seeds
    assert torch.equal(weaker, importance_map(x).flatten(1).topk(12).indices.sort(1).values)


def test_attention_crowds_regions():
    """By density, regions are smaller where attention lies; a grid refuses; 0 everywhere changes nothing."""
    x, attention = torch.rand(1, 3, 60, 60), torch.zeros(1, 60, 60)
    attention[:, :30, :30] = 1

    def inside(assignment):
        middle = assignment.pool(torch.stack(torch.meshgrid(*[torch.arange(60.0)] * 2, indexing="ij"))[None])[0]
        return int((middle < 30).all(1).sum())

    for scale in ("photo", "auto"):
        layer = SoftSLIC(num_regions=36, feature_scale=scale)
        drawn, plain = layer(x, attention), layer(x, 0 * attention)
        started = ((drawn.seeds // 60 < 30) & (drawn.seeds % 60 < 30)).sum()
        assert started > 1.5 * 9  # a quarter of the image has 9 of 36
        assert inside(drawn) > inside(plain)  # on noise the steps that follow even them out again
    fine = SoftSLIC(num_regions=900)  # 4 pixels to a region: seeds that meet go to the densest free pixels
    drawn = fine(x, attention).seeds
    assert len(drawn[0].unique()) == 900
    assert ((drawn // 60 < 30) & (drawn % 60 < 30)).sum() > 1.4 * 225
    with pytest.raises(ValueError, match="Seeds on a grid cannot follow `attention`"):
        SoftSLIC(num_regions=36, sampling="grid")(x, attention)


def test_importance():
    x, attention = torch.randn(2, 3, 5, 6, requires_grad=True), torch.rand(2, 5, 6)
    layer = SoftSLIC(num_regions=4, neighbors=8, alpha=3.0)
    plain = importance_map(x, neighbors=8)
    assert torch.equal(layer.importance(x), plain)
    assert torch.equal(layer.importance(x, attention), active_focus(plain, attention, 3.0))
    assert not layer.importance(x, attention).requires_grad


@pytest.mark.parametrize(
    ("downsample", "size", "expected"),
    [(64, (80, 80), 100), (64, (3, 3), 1), (1, (3, 5), 15), (4, (3, 3), 2), (10.5, (21, 1), 2), (64, (90, 90), 132)],
)
def test_regions_for(downsample, size, expected):
    assert SoftSLIC(downsample).regions_for(size) == expected
    assert SoftSLIC(downsample)(torch.randn(1, 2, *size)).num_regions == expected
    assert SoftSLIC(downsample, num_regions=1).regions_for(size) == 1


def test_projection():
    """It comes first, its output is scaled and clustered, and the paper's layer has no parameter."""
    assert not SoftSLIC().state_dict() and not list(SoftSLIC().parameters())
    projection = nn.Conv2d(6, 2, 1)
    layer = SoftSLIC(num_regions=4, projection=projection)
    assert set(layer.state_dict()) == {"projection.weight", "projection.bias"}
    x = torch.randn(2, 6, 7, 8, requires_grad=True)
    assignment = layer(x)
    features = projection(x)
    expected = (features - features.mean((2, 3), keepdim=True)) * spread_scale(features).view(2, 1, 1, 1)
    again = SoftSLIC(num_regions=4, feature_scale="none")(expected)
    assert_close(assignment.weight, again.weight)
    assert torch.equal(layer.importance(x), importance_map(x))
    pooled = assignment.pool(x)
    assert pooled.shape == (2, 4, 6)
    torch.autograd.backward(pooled, torch.randn_like(pooled))
    assert projection.weight.grad.any() and x.grad.any()


@pytest.mark.parametrize("candidates", [None, 3])
def test_detach_is_an_option(candidates):
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    assert SoftSLIC(num_regions=4, candidates=candidates)(x).weight.requires_grad
    assignment = SoftSLIC(num_regions=4, candidates=candidates, detach=True)(x)
    assert not assignment.weight.requires_grad
    pooled = assignment.pool(x)
    (grad,) = torch.autograd.grad(pooled, x, torch.ones_like(pooled))
    expected = (assignment.to_dense() / assignment.area[:, None]).sum(2).view(1, 1, 6, 6)
    assert_close(grad, expected.expand_as(grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 300.0])
def test_autocast(dtype, candidates, factor):
    """Weights stay float32, and everything is finite, forward and backward."""
    stem = nn.Conv2d(3, 8, 3, padding=1)
    layer = SoftSLIC(num_regions=5, candidates=candidates, projection=nn.Conv2d(8, 4, 1)).eval()
    with torch.autocast("cpu", dtype):
        x = stem(torch.randn(2, 3, 12, 13)) * factor
        assert x.dtype == dtype
        assignment = layer(x)
        pooled = assignment.pool(x)
    assert assignment.weight.dtype == torch.float32
    assert_close(assignment.weight.sum(1), torch.ones(2, 156))
    (pooled.float() / factor).square().mean().backward()
    for parameter in (*stem.parameters(), *layer.parameters()):
        assert torch.isfinite(parameter.grad).all()
    assert stem.weight.grad.any()


def test_repr():
    assert repr(SoftSLIC()) == (
        "SoftSLIC(downsample=64, iterations=3, sampling=None, update='softmax', candidates=9, position=2.5, "
        "feature_scale='auto')"
    )
    assert "num_regions=7" in repr(SoftSLIC(num_regions=7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"downsample": 0.5}, "`downsample` must be at least 1 pixel per region, got 0.5"),
        ({"downsample": float("nan")}, "`downsample` must be at least 1 pixel per region, got nan"),
        ({"num_regions": 0}, "`num_regions` must be a whole number >= 1, got 0"),
        ({"feature_scale": "std"}, r"`feature_scale` must be .*'photo'\), got 'std'"),
        ({"feature_scale": 0.0}, r"`feature_scale` must be a number > 0 .*, got 0.0"),
        ({"feature_scale": -1}, r"`feature_scale` must be a number > 0 .*, got -1"),
        ({"feature_scale": float("inf")}, r"`feature_scale` must be a number > 0 .*, got inf"),
        ({"iterations": 0}, "`iterations` must be a whole number >= 1, got 0"),
        ({"sampling": "best"}, r"`method` must be one of .*, got 'best'"),
        ({"update": "row"}, r"`update` must be one of .*, got 'row'"),
        ({"position": -1.0}, "`position` must be a finite number >= 0, got -1.0"),
        ({"position": float("nan")}, "`position` must be a finite number >= 0, got nan"),
        ({"candidates": 0}, "`candidates` must be a whole number >= 1, got 0"),
        ({"candidates": "all"}, '`candidates` must be a whole number, "auto", or None'),
        ({"smooth": -1.0, "feature_scale": "photo"}, "`smooth` must be pixels >= 0, got -1.0"),
        ({"smooth": 1.0}, "`smooth` blurs photos"),
        ({"beta": 2.0}, r"`beta` must be in \[0, 1\], got 2.0"),
        ({"oversample": 0}, "`oversample` must be a whole number >= 1, got 0"),
    ],
)
def test_errors_of_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        SoftSLIC(**options)


@pytest.mark.parametrize(
    ("x", "attention", "error", "message"),
    [
        (torch.rand(1, 3, 2, 2), None, ValueError, "at most the number of pixels, 2 x 2 = 4, got 5"),
        (torch.zeros(1, 3, 4, 4).byte(), None, TypeError, "`x` must be floating point, got"),
        (torch.full((1, 3, 4, 4), torch.nan), None, ValueError, "must be finite, got NaN"),
        (torch.full((1, 3, 4, 4), torch.inf), None, ValueError, "must be finite, got NaN"),
        (torch.rand(1, 3, 0, 4), None, ValueError, "at least one channel and one pixel"),
        (torch.rand(1, 3, 4, 4), torch.rand(1, 4, 5), ValueError, r"`attention` .* \(1, 4, 4\)"),
        (torch.rand(1, 3, 4, 4), 2 * torch.ones(1, 4, 4), ValueError, r"`attention` .* \[0, 1\]"),
    ],
)
@pytest.mark.parametrize("scale", ["auto", "photo"])
def test_errors_of_a_call(x, attention, error, message, scale):
    with pytest.raises(error, match=message):
        SoftSLIC(num_regions=5, feature_scale=scale)(x, attention)


@pytest.mark.parametrize("value", [1.1, -0.1, 255.0])
def test_photo_outside_the_range(value):
    with pytest.raises(
        ValueError, match=r"`image` must be a photo with values in \[0, 1\], got .* Divide bytes by 255"
    ):
        SoftSLIC(num_regions=5, feature_scale="photo")(torch.full((1, 3, 4, 4), value))
