"""The layer against literal loops; on a map, on the edges of its grid and on dense adjacency it is one function."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph import RegionAdjacency, SoftSLIC, Stencil, grid_graph
from hggraph.nn import DenseLocalAttention, HGStage, LocalAttention
from hggraph.ops._window import BORDERS, check_window, flat_offsets
from hggraph.ops.edge_attention import edge_attention_reference
from hggraph.ops.local_attention import local_attention_reference

close = {"rtol": 1e-10, "atol": 1e-10}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def layer(*args, kind=LocalAttention, **options):
    made = kind(*args, **options).double()
    if made.direction_bias is not None:
        torch.nn.init.normal_(made.direction_bias)
    return made


def loop(made, inputs):
    """Return the layer's value on maps, head by head and pixel by pixel."""
    q, k, v = (
        (x.movedim(1, -1) @ lin.weight.t() + lin.bias).movedim(-1, 1)
        for x, lin in zip(inputs, (made.query, made.key, made.value), strict=True)
    )
    out = []
    for head in range(made.heads):
        parts = [x.chunk(made.heads, 1)[head] for x in (q, k, v)]
        bias = None if made.direction_bias is None else made.direction_bias[head]
        out.append(local_attention_reference(*parts, bias, made.stencil.offsets, made.scale, made.border))
    return torch.cat(out, 1)


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2]),
    st.sampled_from([(3, 1), (1, 1), (3, 2), ((1, 3), (1, 2))]),
    st.tuples(st.integers(1, 2), st.integers(5, 7), st.integers(5, 6)),
    st.sampled_from(BORDERS),
    st.booleans(),
)
def test_loop(seed, heads, window, shape, border, biased):
    torch.manual_seed(seed)
    stencil, (batch, height, width) = Stencil.square(window[0], dilation=window[1]), shape
    if border == "shift":
        try:
            check_window((height, width), flat_offsets(stencil.offsets), border)
        except ValueError:
            return
    options = {"heads": heads, "key_channels": 2 * heads, "border": border, "direction_bias": biased}
    made = layer(3, 4, stencil, **options)
    x = double(batch, 3, height, width)
    torch.testing.assert_close(made(x), loop(made, (x, x, x)), **close)
    made = layer((2, 3, 5), 4, stencil, **options)
    inputs = [double(batch, channels, height, width) for channels in (2, 3, 5)]
    torch.testing.assert_close(made(inputs), loop(made, inputs), **close)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_graph_of_a_pixel_a_node_is_the_map(heads, dilation):
    """Value and every gradient, batches too; edges in any order."""
    stencil, size = Stencil.square(3, dilation=dilation), (5, 6)
    made = layer(3, 4, stencil, heads=heads, direction_bias=True, border="mask")
    graph = grid_graph(size, stencil, batch_size=2)
    shuffled = torch.randperm(graph.num_edges)
    x = double(2, 3, *size).requires_grad_()
    on_map = made(x)
    nodes = x.movedim(1, -1).flatten(0, 2)
    on_graph = made(nodes, graph.edge_index[:, shuffled], graph.edge_type[shuffled])
    on_graph = on_graph.view(2, *size, 4).movedim(-1, 1)
    torch.testing.assert_close(on_graph, on_map, **close)
    cotangent = torch.randn_like(on_map)
    leaves = [x, *made.parameters()]
    grads = [torch.autograd.grad(out, leaves, cotangent) for out in (on_graph, on_map)]
    torch.testing.assert_close(*grads, **close)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_dense_adjacency_is_its_edges(heads, biased):
    stencil = Stencil.square(3)
    strength = torch.rand(2, 9, 5, 5, dtype=torch.float64) * (torch.rand(2, 9, 5, 5) > 0.7)
    strength[0, :, 2] = 0  # an isolated region
    strength.requires_grad_()
    adjacency = RegionAdjacency(stencil, strength)
    dense = layer(3, 4, stencil, kind=DenseLocalAttention, heads=heads, direction_bias=biased)
    sparse = layer(3, 4, stencil, heads=heads, direction_bias=biased)
    sparse.load_state_dict(dense.state_dict())
    x = double(2, 5, 3).requires_grad_()
    out = dense(x, adjacency)
    expected = sparse(x.flatten(0, 1), *adjacency.to_edges()).view(2, 5, 4)
    torch.testing.assert_close(out, expected, **close)
    assert not out[0, 2].any()
    cotangent = torch.randn_like(out)
    grads = [
        torch.autograd.grad(y, [x, strength, *part.parameters()], cotangent, retain_graph=True)
        for y, part in ((out, dense), (expected, sparse))
    ]
    torch.testing.assert_close(*grads, **close)
    assert all(grad.isfinite().all() for grad in grads[0])


