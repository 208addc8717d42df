"""HGConv where it is easily wrong: watched, in half precision, in odd layouts, with tiny strengths."""

import pytest
import torch
from torch.testing import assert_close

from hggraph import DenseHGConv, HGConv, RegionAdjacency, Stencil


def surrounded(x):
    buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
    buffer[(slice(1, -1),) * x.dim()] = x
    return buffer[(slice(1, -1),) * x.dim()]


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand_as(x),
    "surrounded": surrounded,
}


def sample(dtype=torch.float64, nodes=6, edges=20):
    edge_index = torch.randint(nodes, (2, edges))
    edge_type, edge_weight = torch.randint(9, (edges,)), torch.rand(edges, dtype=dtype)
    return torch.randn(nodes, 4, dtype=dtype), edge_index, edge_type, edge_weight


def watched(layer):
    """Make the layer go message by message."""
    layer.register_message_forward_hook(lambda module, inputs, output: None)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("num_targets", [None, 6, 11])
def test_message_by_message_is_the_fused_path(bias, groups, weighted, num_targets):
    layer = HGConv(4, 6, groups=groups, bias=bias).double()
    x, edge_index, edge_type, edge_weight = sample()
    x.requires_grad_(), edge_weight.requires_grad_()
    arguments = (x, edge_index, edge_type, edge_weight if weighted else None, num_targets)
    leaves = [x, *layer.parameters(), *([edge_weight] if weighted else [])]
    out = layer(*arguments)
    assert out.shape == (num_targets or 6, 6)
    cotangent = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, cotangent)
    again = watched(layer)(*arguments)
    assert_close(again, out, rtol=1e-10, atol=1e-10)
    assert_close(torch.autograd.grad(again, leaves, cotangent), grads, rtol=1e-10, atol=1e-10)


def test_every_kind_of_hook_is_called():
    x, edge_index, edge_type, _ = sample()
    for kind in ("propagate", "message", "aggregate"):
        for when in ("forward_pre", "forward"):
            layer, calls = HGConv(4, 6).double(), []
            register = getattr(layer, f"register_{kind}_{when}_hook")
            handle = register(lambda module, *rest, calls=calls: calls.append(module))
            layer(x, edge_index, edge_type)
            assert calls == [layer]
            handle.remove()
            layer(x, edge_index, edge_type)
            assert calls == [layer]


@pytest.mark.parametrize("change", ["edge_type", "edge_index"])
@pytest.mark.parametrize("value", [-1, 100])
@pytest.mark.parametrize("make", [lambda layer: layer, watched], ids=["fused", "watched"])
def test_out_of_range_is_an_error_on_both_paths(change, value, make):
    """Unwatched rows of uninitialised memory, otherwise."""
    x, edge_index, edge_type, _ = sample()
    if change == "edge_type":
        edge_type[3] = value
        message = rf"`edge_type` must be in \[0, 9\), got .* {max(value, 0)}?.*another stencil"
    else:
        edge_index[1, 3] = value
        message = r"`edge_index\[1\]` must be in \[0, 6\)"
    with pytest.raises(ValueError, match=message):
        make(HGConv(4, 6).double())(x, edge_index, edge_type)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda layer: layer, watched], ids=["fused", "watched"])
def test_autocast(dtype, make):
    layer, (x, *rest) = HGConv(4, 6), sample(torch.float32)
    expected = layer(x, *rest)
    x.requires_grad_()
    with torch.autocast("cpu", dtype):
        out = make(layer)(x, *rest)
    # sums of some dozen products of numbers near 1, each rounded to the half's digits
    assert_close(out.float(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)
    out.float().square().sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in (x, *layer.parameters()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    layer, (x, edge_index, edge_type, edge_weight) = HGConv(4, 6).double(), sample()
    x = LAYOUTS[layout](x)
    expected = layer(x.contiguous().clone(), edge_index, edge_type, edge_weight)
    strided = edge_index.T.contiguous().T, edge_type.repeat_interleave(2)[::2]
    weight = LAYOUTS[layout](edge_weight[:, None])[:, 0]
    out = layer(x, *strided, weight)
    if layout != "expanded":
        assert torch.equal(out, expected)
    out.sum().backward()  # a gradient with strides of 0
    assert torch.isfinite(layer.weight.grad).all()
    dense = RegionAdjacency(Stencil.square(3), torch.rand(2, 9, 6, 6).double().mT)
    twice = torch.stack([x, x + 1]).mT.contiguous().mT
    one = DenseHGConv(4, 6).double()
    copy = RegionAdjacency(Stencil.square(3), dense.to_dense().contiguous())
    assert_close(one(twice, dense), one(twice.contiguous(), copy), rtol=0, atol=1e-12)


@pytest.mark.parametrize("strength", [1e-30, 1e-9, 1.0, 1e30])
def test_any_strength(strength):
    """A degree is at least 1e-7: fainter neighbours fade, all others count by their share."""
    layer = HGConv(4, 6)
    x, edge_index, edge_type, edge_weight = sample(torch.float32)
    edge_weight = (strength * (edge_weight + 0.5)).requires_grad_()
    out = layer(x, edge_index, edge_type, edge_weight)
    if strength >= 1:
        assert_close(out, layer(x, edge_index, edge_type, edge_weight / strength))
    if strength == 1e-30:
        assert_close(out, layer.bias.expand_as(out))
    (grad,) = torch.autograd.grad(out.sum(), edge_weight)
    assert torch.isfinite(grad).all()


def test_gradcheck():
    """Of features, strengths through the degree, and parameters."""
    layer, (x, edge_index, edge_type, edge_weight) = HGConv(4, 6, groups=2).double(), sample()

    def run(x, edge_weight, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        inputs = (x, edge_index, edge_type, edge_weight)
        return torch.func.functional_call(layer, parameters, inputs)

    inputs = [x, edge_weight + 0.1, layer.weight.detach(), layer.bias.detach()]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_a_batch_of_graphs_is_its_graphs():
    layer, parts = HGConv(4, 6).double(), [sample() for _ in range(3)]
    x = torch.cat([part[0] for part in parts])
    index = torch.cat([part[1] + 6 * n for n, part in enumerate(parts)], 1)
    out = layer(x, index, *(torch.cat([part[i] for part in parts]) for i in (2, 3)))
    assert_close(out, torch.cat([layer(*part) for part in parts]), rtol=0, atol=1e-12)


def test_reset_parameters_draws_anew_and_as_a_convolution():
    conv = torch.nn.Conv2d(16, 64, 3, groups=2)
    for layer in (HGConv(16, 64, groups=2), DenseHGConv(16, 64, groups=2)):
        before = layer.weight.clone()
        layer.reset_parameters()
        assert not torch.equal(layer.weight, before)
        bound = (9 * 8) ** -0.5
        for ours, theirs in ((layer.weight, conv.weight), (layer.bias, conv.bias)):
            assert ours.abs().max() <= bound and theirs.abs().max() <= bound
            # a uniform distribution: 64 numbers have a largest under 0.8 of the bound once in 10^6
            assert ours.abs().max() > 0.8 * bound
            assert ours.min() < 0 < ours.max()
