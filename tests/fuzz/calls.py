"""Calls of ops and layers: with right arguments of any shape equal to the reference, with wrong ones our error."""

import re
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from hggraph import Stencil, ops
from hggraph.nn import HGConv, LocalAttention
from hggraph.ops.edge_attention import edge_attention_reference
from hggraph.ops.local_attention import local_attention_reference
from hggraph.ops.segment import segment_reduce_reference
from hggraph.ops.spline_basis import spline_basis, spline_basis_reference
from tests.nn.test_wrong_tensors import CALLS, WRONG

DTYPES = (torch.float32, torch.float64)
LAYOUTS = ("plain", "transposed", "strided", "expanded")
sizes = st.integers(0, 7)
arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1 << 30),
        "dtype": st.sampled_from(DTYPES),
        "layout": st.sampled_from(LAYOUTS),
        "nodes": sizes,
        "edges": st.integers(0, 20),
        "channels": st.integers(1, 6),
        "out": st.integers(0, 5),
        "groups": st.integers(1, 3),
        "side": st.integers(1, 6),
        "border": st.sampled_from(["zero", "mask", "shift"]),
        "reduce": st.sampled_from(["sum", "mean", "max"]),
        "normalize": st.booleans(),
    }
)


class Maker:
    """Makes tensors of an example, in its layout and dtype."""

    def __init__(self, example: dict[str, Any]) -> None:
        self.example, self.random = example, torch.Generator().manual_seed(example["seed"])

    def floats(self, *shape: int) -> Tensor:
        x = torch.rand(*shape, generator=self.random, dtype=torch.float64).to(self.example["dtype"])
        match self.example["layout"]:
            case "transposed":
                return x.transpose(0, -1).contiguous().transpose(0, -1)
            case "strided":
                return torch.stack([x, x], -1)[..., 0]
            case "expanded":
                return x[:1].expand_as(x) if len(x) else x
        return x

    def index(self, upper: int, *shape: int) -> Tensor:
        return torch.randint(0, max(1, upper), shape if upper else (*shape[:-1], 0), generator=self.random)


def check_right_call(pair: tuple[str, dict[str, Any]]) -> str:
    name, example = pair
    found, expected = RIGHT[name](Maker(example), **example)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-5)
    return name


