"""HG stages for any CNN made of residual blocks."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence

from torch import nn

from hggraph.cluster import SoftSLIC
from hggraph.nn import HGStage
from hggraph.stencil import Stencil

__all__ = ["convert"]


def convert(
    module: nn.Module,
    stages: str | Sequence[str],
    *,
    clusterer: nn.Module | None = None,
    stencil: Stencil | None = None,
    concat: bool = False,
) -> nn.Module:
    """Return a copy of a CNN in which the named stages run on regions, with the same weights.

    Each stage becomes an `HGStage` of its own, which clusters the map that reaches it. Strides and dilations have no
    meaning on regions, so that its output has the size of its input: the layers after it have to take any size, as
    convolutions and global pooling do.

    Args:
        module: A network that calls the stages with one map, for example of timm or torchvision.
        stages: Names of sub-modules, for example ``"layer4"`` or ``["stage4.2.branches.0"]``; each holds blocks of
            timm's or torchvision's kinds `BasicBlock` and `Bottleneck`.
        clusterer: What clusters; each stage gets a copy. ``SoftSLIC()`` when None.
        stencil: Directions; ``Stencil.square(3)`` when None.
        concat: Concatenate a stage's input and output and put them through a new 1x1 convolution, which starts as
            the output alone. False gives the output alone.

    Returns:
        The copy; `module` stays as it is.

    Raises:
        ValueError: if there is no such stage (the text names near ones), it holds other blocks, or a block has parts
            that do not carry over to regions, attention for example.

    Example:
        >>> import timm, torch
        >>> net = convert(timm.create_model("resnet18", num_classes=10), "layer4").eval()
        >>> net(torch.rand(1, 3, 128, 128)).shape
        torch.Size([1, 10])
    """
    names = [stages] if isinstance(stages, str) else list(stages)
    if not names:
        raise ValueError("`stages` must name at least one stage, got none.")
    known = dict(module.named_modules())
    for name in names:
        if name not in known or not name:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"`module` has no stage {name!r}.{hint}")
    out = copy.deepcopy(module)
    for name in names:
        parent = out.get_submodule(name.rpartition(".")[0])
        stage = parent.get_submodule(name.rpartition(".")[2])
        setattr(parent, name.rpartition(".")[2], _on_regions(name, stage, clusterer, stencil, concat))
    return out


def _on_regions(
    name: str, stage: nn.Module, clusterer: nn.Module | None, stencil: Stencil | None, concat: bool
) -> HGStage:
    if not isinstance(stage, nn.Sequential | nn.ModuleList):
        raise ValueError(
            f"Stage {name!r} must be a sequence of residual blocks, got {type(stage).__name__}: it cannot be converted."
        )
    blocks: Iterable[nn.Module] = stage.children()
    clusterer = SoftSLIC() if clusterer is None else copy.deepcopy(clusterer)
    try:
        out = HGStage.from_stage(blocks, clusterer, stencil=stencil)
    except ValueError as error:
        raise ValueError(f"Stage {name!r} cannot be converted: {error}") from error
    out.training = stage.training
    if concat:
        out.fuse = _output_alone(stage)
    return out


def _output_alone(stage: nn.Module) -> nn.Conv2d:
    convolutions = [part for part in stage.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in stage.modules() if isinstance(part, nn.BatchNorm2d)]
    before, after = convolutions[0].in_channels, norms[-1].num_features
    fuse = nn.Conv2d(before + after, after, 1, bias=False)
    nn.init.zeros_(fuse.weight)
    nn.init.eye_(fuse.weight[:, before:, 0, 0].detach())
    return fuse.to(convolutions[0].weight)
