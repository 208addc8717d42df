"""GMMConv against PyG's layer in float64, and by hand; its state_dict, edge cases and errors."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch.testing import assert_close

from hggraph.nn.gmm_conv import GMMConv

VARIANTS = [  # in_channels, dim, kernel_size, aggr
    (3, 2, 4, "mean"),
    (3, 1, 1, "add"),
    ((3, 2), 3, 5, "mean"),
]


def graph(dim=2, dtype=torch.float64):
    """Return 5 nodes, no edge into node 3, and 8 edges in no order, two of them parallel."""
    edge_index = torch.tensor([[0, 1, 4, 2, 0, 3, 0, 2], [1, 0, 2, 2, 4, 0, 1, 1]])
    return torch.randn(5, 3, dtype=dtype), edge_index, torch.randn(8, dim, dtype=dtype)


def pair(*arguments, **keywords):
    """Return our layer and PyG's with the same random parameters, in float64."""
    ours = GMMConv(*arguments, **keywords).double()
    theirs = pyg.GMMConv(*arguments, **keywords).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("in_channels", "dim", "size", "aggr"), VARIANTS)
def test_matches_pyg(in_channels, dim, size, aggr):
    ours, theirs = pair(in_channels, 4, dim, size, aggr=aggr)
    x, edge_index, edge_attr = graph(dim)
    edge_attr[0] = ours.mu[0].detach()  # at the middle of a Gaussian
    inputs = [x.requires_grad_(), edge_attr.requires_grad_()]
    features = x
    if isinstance(in_channels, tuple):
        inputs.append(torch.randn(5, 2).double().requires_grad_())
        features = (x, inputs[-1])
    out, expected = (conv(features, edge_index, edge_attr) for conv in (ours, theirs))
    assert_close(out, expected, rtol=0, atol=1e-10)
    grads, expected_grads = (
        torch.autograd.grad(value.square().sum(), (*inputs, *conv.parameters()))
        for value, conv in ((out, ours), (expected, theirs))
    )
    assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)


def test_float32_matches_pyg():
    ours, theirs = GMMConv(16, 8, 2, 9), pyg.GMMConv(16, 8, 2, 9)
    theirs.load_state_dict(ours.state_dict())
    x, edge_index, edge_attr = torch.randn(40, 16), torch.randint(40, (2, 200)), torch.rand(200, 2)
    out, expected = ours(x, edge_index, edge_attr), theirs(x, edge_index, edge_attr)
    assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_bipartite_matches_pyg():
    ours, theirs = pair((3, 2), 4, 2, 3)
    x_src, _, edge_attr = graph()
    edge_index, edge_attr = torch.tensor([[0, 4, 3, 1], [1, 0, 1, 1]]), edge_attr[:4]
    for x, size in (
        ((x_src, torch.randn(2, 2).double()), None),
        ((x_src, torch.randn(2, 2).double()), (5, 2)),
        ((x_src, None), (5, 2)),
        ((x_src, None), (5, 3)),  # the last target has no edge
        ((x_src, None), None),
    ):
        out = ours(x, edge_index, edge_attr, size)
        expected = theirs(x, edge_index, edge_attr, size)
        assert_close(out, expected, rtol=0, atol=1e-10)


def test_state_dict_goes_both_ways():
    for keywords in ({}, {"root_weight": False}, {"bias": False}):
        ours, theirs = (
            GMMConv((5, 7), 6, 2, 3, **keywords),
            pyg.GMMConv((5, 7), 6, 2, 3, **keywords),
        )
        shapes = [{k: v.shape for k, v in conv.state_dict().items()} for conv in (ours, theirs)]
        assert shapes[0] == shapes[1]
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
        assert str(ours) == str(theirs) == "GMMConv((5, 7), 6, dim=2)"


def test_same_seed_draws_pyg_s_parameters():
    torch.manual_seed(3)
    ours = GMMConv(5, 6, 2, 3)
    torch.manual_seed(3)
    assert_close(ours.state_dict(), pyg.GMMConv(5, 6, 2, 3).state_dict(), rtol=0, atol=0)


def test_by_hand():
    conv = GMMConv(1, 1, dim=1, kernel_size=2, root_weight=False, bias=False)
    conv.load_state_dict(
        {
            "g": torch.tensor([[10.0, 100.0]]),
            "mu": torch.tensor([[0.0], [1.0]]),
            "sigma": torch.tensor([[1.0], [2.0]]),
        }
    )
    # at e = 2: exp(-(2 - 0)^2 / 2 / 1) = exp(-2) and exp(-(2 - 1)^2 / 2 / 4) = exp(-1/8)
    edge_index, edge_attr = torch.tensor([[1], [0]]), torch.tensor([[2.0]])
    out = conv(torch.tensor([[5.0], [3.0]]), edge_index, edge_attr)
    weights = torch.tensor([-2.0, -1 / 8]).exp()
    assert_close(out, torch.stack([3 * (10 * weights[:1] + 100 * weights[1:]), torch.zeros(1)]))


