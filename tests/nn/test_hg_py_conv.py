"""Pyramids on graphs: HGConv with one level, PyConv2d on the grid and with a region per pixel, dense as on edges."""

import pytest
import torch
from torch.testing import assert_close

from hggraph import Assignment, DenseHGConv, HGConv, HGStage, RegionAdjacency, SoftSLIC, Stencil, grid_graph
from hggraph.cluster import soft_slic
from hggraph.nn import DenseHGPyConv, HGPyConv, PyConv2d
from hggraph.nn.hg_py_conv import union

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def some_assignment(regions=5, size=(7, 8), batch=2):
    return Assignment((2 * double(batch, regions, size[0] * size[1])).softmax(1).requires_grad_(), size)


def parts(a):
    return a.to_edges() if not a.is_dense else (a.to_dense(),)


@pytest.mark.parametrize("max_direction", [True, False])
@pytest.mark.parametrize("noise_cancel", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_restricted_adjacency_is_that_of_fewer_directions(dense, noise_cancel, max_direction):
    """Whatever is cleaned up: pairs, thresholds and the strongest direction are those of the smaller stencil."""
    if dense:
        assignment = some_assignment()
    else:
        seeds = torch.tensor([[0, 8, 21, 40], [3, 9, 30, 44]])
        assignment = soft_slic(double(2, 2, 5, 9), seeds, candidates=3)
    adjacency = assignment.adjacency if dense else assignment.edges
    whole = adjacency(Stencil.square(5), noise_cancel=noise_cancel, max_direction=False)
    for stencil in (Stencil.square(3), Stencil.square(5), Stencil([(0, 1), (-2, 0)])):
        want = adjacency(stencil, noise_cancel=noise_cancel, max_direction=max_direction)
        got = whole.restrict(stencil, max_direction=max_direction)
        assert got.is_dense is dense and got.stencil == stencil and got.max_direction is max_direction
        for a, b in zip(parts(got), parts(want), strict=True):
            assert_close(a, b, **close)
        assert got is whole.restrict(stencil, max_direction=max_direction)  # layers share it


def test_gradient_through_the_restricted_adjacency():
    weight = some_assignment(3, (2, 3), 1).weight.detach().requires_grad_()

    def restricted(weight):
        return Assignment(weight, (2, 3)).adjacency(Stencil.square(5), max_direction=False).restrict(Stencil.square(3))

    assert torch.autograd.gradcheck(lambda w: restricted(w).normalized(), (weight,))
    adjacency = Assignment(weight * 1, (2, 3)).adjacency(Stencil.square(5), max_direction=False)
    with torch.no_grad():
        before = adjacency.restrict(Stencil.square(3)).to_dense()
    after = adjacency.restrict(Stencil.square(3)).to_dense()
    assert_close(after, before)
    assert after.requires_grad  # what was made without a graph serves no training


def test_one_level_is_hg_conv():
    plain = HGConv(4, 6, groups=2).double()
    pyramid = HGPyConv(4, 6, (3,), (2,), bias=True).double()
    pyramid.levels[0].load_state_dict(plain.state_dict())
    x, edges, types = double(9, 4), torch.randint(9, (2, 30)), torch.randint(9, (30,))
    weight = torch.rand(30, dtype=torch.float64)
    assert torch.equal(pyramid(x, edges, types, weight), plain(x, edges, types, weight))
    dense, dense_pyramid = DenseHGConv(4, 6).double(), DenseHGPyConv(4, 6, (3,), (1,), bias=True).double()
    dense_pyramid.levels[0].load_state_dict(dense.state_dict())
    adjacency = some_assignment().adjacency()
    z = double(2, 5, 4)
    assert_close(dense_pyramid(z, adjacency), dense(z, adjacency), **close)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_on_the_grid_it_is_py_conv(stride, dilation):
    """Kernels up to 9 x 9; value and gradients."""
    conv = PyConv2d(8, 16, (3, 5, 9), (1, 2, 4), stride=stride, dilation=dilation, bias=True).double()
    layer = HGPyConv.from_conv(conv)
    assert layer.stencil == Stencil.square(9, dilation=dilation)
    x = double(2, 8, 5, 6).requires_grad_()
    graph = grid_graph((5, 6), layer.stencil, stride=stride, batch_size=2)
    nodes = x.movedim(1, -1).flatten(0, -2)
    out = layer(nodes, graph.edge_index, graph.edge_type, num_targets=graph.num_targets)
    expected = conv(x)
    out = out.view(2, *expected.shape[2:], 16).movedim(-1, 1)
    assert_close(out, expected, **close)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, x, cotangent), torch.autograd.grad(expected, x, cotangent), **close)