def typed(make: Maker, nodes: int, edges: int, channels: int, out: int, groups: int, normalize: bool, **_: Any) -> Any:
    """Compare with a loop over edges, in float64."""
    channels, out = channels * groups, out * groups
    edge_index = torch.stack([make.index(nodes, edges), make.index(nodes, edges)])
    edges = edge_index.shape[1]
    edge_type, weight = make.index(3, edges), make.floats(edges)
    x, matrices = make.floats(nodes, channels), make.floats(3, channels // groups, out)
    found = ops.typed_aggregate(x, matrices, edge_index, edge_type, weight, groups=groups, normalize=normalize)
    expected = torch.zeros(nodes, out, dtype=torch.float64)
    for (source, target), kind, strength in zip(
        edge_index.t().tolist(), edge_type.tolist(), weight.double(), strict=True
    ):
        together = (edge_index[1] == target) & (edge_type == kind)
        factor = strength / weight.double()[together].sum().clamp(min=1e-7) if normalize else strength
        parts = zip(x[source].double().chunk(groups), matrices[kind].double().chunk(groups, 1), strict=True)
        expected[target] += factor * torch.cat([a @ b for a, b in parts])
    return found, expected


def attended(make: Maker, nodes: int, edges: int, channels: int, out: int, **_: Any) -> Any:
    edge_index = torch.stack([make.index(nodes, edges), make.index(nodes, edges)])
    q, k, v = make.floats(nodes, channels), make.floats(nodes, channels), make.floats(nodes, out)
    bias = make.floats(edge_index.shape[1])
    found = ops.edge_attention(q, k, v, edge_index, bias=bias)
    if not nodes:
        return found, torch.zeros(0, out)
    doubles = [tensor.double() for tensor in (q, k, v)]
    return found, edge_attention_reference(*doubles, edge_index, channels**-0.5, bias.double())


def attended_map(make: Maker, side: int, nodes: int, channels: int, out: int, border: str, **_: Any) -> Any:
    shape = (2, channels, 3 + side % 3, 3 + nodes % 3)
    q, k, v = make.floats(*shape), make.floats(*shape), make.floats(2, max(1, out), *shape[2:])
    offsets = Stencil.square(3).offsets
    found = ops.local_attention(q, k, v, offsets, border=border)
    doubles = [tensor.double() for tensor in (q, k, v)]
    return found, local_attention_reference(*doubles, None, offsets, channels**-0.5, border)


def reduced(make: Maker, nodes: int, edges: int, channels: int, reduce: str, **_: Any) -> Any:
    index = make.index(nodes, edges)
    ptr = torch.cat([torch.zeros(1), torch.sort(make.index(len(index) + 1, 3))[0], torch.tensor([len(index)])]).long()
    x = make.floats(nodes, channels)
    weight = None if reduce == "max" else make.floats(len(index))
    found = ops.segment_reduce(x, ptr, index, weight, reduce=reduce)
    return found, segment_reduce_reference(x.double(), ptr, index, None if weight is None else weight.double(), reduce)


def spline(make: Maker, edges: int, groups: int, side: int, normalize: bool, **_: Any) -> Any:
    dims, degree = 1 + side % 3, groups
    pseudo, size = make.floats(edges, dims), [degree + 1 + d for d in range(dims)]
    found = spline_basis(pseudo, size, normalize, degree)
    expected = spline_basis_reference(pseudo.double(), size, [normalize] * dims, degree)
    product = 1
    for one in size:
        product *= one

    def table(basis: Tensor, index: Tensor) -> Tensor:  # on a knot two rows say the same in another order
        return torch.zeros(edges, product, dtype=torch.float64).scatter_add(1, index, basis.double())

    return table(*found), table(*expected)


def convolved(make: Maker, nodes: int, edges: int, channels: int, out: int, **_: Any) -> Any:
    """Compare the fused form with message by message."""
    layer = HGConv(channels, 1 + out).to(make.example["dtype"])
    edge_index = torch.stack([make.index(nodes, edges), make.index(nodes, edges)])
    given = (
        make.floats(nodes, channels),
        edge_index,
        make.index(9, edge_index.shape[1]),
        make.floats(edge_index.shape[1]),
    )
    found = layer(*given)
    layer.register_message_forward_hook(lambda *_: None)
    return found, layer(*given)


def attended_twice(make: Maker, nodes: int, edges: int, channels: int, groups: int, **_: Any) -> Any:
    """An edge of weight 2 is two edges."""
    layer = LocalAttention(channels, groups, heads=groups, direction_bias=True).to(make.example["dtype"])
    edge_index = torch.stack([make.index(nodes, edges), make.index(nodes, edges)])
    kinds, x = make.index(9, edge_index.shape[1]), make.floats(nodes, channels)
    twice = torch.full((edge_index.shape[1],), 2.0)
    return layer(x, edge_index, kinds, twice), layer(x, edge_index.repeat(1, 2), kinds.repeat(2))


RIGHT: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "typed_aggregate": typed,
    "edge_attention": attended,
    "local_attention": attended_map,
    "segment_reduce": reduced,
    "spline_basis": spline,
    "HGConv": convolved,
    "LocalAttention": attended_twice,
}


def check_wrong_call(example: tuple[str, list[tuple[int, str]]]) -> str:
    """Change up to three arguments, each in up to three ways one after the other."""
    name, changes = example
    call, right = CALLS[name]
    given: dict[str, Any] = dict(right)
    for number, wrong in changes:
        key = list(given)[number % len(given)]
        try:
            given[key] = WRONG[wrong](given[key])
        except Exception:  # what has been changed before cannot be changed so
            continue
    try:
        call(**given)
    except (TypeError, ValueError) as error:
        assert re.search(r"`\w+(\[\d\])?`|`x` \(\w+\)|`x \(\w+\)`", str(error)), f"an error that names nothing: {error}"
        return "refused"
    return "returned"


TARGETS: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "right calls": (st.tuples(st.sampled_from(sorted(RIGHT)), arguments), check_right_call),
    "wrong calls": (
        st.tuples(
            st.sampled_from(sorted(CALLS)),
            st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(WRONG))), min_size=1, max_size=3),
        ),
        check_wrong_call,
    ),
}