def test_edges_by_hand():
    """A weight of 2 is two edges, of 0 none; a direction's bias belongs to its edges; heads do not mix."""
    made = layer(3, 4, Stencil.square(3), heads=2, direction_bias=True)
    x, edge_index = double(4, 3), torch.tensor([[0, 1, 2, 3, 1], [1, 1, 1, 0, 2]])
    edge_type, weight = torch.tensor([0, 4, 8, 2, 2]), torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    out = made(x, edge_index, edge_type, weight)
    twice = torch.tensor([0, 0, 1, 2, 3])
    torch.testing.assert_close(out, made(x, edge_index[:, twice], edge_type[twice]), **close)
    q, k, v = made.query(x), made.key(x), made.value(x)
    for head, part in enumerate((slice(0, 2), slice(2, 4))):
        bias = made.direction_bias[head][edge_type[twice]]
        want = edge_attention_reference(q[:, part], k[:, part], v[:, part], edge_index[:, twice], made.scale, bias)
        torch.testing.assert_close(out[:, part], want, **close)
    assert not out[2].any() and not out[3].any()


def test_between_two_sets_of_nodes():
    made = layer((2, 3, 3), 4)
    targets, sources = double(2, 2), double(5, 3)
    edge_index = torch.tensor([[0, 4, 2], [1, 1, 0]])
    out = made((targets, sources, sources), edge_index)
    want = edge_attention_reference(
        made.query(targets), made.key(sources), made.value(sources), edge_index, made.scale, None
    )
    torch.testing.assert_close(out, want, **close)


