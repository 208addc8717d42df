"""SplineConv against a literal loop and PyG's layer; its state_dict, edge cases and errors."""

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.nn.conv.spline_conv as pyg_file
import torch_geometric.typing
from torch.testing import assert_close

from hggraph.nn.spline_conv import SplineConv
from hggraph.ops.spline_basis import spline_basis_reference

VARIANTS = [  # degree, is_open_spline, dim, kernel_size, aggr
    (1, True, 2, 3, "mean"),
    (1, False, 1, 4, "add"),
    (2, [True, False], 2, [3, 4], "mean"),
    (3, [False, True, True], 3, [2, 4, 3], "add"),
]
# What PyG's layer of these arguments has: name, shape, dtype.
STATE_OF_PYG = {
    "kernel_size": ((2,), torch.int64),
    "is_open_spline": ((2,), torch.uint8),
    "weight": ((12, 5, 6), torch.float32),
    "lin.weight": ((6, 7), torch.float32),
    "bias": ((6,), torch.float32),
}


def graph(dim=2, dtype=torch.float64):
    """Return 5 nodes, no edge into node 3, and 8 edges in no order, two of them parallel."""
    edge_index = torch.tensor([[0, 1, 4, 2, 0, 3, 0, 2], [1, 0, 2, 2, 4, 0, 1, 1]])
    return torch.randn(5, 3, dtype=dtype), edge_index, torch.rand(8, dim, dtype=dtype)


def loop(conv, x_src, x_dst, edge_index, edge_attr):
    """Return the layer's equation, written out edge by edge and control point by control point."""
    sizes, is_open = conv.kernel_size.tolist(), conv.is_open_spline.bool().tolist()
    basis, index = spline_basis_reference(edge_attr, sizes, is_open, conv.degree)
    rows = []
    for i in range(x_dst.shape[0]):
        row, count = conv.weight.new_zeros(conv.out_channels), 0
        for e, (j, target) in enumerate(edge_index.t().tolist()):
            if target == i:
                count += 1
                for b, p in zip(basis[e], index[e], strict=True):
                    row = row + b * (x_src[j] @ conv.weight[p])
        row = row / max(count, 1) if conv.aggr == "mean" else row
        rows.append(row + conv.lin.weight @ x_dst[i] + conv.bias)
    return torch.stack(rows)


def double(*args, **kwargs):
    conv = SplineConv(*args, **kwargs).double()
    torch.nn.init.normal_(conv.bias)
    return conv


@pytest.mark.parametrize(("degree", "is_open", "dim", "size", "aggr"), VARIANTS)
def test_matches_loop(degree, is_open, dim, size, aggr):
    conv = double(3, 4, dim, size, is_open, degree, aggr)
    x, edge_index, edge_attr = graph(dim)
    x.requires_grad_()
    edge_attr.requires_grad_()
    inputs = (x, edge_attr, *conv.parameters())
    out, expected = conv(x, edge_index, edge_attr), loop(conv, x, x, edge_index, edge_attr)
    assert_close(out, expected, rtol=0, atol=1e-10)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    assert_close(grads, expected_grads, rtol=0, atol=1e-10)


def test_bipartite_matches_loop():
    conv = double((3, 2), 4, 2, 3)
    x_src, _, edge_attr = graph()
    x_dst, edge_index = torch.randn(2, 2).double(), torch.tensor([[0, 4, 3, 1], [1, 0, 1, 1]])
    out = conv((x_src, x_dst), edge_index, edge_attr[:4])
    expected = loop(conv, x_src, x_dst, edge_index, edge_attr[:4])
    assert_close(out, expected, rtol=0, atol=1e-10)

    without = conv((x_src, None), edge_index, edge_attr[:4], size=(5, 2))
    assert_close(without, expected - x_dst @ conv.lin.weight.t(), rtol=0, atol=1e-10)
    assert conv((x_src, None), edge_index, edge_attr[:4]).shape == (5, 4)


