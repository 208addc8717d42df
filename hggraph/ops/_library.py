"""Registration of operators with torch.library, and the choice of the backend that runs them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import make_autograd_impl
from torch.autograd.forward_ad import unpack_dual
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import register_flop_formula

__all__ = [
    "BACKENDS",
    "OpenOperators",
    "autocast",
    "backend_of",
    "full_precision",
    "interpreting",
    "kernel",
    "missing_backend",
    "operator",
    "use_backend",
]

BACKENDS = ("torch", "triton")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_forced: ContextVar[str | None] = ContextVar("hggraph_backend", default=None)
_bodies: dict[Any, Callable[..., Any]] = {}  # of the operators, by what torch.ops calls them
_overrides = torch.library.Library("hggraph", "FRAGMENT")  # lasts as long as the operators
_log = logging.getLogger("hggraph")


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    flops: Callable[..., int] | None = None,
    opened: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Register the decorated function as operator ``hggraph::name``.

    Args:
        name: Name of the operator.
        fake: Same arguments, returns empty tensors of the result's shape, strides and dtype.
        backward: Gradient formula ``(ctx, *grads) -> one gradient or None per argument``.
        setup_context: ``(ctx, inputs, output)``, saves what `backward` reads.
        flops: Same arguments but shapes for tensors, returns floating-point operations (2 per multiply-add).
        opened: What `OpenOperators` traces where the function itself is not made of operations that exporters know.

    Returns:
        A decorator that gives back the operator, callable like the function. To torch.compile it is one node, on
        every device; a `triton_op` would be traced instead, and the PyTorch paths that read a pointer's bounds on
        the CPU cannot be. It differentiates in reverse mode alone, and refuses forward mode.
    """

    def register(function: Callable[..., Any]) -> Any:
        # an operator settles its own precision: autocast decides in the public functions, not inside
        @functools.wraps(function)
        def without_autocast(*args: Any) -> Any:
            with torch.autocast(args[0].device.type, enabled=False):
                return function(*args)

        op = torch.library.custom_op(f"hggraph::{name}", without_autocast, mutates_args=())
        op.register_fake(fake)
        packet = getattr(torch.ops.hggraph, name)
        body = without_autocast if opened is None else opened
        _bodies.update({packet: body, packet.default: body})
        if backward is not None:
            run, setup = _same_backend(backward, setup_context)
            op.register_autograd(run, setup_context=setup)
        _refuse_forward_mode(name, op)
        if flops is not None:
            register_flop_formula(packet)(flops)
        return op

    return register


def _refuse_forward_mode(name: str, op: Any) -> None:
    """Let an operator raise for inputs with tangents, which torch.library would drop: the derivative would be 0."""
    # what torch.library itself registers here, from the operator's setup_context and backward
    differentiate = make_autograd_impl(getattr(torch.ops.hggraph, name).default, op)

    def checked(keys: Any, *args: Any, **kwargs: Any) -> Any:
        for value in args:
            if isinstance(value, Tensor) and unpack_dual(value).tangent is not None:
                raise NotImplementedError(
                    f"hggraph::{name} has no forward-mode derivative (torch.func.jvp, jacfwd, forward_ad). Use reverse "
                    "mode: `backward`, torch.autograd.grad or torch.autograd.functional.jacobian."
                )
        return differentiate(keys, *args, **kwargs)

    _overrides.impl(name, checked, "Autograd", with_keyset=True)


