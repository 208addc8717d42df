"""Pyramids against grouped convolutions side by side, and against message passing with each level's stencil."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph import HGConv, Stencil, grid_graph
from hggraph.nn import PyConv2d, PyConv3d
from hggraph.nn.py_conv import auto_groups, equal_splits

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def on_graphs(layer, x):
    """Return the layer's value as a sum of graph convolutions for each level, on the grid of its stencil."""
    size = tuple(x.shape[2:])
    nodes = x.movedim(1, -1).flatten(0, -2)
    out = []
    for stencil, conv in zip(layer.stencils, layer.levels, strict=True):
        graph = grid_graph(size, stencil, stride=layer.stride[0], batch_size=len(x))
        y = HGConv.from_conv(conv)(nodes, graph.edge_index, graph.edge_type, num_targets=graph.num_targets)
        small = [-(-side // layer.stride[0]) for side in size]
        out.append(y.view(len(x), *small, -1).movedim(-1, 1))
    return torch.cat(out, 1)


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 4), (7, 2), (9, 4)]), min_size=1, max_size=4),
    st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_grouped_convolutions_side_by_side(seed, levels, shape, stride, dilation, bias):
    torch.manual_seed(seed)
    kernels, groups = zip(*levels, strict=True)
    splits = [4 * (i + 1) for i in range(len(levels))]
    layer = PyConv2d(8, sum(splits), kernels, groups, splits, stride, dilation, bias=bias).double()
    batch, height, width = shape
    x = double(batch, 8, height, width)
    parts = [
        F.conv2d(x, conv.weight, conv.bias, stride, dilation * (k // 2), dilation, g)
        for conv, k, g in zip(layer.levels, kernels, groups, strict=True)
    ]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1), **close)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_message_passing(stride, dilation):
    """Value and gradients, on the grid graph of each level's stencil."""
    layer = PyConv2d(8, 16, (3, 5, 7), (1, 4, 2), stride=stride, dilation=dilation, bias=True).double()
    assert layer.stencils == tuple(Stencil.square(k, dilation=dilation) for k in (3, 5, 7))
    x = double(2, 8, 6, 7).requires_grad_()
    out = layer(x)
    expected = on_graphs(layer, x)
    torch.testing.assert_close(out, expected, **close)
    cotangent = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, x, cotangent)
    torch.testing.assert_close(torch.autograd.grad(expected, x, cotangent)[0], grad, **close)


def test_message_passing_in_video():
    layer = PyConv3d(4, 8, [3, (3, 5, 5), (1, 3, 7)], (1, 2, 2)).double()
    x = double(2, 4, 3, 5, 4)
    torch.testing.assert_close(layer(x), on_graphs(layer, x), **close)


def test_splits_are_the_papers():
    assert equal_splits(64, 1) == (64,)
    assert equal_splits(64, 2) == (32, 32)
    assert equal_splits(64, 3) == (16, 16, 32)
    assert equal_splits(64, 4) == (16,) * 4
    assert equal_splits(64, 5) == (8, 8, 16, 16, 16)
    assert all(sum(equal_splits(n, levels)) == n for n in range(8, 40) for levels in range(1, 6))


def test_groups_are_the_nearest_divisors():
    """Of inputs and outputs both, to k^2 / k_1^2: 25 / 9, 49 / 9 and 9."""
    sizes = [(3, 3), (5, 5), (7, 7), (9, 9)]
    assert auto_groups(64, (16, 16, 16, 16), sizes) == (1, 2, 4, 8)
    assert auto_groups(36, (18, 18, 18, 18), sizes) == (1, 3, 6, 9)
    assert auto_groups(7, (5, 5, 5, 5), sizes) == (1, 1, 1, 1)
    layer = PyConv2d(64, 64, (3, 5, 7, 9))
    assert [level.groups for level in layer.pyramid] == [1, 2, 4, 8]


def test_cost_of_each_level():
    """Eq. 1, and what the convolution's own shapes say."""
    layer = PyConv2d(64, 64, (3, 5, 7, 9), (1, 4, 8, 16), stride=2)
    assert layer.parameters_per_level() == [9 * 64 * 16, 25 * 16 * 16, 49 * 8 * 16, 81 * 4 * 16]
    assert layer.macs_per_level((15, 28)) == [8 * 14 * number for number in layer.parameters_per_level()]
    video = PyConv3d(64, 64, [(3, 3, 3), (3, 5, 5), (5, 7, 7), (7, 9, 9)], (1, 4, 8, 16))
    assert sum(video.parameters_per_level()) == 16 * (27 * 64 + 75 * 16 + 245 * 8 + 567 * 4)
    unpadded = PyConv2d(4, 4, [3], [1], padding=False)
    assert unpadded.macs_per_level((5, 7)) == [3 * 5 * 9 * 16]
    assert unpadded(torch.rand(1, 4, 5, 7)).shape == (1, 4, 3, 5)


