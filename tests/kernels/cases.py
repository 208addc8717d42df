"""Small, odd and empty arguments for each operator that has a kernel, and how to run one on a backend.

The interpreter's tests, the mutation check and the tests on a GPU all run these.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hggraph import Stencil, use_backend
from hggraph.ops.segment import csr_pointer

SQUARE = [value for offset in Stencil.square(3) for value in offset]
WIDE = [value for offset in Stencil.square(3, dilation=2) for value in offset]
MANY = [value for offset in Stencil.square(13) for value in offset]  # more than fit into a tile
UNEVEN = [0, 0, 0, 1, 1, -1, 5, 0, -1, 1]  # some with an opposite, one that leaves the image


def rand(*shape: int) -> Tensor:
    return torch.randn(shape)


def weights(*shape: int) -> Tensor:
    """Row-normalised assignment (B, R, P), a third of it exactly 0 and the last region empty."""
    raw = torch.rand(shape) * (torch.rand(shape) > 0.33)
    raw[:, 0] += 0.1
    if shape[1] > 1:
        raw[:, -1] = 0
    return raw / raw.sum(1, keepdim=True)


def last(x: Tensor) -> Tensor:
    """The same values with the last two dimensions laid out the other way round."""
    return x.mT.contiguous().mT


def some(batch: int, entries: int, regions: int, pixels: int) -> Tensor:
    return torch.rand(batch, regions, pixels).argsort(1)[:, :entries].contiguous()


def column(*labels: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels)).t()[None].float()


def segments(entries: int, count: int) -> Tensor:
    """Bounds of `count` segments, the first and some others empty."""
    return csr_pointer(torch.randint(1, max(2, count), (entries,)).sort().values, count)


def edges(targets: int, sources: int, directions: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    ptr = csr_pointer(torch.randint(targets * directions, (count,)).sort().values, targets * directions)
    return torch.rand(count), ptr, torch.randint(max(1, sources), (count,))


@dataclass(frozen=True)
class Case:
    """One call: operator, what makes its arguments, and the precision that float32 reaches."""

    op: str
    about: str
    make: Callable[[], tuple]
    tolerance: float = 2e-5

    def __str__(self) -> str:
        return f"{self.op}, {self.about}"

    def arguments(
        self, dtype: torch.dtype = torch.float32, device: str = "cpu", rounding: torch.dtype | None = None
    ) -> tuple:
        """Return the same arguments each time, those in floating point as leaves, rounded to `rounding` before."""
        torch.manual_seed(1)

        def place(x):
            if not isinstance(x, Tensor):
                return x
            if not x.is_floating_point():
                return x.to(device)
            return x.to(rounding or dtype).to(device, dtype).requires_grad_()

        return tuple(place(x) for x in self.make())


CASES = [
    Case("segment_reduce", "sum", lambda: (rand(7, 19), segments(7, 5), None, None, "sum")),
    Case("segment_reduce", "sum, gathered", lambda: (last(rand(5, 19)), segments(23, 4), some_rows(23, 5), rand(23), "sum")),
    Case("segment_reduce", "mean", lambda: (rand(5, 3), segments(9, 4), some_rows(9, 5), rand(9), "mean")),
    Case("segment_reduce", "max", lambda: (rand(9, 17).round(), segments(9, 4), None, None, "max")),
    Case("segment_reduce", "max, gathered", lambda: (rand(5, 17).round(), segments(13, 4), some_rows(13, 5), None, "max")),
    Case("segment_reduce", "long", lambda: (rand(5, 2), segments(1100, 2), some_rows(1100, 5), rand(1100), "sum")),
    Case("segment_reduce", "long max", lambda: (rand(5, 2), segments(1100, 2), some_rows(1100, 5), None, "max")),
    Case("segment_reduce", "no entry", lambda: (rand(0, 3), segments(0, 3), None, None, "mean")),
    Case("segment_reduce", "no segment", lambda: (rand(0, 3), torch.tensor([0]), None, None, "sum")),
    Case("segment_softmax", "vector", lambda: (rand(13), segments(13, 4))),
    Case("segment_softmax", "heads", lambda: (100 * last(rand(37, 3)), segments(37, 4))),
    Case("segment_softmax", "empty", lambda: (rand(0, 3), segments(0, 2))),
    Case("edge_dot", "plain", lambda: (rand(5, 19), rand(4, 19), some_rows(23, 5).sort().values, some_rows(23, 4))),
    Case("edge_dot", "no edge", lambda: (last(rand(5, 3)), rand(4, 3), some_rows(0, 5), some_rows(0, 4))),
    Case("typed_aggregate", "fused", lambda: (rand(5, 19), rand(3, 19, 5), *edges(7, 5, 3, 11), 1)),
    Case("typed_aggregate", "fused, groups", lambda: (last(rand(5, 34)), rand(2, 17, 6), *edges(21, 5, 2, 30), 2)),
    Case("typed_aggregate", "gathered", lambda: (rand(5, 3), rand(2, 3, 257), *edges(3, 5, 2, 40), 1)),
    Case("typed_aggregate", "no edge", lambda: (rand(3, 3), rand(2, 3, 5), *edges(3, 3, 2, 0), 1)),
    Case("typed_aggregate_dense", "square", lambda: (rand(2, 5, 19), rand(3, 19, 4), rand(2, 3, 5, 5), 1)),
    Case("typed_aggregate_dense", "groups", lambda: (last(rand(2, 17, 6)), rand(2, 3, 4), last(rand(2, 2, 3, 17)), 2)),
    Case("soft_assign", "all", lambda: (rand(2, 19, 21) / 3, rand(2, 5, 19) / 3, None, 1e-3), 1e-4),
    Case("soft_assign", "channels last", lambda: (last(rand(2, 3, 17)), last(rand(2, 17, 3)), None, 0.0), 1e-4),
    Case("soft_assign", "far", lambda: (5 * rand(1, 4, 21), 5 * rand(1, 6, 4), None, 1e-3), 1e-4),
    Case("soft_assign", "many regions", lambda: (rand(1, 3, 19), rand(1, 131, 3), None, 1e-3), 1e-4),
    Case("soft_assign", "many far regions", lambda: (rand(1, 3, 19) / 4, rand(1, 131, 3) / 4 + 3, None, 1e-3), 1e-4),
    Case("soft_assign", "index", lambda: (rand(2, 5, 21), rand(2, 7, 5), some(2, 3, 7, 21), 1e-3), 1e-4),
    Case("soft_assign", "index, many channels", lambda: (last(rand(1, 40, 9)) / 4, rand(1, 6, 40) / 4, some(1, 2, 6, 9), 0.0), 1e-4),
    Case("soft_assign", "one pixel", lambda: (rand(1, 1, 1), rand(1, 1, 1), None, 1e-3), 1e-4),
    Case("centre_update", "all", lambda: (rand(2, 19, 21), rand(2, 5, 19), None), 1e-4),
    Case("centre_update", "channels last", lambda: (last(rand(2, 3, 70)), last(rand(2, 17, 3)), None), 1e-4),
    Case("centre_update", "long", lambda: (rand(1, 2, 1100), rand(1, 3, 2), None), 1e-4),
    Case("centre_update", "index", lambda: (rand(2, 3, 21), rand(2, 7, 3), some(2, 2, 7, 21)), 1e-4),
    Case("centre_update", "index, left out", lambda: (rand(1, 3, 9), rand(1, 5, 3), some(1, 1, 2, 9)), 1e-4),
    Case("region_adjacency", "square", lambda: (weights(2, 5, 35), [5, 7], SQUARE, True, True)),
    Case("region_adjacency", "raw", lambda: (last(weights(1, 17, 12)), [3, 4], UNEVEN, False, False)),
    Case("region_adjacency", "wide", lambda: (weights(1, 3, 20), [4, 5], WIDE, True, False)),
    Case("region_adjacency", "long", lambda: (weights(1, 3, 1147), [31, 37], SQUARE, True, True), 1e-4),
    Case("region_adjacency", "row", lambda: (weights(1, 3, 9), [1, 9], SQUARE, True, True)),
    # one direction strongest alone in the second tile, one equal to one of the first
    Case("region_adjacency", "many directions", lambda: (column(0, 3, 2, 2, 2, 1, 3), [7, 1], MANY, True, True)),
    Case("region_adjacency", "centre", lambda: (weights(1, 3, 9), [3, 3], [0, 0], True, True)),
    Case("region_pool", "plain", lambda: (rand(2, 19, 21), weights(2, 5, 21), None, 5)),
    Case("region_pool", "channels last", lambda: (last(rand(2, 3, 33)), last(weights(2, 17, 33)), None, 17)),
    Case("region_pool", "long", lambda: (rand(1, 3, 1100), weights(1, 3, 1100), None, 3), 1e-4),
    Case("region_pool", "index", lambda: (last(rand(2, 35, 21)), weights(2, 3, 21), some(2, 3, 7, 21), 7), 1e-4),
    Case("region_unpool", "plain", lambda: (rand(2, 5, 19), weights(2, 5, 21), None)),
    Case("region_unpool", "channels last", lambda: (last(rand(2, 17, 3)), last(weights(2, 17, 33)), None)),
    Case("region_unpool", "index", lambda: (rand(2, 7, 19), weights(2, 3, 21), some(2, 3, 7, 21))),
    Case("unpool_conv1x1", "bias", lambda: (rand(2, 3, 21), rand(2, 5, 4), weights(2, 5, 21), rand(6, 7), rand(6), None)),
    Case("unpool_conv1x1", "plain", lambda: (last(rand(2, 19, 9)), rand(2, 17, 2), weights(2, 17, 9), rand(5, 21), None, None)),
    Case("unpool_conv1x1", "index", lambda: (rand(2, 3, 21), rand(2, 7, 4), weights(2, 3, 21), rand(6, 7), rand(6), some(2, 3, 7, 21))),
    *[
        Case("local_attention", f"{border}", lambda border=border: (
            rand(2, 3, 5, 7), rand(2, 3, 5, 7), rand(2, 4, 5, 7), rand(9), SQUARE, 0.7, border))
        for border in ("zero", "mask", "shift")
    ],
    *[
        Case("local_attention", f"{border}, dilated, channels last", lambda border=border: (
            *(rand(1, 17, 6, 7).to(memory_format=torch.channels_last) for _ in range(3)), None, WIDE, 0.3, border))
        for border in ("zero", "mask", "shift")
    ],
    Case("local_attention", "uneven, heads", lambda: (
        rand(2, 3, 4, 6), rand(2, 3, 4, 6), rand(2, 19, 4, 6), rand(2, 3), [0, 1, 1, 1, 3, 9], 1.0, "mask")),
]  # fmt: skip


def some_rows(entries: int, rows: int) -> Tensor:
    return torch.randint(rows, (entries,))


def run(
    case: Case,
    backend: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    rounding: torch.dtype | None = None,
) -> list[Tensor]:
    """Return the results, then the gradients of all floating-point arguments for fixed cotangents."""
    arguments = case.arguments(dtype, device, rounding)
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    with use_backend(backend):
        out = getattr(torch.ops.hggraph, case.op)(*arguments)
        out = list(out) if isinstance(out, tuple) else [out]
        torch.manual_seed(2)
        cotangents = [torch.randn(o.shape).to(rounding or o.dtype).to(o) for o in out]
        wanted = [(o, c) for o, c in zip(out, cotangents, strict=True) if o.requires_grad]
        grads = torch.autograd.grad([o for o, _ in wanted], leaves, [c for _, c in wanted])
    return [x.detach() for x in (*out, *grads)]


def expected(case: Case, device: str = "cpu", rounding: torch.dtype | None = None) -> list[Tensor]:
    """Return what PyTorch's path computes in float64."""
    return run(case, "torch", torch.float64, device, rounding)


def worst(actual: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference over the largest value, over all tensors; infinite where one is not finite."""
    error = 0.0
    for a, w in zip(actual, wanted, strict=True):
        assert a.shape == w.shape
        if a.numel():
            here = float((a.double() - w.double()).abs().max() / w.double().abs().max().clamp(min=1e-3))
            error = max(error, here if here == here else float("inf"))
    return error
