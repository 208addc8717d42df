"""Registration of operators with torch.library, and the choice of the backend that runs them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = ["BACKENDS", "backend_of", "kernel", "missing_backend", "operator", "use_backend"]

BACKENDS = ("torch", "triton")
_forced: ContextVar[str | None] = ContextVar("hggraph_backend", default=None)
_log = logging.getLogger("hggraph")


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    flops: Callable[..., int] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Register the decorated function as operator ``hggraph::name``.

    Args:
        name: Name of the operator.
        fake: Same arguments, returns empty tensors of the result's shape, strides and dtype.
        backward: Gradient formula ``(ctx, *grads) -> one gradient or None per argument``.
        setup_context: ``(ctx, inputs, output)``, saves what `backward` reads.
        flops: Same arguments but shapes for tensors, returns floating-point operations (2 per multiply-add).

    Returns:
        A decorator that gives back the operator, callable like the function.
    """

    def register(function: Callable[..., Any]) -> Any:
        # an operator settles its own precision: autocast decides in the public functions, not inside
        @functools.wraps(function)
        def without_autocast(*args: Any) -> Any:
            with torch.autocast(args[0].device.type, enabled=False):
                return function(*args)

        op = torch.library.custom_op(f"hggraph::{name}", without_autocast, mutates_args=())
        op.register_fake(fake)
        if backward is not None:
            op.register_autograd(backward, setup_context=setup_context)
        if flops is not None:
            register_flop_formula(getattr(torch.ops.hggraph, name))(flops)
        return op

    return register


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Force the backend of every operator inside the ``with`` block.

    Args:
        backend: ``"torch"``, ``"triton"``, or None for the usual choice: Triton kernels for tensors on a GPU
            where there are any, PyTorch otherwise.

    Raises:
        ValueError: if `backend` is neither.
        RuntimeError: if it cannot run here; the text says what is missing. A forced backend is never replaced
            silently by another.

    Example:
        >>> import torch
        >>> with use_backend("torch"):
        ...     torch.ops.hggraph.segment_softmax(torch.zeros(2), torch.tensor([0, 2]))
        tensor([0.5000, 0.5000])
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {BACKENDS} or None, got {backend!r}.")
    if backend is not None and (why := missing_backend(backend)):
        raise RuntimeError(f"The backend {backend!r} cannot be used here: {why}.")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def missing_backend(backend: str) -> str | None:
    """Return why `backend` cannot run here, or None when it can."""
    if backend == "torch":
        return None
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with PyTorch's GPU builds for Linux)"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA or ROCm device"
    return None


def backend_of(*tensors: Tensor) -> str:
    """Return the backend that would run an operator on these tensors."""
    forced = _forced.get()
    if forced is not None:
        return forced
    on_gpu = all(tensor.is_cuda for tensor in tensors)
    return "triton" if on_gpu and missing_backend("triton") is None else "torch"


def kernel(name: str, *tensors: Tensor) -> Any | None:
    """Return the module ``hggraph.kernels.<name>`` when Triton is to run the operator, else None.

    Raises:
        RuntimeError: if Triton is forced by `use_backend` and has no kernel of that name, or a tensor is not on
            a GPU.
    """
    if backend_of(*tensors) != "triton":
        return None
    if not all(tensor.is_cuda for tensor in tensors):
        raise RuntimeError(f"The Triton kernel of `{name}` needs tensors on a GPU, got one on the CPU.")
    module = f"hggraph.kernels.{name}"
    if importlib.util.find_spec(module) is not None:
        _log.debug("%s: triton", name)
        return importlib.import_module(module)
    if _forced.get() == "triton":
        raise RuntimeError(f"There is no Triton kernel of `{name}`; leave `use_backend('triton')` to run PyTorch's.")
    _log.debug("%s: torch (no Triton kernel of this name)", name)
    return None
