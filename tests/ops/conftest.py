"""What the tests of operators share: layouts of memory, and the comparison with a reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def transposed(x: Tensor) -> Tensor:  # channels_last for (B, C, P)
    return x.mT.contiguous().mT if x.dim() > 1 else strided(x)


def strided(x: Tensor) -> Tensor:
    buffer = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    buffer[..., ::2] = x
    return buffer[..., ::2]


def surrounded(x: Tensor) -> Tensor:
    buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
    view = buffer[(slice(1, -1),) * x.dim()]
    view.copy_(x)
    return view


def expanded(x: Tensor) -> Tensor:  # changes the values: one per row
    return x[..., :1].clone().expand_as(x)


def repeated(x: Tensor) -> Tensor:  # changes the values: the first row for all
    return x[:1].clone().expand_as(x)


LAYOUTS = [contiguous, transposed, strided, surrounded, expanded, repeated]


def is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def leaves_of(inputs, layout):
    """Return the inputs, those with a gradient as new leaves, and these alone."""
    inputs = [layout(x.detach()).requires_grad_() if is_float(x) else x for x in inputs]
    return inputs, [x for x in inputs if is_float(x)]


def as_tuple(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.fixture(scope="session")
def agree() -> Callable[..., None]:
    """Return a check that two functions have one value and one gradient for random cotangents."""

    def check(function, reference, *inputs, layouts=(contiguous, contiguous)):
        """Lay floating-point inputs and incoming gradients out as `layouts` say, to 1e-10."""
        ours, our_leaves = leaves_of(inputs, layouts[0])
        theirs, their_leaves = leaves_of(ours, contiguous)
        actual, expected = as_tuple(function(*ours)), as_tuple(reference(*theirs))
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        incoming = [layouts[1](torch.randn_like(contiguous(o.detach()))) for o in expected]
        actual = torch.autograd.grad(actual, our_leaves, incoming)
        expected = torch.autograd.grad(expected, their_leaves, [contiguous(c) for c in incoming])
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)

    return check


@pytest.fixture(scope="session")
def agree_everywhere(agree) -> Callable[..., None]:
    """Return `agree` over every layout of the inputs, then of the incoming gradients."""

    def check(function, reference, *inputs):
        for layout in LAYOUTS:
            agree(function, reference, *inputs, layouts=(layout, contiguous))
            agree(function, reference, *inputs, layouts=(contiguous, layout))

    return check


@pytest.fixture(scope="session")
def near_float32() -> Callable[..., None]:
    """Return a check that half precision stays finite and near float32, forward and backward."""

    def run(function, inputs, layout, dtype, enabled):
        inputs, leaves = leaves_of(inputs, layout)
        with torch.autocast("cpu", dtype, enabled=enabled):
            out = as_tuple(function(*inputs))
        incoming = [torch.linspace(-1, 1, o.numel()).view(o.shape).to(o.dtype) for o in out]
        return [*out, *torch.autograd.grad(out, leaves, incoming)]

    def check(function, dtype, *inputs, autocast=True):
        """Run under autocast, or without it on inputs of `dtype`, and compare with float32."""
        expected = run(function, inputs, lambda x: x, dtype, False)
        rounded = (lambda x: x) if autocast else (lambda x: x.to(dtype))
        actual = run(function, inputs, rounded, dtype, autocast)
        # Inputs, factors, sums and results are rounded once each, relative to the largest number.
        for a, e in zip(actual, expected, strict=True):
            bound = 4 * torch.finfo(dtype).eps * float(e.detach().abs().max())
            torch.testing.assert_close(a.float(), e, rtol=0, atol=bound)

    return check