def _same_backend(backward: Callable[..., Any], setup_context: Callable[..., None] | None) -> tuple[Any, Any]:
    """Let the backward pass, which autograd runs in a thread of its own, use the backend forced in the forward."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = _forced.get()
        if setup_context is not None:
            setup_context(ctx, inputs, output)

    def run(ctx: Any, *grads: Any) -> Any:
        token = _forced.set(ctx.backend)
        try:
            return backward(ctx, *grads)
        finally:
            _forced.reset(token)

    return run, setup


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Force the backend of every operator inside the ``with`` block.

    Args:
        backend: ``"torch"``, ``"triton"``, or None for the usual choice: Triton kernels for tensors on a GPU
            where there are any, PyTorch otherwise.

    Raises:
        ValueError: if `backend` is neither.
        RuntimeError: if it cannot run here; the text says what is missing. A forced backend is never replaced
            silently by another: an operator that it cannot run raises, for tensors on the CPU, of another dtype
            than float32, bfloat16 and float16, or of a size that its kernel does not take.

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


class OpenOperators(TorchFunctionMode):
    """Inside the ``with`` block operators are not opaque: what they compute is traced as PyTorch's own operations.

    For exporters to runtimes that do not know hggraph; without gradients, and with the backend ``"torch"``.

    Example:
        >>> import torch
        >>> with OpenOperators():
        ...     torch.ops.hggraph.region_unpool(torch.ones(1, 1, 1), torch.ones(1, 1, 2))
        tensor([[[1., 1.]]])
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call the body of an operator in its place."""
        body = _bodies.get(func)
        if body is None:
            return func(*args, **(kwargs or {}))
        with use_backend("torch"):
            return body(*args, **(kwargs or {}))


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return tensors in the precision of an active autocast, or as they are; float64 is never lowered."""
    first = tensors[0]
    assert first is not None
    device = first.device.type
    # the meta device, on which operations are counted, knows no autocast
    if device == "meta" or not torch.is_autocast_enabled(device) or first.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast lowers nothing on the device of `x`."""
    # the meta device, on which operations are counted, knows no autocast
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def missing_backend(backend: str) -> str | None:
    """Return why `backend` cannot run here, or None when it can."""
    if backend == "torch":
        return None
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with PyTorch's GPU builds for Linux)"
    if not torch.cuda.is_available() and not interpreting():
        return (
            "PyTorch finds no CUDA or ROCm device (install a driver and PyTorch's build for it; for tests, "
            "TRITON_INTERPRET=1 interprets the kernels on the CPU)"
        )
    return None


def interpreting() -> bool:
    """Say whether Triton interprets its kernels on the CPU: for tests, hundreds of times slower than PyTorch."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "on", "true", "yes", "y")


def backend_of(*tensors: Tensor) -> str:
    """Return the backend that would run an operator on these tensors."""
    forced = _forced.get()
    if forced is not None:
        return forced
    usual = all(tensor.is_cuda for tensor in tensors) and missing_backend("triton") is None
    return "triton" if usual and not _wrong_dtype(tensors) else "torch"


def kernel(name: str, *tensors: Tensor | None) -> Any | None:
    """Return the module ``hggraph.kernels.<name>`` when Triton is to run the operator, else None.

    Args:
        name: Name of the operator.
        tensors: All its floating-point arguments; None for one that was not given.

    Raises:
        RuntimeError: if Triton is forced by `use_backend` and a tensor is not on a GPU, or the tensors are on two
            devices.
        TypeError: if it is forced and a dtype is none that the kernels take.
    """
    given = tuple(tensor for tensor in tensors if tensor is not None)
    if backend_of(*given) != "triton":
        _log.debug("%s: torch", name)
        return None
    devices = {tensor.device for tensor in given}
    if len(devices) > 1:
        both = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(f"`{name}` needs all tensors on one device, got {both}. Move them with `.to(device)`.")
    if not all(tensor.is_cuda for tensor in given) and not interpreting():
        raise RuntimeError(
            f"The Triton kernel of `{name}` needs tensors on a GPU, got one on the CPU. Move it with `.cuda()`, or "
            "leave `use_backend('triton')`."
        )
    if (wrong := _wrong_dtype(given)) is not None:
        raise TypeError(
            f"The Triton kernel of `{name}` takes float32, bfloat16 and float16, got {wrong}. Convert the tensor, or "
            "leave `use_backend('triton')`: PyTorch runs it."
        )
    _log.debug("%s: triton", name)
    return importlib.import_module(f"hggraph.kernels.{name}")


def _wrong_dtype(tensors: tuple[Tensor, ...]) -> torch.dtype | None:
    return next((tensor.dtype for tensor in tensors if tensor.dtype not in KERNEL_DTYPES), None)
