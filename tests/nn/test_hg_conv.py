"""HGConv against torch's convolutions, message by message, and under PyG's tools."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_geometric.explain import Explainer, GNNExplainer

from hggraph import HGConv, Stencil, grid_graph

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def on_grid(layer, x, stride=1):
    """Run a layer on the grid graph of a map (B, C, *size); the targets' map."""
    size = x.shape[2:]
    graph = grid_graph(size, layer.stencil, stride=stride, batch_size=x.shape[0])
    nodes = x.movedim(1, -1).reshape(-1, x.shape[1])
    out = layer(nodes, graph.edge_index, graph.edge_type, num_targets=graph.num_targets)
    return out.view(x.shape[0], *(-(-length // stride) for length in size), -1).movedim(-1, 1)


def check_equals_conv(conv, x, stride):
    layer = HGConv.from_conv(conv)
    actual = on_grid(layer, x, stride)
    # an even kernel gives a convolution one row more than the grid has
    expected = conv(x)[(..., *(slice(length) for length in actual.shape[2:]))]
    torch.testing.assert_close(actual, expected, **close)
    cotangent = torch.randn_like(expected)
    ours = torch.autograd.grad(actual, [x, layer.weight, layer.bias], cotangent)
    theirs = torch.autograd.grad(expected, [x, conv.weight, conv.bias], cotangent)
    theirs = (theirs[0], theirs[1].flatten(2).permute(2, 1, 0), theirs[2])
    torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("kernel", range(1, 8))
def test_conv2d(kernel):
    for dilation, stride, groups in itertools.product((1, 2, 3), (1, 2), (1, 4)):
        conv = nn.Conv2d(4, 8, kernel, stride, dilation * (kernel // 2), dilation, groups).double()
        check_equals_conv(conv, double(2, 4, 9, 7).requires_grad_(), stride)


@pytest.mark.parametrize("kernel", range(1, 8))
def test_conv3d(kernel):
    for dilation, stride, groups in ((1, 1, 1), (2, 2, 4), (3, 1, 4)):
        conv = nn.Conv3d(4, 4, kernel, stride, dilation * (kernel // 2), dilation, groups).double()
        check_equals_conv(conv, double(1, 4, 3, 5, 4).requires_grad_(), stride)


def test_conv_with_one_size_per_axis():
    conv = nn.Conv2d(2, 3, (3, 5), padding=(2, 2), dilation=(2, 1)).double()
    check_equals_conv(conv, double(1, 2, 6, 7).requires_grad_(), 1)


@pytest.mark.parametrize("bias", [True, False])
def test_to_conv_is_the_inverse(bias):
    conv = nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2, bias=bias)
    back = HGConv.from_conv(conv).to_conv(stride=2)
    assert (back.stride, back.padding, back.dilation, back.groups) == ((2, 2), (2, 2), (2, 2), 2)
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), conv.state_dict().values(), strict=True))


def loop(x, weight, edge_index, edge_type, edge_weight, num_targets):
    out = x.new_zeros(num_targets, weight.shape[2])
    for i in range(num_targets):
        for k in range(weight.shape[0]):
            edges = [e for e in range(len(edge_type)) if edge_index[1, e] == i and edge_type[e] == k]
            degree = max(sum(float(edge_weight[e]) for e in edges), 1e-7)
            for e in edges:
                out[i] += edge_weight[e] / degree * x[edge_index[0, e]] @ weight[k]
    return out


@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 6), targets=st.integers(1, 5), edges=st.integers(0, 12))
def test_any_graph(seed, nodes, targets, edges):
    torch.manual_seed(seed)
    layer = HGConv(3, 2, bias=False).double()
    edge_index = torch.stack([torch.randint(nodes, (edges,)), torch.randint(targets, (edges,))])
    edge_type, edge_weight = torch.randint(9, (edges,)), torch.rand(edges, dtype=torch.float64)
    x = double(nodes, 3)
    out = layer(x, edge_index, edge_type, edge_weight, num_targets=targets)
    torch.testing.assert_close(
        out, loop(x, layer.weight.detach(), edge_index, edge_type, edge_weight, targets), **close
    )
    order = torch.randperm(edges)
    again = layer(x, edge_index[:, order], edge_type[order], edge_weight[order], num_targets=targets)
    torch.testing.assert_close(again, out, **close)


def test_isolated_node_gets_the_bias():
    layer = HGConv(3, 2)
    out = layer(torch.randn(3, 3), torch.tensor([[0], [1]]), torch.tensor([4]))
    assert torch.equal(out[[0, 2]], layer.bias.expand(2, -1))
    assert not torch.equal(out[1], layer.bias)


@pytest.mark.parametrize("nodes", [0, 2])
def test_without_edges(nodes):
    layer = HGConv(3, 2)
    x = torch.randn(nodes, 3, requires_grad=True)
    out = layer(x, torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    out.sum().backward()
    assert torch.equal(out, layer.bias.expand(nodes, -1)) and torch.equal(x.grad, torch.zeros_like(x))


def sample(groups=1):
    layer = HGConv(4, 6, groups=groups).double()
    edge_index, edge_type = torch.randint(7, (2, 30)), torch.randint(9, (30,))
    return layer, double(7, 4).requires_grad_(), edge_index, edge_type, torch.rand(30, dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 2])
def test_hooks_see_every_message_and_change_nothing(groups):
    layer, *arguments = sample(groups)
    fused = layer(*arguments)
    fused_grad = torch.autograd.grad(fused.square().sum(), [arguments[0], layer.weight])
    seen = []
    handle = layer.register_message_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    watched = layer(*arguments)
    watched_grad = torch.autograd.grad(watched.square().sum(), [arguments[0], layer.weight])
    handle.remove()
    assert seen == [(30, 6)]
    torch.testing.assert_close((watched, watched_grad), (fused, fused_grad), **close)
    layer(*arguments)
    assert len(seen) == 1


def test_explainer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = HGConv(3, 2)

        def forward(self, x, edge_index, edge_type):
            return self.conv(x, edge_index, edge_type).log_softmax(-1)

    graph = grid_graph((3, 3), Stencil.square(3))
    explainer = Explainer(
        Net(),
        GNNExplainer(epochs=3),
        explanation_type="model",
        edge_mask_type="object",
        node_mask_type="attributes",
        model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "log_probs"},
    )
    explanation = explainer(torch.randn(9, 3), graph.edge_index, edge_type=graph.edge_type, index=4)
    assert explanation.edge_mask.shape == (graph.num_edges,)
    # only the nine edges into the node asked for count
    assert (explanation.edge_mask > 0).sum() <= 9 and explanation.edge_mask.sum() > 0


