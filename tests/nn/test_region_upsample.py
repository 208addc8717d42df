"""Region upsampling: the weights of its docstring written out, bilinear where the embeddings say nothing, extremes."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from hggraph.nn import RegionUpsample

SIZES = [
    ((45, 60), (23, 30)),
    ((23, 30), (12, 15)),
    ((16, 8), (4, 2)),
    ((6, 5), (6, 5)),
    ((9, 1), (4, 1)),
    ((1, 12), (1, 5)),
    ((7, 3), (1, 1)),
    ((1, 1), (1, 1)),
    ((11, 13), (10, 3)),
    ((5, 9), (2, 9)),
]
close = {"rtol": 1e-10, "atol": 1e-12}


def made(channels=(3, 4), scale=None, **options):
    net = RegionUpsample(channels, **options).double()
    if scale is not None:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=scale)
    return net


def levels(*sizes, channels=(3, 4), batch=2, dtype=torch.float64):
    return [torch.randn(batch, number, *size, dtype=dtype) for number, size in zip(channels, sizes, strict=True)]


def whole(length, cells):
    """Return the pixels that the cells of a stride stand for; the pixels that there are, if no stride makes them."""
    ratio = math.ceil(length / cells)
    return ratio * cells if math.ceil(length / ratio) == cells else length


def bilinear(z, size):
    """Return a map at the size of what it was strided from."""
    sizes = [whole(length, cells) for length, cells in zip(size, z.shape[2:], strict=True)]
    return F.interpolate(z, sizes, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def literal_axis(pixel, length, cells):
    """Return the nearest cell of a pixel and the bilinear weights of its two neighbours, by fractions."""
    length = whole(length, cells)
    place = (pixel + Fraction(1, 2)) * Fraction(cells, length)
    nearest = math.floor(place)
    place = min(max(place - Fraction(1, 2), 0), cells - 1)
    low = math.floor(place)
    part = float(place - low)
    weights = {low: 1 - part}
    if part:
        weights[low + 1] = part
    assert all(abs(cell - nearest) <= 1 for cell in weights)  # the 3 x 3 hold the four neighbours
    return nearest, weights


def literal(fine, coarse):
    """Return dense weights ``(H W, h w)`` of the embeddings ``(E, H, W)`` and ``(E, h, w)`` of one image."""
    (_, height, width), (_, rows, columns) = fine.shape, coarse.shape
    out = torch.zeros(height * width, rows * columns, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            row, bilinear_y = literal_axis(y, height, rows)
            column, bilinear_x = literal_axis(x, width, columns)
            cells = [
                (i, j)
                for i in range(row - 1, row + 2)
                for j in range(column - 1, column + 2)
                if 0 <= i < rows and 0 <= j < columns
            ]
            scores = [-float((fine[:, y, x] - coarse[:, i, j]).square().sum()) for i, j in cells]
            mean = sum(scores) / len(scores)
            variance = sum((score - mean) ** 2 for score in scores) / len(scores)
            weights = [
                (bilinear_y.get(i, 0) * bilinear_x.get(j, 0) + (1 - math.exp(-variance)) / 9)
                * math.exp(score - max(scores))
                for (i, j), score in zip(cells, scores, strict=True)
            ]
            for (i, j), weight in zip(cells, weights, strict=True):
                out[y * width + x, i * columns + j] = weight / sum(weights)
    return out


@pytest.mark.parametrize("scale", [0.05, 0.5, 3])
@pytest.mark.parametrize(("fine", "coarse"), SIZES[1:])
def test_weights_are_those_written_out(fine, coarse, scale):
    net, (x, y) = made(scale=scale, embedding=5), levels(fine, coarse)
    s = net.assign(x, y, 0)
    assert (s.size, s.grid, s.num_regions) == (fine, coarse, coarse[0] * coarse[1])
    assert s.index.shape == s.weight.shape == (2, 9, fine[0] * fine[1])
    assert s.index.dtype == torch.int32 and s.index.min() >= 0 and s.index.max() < s.num_regions
    assert (s.weight > 0).sum() == (s.to_dense() > 0).sum()  # cells outside have weight 0, not that of one inside
    a = torch.einsum("ec,bchw->behw", net.fine[0].weight[..., 0, 0], x) + net.fine[0].bias[:, None, None]
    b = torch.einsum("ec,bchw->behw", net.coarse[0].weight[..., 0, 0], y)
    want = torch.stack([literal(*pair) for pair in zip(a.detach(), b.detach(), strict=True)])
    torch.testing.assert_close(s.to_dense().detach(), want, **close)
    z = torch.randn(2, 3, *coarse, dtype=torch.float64)
    out = torch.einsum("bpr,bcr->bcp", want, z.flatten(2)).unflatten(2, fine)
    torch.testing.assert_close(net([x, y], z).detach(), out, **close)


@pytest.mark.parametrize(("fine", "coarse"), SIZES)
def test_is_bilinear_where_embeddings_say_nothing(fine, coarse):
    """Zero embeddings, and coarse ones that are all the same, from which each pixel has its own distance."""
    net, (x, y) = made(scale=1), levels(fine, coarse)
    z = torch.randn(2, 7, *coarse, dtype=torch.float64)
    want = bilinear(z, fine)
    for maps in ([x, y[..., :1, :1].expand(y.shape)], [x * 0, y * 0]):
        torch.testing.assert_close(net(maps, z), want, rtol=0, atol=1e-12)
    single = net.float()([x.float(), y[..., :1, :1].float().expand(y.shape)], z.float())
    torch.testing.assert_close(single, want.float(), rtol=0, atol=1e-5)


def test_levels_one_after_the_other():
    """Each step has its own two embeddings; what comes back is the coarsest map, or z."""
    channels, sizes = (2, 3, 4), ((9, 12), (5, 6), (2, 3))
    net, maps = made(channels, scale=1), levels(*sizes, channels=channels)
    assert sum(p.numel() for p in net.parameters()) == 16 * (2 + 1 + 3 + 3 + 1 + 4)
    steps = [net.assign(maps[i], maps[i + 1], i) for i in range(2)]
    for z in (None, torch.randn(2, 6, 2, 3, dtype=torch.float64)):
        given = maps[-1] if z is None else z
        middle = torch.einsum("bpr,bcr->bcp", steps[1].to_dense(), given.flatten(2))
        want = torch.einsum("bpr,bcr->bcp", steps[0].to_dense(), middle).unflatten(2, sizes[0])
        torch.testing.assert_close(net(maps, z), want, **close)


def test_begins_about_bilinear_and_learns():
    torch.manual_seed(0)
    channels, sizes = (32, 96, 320), ((45, 60), (23, 30), (12, 15))
    net, maps = RegionUpsample(channels), levels(*sizes, channels=channels, dtype=torch.float32)
    out, want = net(maps), maps[-1]
    for size in sizes[1::-1]:
        want = bilinear(want, size)
    assert 0 < (out - want).std() < 0.1 * want.std()
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_can_reach_all_nine():
    """Pixels that look like a region go there from all 3 x 3 around it, and no farther: the others stay bilinear."""
    net = made((1, 1), embedding=1)
    for layer in (net.fine[0], net.coarse[0]):
        torch.nn.init.ones_(layer.weight)
    fine, z = torch.full((1, 1, 10, 10), 9.0).double(), torch.randn(1, 1, 5, 5).double()
    for cell in range(25):
        coarse, want = torch.zeros(1, 1, 25).double(), F.interpolate(z, (10, 10), mode="bilinear")
        coarse[..., cell] = 9
        rows, columns = (slice(max(2 * i - 2, 0), 2 * i + 4) for i in divmod(cell, 5))
        want[..., rows, columns] = z.flatten()[cell]
        torch.testing.assert_close(net([fine, coarse.view(1, 1, 5, 5)], z).detach(), want, **close)


@pytest.mark.parametrize(("fine", "coarse"), [((3, 4), (2, 2)), ((3, 1), (1, 1))])
@pytest.mark.parametrize("scale", [0.5, 2, 0])
def test_gradients(fine, coarse, scale):
    net, maps = made((1, 2), scale, embedding=2), levels(fine, coarse, channels=(1, 2), batch=1)
    z = torch.randn(1, 1, *coarse, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (*maps, z, *net.parameters())]

    def run(x, y, z, *parameters):
        names = [name for name, _ in net.named_parameters()]
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), ([x, y], z))

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("scale", [0, 1e-6, 1, 30, 1e4, 1e9])
def test_extreme_embeddings_are_finite(scale):
    net, maps = made(scale=scale).float(), levels((9, 7), (4, 3), dtype=torch.float32)
    out = net([x.requires_grad_() for x in maps])
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(x.grad.isfinite().all() for x in (*maps, *net.parameters()))
    low, high = maps[1].detach().aminmax()
    assert low - 1e-5 <= out.min() and out.max() <= high + 1e-5  # weights not negative that sum to 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    net, maps = made(scale=0.3).float(), levels((9, 12), (5, 6), dtype=torch.float32)
    want = net(maps)
    with torch.autocast("cpu", dtype=dtype):
        s = net.assign(*(x.requires_grad_() for x in maps), 0)
        out, low = net(maps), net(maps, maps[1].detach().to(dtype))
    assert s.weight.dtype == out.dtype == torch.float32 and low.dtype == dtype
    torch.testing.assert_close(s.weight.sum(1), torch.ones(2, 108), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out, want, rtol=0, atol=0.05)
    torch.testing.assert_close(low.float(), want, rtol=0, atol=0.05)
    (out.sum() + low.float().square().sum()).backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in (*maps, *net.parameters()))


def test_half_precision_throughout():
    net, maps = made().to(torch.bfloat16), levels((9, 12), (5, 6), dtype=torch.bfloat16)
    assert net(maps).dtype == torch.bfloat16
    assert net.assign(*maps, 0).weight.dtype == torch.float32


def test_memory_formats():
    net, maps = made(scale=1), levels((9, 12), (5, 6))
    last = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in maps]
    out, other = net([x.requires_grad_() for x in maps]), net(last)
    torch.testing.assert_close(out, other, **close)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (other * weight).sum().backward()
    for x, y in zip(maps, last, strict=True):
        torch.testing.assert_close(x.grad, y.grad, **close)


def test_compiled_and_exported():
    channels, sizes = (2, 3, 4), ((9, 12), (5, 6), (2, 3))
    net, maps = made(channels, scale=1), levels(*sizes, channels=channels)
    z = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = []
    for run in (net, compiled):
        leaves = [x.detach().clone().requires_grad_() for x in (*maps, z)]
        out = run(leaves[:3], leaves[3])
        found.append((out, torch.autograd.grad(out.square().sum(), [*leaves, *net.parameters()])))
    torch.testing.assert_close(found[1], found[0], **close)
    other = levels((10, 8), (5, 4), (3, 2), channels=channels, batch=1)
    torch.testing.assert_close(compiled(other), net(other), **close)
    with torch.no_grad():
        program = torch.export.export(net, (maps, z)).module()
        torch.testing.assert_close(program(maps, z), net(maps, z), **close)


def test_state_dict_and_same_bits():
    net, maps = made((2, 3, 4), scale=1), levels((9, 12), (5, 6), (2, 3), channels=(2, 3, 4))
    other = made((2, 3, 4))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(maps), other(maps))


def test_empty_batch():
    net, maps = made(), levels((9, 12), (5, 6), batch=0)
    out = net([x.requires_grad_() for x in maps])
    assert out.shape == (0, 4, 9, 12)
    out.sum().backward()
    assert maps[0].grad.shape == maps[0].shape


def test_wrong_arguments():
    for wrong in ((), (3,)):
        with pytest.raises(ValueError, match="`channels` must be those of at least two levels"):
            RegionUpsample(wrong)
    with pytest.raises(ValueError, match="`channels` must be a whole number >= 1, got 0"):
        RegionUpsample((3, 0))
    with pytest.raises(ValueError, match="`embedding` must be a whole number >= 1, got 0"):
        RegionUpsample((3, 4), embedding=0)


@pytest.mark.parametrize(
    ("fine", "coarse", "step", "message"),
    [
        ((1, 3, 4, 4), (1, 4, 2, 2), 1, "`step` must be below 1, got 1"),
        ((1, 3, 4, 4), (1, 4, 2, 2), -1, "`step` must be a whole number >= 0, got -1"),
        ((1, 2, 4, 4), (1, 4, 2, 2), 0, r"`fine` must have 3 channels, got shape \(1, 2, 4, 4\)"),
        ((1, 3, 4, 4), (1, 3, 2, 2), 0, r"`coarse` must have 4 channels, got shape \(1, 3, 2, 2\)"),
        ((2, 3, 4, 4), (1, 4, 2, 2), 0, "`coarse` must have the batch of `fine`, 2, got 1"),
        ((1, 3, 4, 4), (1, 4, 5, 2), 0, r"`coarse` must be no larger than `fine`, \(4, 4\) pixels, got \(5, 2\)"),
        ((1, 3, 4, 4), (1, 4, 0, 2), 0, "`coarse` must have at least one channel and one pixel"),
        ((3, 4, 4), (1, 4, 2, 2), 0, "`fine` must have shape"),
    ],
)
def test_wrong_levels(fine, coarse, step, message):
    with pytest.raises(ValueError, match=message):
        RegionUpsample((3, 4)).assign(torch.rand(fine), torch.rand(coarse), step)


@pytest.mark.parametrize(
    ("shapes", "z", "message"),
    [
        ([(1, 3, 4, 4)], None, "`maps` must be 2 maps, from fine to coarse, got 1"),
        ([(1, 4, 4, 4), (1, 4, 2, 2)], None, r"`maps\[0\]` must have 3 channels"),
        ([(1, 3, 4, 4), (2, 4, 2, 2)], None, r"`maps\[1\]` must have the batch of `maps\[0\]`, 1, got 2"),
        ([(1, 3, 2, 2), (1, 4, 4, 4)], None, r"`maps\[1\]` must be no larger than `maps\[0\]`"),
        ([(1, 3, 4, 4), (1, 4, 2, 2)], (1, 4, 4, 4), "`z` must have the batch and the size of the coarsest map"),
        ([(1, 3, 4, 4), (1, 4, 2, 2)], (2, 4, 2, 2), "`z` must have the batch and the size of the coarsest map"),
        ([(1, 3, 4, 4), (1, 4, 2, 2)], (4, 2, 2), "`z` must have shape"),
    ],
)
def test_wrong_maps(shapes, z, message):
    with pytest.raises(ValueError, match=message):
        RegionUpsample((3, 4))([torch.rand(shape) for shape in shapes], None if z is None else torch.rand(z))


def test_wrong_dtype():
    with pytest.raises(TypeError, match=r"`maps\[1\]` must be floating point"):
        RegionUpsample((3, 4))([torch.rand(1, 3, 4, 4), torch.ones(1, 4, 2, 2, dtype=torch.uint8)])