@pytest.mark.parametrize(("degree", "dim", "size"), [(1, 2, [2, 3]), (2, 1, 4), (3, 1, 5)])
def test_gradcheck(degree, dim, size):
    conv = double(3, 2, dim, size, degree % 2 == 1, degree)
    x, edge_index, edge_attr = graph(dim)

    def run(x, edge_attr, weight):
        parameters = {"weight": weight, "lin.weight": conv.lin.weight, "bias": conv.bias}
        return torch.func.functional_call(conv, parameters, (x, edge_index, edge_attr))

    inputs = (x.requires_grad_(), edge_attr.requires_grad_(), conv.weight)
    torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize(("degree", "is_open", "dim", "size", "aggr"), VARIANTS)
def test_matches_pyg_with_the_basis_written_out(monkeypatch, degree, is_open, dim, size, aggr):
    """PyG's layer, with loops in the place of the compiled functions that it imports."""

    def basis(pseudo, kernel_size, is_open_spline, degree):
        is_open = is_open_spline.bool().tolist()
        return spline_basis_reference(pseudo, kernel_size.tolist(), is_open, degree)

    def weighting(x, weight, basis, index):
        return torch.einsum("es,ec,esco->eo", basis, x, weight[index])

    monkeypatch.setattr(pyg_file, "spline_basis", basis)
    monkeypatch.setattr(pyg_file, "spline_weighting", weighting)
    compare_to_pyg(dim, size, is_open, degree, aggr)


@pytest.mark.skipif(not torch_geometric.typing.WITH_SPLINE, reason="pyg-lib >= 0.6 is missing")
@pytest.mark.parametrize(("degree", "is_open", "dim", "size", "aggr"), VARIANTS)
def test_matches_pyg(degree, is_open, dim, size, aggr):
    compare_to_pyg(dim, size, is_open, degree, aggr)


def compare_to_pyg(*arguments):
    conv = SplineConv(3, 4, *arguments)
    theirs = pyg.SplineConv(3, 4, *arguments)
    theirs.load_state_dict(conv.state_dict())
    conv.load_state_dict(theirs.state_dict())
    assert str(conv) == str(theirs)
    x, edge_index, edge_attr = graph(arguments[0], torch.float32)
    edge_attr[0], edge_attr[1] = 0, 1
    inputs = (x.requires_grad_(), edge_attr.requires_grad_())
    with pytest.warns(UserWarning, match="non-optimized CPU version"):
        expected = theirs(x, edge_index, edge_attr)
    out = conv(x, edge_index, edge_attr)
    assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(out.square().sum(), (*inputs, conv.weight))
    expected_grads = torch.autograd.grad(expected.square().sum(), (*inputs, theirs.weight))
    assert_close(grads, expected_grads, rtol=1e-5, atol=1e-4)


def test_state_dict_and_repr_are_pyg_s():
    conv = SplineConv((5, 7), 6, dim=2, kernel_size=[3, 4], is_open_spline=[True, False])
    state = conv.state_dict()
    found = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    assert found == STATE_OF_PYG
    assert state["kernel_size"].tolist() == [3, 4] and state["is_open_spline"].tolist() == [1, 0]
    assert str(conv) == "SplineConv((5, 7), 6, dim=2)"
    assert set(SplineConv(5, 6, 1, 3, root_weight=False, bias=False).state_dict()) == {
        "kernel_size",
        "is_open_spline",
        "weight",
    }


def test_new_parameters():
    conv = SplineConv(16, 32, dim=2, kernel_size=4)
    bound = (16 * 16) ** -0.5
    assert 0.99 * bound < conv.weight.abs().max() <= bound
    assert conv.lin.weight.abs().max() <= 16**-0.5 and not conv.bias.any()
    before = conv.weight.detach().clone()
    conv.reset_parameters()
    assert not torch.equal(conv.weight, before)


@pytest.mark.parametrize("num_nodes", [0, 3])
def test_empty_graph(num_nodes):
    conv = SplineConv(3, 4, dim=2, kernel_size=3)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(num_nodes, 3, requires_grad=True)
    out = conv(x, torch.empty(2, 0, dtype=torch.long), torch.rand(0, 2))
    assert_close(out, conv.lin(x) + conv.bias)
    out.sum().backward()
    assert torch.isfinite(x.grad).all() and not conv.weight.grad.any()


def test_isolated_node_gets_root_and_bias():
    conv = double(3, 4, dim=2, kernel_size=3)
    x, edge_index, edge_attr = graph()
    expected = conv.lin(x[3]) + conv.bias
    assert_close(conv(x, edge_index, edge_attr)[3], expected, rtol=0, atol=1e-12)
    plain = double(3, 4, dim=2, kernel_size=3, root_weight=False)
    plain.bias = None
    assert not plain(x, edge_index, edge_attr)[3].any()