def test_layouts_and_batches():
    made = layer(3, 4, Stencil.square(3, dilation=2), heads=2)
    x = double(3, 3, 6, 5)
    one_by_one = torch.cat([made(image[None]) for image in x])
    around = torch.full((3, 5, 8, 7), torch.nan, dtype=torch.float64)
    around[:, 1:4, 1:7, 1:6] = x
    for same in (x, x.to(memory_format=torch.channels_last), around[:, 1:4, 1:7, 1:6]):
        torch.testing.assert_close(made(same), one_by_one, **close)
    expanded = x[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(made(expanded), made(expanded.contiguous()), **close)
    assert made(x[:0]).shape == (0, 4, 6, 5)
    assert made(torch.zeros(0, 3, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.long)).shape == (0, 4)


def test_affinity():
    made = layer(3, 4, Stencil.square(3), heads=2, direction_bias=True)
    x = double(2, 3, 4, 5)
    weight = made.affinity(x)
    assert weight.shape == (2, 2, 9, 4, 5)
    torch.testing.assert_close(weight.sum(2), torch.ones(2, 2, 4, 5, dtype=torch.float64))
    with torch.no_grad():
        made.direction_bias.zero_()
        made.direction_bias[:, 3] = 50  # the left neighbour, also where it is outside
        torch.testing.assert_close(made.affinity(x)[:, :, 3], torch.ones(2, 2, 4, 5, dtype=torch.float64))


def test_block_of_a_stage():
    """On regions in a network: static shapes, and a gradient through the regions."""
    stage = HGStage([DenseLocalAttention(8, 6, direction_bias=True)], SoftSLIC(num_regions=5))
    x = torch.randn(2, 8, 9, 7, requires_grad=True)
    out = stage(x)
    out.sum().backward()
    assert out.shape == (2, 6, 9, 7) and x.grad.isfinite().all() and x.grad.any()
    stage.eval()
    with torch.no_grad():
        compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), stage(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    adjacency = RegionAdjacency(Stencil.square(3), torch.rand(2, 9, 30, 30))
    adjacency.to_dense()[:, :, 3] = 0
    x, graph = torch.randn(2, 8, 5, 6), grid_graph((5, 6), Stencil.square(3), batch_size=2)
    nodes = x.movedim(1, -1).flatten(0, 2)
    made = DenseLocalAttention(8, 4, direction_bias=True, heads=2)
    runs = [
        lambda: LocalAttention.forward(made, x),
        lambda: LocalAttention.forward(made, nodes, graph.edge_index, graph.edge_type),
        lambda: made(nodes.view(2, 30, 8), adjacency),
    ]
    for run in runs:
        made.zero_grad()
        with torch.autocast("cpu", dtype):
            out = run()
        out.float().square().sum().backward()
        torch.testing.assert_close(out.float(), run(), rtol=0.05, atol=0.05)  # two roundings of inputs near 1
        assert all(p.grad.isfinite().all() for p in made.parameters())


def test_repr():
    made = LocalAttention(8, 4, Stencil.square(5, dilation=3), heads=2)
    assert str(made).startswith("LocalAttention(\n  8, 4, stencil=Stencil(5x5, dilation=3), heads=2, border='zero'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "`heads` must divide `out_channels` and `key_channels`, got 3, 4, 4"),
        ({"heads": 4, "key_channels": 6}, "got 4, 4, 6"),
        ({"heads": 0}, "`heads` must be a whole number >= 1"),
        ({"in_channels": (3, 4)}, r"must be one number or three, of queries, keys and values, got \(3, 4\)"),
        ({"out_channels": 0}, "`out_channels` must be a whole number >= 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        LocalAttention(**({"in_channels": 3, "out_channels": 4} | options))


def test_wrong_calls():
    made = LocalAttention(3, 4, Stencil.square(3, dilation=2), direction_bias=True)
    x, edges = torch.rand(5, 3), torch.tensor([[0, 1], [1, 2]])
    types = torch.tensor([0, 8])
    calls = [
        ((torch.rand(1, 3, 4, 9),), r"Stencil\(3x3, dilation=2\) spans 5 pixels, the map has a height of 4"),
        ((torch.rand(1, 3, 9, 3),), "spans 5 pixels, the map has a width of 3"),
        ((torch.rand(1, 2, 9, 9),), r"`x` \(query\) must have 3 channels, got shape \(1, 2, 9, 9\)"),
        ((x,), r"`x \(query\)` must have shape \(B, C, H, W\) without edges"),
        ((x, edges), r"`edge_type` must have shape \(2,\) for `direction_bias`, got None"),
        ((x, edges, torch.tensor([0, 9])), r"`edge_type` must be in \[0, 9\).*another stencil"),
        ((x, edges, types, torch.rand(3)), r"`edge_weight` must have shape \(2,\), got \(3,\)"),
        (
            (x, edges, types, torch.tensor([1.0, -1.0])),
            "`edge_weight` must be finite and not negative, got values from ",
        ),
        ((x, edges + 3, types), r"`edge_index\[1\]` must be in \[0, 5\)"),
    ]
    for arguments, message in calls:
        with pytest.raises(ValueError, match=message):
            made(*arguments)
    with pytest.raises(ValueError, match=r"`adjacency` must be over Stencil\(3x3, dilation=1\)"):
        DenseLocalAttention(3)(torch.rand(1, 4, 3), RegionAdjacency(Stencil.square(1), torch.rand(1, 1, 4, 4)))
