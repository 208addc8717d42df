"""Grouped convolution as depthwise convolution against PyTorch's own: value, gradients, and where it is chosen."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hggraph import ops

module = importlib.import_module("hggraph.ops.grouped_conv2d")


@pytest.fixture(autouse=True, scope="module")
def small_maps_too():
    """Depthwise on the small maps of these tests, where it would not pay."""
    least = dict(module.LEAST)
    module.LEAST.update(dict.fromkeys(least, 0))
    yield
    module.LEAST.update(least)


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def pair(stride=1, padding=0, dilation=1, groups=1):
    """Return both convolutions of these options as functions."""
    axes = {"stride": (stride, stride), "padding": (padding, padding), "dilation": (dilation, dilation)}
    return (
        lambda x, w, b=None: ops.grouped_conv2d(x, w, b, **axes, groups=groups),
        lambda x, w, b=None: F.conv2d(x, w, b, stride, padding, dilation, groups),
    )


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8)),
    st.sampled_from([1, 3, 5, 7]),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
)
def test_any_groups(seed, counts, kernel, steps, biased):
    torch.manual_seed(seed)
    (groups, outputs, width), (stride, dilation) = counts, steps
    x, w = double(2, groups * width, 8, 7), double(groups * outputs, width, kernel, kernel)
    ours, theirs = pair(stride, dilation * (kernel // 2), dilation, groups)
    bias = double(groups * outputs) if biased else None
    torch.testing.assert_close(ours(x, w, bias), theirs(x, w, bias), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("outputs", "kernel"), [(1, 3), (2, 7)])
def test_gradients_and_layouts(agree_everywhere, outputs, kernel):
    ours, theirs = pair(1, kernel // 2, 1, 2)
    inputs = double(2, 16, 4, 5), double(2 * outputs, 8, kernel, kernel), double(2 * outputs)
    agree_everywhere(ours, theirs, *inputs)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in (double(1, 4, 4, 3), double(2, 2, 3, 3), double(2))]
    assert torch.autograd.gradcheck(pair(1, 1, 1, 2)[0], inputs)


def convolutions(run):
    """Return the groups of the convolutions that a function runs."""
    found = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default:
                found.append(args[8])
            return func(*args, **(kwargs or {}))

    with Record():
        run()
    return found


def test_where_it_is_depthwise():
    """Groups of one output; without a gradient groups of two outputs, eight inputs and large kernels; never else."""

    def groups_of(outputs, width, kernel, *, trains=False, dtype=torch.float32, groups=4):
        x = torch.rand(1, groups * width, 9, 9, dtype=dtype, requires_grad=trains)
        w = torch.rand(groups * outputs, width, kernel, kernel, dtype=dtype)
        return convolutions(lambda: ops.grouped_conv2d(x, w, groups=groups))

    assert groups_of(1, 2, 3) == groups_of(1, 2, 3, trains=True) == [8, 1]
    assert groups_of(2, 8, 7) == [32, 1, 32, 1]
    assert groups_of(2, 8, 7, trains=True) == [4]
    assert groups_of(2, 8, 5) == groups_of(2, 4, 7) == groups_of(3, 2, 3) == [4]
    assert groups_of(1, 1, 3) == [4]  # depthwise as it is
    assert groups_of(1, 2, 3, dtype=torch.bfloat16) == [4]


def test_small_maps_stay_as_they_are(monkeypatch):
    """From 400 000 multiply-adds on, for two outputs from 10 million."""
    monkeypatch.setattr(module, "LEAST", {1: 400_000, 2: 10_000_000})
    for outputs, kernel, few, many in ((1, 9, 6, 20), (2, 7, 32, 64)):
        w = torch.rand(8 * outputs, 8, kernel, kernel)
        for side, groups in ((few, [8]), (many, [64, 1] * outputs)):
            x = torch.rand(1, 64, side, side)
            found = convolutions(lambda x=x, w=w: ops.grouped_conv2d(x, w, padding=(kernel // 2,) * 2, groups=8))  # noqa: B023
            assert found == groups


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(near_float32, dtype):
    inputs = torch.rand(2, 8, 5, 6), torch.rand(2, 4, 3, 3) / 8, torch.rand(2)
    for autocast in (True, False):
        near_float32(pair(1, 1, 1, 2)[0], dtype, *inputs, autocast=autocast)


def test_exported_programs_have_the_plain_convolution():
    class Net(torch.nn.Module):
        def forward(self, x, w):
            return ops.grouped_conv2d(x, w, groups=2)

    x, w = torch.rand(1, 8, 5, 6), torch.rand(2, 4, 3, 3)
    program = torch.export.export(Net(), (x, w))
    assert [node.target for node in program.graph.nodes if "conv" in str(node.target)] == [
        torch.ops.aten.conv2d.default
    ]
    compiled = torch.compile(Net(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w), F.conv2d(x, w, groups=2))


def test_wrong_shapes_are_pytorchs_errors():
    with pytest.raises(RuntimeError, match=r"weight of size \[2, 4, 3, 3\], expected input"):
        ops.grouped_conv2d(torch.rand(1, 6, 5, 5), torch.rand(2, 4, 3, 3), groups=2)


def test_empty_batch():
    assert ops.grouped_conv2d(torch.rand(0, 8, 5, 5), torch.rand(2, 4, 3, 3), groups=2).shape == (0, 2, 3, 3)