def test_layouts_and_batches():
    layer = PyConv2d(8, 8, (3, 5), (1, 2)).double()
    x = double(3, 8, 6, 5)
    one_by_one = torch.cat([layer(image[None]) for image in x])
    around = torch.full((3, 10, 8, 7), torch.nan, dtype=torch.float64)
    around[:, 1:9, 1:7, 1:6] = x
    for same in (x, x.to(memory_format=torch.channels_last), around[:, 1:9, 1:7, 1:6]):
        torch.testing.assert_close(layer(same), one_by_one, **close)
    assert layer(x[:0]).shape == (0, 8, 6, 5)
    assert layer(double(1, 8, 1, 1)).shape == (1, 8, 1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = PyConv2d(8, 8, (3, 5, 7), (1, 2, 2), bias=True)
    x = torch.rand(2, 8, 9, 9)
    with torch.autocast("cpu", dtype):
        out = layer(x)
    out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), layer(x), rtol=0.02, atol=0.02)  # inputs and weights rounded once
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


def test_compiles_and_shows_its_levels():
    layer = PyConv2d(8, 8, (3, 5), (1, 2))
    x = torch.rand(1, 8, 6, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert str(layer).startswith("PyConv2d(\n  8, 8, [3x3 /1 -> 4, 5x5 /2 -> 4]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": (1, 3)}, "must divide the 8 inputs and the 8 outputs of its level, got 3; the nearest .* is 2"),
        ({"groups": (1, 2, 4)}, r"`groups` must be 2 numbers, one for each level, got \(1, 2, 4\)"),
        ({"groups": "most"}, "`groups` must be 'auto' or a number for each level, got 'most'"),
        ({"groups": (1, 0)}, "`groups` must be a whole number >= 1, got 0"),
        ({"out_splits": (8, 9)}, r"2 numbers that add up to 16, got \(8, 9\), which add up to 17; take \(8, 8\)"),
        ({"out_splits": (16,)}, "2 numbers that add up to 16"),
        ({"kernel_sizes": (3, 4)}, r"`kernel_sizes` must be odd, .* got \(4, 4\); take \(5, 5\)"),
        ({"kernel_sizes": ()}, "`kernel_sizes` must name at least one level"),
        (
            {"kernel_sizes": (3, (5, 5, 5))},
            r"`kernel_sizes` must be one number or 2, one for each axis, got \(5, 5, 5\)",
        ),
        ({"dilation": 0}, "`dilation` must be a whole number >= 1"),
        ({"out_channels": 1, "groups": "auto"}, "`out_channels` must be at least 2 for 2 levels, got 1"),
        ({"padding": False}, r"`padding` can be False for one kernel size only, .* got \(3, 5\)"),
    ],
)
def test_wrong_options(change, message):
    options = {"in_channels": 8, "out_channels": 16, "kernel_sizes": (3, 5), "groups": (1, 2)}
    with pytest.raises(ValueError, match=message):
        PyConv2d(**(options | change))


def test_wrong_maps():
    layer = PyConv2d(8, 8, (3, 5), (1, 2))
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, C, H, W\), got \(8, 6, 6\)"):
        layer(torch.rand(8, 6, 6))
    with pytest.raises(ValueError, match=r"`x` must have 8 channels, got shape \(1, 4, 6, 6\)"):
        layer(torch.rand(1, 4, 6, 6))
    with pytest.raises(ValueError, match=r"3 taps span 3 pixels of axis 0, and there are 2, 2 of them padding"):
        layer(torch.rand(1, 8, 0, 6))
    with pytest.raises(ValueError, match=r"3 taps span 5 pixels of axis 1, and there are 4, 0 of them padding"):
        PyConv2d(8, 8, [3], [1], dilation=2, padding=False)(torch.rand(1, 8, 6, 4))
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, C, T, H, W\), got \(1, 8, 6, 6\)"):
        PyConv3d(8, 8, (3, 5), (1, 2))(torch.rand(1, 8, 6, 6))