def test_weights_go_to_graphs_and_back():
    conv = PyConv2d(8, 8, (3, (1, 5)), (1, 4), (4, 4), bias=True)
    for kind in (HGPyConv, DenseHGPyConv):
        back = kind.from_conv(conv).to_conv()
        assert back.state_dict().keys() == conv.state_dict().keys()
        assert all(torch.equal(value, conv.state_dict()[name]) for name, value in back.state_dict().items())
        assert [level.kernel_size for level in back.levels] == [(3, 3), (1, 5)]
    assert HGPyConv.from_conv(conv).state_dict().keys() == DenseHGPyConv.from_conv(conv).state_dict().keys()


def test_dense_is_its_edges():
    """Level by level with its own strongest directions."""
    dense = DenseHGPyConv(4, 8, (3, 5), (1, 2), bias=True).double()
    sparse = HGPyConv(4, 8, (3, 5), (1, 2), bias=True).double()
    sparse.load_state_dict(dense.state_dict())
    assignment, z = some_assignment(), double(2, 5, 4)
    out = dense(z, assignment.adjacency(dense.stencil, max_direction=False))
    expected = []
    for level, stencil in zip(sparse.levels, sparse.stencils, strict=True):
        expected.append(level(z.flatten(0, 1), *assignment.adjacency(stencil).to_edges()))
    assert_close(out, torch.cat(expected, 1).view(2, 5, 8), **close)
    whole = assignment.adjacency(dense.stencil, max_direction=False)
    dense.max_direction = False
    assert_close(dense(z, whole), sparse(z.flatten(0, 1), *whole.to_edges()).view(2, 5, 8), **close)


def test_a_region_per_pixel_is_py_conv():
    """In a stage, whose assignment is then hard and the identity."""
    conv = PyConv2d(3, 8, (3, 5), (1, 1), bias=True).double()
    layer = DenseHGPyConv.from_conv(conv)
    pixels = SoftSLIC(num_regions=30, feature_scale=1e4)  # so far apart that assignments are hard
    stage = HGStage([layer], pixels, stencil=layer.stencil, max_direction=False).double()
    x = double(2, 3, 5, 6)
    assert_close(stage(x), conv(x), rtol=1e-9, atol=1e-9)


def test_stage_trains_and_compiles():
    layer = DenseHGPyConv(6, 8, (3, 5, 7), "auto")
    stage = HGStage([layer], SoftSLIC(num_regions=6), stencil=layer.stencil, max_direction=False)
    x = torch.randn(2, 6, 9, 8, requires_grad=True)
    out = stage(x)
    out.square().mean().backward()
    assert out.shape == (2, 8, 9, 8) and x.grad.any()
    assert all(p.grad.isfinite().all() for p in stage.parameters())
    stage.eval()
    with torch.no_grad():
        assert_close(torch.compile(stage, fullgraph=True, backend="aot_eager")(x), stage(x))


def test_union():
    assert union([Stencil.square(3), Stencil.square((1, 5))]).offsets == tuple(
        sorted({*Stencil.square(3), (0, -2), (0, 2)})
    )


def test_errors():
    layer = HGPyConv(4, 8, (3, 5), (1, 2))
    with pytest.raises(ValueError, match=r"`edge_type` must be in \[0, 25\).*Was the graph built with `layer.stencil`"):
        layer(torch.rand(3, 4), torch.zeros(2, 1, dtype=torch.long), torch.tensor([25]))
    with pytest.raises(ValueError, match="must divide the 4 inputs and the 4 outputs of its level, got 3"):
        HGPyConv(4, 8, (3, 5), (1, 3))
    with pytest.raises(ValueError, match="`conv` must be padded"):
        HGPyConv.from_conv(PyConv2d(4, 4, (3,), (1,), padding=False))
    dense, z = DenseHGPyConv(4, 8, (3, 5), (1, 2)), torch.rand(1, 5, 4)
    with pytest.raises(ValueError, match=r"`stencil` must lie in Stencil\(3x3, dilation=1\), which lacks \[\(-2, -2\)"):
        dense(z, RegionAdjacency(Stencil.square(3), torch.rand(1, 9, 5, 5)))
    with pytest.raises(ValueError, match=r"has the strongest of 25 directions only; .* max_direction=False"):
        dense(z, some_assignment(batch=1).adjacency(Stencil.square(5)))
