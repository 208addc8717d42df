"""Warped grids: the formula by loops, no folds, symmetry, gradients; seeds in their rows and columns."""

import math

import pytest
import torch
import torch.nn.functional as F

from hggraph.cluster import SoftSLIC, sample_centers, warp_grid
from hggraph.cluster._density import distinct_near
from hggraph.cluster.sampling import grid_of

GRIDS = [(11, 12), (45, 45), (3, 3), (2, 17)]


def corners(at):
    """Return the least area of the four triangles of corners of each quad, in halves of a regular cell's."""
    a, b, c, d = at[:, :-1, :-1], at[:, :-1, 1:], at[:, 1:, 1:], at[:, 1:, :-1]

    def area(p, q, r):
        (qy, qx), (ry, rx) = (q - p).unbind(-1), (r - p).unbind(-1)
        return qx * ry - qy * rx

    return torch.stack([area(a, b, c), area(a, c, d), area(a, b, d), area(b, c, d)]).amin(0)


def spread_maps(height, width, number=6):
    """Yield maps by name: random smooth and hard ones, and what is hardest."""
    generator = torch.Generator().manual_seed(3)

    def smooth(side):
        noise = torch.rand(number, 1, side, side, generator=generator)
        return F.interpolate(noise, (height, width), mode="bicubic", align_corners=True).clamp(min=0)[:, 0]

    yield "smooth", smooth(4)
    yield "peaks", smooth(9) ** 4
    yield "binary", (smooth(5) > 0.7).float()
    yield "small binary", (smooth(12) > 0.7).float()
    yield "noise", torch.rand(number, height, width, generator=generator) ** 8
    hot = torch.zeros(number, height * width)
    hot[torch.arange(number), torch.randint(height * width, (number,), generator=generator)] = 1
    yield "one pixel", hot.view(number, height, width)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    yield "checkerboards", torch.stack([((y // side + x // side) % 2).float() for side in range(1, number + 1)])
    yield "line", F.one_hot(torch.arange(number) * width // number, width)[:, None].expand(-1, height, -1).float()


def disc(height, width, ratio, middle=(0.5, 0.5)):
    """Return importance that is `ratio` in a disc of a tenth of the area and 1 outside, and the disc."""
    y, x = torch.arange(height)[:, None] + 0.5 - middle[0] * height, torch.arange(width) + 0.5 - middle[1] * width
    inside = y**2 + x**2 < 0.1 * height * width / math.pi
    return torch.where(inside, float(ratio), 1.0)[None], inside


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [(90, 90), (45, 60)])
def test_never_folds(size, grid):
    """Every triangle of corners keeps its sign, by far, and no point leaves the image."""
    cell = size[0] * size[1] / (grid[0] * grid[1])
    for name, maps in spread_maps(*size):
        at = warp_grid(maps, grid)
        assert corners(at).min() > 0.05 * cell, name
        assert (at > -0.5).all() and (at < torch.tensor(size) - 0.5).all(), name


@pytest.mark.parametrize("grid", [(11, 12), (45, 45)])
@pytest.mark.parametrize("middle", [(0.5, 0.5), (0.3, 0.75)])
def test_focus(grid, middle):
    """Ten times the density (a hundred times the importance) in a tenth of the area: over twice the points."""
    importance, inside = disc(90, 90, 100, middle)

    def share(importance):
        pixel = (warp_grid(importance, grid) + 0.5).long()
        return inside[pixel[..., 0], pixel[..., 1]].float().mean()

    assert share(importance) > 2 * share(torch.ones_like(importance))


@pytest.mark.parametrize("level", [0.0, 1e-6, 1.0, 700.0])
@pytest.mark.parametrize(
    ("size", "grid"), [((90, 90), (11, 12)), ((90, 90), (45, 45)), ((7, 1), (7, 1)), ((1, 9), (1, 4))]
)
def test_constant_importance_is_the_regular_grid(level, size, grid):
    at = warp_grid(torch.full((1, *size), level), grid)
    y = [(2 * i + 1) * size[0] / (2 * grid[0]) - 0.5 for i in range(grid[0])]
    x = [(2 * j + 1) * size[1] / (2 * grid[1]) - 0.5 for j in range(grid[1])]
    expected = torch.tensor([[[(i, j) for j in x] for i in y]])
    torch.testing.assert_close(at, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("size", [(45, 60), (31, 47)])
def test_flips(dim, size):
    importance = torch.rand(2, *size, dtype=torch.float64) ** 4
    flipped = warp_grid(importance.flip(dim), (5, 8))
    expected = warp_grid(importance, (5, 8)).flip(dim)
    expected[..., dim - 1] = size[dim - 1] - 1 - expected[..., dim - 1]
    torch.testing.assert_close(flipped, expected, atol=1e-9, rtol=0)


def test_transposed():
    importance = torch.rand(2, 31, 47, dtype=torch.float64)
    torch.testing.assert_close(
        warp_grid(importance.mT, (8, 5)), warp_grid(importance, (5, 8)).transpose(1, 2).flip(3), atol=1e-9, rtol=0
    )


def test_a_step_is_a_mean_shift():
    """The means under density and Gaussian, on a fine lattice of the mirrored plane."""
    grid, size, fine = (2, 3), (2, 3), 60
    importance = torch.rand(1, *size, dtype=torch.float64) + 0.1
    at = warp_grid(importance, grid, strength=0.7, deviation=0.1, steps=1) + 0.5  # one spacing is one pixel, and sigma
    axes = [(torch.arange(-6 * n * fine, 7 * n * fine, dtype=torch.float64) + 0.5) / fine for n in size]
    cell = [((a % (2 * n)).clamp(max=2 * n - 1e-9)) for a, n in zip(axes, size, strict=True)]
    cell = [torch.where(c < n, c, 2 * n - c).long().clamp(max=n - 1) for c, n in zip(cell, size, strict=True)]
    # blurred by a deviation of half a spacing, at the middles of pixels
    blurred = torch.empty(size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            gy, gx = (torch.exp(-2 * (a - k - 0.5) ** 2) for a, k in zip(axes, (i, j), strict=True))
            weight = importance[0][cell[0]][:, cell[1]]
            blurred[i, j] = gy @ weight @ gx / (gy.sum() * gx.sum())
    density = (blurred / blurred.mean()).sqrt().clamp(min=0.3)[cell[0]][:, cell[1]]
    for i in range(grid[0]):
        for j in range(grid[1]):
            gy, gx = (torch.exp(-0.5 * (a - k - 0.5) ** 2) for a, k in zip(axes, (i, j), strict=True))
            total = gy @ density @ gx
            mean = torch.stack([(gy * axes[0]) @ density @ gx, gy @ density @ (gx * axes[1])]) / total
            start = torch.tensor([i + 0.5, j + 0.5], dtype=torch.float64)
            torch.testing.assert_close(at[0, i, j], start + 0.7 * (mean - start), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "grid"), [((5, 6), (2, 3)), ((1, 4), (1, 2)), ((9, 4), (3, 1))])
def test_gradient(size, grid):
    importance = (torch.rand(2, *size, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: warp_grid(x, grid), (importance,))


def test_gradient_is_finite_where_importance_is_zero():
    for importance in (torch.zeros(1, 8, 8), torch.eye(8)[None]):
        importance = importance.clone().requires_grad_()
        warp_grid(importance, (4, 4)).square().sum().backward()
        assert importance.grad.isfinite().all()


def test_options():
    importance, _ = disc(30, 30, 100, (0.4, 0.6))
    regular = warp_grid(torch.ones_like(importance), (5, 5))
    assert torch.equal(warp_grid(importance, (5, 5), steps=0), warp_grid(importance, (5, 5), strength=0.0))
    moved = [(warp_grid(importance, (5, 5), strength=s) - regular).norm() for s in (0.2, 0.5, 0.8)]
    assert moved[0] < moved[1] < moved[2]
    assert warp_grid(importance[:0], (5, 5)).shape == (0, 5, 5, 2)
    assert warp_grid(importance.half(), (5, 5)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"importance": torch.rand(4, 4)}, r"`importance` must have shape \(B, H, W\)"),
        ({"importance": torch.ones(1, 4, 4, dtype=torch.long)}, "`importance` must be floating point"),
        ({"importance": torch.rand(1, 0, 4)}, "`importance` must be floating point with at least one pixel"),
        ({"grid": (0, 2)}, "`grid` must be a whole number >= 1, got 0"),
        ({"steps": -1}, "`steps` must be a whole number >= 0, got -1"),
        ({"strength": 1.5}, r"`strength` must be in \[0, 1\], got 1.5"),
        ({"deviation": 0.0}, "`deviation` must be sides of the image > 0, got 0.0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        warp_grid(**{"importance": torch.rand(1, 4, 4), "grid": (2, 2), **arguments})


@pytest.mark.parametrize(("size", "regions"), [((90, 90), 132), ((90, 90), 2025), ((45, 60), 165), ((6, 6), 36)])
def test_seeds(size, regions):
    """Different pixels; on a constant map the grid's; where there is room, those nearest to the points."""
    constant = torch.ones(1, *size)
    warped, even = (sample_centers(constant, regions, method=method) for method in ("warp", "grid"))
    assert torch.equal(warped, even)
    for _, maps in spread_maps(*size):
        seeds = sample_centers(maps, regions, method="warp")
        assert seeds.shape == (6, regions) and seeds.min() >= 0 and seeds.max() < size[0] * size[1]
        assert all(len(one.unique()) == regions for one in seeds)
        if 64 * regions <= 1.1 * size[0] * size[1]:
            places = torch.stack([seeds // size[1], seeds % size[1]], 2)
            assert (places - warp_grid(maps, grid_of(size, regions)).flatten(1, 2)).abs().max() < 0.51


def test_doubled_seeds_stay_near():
    """The first keeps its pixel, the others go to the nearest free one, in order; alone a seed never moves."""
    seeds = torch.tensor([[44, 44, 44, 3, 45], [0, 0, 0, 0, 1]])
    out = distinct_near(seeds, (9, 10))
    assert out.tolist() == [[44, 34, 43, 3, 45], [0, 10, 11, 2, 1]]
    crowd = distinct_near(torch.full((1, 60), 210), (20, 20))[0]
    assert len(crowd.unique()) == 60
    assert max((crowd // 20 - 10).abs().max(), (crowd % 20 - 10).abs().max()) <= 7


def test_regions_that_fill_no_grid():
    with pytest.raises(ValueError, match=r"fill a grid on 90 x 90 pixels to be warped, got 127; take 121 or 130"):
        sample_centers(torch.rand(1, 90, 90), 127, method="warp")
    with pytest.raises(ValueError, match="`importance` must be finite"):
        sample_centers(-torch.ones(1, 90, 90), 132, method="warp")


def test_clusterer():
    """Attention draws seeds; their rows and columns stay; the number is the grid's."""
    x, (attention, inside) = torch.randn(1, 4, 90, 90), disc(90, 90, 1)
    attention = torch.where(inside, attention, 0.0)
    layer = SoftSLIC(64, sampling="warp").eval()
    near, even = layer(x, attention), SoftSLIC(64)(x)
    assert near.grid == even.grid == (11, 12) and near.num_regions == 132
    count = [int(inside.flatten()[out.seeds[0]].sum()) for out in (near, even)]
    assert count[0] > 1.8 * count[1]
    rows = (near.seeds[0] // 90).view(11, 12)
    assert (rows.diff(dim=0) > 0).all() and ((near.seeds[0] % 90).view(11, 12).diff(dim=1) > 0).all()
    assert torch.equal(near.seeds, sample_centers(layer.importance(x, attention), 132, method="warp"))


def test_compiles():
    importance = torch.rand(2, 45, 60)
    for call in (lambda m: warp_grid(m, (11, 15)), lambda m: sample_centers(m, 165, method="warp")):
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, backend="eager")
        assert torch.equal(compiled(importance), call(importance))
    torch._dynamo.reset()
    layer, x = SoftSLIC(16, sampling="warp", threshold=0.01), torch.randn(2, 4, 45, 60)
    attention = torch.rand(2, 45, 60)
    compiled = torch.compile(lambda x, a: layer(x, a).pool(x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, attention), layer(x, attention).pool(x))