def test_gradcheck():
    conv, _ = pair(3, 2, 2, 3)
    x, edge_index, edge_attr = graph()

    def run(x, edge_attr, *parameters):
        names = [name for name, _ in conv.named_parameters()]
        parameters = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(conv, parameters, (x, edge_index, edge_attr))

    inputs = (x.requires_grad_(), edge_attr.requires_grad_(), *conv.parameters())
    torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("num_nodes", [0, 3])
def test_empty_graph(num_nodes):
    conv, theirs = pair(3, 4, 2, 3)
    x = torch.randn(num_nodes, 3, dtype=torch.float64, requires_grad=True)
    empty = torch.empty(2, 0, dtype=torch.long), torch.rand(0, 2).double()
    out = conv(x, *empty)
    assert_close(out, conv.root(x) + conv.bias)
    assert_close(out, theirs(x, *empty))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not conv.g.grad.any() and not conv.mu.grad.any() and not conv.sigma.grad.any()


def test_isolated_node_gets_root_and_bias():
    conv, _ = pair(3, 4, 2, 3)
    x, edge_index, edge_attr = graph()
    out = conv(x, edge_index, edge_attr)
    assert_close(out[3], conv.root(x[3]) + conv.bias, rtol=0, atol=1e-12)


def test_order_of_edges_is_free():
    conv, _ = pair(3, 4, 2, 3)
    x, edge_index, edge_attr = graph()
    order = torch.randperm(8)
    out = conv(x, edge_index[:, order], edge_attr[order])
    assert_close(out, conv(x, edge_index, edge_attr), rtol=0, atol=1e-12)


def test_autocast_and_tiny_sigma_stay_finite():
    conv = GMMConv(3, 4, dim=2, kernel_size=3)
    with torch.no_grad():
        conv.sigma[0] = 0
    x, edge_index, edge_attr = graph(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x.requires_grad_(), edge_index, edge_attr.requires_grad_())
        out.square().sum().backward()
    assert_close(out.float(), conv(x, edge_index, edge_attr), rtol=0.05, atol=0.05)
    for value in (x, edge_attr, *conv.parameters()):
        assert torch.isfinite(value.grad).all() and value.grad.any()


def test_half_precision_layer_computes_gaussians_in_float32():
    conv = GMMConv(3, 4, dim=2, kernel_size=3).bfloat16()
    x, edge_index, edge_attr = graph(dtype=torch.bfloat16)
    out = conv(x, edge_index, edge_attr)
    assert out.dtype == torch.bfloat16
    expected = conv.float()(x.float(), edge_index, edge_attr.float())
    assert_close(out.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_attr": None}, r"`edge_attr` must hold .* \(8, 2\), got None"),
        ({"edge_attr": torch.rand(8, 3)}, r"`edge_attr` .* \(E, dim\) = \(8, 2\), got .* \(8, 3\)"),
        ({"edge_attr": torch.rand(8)}, r"`edge_attr` .* \(E, dim\) = \(8, 2\), got .* \(8,\)"),
        ({"edge_index": torch.full((2, 8), 5)}, r"`edge_index\[0\]` must be in \[0, 5\)"),
        ({"x": (torch.rand(5, 3), torch.rand(2, 3))}, r"`edge_index\[1\]` must be in \[0, 2\)"),
        ({"x": torch.rand(5, 4)}, r"`x` .* \(N, in_channels\) = \(N, 3\), got .* \(5, 4\)"),
        ({"x": (torch.rand(5, 3), None), "size": (5, 4)}, r"`edge_index\[1\]` must be in \[0, 4\)"),
    ],
)
def test_errors_of_a_call(change, message):
    x, edge_index, edge_attr = graph(dtype=torch.float32)
    arguments = {"x": x, "edge_index": edge_index, "edge_attr": edge_attr, **change}
    with pytest.raises(ValueError, match=message):
        GMMConv(3, 4, dim=2, kernel_size=3)(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "`in_channels` must be a whole number >= 1, got 0"),
        ({"kernel_size": 0}, "`kernel_size` must be a whole number >= 1, got 0"),
        ({"separate_gaussians": True}, r"`separate_gaussians` .* torch_geometric\.nn\.GMMConv"),
        ({"aggr": "max"}, r"`aggr` must be one of \('mean', 'add'\), got 'max'.*nn\.GMMConv"),
    ],
)
def test_errors_of_the_constructor(change, message):
    arguments = {"in_channels": 3, "out_channels": 4, "dim": 2, "kernel_size": 3}
    with pytest.raises(ValueError, match=message):
        GMMConv(**{**arguments, **change})
