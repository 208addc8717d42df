"""Where a network strides: found by running it once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Call", "find_calls"]


class Call(NamedTuple):
    """A module's call: its name, and the strides of its first input and its output, None where they are no maps."""

    name: str
    module: nn.Module
    before: int | None
    after: int | None
    channels: int
    single: bool  # the input is one value for each channel


def find_calls(network: nn.Module, side: int) -> tuple[list[Call], list[int | None]]:
    """Run a network once on an image of `side` pixels; return its modules' calls in order, and its outputs' strides.

    Raises:
        ValueError: if it does not run.
    """
    convolutions: list[Any] = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise ValueError(f"The network must have convolutions, got {type(network).__name__} without one.")
    # the first convolution may be that of a part of the channels
    widths = list(dict.fromkeys(conv.in_channels for conv in convolutions))[:4]
    modes = [(module, module.training) for module in network.modules()]
    failed: list[Exception] = []
    network.eval()
    try:
        for width in widths:
            try:
                return _run(network, convolutions[0].weight.new_zeros(1, width, side, side))
            except Exception as error:
                failed.append(error)
    finally:
        for module, training in modes:
            module.training = training
    raise ValueError(
        f"The network does not run on an image of {widths[0]} channels and {side} x {side} pixels, which shows where "
        f"it strides: {type(failed[0]).__name__}: {str(failed[0]).strip().splitlines()[0][:200]}"
    ) from failed[0]


def _run(network: nn.Module, image: Tensor) -> tuple[list[Call], list[int | None]]:
    calls: list[Call] = []
    names = {module: name for name, module in network.named_modules()}
    side = image.shape[2]
    begun: dict[nn.Module, int] = {}

    def begin(module: nn.Module, args: Any) -> None:
        x = _first(args)
        channels = x.shape[1] if x is not None and x.dim() > 1 else 0
        begun[module] = len(calls)
        calls.append(Call(names[module], module, _stride(x, side), None, channels, _single(x)))

    def end(module: nn.Module, args: Any, out: Any) -> None:
        index = begun[module]
        calls[index] = calls[index]._replace(after=_stride(_first(out), side))

    handles = []
    try:
        for module in names:
            if not isinstance(module, torch.jit.ScriptModule):
                handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        with torch.no_grad():
            out = network(image)
    finally:
        for handle in handles:
            handle.remove()
    return calls, [_stride(value, side) for value in pytree.tree_leaves(out)]


def _first(value: Any) -> Tensor | None:
    """Return the first tensor among arguments or results."""
    return next((leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)), None)


def _single(x: Tensor | None) -> bool:
    return x is not None and (x.dim() == 2 or (x.dim() == 4 and x.shape[2:] == (1, 1)))


def _stride(x: Any, side: int) -> int | None:
    """Return the whole stride of a map, to the nearest power of two, None for what is no map."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[2] != x.shape[3] or x.shape[2] < 2:
        return None
    return 2 ** max(0, round(math.log2(side / x.shape[2])))
