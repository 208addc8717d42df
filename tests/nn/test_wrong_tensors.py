"""Wrong dtypes, shapes, devices and values at the door: an error that names the argument, or the right result."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hggraph import Stencil, ops
from hggraph.graph import RegionAdjacency
from hggraph.nn import DenseHGConv, GMMConv, HGConv, LocalAttention, SplineConv
from hggraph.nn.local_attention import DenseLocalAttention
from hggraph.ops.spline_basis import spline_basis

torch.manual_seed(0)
X, MAP = torch.rand(4, 3), torch.rand(1, 3, 4, 5)
EDGES, TYPES, WEIGHTS = torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 0, 1]]), torch.tensor([0, 1, 2, 3, 8]), torch.rand(5)
PTR, TAP = torch.tensor([0, 2, 4]), torch.rand(9)
PSEUDO = torch.rand(5, 2)
MATRICES, DENSE, ROWS = torch.rand(9, 3, 2), torch.rand(2, 9, 4, 4), torch.rand(2, 4, 3)
GRAPH = {"x": X, "edge_index": EDGES, "edge_type": TYPES, "edge_weight": WEIGHTS}
SOFT = {"x": X, "edge_index": EDGES, "edge_attr": PSEUDO}
QKV = {"q": X, "k": X, "v": X, "edge_index": EDGES, "bias": WEIGHTS}
TAPS = Stencil.square(3).offsets
ADJACENCY = RegionAdjacency(Stencil.square(3), DENSE)


def watched() -> HGConv:
    layer = HGConv(3, 2)
    layer.register_message_forward_hook(lambda *_: None)  # message by message
    return layer


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Tensor]]] = {
    "HGConv": (HGConv(3, 2), GRAPH),
    "HGConv, watched": (watched(), GRAPH),
    "DenseHGConv": (lambda x: DenseHGConv(3, 2)(x, ADJACENCY), {"x": ROWS}),
    "SplineConv": (SplineConv(3, 2, 2, 3), SOFT),
    "GMMConv": (GMMConv(3, 2, 2, 3), SOFT),
    "LocalAttention": (LocalAttention(3, 4, heads=2, direction_bias=True), GRAPH),
    "LocalAttention, map": (LocalAttention(3, 4, heads=2), {"x": MAP}),
    "DenseLocalAttention": (lambda x: DenseLocalAttention(3, 2)(x, ADJACENCY), {"x": ROWS}),
    "typed_aggregate": (ops.typed_aggregate, {"x": X, "weight": MATRICES, **{k: GRAPH[k] for k in list(GRAPH)[1:]}}),
    "typed_aggregate_dense": (ops.typed_aggregate_dense, {"x": ROWS, "weight": MATRICES, "adjacency": DENSE}),
    "edge_attention": (ops.edge_attention, QKV),
    "local_attention": (
        lambda **a: ops.local_attention(offsets=TAPS, **a),
        {"q": MAP, "k": MAP, "v": MAP, "bias": TAP},
    ),
    "local_affinity": (lambda **a: ops.local_affinity(offsets=TAPS, **a), {"q": MAP, "k": MAP, "bias": TAP}),
    "spline_basis": (lambda pseudo: spline_basis(pseudo, 3), {"pseudo": PSEUDO}),
    "gather": (ops.gather, {"x": X, "index": TYPES[:4]}),
    "scatter": (lambda x, index: ops.scatter(x, index, 4), {"x": X, "index": TYPES[:4]}),
    "segment_reduce": (
        ops.segment_reduce,
        {"x": X, "ptr": PTR, "index": TYPES[:4], "weight": X[:, 0]},
    ),
    "segment_softmax": (ops.segment_softmax, {"x": X, "ptr": PTR}),
    "csr_pointer": (lambda index: ops.csr_pointer(index, 4), {"index": torch.tensor([0, 0, 3])}),
}
WRONG: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.numpy(),
    "text": lambda x: "wrong",
    "half": lambda x: x.half(),
    "double": lambda x: x.double(),
    "complex": lambda x: x.to(torch.complex64),
    "int": lambda x: x.int(),
    "long": lambda x: x.long(),
    "bytes": lambda x: x.to(torch.uint8),
    "bool": lambda x: x.bool(),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "scalar": lambda x: x.flatten()[0],
    "an axis more": lambda x: x[None],
    "an axis fewer": lambda x: x[0],
    "fewer rows": lambda x: x[:1],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "more columns": lambda x: torch.cat([x, x], -1),
    "negative": lambda x: x - 2,
    "large": lambda x: x + 1000,
    "huge": lambda x: x + (1 << 62),
    "NaN": lambda x: x * torch.nan,
    "infinite": lambda x: x * torch.inf,
}


def shown(name: str, wrong: str) -> tuple[str, Any]:
    """Return what a call with one wrong argument does: "ours", "theirs" or "result", and the error or result."""
    call, arguments = CALLS[name.partition(":")[0]]
    argument = name.partition(":")[2]
    given = {**arguments, argument: WRONG[wrong](arguments[argument])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "result", call(**given)
        except (TypeError, ValueError) as error:
            ours = re.search(rf"`{argument}\b|`x`? \((query|key|value)\)", str(error))
            return ("ours" if ours else "theirs"), error
        except Exception as error:
            return "theirs", error


# what of these is right, beside other values of the same shape and dtype
TOLERATED = {"int", "long", "bytes", "bool", "half", "double", "meta", "None", "fewer rows", "no rows"}
TOLERATED |= {"no columns", "more columns", "an axis more", "negative", "large", "huge", "NaN", "infinite"}
REFUSED = {
    "HGConv:edge_weight": {"negative", "NaN", "infinite", "complex", "meta"},
    "LocalAttention:edge_weight": {"negative", "NaN", "infinite", "complex", "meta"},
    "HGConv:edge_index": {"half", "bool", "negative", "large", "huge", "meta"},
    "SplineConv:edge_attr": {"negative", "large", "NaN", "infinite", "None", "meta"},
    "csr_pointer:index": {"negative", "large", "half"},
}


@pytest.mark.parametrize("name", [f"{call}:{argument}" for call, (_, given) in CALLS.items() for argument in given])
def test_one_wrong_argument(name):
    found = {wrong: shown(name, wrong) for wrong in WRONG}
    assert {wrong: f"{type(e).__name__}: {e}" for wrong, (kind, e) in found.items() if kind == "theirs"} == {}
    results = {wrong for wrong, (kind, _) in found.items() if kind == "result"}
    assert results <= TOLERATED and not results & REFUSED.get(name, set())


@pytest.mark.parametrize("call", ["HGConv", "HGConv, watched", "LocalAttention", "SplineConv", "GMMConv"])
def test_narrow_integers_do_not_wrap_around(call):
    """40 nodes times 9 directions leave a byte, where products of indices would come back as others."""
    layer, arguments = CALLS[call]
    edges = torch.stack([torch.arange(40), torch.arange(40).roll(1)])
    given = {"x": torch.rand(40, 3), "edge_index": edges}
    if "edge_type" in arguments:
        given["edge_type"] = torch.arange(40) % 9
    else:
        given["edge_attr"] = torch.rand(40, 2)
    expected = layer(**given)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        narrow = {key: value.to(dtype) if not value.is_floating_point() else value for key, value in given.items()}
        torch.testing.assert_close(layer(**narrow), expected, rtol=0, atol=0)


def test_a_layer_on_another_device_or_in_another_precision():
    with pytest.raises(ValueError, match="`weight` must be on the device of `x`, cpu, got meta"):
        HGConv(3, 2).to("meta")(**GRAPH)
    with pytest.raises(TypeError, match=r"`weight` must have the dtype of `x`, torch.float32, got torch.float64"):
        HGConv(3, 2).double()(**GRAPH)
    with torch.autocast("cpu", torch.bfloat16):
        assert HGConv(3, 2).bfloat16()(**GRAPH).dtype == torch.bfloat16