def test_order_of_edges_is_free():
    conv = double(3, 4, dim=2, kernel_size=3, degree=2)
    x, edge_index, edge_attr = graph()
    order = torch.randperm(8)
    out = conv(x, edge_index[:, order], edge_attr[order])
    assert_close(out, conv(x, edge_index, edge_attr), rtol=0, atol=1e-12)


def test_constant_kernel_is_the_mean_of_neighbours():
    conv = double(3, 3, dim=2, kernel_size=3, degree=2, root_weight=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3).expand(9, 3, 3))
        conv.bias.zero_()
    x, edge_index, edge_attr = graph()
    out = conv(x, edge_index, edge_attr)
    assert_close(out[1], (x[0] + x[0] + x[2]) / 3)  # its edges come from 0, 0 and 2
    assert_close(out[0], (x[1] + x[3]) / 2)


def test_autocast_backward_is_finite():
    conv = SplineConv(3, 4, dim=2, kernel_size=5, degree=3)
    x, edge_index, edge_attr = graph(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x.requires_grad_(), edge_index, edge_attr.requires_grad_())
        out.square().sum().backward()
    assert_close(out.float(), conv(x, edge_index, edge_attr), rtol=0.05, atol=0.05)
    for value in (x, edge_attr, *conv.parameters()):
        assert torch.isfinite(value.grad).all() and value.grad.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_attr": None}, r"`edge_attr` must hold .* \(8, 2\), got None"),
        ({"edge_attr": torch.rand(8, 3)}, r"`edge_attr` .* \(E, dim\) = \(8, 2\), got .* \(8, 3\)"),
        ({"edge_attr": torch.rand(8, 2) + 1}, r"`edge_attr`.* must be in \[0, 1\]"),
        ({"edge_index": torch.full((2, 8), 5)}, r"`edge_index\[0\]` must be in \[0, 5\)"),
        ({"edge_index": torch.full((2, 8), -1)}, r"`edge_index\[0\]` must be in \[0, 5\)"),
        ({"edge_index": torch.zeros(8, 2, dtype=torch.long)}, r"`edge_index` must .* \(2, E\)"),
        ({"x": torch.rand(5, 4)}, r"`x` .* \(N, in_channels\) = \(N, 3\), got .* \(5, 4\)"),
        ({"x": torch.ones(5, 3, dtype=torch.long)}, "`x` must be floating point"),
        ({"x": (torch.rand(5, 3), torch.rand(2, 4))}, r"`x\[1\]` .* \(N, 3\)"),
        ({"x": (torch.rand(5, 3), torch.rand(2, 3))}, r"`edge_index\[1\]` must be in \[0, 2\)"),
        ({"size": (4, 5)}, "`size` must fit `x` with 5 rows, got 4"),
    ],
)
def test_errors_of_a_call(change, message):
    x, edge_index, edge_attr = graph(dtype=torch.float32)
    arguments = {"x": x, "edge_index": edge_index, "edge_attr": edge_attr, **change}
    with pytest.raises(ValueError, match=message):
        SplineConv(3, 4, dim=2, kernel_size=3)(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": -1}, "`in_channels` must be a whole number >= 1, got -1"),
        ({"in_channels": (3, 4, 5)}, "`in_channels` must be a number or a pair"),
        ({"out_channels": 0}, "`out_channels`"),
        ({"dim": 0}, "`dim`"),
        ({"kernel_size": [3, 3, 3]}, "`kernel_size` .* `dim` = 2 values"),
        ({"kernel_size": 2, "degree": 3}, "`kernel_size` must be a whole number >= 3, got 2"),
        ({"degree": 0}, r"`degree` must be one of \(1, 2, 3\), got 0"),
        ({"aggr": "max"}, r"`aggr` must be one of \('mean', 'add'\), got 'max'.*nn\.SplineConv"),
    ],
)
def test_errors_of_the_constructor(change, message):
    arguments = {"in_channels": 3, "out_channels": 4, "dim": 2, "kernel_size": 3}
    with pytest.raises(ValueError, match=message):
        SplineConv(**{**arguments, **change})