def test_bfloat16_autocast():
    layer, x, edge_index, edge_type, edge_weight = sample()
    layer, x, edge_weight = layer.float(), x.detach().float().requires_grad_(), edge_weight.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x, edge_index, edge_type, edge_weight)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.isfinite().all() and layer.weight.grad.isfinite().all()
    # two roundings to 8 bits of sums of some ten terms of size one
    torch.testing.assert_close(out.float(), layer(x, edge_index, edge_type, edge_weight), rtol=0.05, atol=0.05)


def test_parameters_and_repr():
    torch.manual_seed(0)
    layer = HGConv(16, 32, Stencil.square(5), groups=4)
    assert layer.weight.shape == (25, 4, 32) and layer.weight.abs().max() <= (25 * 4) ** -0.5
    assert repr(layer) == "HGConv(16, 32, stencil=Stencil(5x5, dilation=1), groups=4)"
    assert repr(HGConv(1, 1, bias=False)) == "HGConv(1, 1, stencil=Stencil(3x3, dilation=1), bias=False)"


def test_errors():
    layer, x, edge_index, edge_type, edge_weight = sample()
    with pytest.raises(ValueError, match=r"`edge_type` must be in \[0, 9\), got values from .* to 12. Was the graph"):
        layer(x, edge_index, edge_type.clamp(min=0).index_fill(0, torch.tensor([3]), 12))
    with pytest.raises(ValueError, match=r"`edge_index\[1\]` must be in \[0, 2\)"):
        layer(x, edge_index, edge_type, num_targets=2)
    with pytest.raises(ValueError, match="`edge_weight` must have the shape of `edge_type`"):
        layer(x, edge_index, edge_type, edge_weight[:-1])
    with pytest.raises(ValueError, match="does not fit 3 channels"):
        layer(x[:, :3], edge_index, edge_type)
    with pytest.raises(ValueError, match="`groups` must divide"):
        HGConv(4, 6, groups=4)
    for conv in [nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")]:
        with pytest.raises(ValueError, match="`conv` must be padded with zeros"):
            HGConv.from_conv(conv)
    for conv in [nn.ConvTranspose2d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(1, 1)]:
        with pytest.raises(ValueError, match="Conv2d or Conv3d"):
            HGConv.from_conv(conv)
    with pytest.raises(ValueError, match="Only the stencil of a 2-D or 3-D convolution"):
        HGConv(1, 1, Stencil([(0, 1), (3, 3)])).to_conv()
