"""Honest operation counts: parameters and multiply-adds per part, with everything that regions cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph._check import check_positive
from hggraph.cluster import SoftSLIC
from hggraph.nn import HGStage

__all__ = ["Part", "count"]


class Part(NamedTuple):
    """A part of a network: its parameters, and its multiply-adds for one image."""

    name: str
    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        """Floating-point operations: two to a multiply-add."""
        return 2 * self.macs


def count(model: nn.Module, size: tuple[int, int], *, paper: bool = False, image: Tensor | None = None) -> list[Part]:
    """Count a network's parameters and multiply-adds part by part.

    Counted are convolutions, matrix products and hggraph's operators, which include soft SLIC, pooling, adjacency and
    unpooling. Not counted are normalisations, activations, importance maps, sampling and resizing, a few operations
    per number.

    Args:
        model: A network that takes images, or its folded form; counted in eval mode.
        size: Height and width of the image.
        paper: Count as HG-Conv's tables do: the layers on regions and on pixels, with the last 1x1 over the
            concatenation; no clustering, pooling and adjacency.
        image: Shape ``(1, C, H, W)``. With more than 512 regions in a stage the edges depend on the image: the network
            then runs on this one (on noise, if None). Else shapes say it all and nothing runs.

    Returns:
        The parts in order, those of HG stages one by one. The last is the whole under the name ``"total"``.

    Raises:
        ValueError: if the size is smaller than the network takes.

    Note:
        Deterministic, except for noise. From shapes it takes a second for any size and no memory.

    Example:
        >>> from hggraph.models import hg_resnet
        >>> total = count(hg_resnet(18, num_classes=5, aux=False), (129, 129))[-1]
        >>> round(total.parameters / 1e6, 2), total.macs > 1e9
        (12.16, True)
    """
    for name, side in zip(("height", "width"), size, strict=True):
        check_positive(name, side)
    in_channels = _in_channels(model)
    net = copy.deepcopy(model).to("meta")
    if paper:  # its count does not depend on what a pixel considers
        for part in net.modules():
            if isinstance(part, SoftSLIC):
                part.candidates = None
    formulas = _paper_formulas() if paper else {}
    try:
        counter = _run(net, torch.empty(1, in_channels, *size, device="meta"), formulas)
    except NotImplementedError:  # how many edges there are, no shape says
        net, x = model, torch.rand(1, in_channels, *size) if image is None else image
        counter = _run(net, x, formulas)
    return _parts(net, counter)


def _run(net: nn.Module, x: torch.Tensor, formulas: dict[Any, Callable[..., int]]) -> FlopCounterMode:
    was_training = net.training
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        net.eval()(x)
    net.train(was_training)
    return counter


def _in_channels(model: nn.Module) -> int:
    given = getattr(model, "in_channels", None)
    if given is not None:
        return int(given)
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    return first.in_channels


def _paper_formulas() -> dict[Any, Callable[..., int]]:
    """Return formulas that leave out what HG-Conv's tables leave out."""
    ops = torch.ops.hggraph

    def nothing(*_: Any, **__: Any) -> int:
        return 0

    def on_regions(x: Any, weight: Any, adjacency: Any, groups: int, **_: Any) -> int:
        matrices: int = 2 * adjacency[0] * adjacency[2] * weight[0] * weight[1] * weight[2]
        return matrices

    def concatenated(x: Any, z: Any, assignment: Any, weight: Any, *_: Any, **__: Any) -> int:
        product: int = 2 * x[0] * x[2] * weight[0] * weight[1]
        return product

    left_out = ["soft_assign", "centre_update", "segment_reduce", "region_adjacency", "region_pool", "region_unpool"]
    return dict.fromkeys((getattr(ops, name) for name in left_out), nothing) | {
        ops.typed_aggregate_dense: on_regions,
        ops.unpool_conv1x1: concatenated,
    }


def _parts(net: nn.Module, counter: FlopCounterMode) -> list[Part]:
    root = type(net).__name__
    counts = {name: {str(op): n for op, n in ops.items()} for name, ops in counter.get_flop_counts().items()}

    def macs(name: str) -> int:
        ops = counts.get(f"{root}.{name}")
        if ops is not None:
            return sum(ops.values()) // 2
        # never called itself, a list of modules for example
        return sum(macs(f"{name}.{child}") for child, _ in net.get_submodule(name).named_children())

    parts: list[Part] = []
    for name, module in _split(net):
        if isinstance(module, HGStage):
            parts += _stage_parts(name, module, counts.get(f"{root}.{name}", {}), macs)
        else:
            parts.append(Part(name, _parameters(module), macs(name)))
    total = Part("total", _parameters(net), counter.get_total_flops() // 2)
    rest = Part(
        "elsewhere",
        total.parameters - sum(part.parameters for part in parts),
        total.macs - sum(part.macs for part in parts),
    )
    parts = [part for part in parts if part.parameters or part.macs]
    return [*parts, *([rest] if rest.parameters or rest.macs else []), total]


def _split(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a network: HG stages, and the largest modules without one."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        opened = name in ("trunk", "stages") or any(isinstance(part, HGStage) for part in child.modules())
        if isinstance(child, HGStage) or not opened:
            yield path, child
        else:
            yield from _split(child, f"{path}.")


def _stage_parts(name: str, stage: HGStage, ops: dict[str, int], macs: Callable[[str], int]) -> Iterator[Part]:
    whole = sum(ops.values()) // 2
    found = {
        "blocks": sum(macs(f"{name}.blocks.{i}") for i in range(len(stage.blocks))),
        "pool": ops.get("hggraph.region_pool", 0) // 2,
        "adjacency": ops.get("hggraph.region_adjacency", 0) // 2,
    }
    yield Part(f"{name}: clustering", _parameters(stage.clusterer), macs(f"{name}.clusterer"))
    yield Part(f"{name}: pooling", 0, found["pool"])
    yield Part(f"{name}: adjacency", 0, found["adjacency"])
    yield Part(f"{name}: blocks", _parameters(stage.blocks), found["blocks"])
    after = 0 if stage.fuse is None else _parameters(stage.fuse)
    label = "unpooling" if stage.fuse is None else "unpooling, {}x{}".format(*stage.fuse.kernel_size)
    yield Part(f"{name}: {label}", after, whole - sum(found.values()))


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
