"""What holds for every operator: registration, choice of the backend, FLOP counts, compilation."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from hggraph import Stencil, ops, use_backend
from hggraph.ops import _library

SQUARE = [value for offset in Stencil.square(3) for value in offset]
HALF_PLANE = [0, 0, 0, 1, 1, -1, 5, 0]  # no opposites, and one displacement that leaves the image
PTR = torch.tensor([0, 2, 2, 5, 6])
ROWS = torch.tensor([3, 0, 1, 1, 2, 0])
TARGETS, SOURCES = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1, 0, 0, 1, 0])


def leaf(*shape, dtype=torch.float32):
    return torch.rand(shape, dtype=dtype, requires_grad=True)


def last(*shape):  # as a channels_last image
    return leaf(*shape[:-2], *reversed(shape[-2:])).detach().mT.requires_grad_()


def some(count):  # different ones of 4 centres for 6 pixels, in random order
    return torch.rand(2, 4, 6).argsort(1)[:, :count]


def rand(*shape):
    return torch.rand(shape)


def updated(depth):  # new centres and log-sums, or their gradients
    return rand(2, depth, 4).mT, rand(2, 4)


def half_leaf(*shape):
    return leaf(*shape, dtype=torch.bfloat16)


def image(batch, channels, height, width):  # in channels_last memory
    return leaf(batch, height, width, channels).detach().permute(0, 3, 1, 2).requires_grad_()


def last_image(channels):
    return image(2, channels, 4, 5).detach()


def attended(depth):  # result and log-sums of attention
    return rand(2, depth, 4, 5), rand(2, 4, 5)


def halves():
    return rand(2, 6, 3).mT.half(), rand(2, 3, 4).mT.half()


# For each operator a function that makes argument lists; those of a *_backward need no gradient.
SAMPLES = {
    "segment_reduce": lambda: [
        (leaf(6, 3), PTR, None, None, "sum"),
        (last(4, 3), PTR, ROWS, leaf(6), "sum"),
        (leaf(4, 3), PTR, ROWS, leaf(6), "mean"),
        (leaf(4, 3), PTR, ROWS, None, "max"),
        (last(6, 3), PTR, None, None, "max"),
        (leaf(0, 3), torch.tensor([0, 0]), None, None, "mean"),
    ],
    "segment_reduce_backward": lambda: [
        (rand(4, 3), rand(4, 3), PTR, ROWS, rand(6), None, "sum"),
        (rand(3, 4).t(), rand(3, 6).t(), PTR, None, None, None, "mean"),
        (rand(4, 3), torch.ones(3, 4).t(), PTR, ROWS, None, torch.ones(4, 3), "max"),
    ],
    "segment_softmax": lambda: [(leaf(6), PTR), (last(6, 3), PTR), (leaf(0, 2), torch.tensor([0]))],
    "segment_softmax_backward": lambda: [(rand(6), rand(6), PTR), (rand(3, 6).t(), rand(3, 6).t(), PTR)],
    "edge_dot": lambda: [
        (leaf(3, 4), leaf(2, 4), TARGETS, SOURCES),
        (last(3, 4), last(2, 4), TARGETS, SOURCES),
        (leaf(3, 4), leaf(2, 4), TARGETS[:0], SOURCES[:0]),
    ],
    "edge_dot_backward": lambda: [
        (rand(5), rand(3, 4), rand(2, 4), TARGETS, SOURCES),
        (rand(10)[::2], rand(4, 3).t(), rand(4, 2).t(), TARGETS, SOURCES),
    ],
    "soft_assign": lambda: [
        (leaf(2, 3, 6), leaf(2, 4, 3), None, 1e-3),
        (last(2, 3, 6), last(2, 4, 3), some(2), 0.0),
        (leaf(2, 3, 6, dtype=torch.bfloat16), leaf(2, 4, 3), None, 0.5),
    ],
    "soft_assign_backward": lambda: [
        (rand(2, 4, 6), rand(2, 3, 6), rand(2, 4, 3), None, rand(2, 4, 6)),
        (rand(2, 6, 2).mT, rand(2, 6, 3).mT, rand(2, 4, 3).half(), some(2), rand(2, 2, 6)),
    ],
    "centre_update": lambda: [
        (leaf(2, 3, 6), leaf(2, 4, 3), None),
        (last(2, 3, 6), last(2, 4, 3), some(2)),
        (leaf(2, 3, 6, dtype=torch.bfloat16), leaf(2, 4, 3), None),
    ],
    "centre_update_backward": lambda: [
        (rand(2, 4, 3), rand(2, 3, 6), rand(2, 4, 3), None, rand(2, 4, 3), rand(2, 4)),
        (rand(2, 3, 4).mT, *halves(), some(3), rand(2, 4, 3), rand(2, 4)),
    ],
    "local_attention": lambda: [
        (leaf(2, 3, 4, 5), leaf(2, 3, 4, 5), leaf(2, 2, 4, 5), None, SQUARE, 0.5, "zero"),
        (image(2, 3, 4, 5), image(2, 3, 4, 5), image(2, 2, 4, 5), leaf(2, 4), HALF_PLANE, 0.5, "mask"),
        (last(2, 3, 4, 5), leaf(2, 3, 4, 5), image(2, 2, 4, 5), leaf(9), SQUARE, 2.0, "shift"),
        (*(half_leaf(2, 3, 4, 5) for _ in range(3)), half_leaf(4), HALF_PLANE, 0.5, "zero"),
        (leaf(0, 3, 4, 5), leaf(0, 3, 4, 5), leaf(0, 2, 4, 5), leaf(4), HALF_PLANE, 0.5, "mask"),
    ],
    "local_attention_backward": lambda: [
        (*(rand(2, 3, 4, 5) for _ in range(4)), None, *attended(3), SQUARE, 0.5, "mask"),
        (rand(2, 2, 5, 4).mT, *map(last_image, (3, 3, 2)), rand(2, 4), *attended(2), HALF_PLANE, 0.5, "zero"),
        (*(rand(2, 3, 4, 5).half() for _ in range(4)), rand(9).half(), *attended(3), SQUARE, 0.5, "shift"),
    ],
    "region_adjacency": lambda: [
        (leaf(2, 4, 12), [3, 4], SQUARE, True, True),
        (last(2, 4, 12), [3, 4], HALF_PLANE, False, False),
        (leaf(1, 4, 5), [1, 5], SQUARE, True, False),
    ],
    "region_adjacency_backward": lambda: [
        (rand(2, 9, 4, 4), rand(2, 4, 12), rand(2, 9, 4, 4), [3, 4], SQUARE, True),
        (rand(2, 4, 4, 4).mT, rand(2, 12, 4).mT, rand(2, 4, 4, 4), [3, 4], HALF_PLANE, False),
    ],
    "region_pool": lambda: [
        (leaf(2, 3, 6), leaf(2, 4, 6), None, 4),
        (last(2, 3, 6), last(2, 4, 6), None, 4),
        (leaf(2, 3, 6, dtype=torch.bfloat16), leaf(2, 4, 6), None, 4),
        (last(2, 3, 6), leaf(2, 2, 6), some(2), 4),
    ],
    "region_pool_backward": lambda: [
        (rand(2, 4, 3), rand(2, 4), rand(2, 3, 6), rand(2, 4, 6), None, rand(2, 4, 3), rand(2, 4)),
        (rand(2, 3, 4).mT, rand(2, 4), rand(2, 6, 3).mT, rand(2, 6, 2).mT, some(2), rand(2, 4, 3), rand(2, 4)),
    ],
    "region_unpool": lambda: [
        (leaf(2, 4, 3), leaf(2, 4, 6), None),
        (last(2, 4, 3), last(2, 4, 6), None),
        (leaf(2, 4, 3, dtype=torch.bfloat16), leaf(2, 4, 6), None),
        (last(2, 4, 3), last(2, 2, 6), some(2)),
    ],
    "region_unpool_backward": lambda: [
        (rand(2, 3, 6), rand(2, 4, 3), rand(2, 4, 6), None),
        (rand(2, 6, 3).mT, rand(2, 3, 4).mT, rand(2, 6, 2).mT, some(2)),
    ],
    "typed_aggregate": lambda: [
        (leaf(4, 2), leaf(2, 2, 4), leaf(6), PTR, ROWS, 1),
        (last(4, 4), leaf(2, 2, 6), leaf(6), PTR, ROWS, 2),
        (leaf(4, 2), leaf(2, 2, 4), leaf(0), torch.zeros(5, dtype=torch.long), ROWS[:0], 1),
    ],
    "typed_aggregate_backward": lambda: [
        (rand(2, 4), rand(4, 2), rand(2, 2, 4), rand(6), PTR, ROWS, 1, False),
        (rand(6, 2).t(), rand(4, 4).t(), rand(2, 2, 6), rand(6), PTR, ROWS, 2, True),
    ],
    "typed_aggregate_dense": lambda: [
        (leaf(2, 4, 2), leaf(3, 2, 5), leaf(2, 3, 4, 4), 1),
        (last(2, 4, 4), leaf(3, 2, 6), last(2, 3, 5, 4), 2),
    ],
    "typed_aggregate_dense_backward": lambda: [
        (rand(2, 4, 5), rand(2, 4, 2), rand(3, 2, 5), rand(2, 3, 4, 4), 1),
        (rand(2, 6, 5).mT, rand(2, 4, 4).mT, rand(3, 2, 6), rand(2, 3, 4, 5).mT, 2),
    ],
    "unpool_conv1x1": lambda: [
        (leaf(2, 3, 6), leaf(2, 4, 2), leaf(2, 4, 6), leaf(5, 5), leaf(5), None),
        (last(2, 3, 6), last(2, 4, 2), last(2, 4, 6), last(5, 5), None, None),
        (leaf(2, 3, 6)[:, :, ::2], leaf(2, 4, 2), leaf(2, 4, 3), leaf(5, 5), None, None),
        (last(2, 3, 1), leaf(2, 4, 2), leaf(2, 4, 1), leaf(5, 5), None, None),
        (last(2, 3, 6), leaf(2, 4, 2), leaf(2, 2, 6), leaf(5, 5), leaf(5), some(2)),
    ],
    "unpool_conv1x1_backward": lambda: [
        (rand(2, 5, 6), rand(2, 3, 6), rand(2, 4, 2), rand(2, 4, 6), rand(5, 5), None),
        (rand(2, 6, 5).mT, rand(2, 6, 3).mT, rand(2, 2, 4).mT, rand(2, 6, 2).mT, rand(5, 5).mT, some(2)),
    ],
}
FORWARD = [name for name in SAMPLES if not name.endswith("_backward")]


def test_all_sampled():
    """A new operator needs arguments above, and so gets an opcheck."""
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    assert {name for space, name in names if space == "hggraph"} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    for arguments in SAMPLES[name]():
        torch.library.opcheck(getattr(torch.ops.hggraph, name).default, arguments)


@pytest.mark.parametrize("name", FORWARD)
def test_differentiable(name):
    """Every floating-point argument gets a gradient of its own shape and dtype."""
    for arguments in SAMPLES[name]():
        out = getattr(torch.ops.hggraph, name)(*arguments)
        leaves = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
        out = [part for part in (out if isinstance(out, tuple) else (out,)) if part.requires_grad]
        grads = torch.autograd.grad(out, leaves, [torch.rand_like(o) for o in out])
        assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in leaves]
        assert all(t.isfinite().all() for t in (*out, *grads))


@pytest.mark.parametrize("name", SAMPLES)
def test_forward_mode(name):
    """A tangent in any argument, alone or inside functorch, is refused instead of dropped."""
    operator, arguments = getattr(torch.ops.hggraph, name), SAMPLES[name]()[0]
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    floats = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.is_floating_point()]
    assert floats
    for i in floats:

        def run(x, i=i):
            return operator(*arguments[:i], x, *arguments[i + 1 :])

        for grad_needed in (False, True):
            x = arguments[i].clone().requires_grad_(grad_needed)
            with pytest.raises(NotImplementedError, match=f"hggraph::{name} has no forward-mode derivative"):
                torch.func.jvp(run, (x,), (torch.ones_like(x),))
            with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="Use reverse mode"):
                run(forward_ad.make_dual(x, torch.ones_like(x)))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.func.jacfwd(run)(arguments[i])
        with forward_ad.dual_level():  # others may be differentiated around it
            run(arguments[i])


# Operator, arguments, and operations by hand: 2 for each multiplication with its addition.
FLOPS = {
    "segment_reduce": (lambda: (leaf(4, 3), PTR, ROWS, None, "sum"), 2 * 6 * 3),
    "segment_softmax": (lambda: (leaf(6, 3), PTR), 4 * 6 * 3),  # subtract, exponential, add, divide
    "edge_dot": (lambda: (leaf(3, 4), leaf(2, 4), TARGETS, SOURCES), 2 * 5 * 4),
    "soft_assign": (lambda: (leaf(2, 3, 6), leaf(2, 4, 3), None, 0.1), 2 * (2 * 6 * 4) * 3),
    "centre_update": (
        lambda: (leaf(2, 3, 6), leaf(2, 4, 3), None),
        2 * (2 * 6 * 4) * (3 + 3),
    ),
    # 9 taps for each of 20 pixels, outside the image too
    "local_attention": (
        lambda: (leaf(2, 3, 4, 5), leaf(2, 3, 4, 5), leaf(2, 7, 4, 5), leaf(9), SQUARE, 0.5, "zero"),
        2 * (2 * 20 * 9) * (3 + 7),
    ),
    "region_adjacency": (
        lambda: (leaf(2, 4, 12), [3, 4], SQUARE, True, True),
        4 * 2 * 2 * (4 * 4) * 12,
    ),
    "region_pool": (lambda: (leaf(2, 3, 6), leaf(2, 4, 6), None, 4), 2 * 2 * 3 * 6 * 4),
    "region_unpool": (lambda: (leaf(2, 4, 3), leaf(2, 4, 6), None), 2 * 2 * 4 * 3 * 6),
    # 6 edges of 4 channels, then 2 targets and 2 directions with matrices of 4 / 2 by 6
    "typed_aggregate": (
        lambda: (leaf(4, 4), leaf(2, 2, 6), leaf(6), PTR, ROWS, 2),
        2 * 6 * 4 + 2 * (2 * 2) * (2 * 6),
    ),
    "typed_aggregate_dense": (
        lambda: (leaf(2, 4, 6), leaf(3, 3, 8), leaf(2, 3, 5, 4), 2),
        2 * (2 * 3 * 5) * (4 * 6) + 2 * (2 * 3 * 5) * (3 * 8),
    ),
    # X Wa and S (Z Wb) over 6 pixels, Z Wb over 4 regions
    "unpool_conv1x1": (
        lambda: (leaf(2, 3, 6), leaf(2, 4, 7), leaf(2, 4, 6), leaf(5, 10), None, None),
        2 * 2 * (6 * 3 * 5 + 6 * 4 * 5 + 4 * 7 * 5),
    ),
}


@pytest.mark.parametrize("name", FORWARD)
def test_flops(name):
    operator = getattr(torch.ops.hggraph, name)
    assert operator in flop_registry
    make, by_hand = FLOPS[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        operator(*make())
    assert counter.get_total_flops() == by_hand


def test_flops_variants():
    """With an index only its entries count; directions without an opposite have a product."""
    x, centers, index = torch.rand(2, 3, 6), torch.rand(2, 4, 3), torch.zeros(2, 1, 6).long()
    weight = torch.ones(2, 1, 6)
    for call, entry in [
        (lambda: ops.soft_assign(x, centers, index), 3),
        (lambda: ops.centre_update(x, centers, index), 3 + 3),
        (lambda: ops.region_pool(x, weight, index, 4), 3),
        (lambda: ops.region_unpool(centers, weight, index), 3),
    ]:
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == 2 * (2 * 6 * 1) * entry
    with FlopCounterMode(display=False) as counter:
        ops.region_adjacency(torch.rand(2, 4, 12), (3, 4), [(0, 0), (0, 1), (1, -1), (-1, 1)])
    assert counter.get_total_flops() == 2 * 2 * 2 * (4 * 4) * 12
    with FlopCounterMode(display=False) as counter:
        ops.segment_reduce(torch.rand(6, 3), PTR)
    assert counter.get_total_flops() == 2 * 6 * 3


# Operations of the backward operators for the arguments in FLOPS, by hand.
BACKWARD_FLOPS = {
    "segment_reduce": 2 * 6 * 3,
    "edge_dot": 2 * 2 * 5 * 4,
    "soft_assign": 2 * 2 * (2 * 6 * 4) * 3,  # for pixels and for centres
    # distances again and their two gradients; weights' and values' gradients
    "centre_update": 2 * (2 * 6 * 4) * (3 * 3 + 2 * 3),
    # logits again, gradients of queries and keys; those of weights and values
    "local_attention": 2 * (2 * 20 * 9) * (3 * 3 + 2 * 7),
    "region_adjacency": 2 * (4 * 2 * 2 * (4 * 4) * 12),
    "segment_softmax": 4 * 6 * 3,  # two multiplications, a sum, a difference
    "region_pool": 2 * (2 * 2 * 3 * 6 * 4),
    "region_unpool": 2 * (2 * 2 * 4 * 3 * 6),
    "typed_aggregate_dense": 2 * (2 * 3 * 5) * (3 * (4 * 6) + 2 * (3 * 8)),
    "unpool_conv1x1": 2 * (2 * 2 * (6 * 3 * 5 + 6 * 4 * 5 + 4 * 7 * 5)),
    # aggregates again, their gradient scattered, that of the coefficients; two products
    "typed_aggregate": 3 * (2 * 6 * 4) + 2 * (2 * (2 * 2) * (2 * 6)),
}


@pytest.mark.parametrize("name", BACKWARD_FLOPS)
def test_flops_backward(name):
    make, forward = FLOPS[name]
    arguments = make()
    with FlopCounterMode(display=False) as counter:
        out = getattr(torch.ops.hggraph, name)(*arguments)
        sum(part.sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    assert counts == {f"hggraph.{name}": forward, f"hggraph.{name}_backward": BACKWARD_FLOPS[name]}


def test_compile():
    """The network path is one graph, forward and backward, and another image size works too."""

    def step(x, centers, weight, size):
        assignment = ops.soft_assign(x, centers)
        adjacency = ops.region_adjacency(assignment, size, Stencil.square(3).offsets)
        regions = ops.typed_aggregate_dense(ops.region_pool(x, assignment), weight, adjacency)
        return ops.region_unpool(regions, assignment)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for size in [(4, 5), (3, 7)]:
        leaves = [leaf(2, 3, size[0] * size[1]), leaf(2, 4, 3), leaf(9, 3, 2)]
        expected, actual = step(*leaves, size), compiled(*leaves, size)
        cotangent = torch.randn_like(expected)
        grads = [torch.autograd.grad(out, leaves, cotangent) for out in (actual, expected)]
        torch.testing.assert_close((actual, *grads[0]), (expected, *grads[1]))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FORWARD)
def test_forced(monkeypatch, name):
    """Every operator asks for the backend, and refuses CPU tensors when Triton is forced."""
    monkeypatch.setattr(_library, "missing_backend", lambda backend: None)
    monkeypatch.setattr(_library, "interpreting", lambda: False)
    with use_backend("triton"), pytest.raises(RuntimeError, match="needs tensors on a GPU"):
        getattr(torch.ops.hggraph, name)(*SAMPLES[name]()[0])
