"""The stages of an HRNet: maps of every size side by side, and its last module on regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hggraph.cluster import SoftSLIC
from hggraph.models._network import Clustered, assign
from hggraph.models.weights import create_backbone
from hggraph.nn import HGStage
from hggraph.nn._conv import resize

__all__ = [
    "WIDTHS",
    "HRNetTrunk",
    "branch_widths",
    "clusterers_of_branches",
    "create_hrnet",
    "exchange",
    "hrnet_trunk",
    "put_on_regions",
    "run_branches",
    "side_by_side",
]

WIDTHS = ("w18", "w32", "w48", "w18_small_v2")
NUM_BRANCHES = 4


class HRNetTrunk(nn.Module):
    """Stages 2, 3 and 4 of one of timm's HRNets, for networks that use more than the last (Sun et al. 2019, HRNetV2).

    Args:
        hrnet: timm's HRNet.
        clusterers: What clusters the branches of the last module of stage 4, which then run on regions as in
            `hg_hrnet`, one for each. None: they stay on pixels.

    Shapes:
        - **input:** images ``(B, C, H, W)`` of multiples of 32, attention ``(B, H, W)`` *(optional)*
        - **output:** the maps of stages 2, 3 and 4, each its 2, 3 or 4 branches side by side, ``(B, 3 c, H/4, W/4)``,
          ``(B, 7 c, H/4, W/4)`` and ``(B, 15 c, H/4, W/4)`` with c channels in the finest branch; and what was
          clustered

    Example:
        >>> maps, clustered = hrnet_trunk("w18_small_v2").eval()(torch.rand(1, 3, 64, 96))
        >>> [tuple(x.shape[1:]) for x in maps], clustered
        ([(54, 16, 24), (126, 16, 24), (270, 16, 24)], [])
    """

    multiple = 32  # the lowest resolution has a pixel for 32 x 32

    def __init__(self, hrnet: Any, clusterers: list[nn.Module] | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(hrnet.conv1, hrnet.bn1, hrnet.act1, hrnet.conv2, hrnet.bn2, hrnet.act2, hrnet.layer1)
        self.transitions = nn.ModuleList([hrnet.transition1, hrnet.transition2, hrnet.transition3])
        self.stages = nn.ModuleList([hrnet.stage2, hrnet.stage3, hrnet.stage4])
        self.channels = [sum(branch_widths(stage[-1])) for stage in (hrnet.stage2, hrnet.stage3, hrnet.stage4)]
        if clusterers is not None:
            put_on_regions(hrnet.stage4[-1], clusterers)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> tuple[list[Tensor], list[Clustered]]:
        """Return the stages' maps; see the class for shapes."""
        branches = [self.stem(x)]
        maps: list[Tensor] = []
        clustered: list[Clustered] = []
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            layers: Any = transition
            branches = [
                branches[i] if isinstance(layer, nn.Identity) else layer(branches[-1]) for i, layer in enumerate(layers)
            ]
            modules: Any = stage
            for module in modules:
                after, found = run_branches(module, branches, attention)
                branches = exchange(module, after)
                clustered += found
            maps.append(side_by_side(branches))
        return maps, clustered


def hrnet_trunk(
    width: str = "w48",
    *,
    hg: bool = False,
    in_channels: int = 3,
    clusterer: nn.Module | None = None,
    pretrained: bool | str | Path = False,
) -> HRNetTrunk:
    """Make the stages of an HRNet; the arguments are those of `hg_hrnet`."""
    hrnet = create_hrnet(width, in_channels=in_channels, pretrained=pretrained)
    return HRNetTrunk(hrnet, clusterers_of_branches(clusterer) if hg else None)


def create_hrnet(width: str, *, in_channels: int = 3, pretrained: bool | str | Path = False) -> Any:
    """Make timm's HRNet without what classification needs and segmentation does not."""
    if width not in WIDTHS:
        raise ValueError(f"`width` must be one of {WIDTHS}, got {width!r}.")
    hrnet = create_backbone(f"hrnet_{width}", pretrained=pretrained, in_channels=in_channels)
    for name in ("incre_modules", "downsamp_modules", "final_layer", "global_pool", "head_drop", "classifier"):
        setattr(hrnet, name, None)
    return hrnet


def clusterers_of_branches(clusterer: nn.Module | None) -> list[nn.Module]:
    """Return what clusters each of four branches: the one given, or the defaults that `hg_hrnet` describes."""
    if clusterer is None:
        return [SoftSLIC(iterations=1) for _ in range(NUM_BRANCHES)]
    return [clusterer] * NUM_BRANCHES  # each stage takes a copy


def branch_widths(module: Any) -> list[int]:
    """Return the channels of each branch of one of HRNet's modules."""
    return [branch[-1].conv2.out_channels for branch in module.branches]


def put_on_regions(module: Any, clusterers: list[nn.Module]) -> None:
    """Make HG stages of a module's branches, in place and with their weights."""
    for i, (width, clusterer) in enumerate(zip(branch_widths(module), clusterers, strict=True)):
        fuse = nn.Conv2d(2 * width, width, 1, bias=False)
        module.branches[i] = HGStage.from_stage(module.branches[i], clusterer, fuse=fuse)


def run_branches(
    module: Any, maps: list[Tensor], attention: Tensor | None = None
) -> tuple[list[Tensor], list[Clustered]]:
    """Return what a module's branches, on pixels or on regions, make of their maps, and what was clustered."""
    after, clustered = [], []
    for i, (branch, x) in enumerate(zip(module.branches, maps, strict=True)):
        if isinstance(branch, HGStage):
            assignment = assign(branch, x, attention)
            clustered.append(Clustered(f"branch {i + 1}", x, assignment))
            after.append(branch(x, assignment=assignment))
        else:
            after.append(branch(x))
    return after, clustered


def exchange(module: Any, maps: list[Tensor]) -> list[Tensor]:
    """Exchange between the resolutions, as HRNet's module does after its branches."""
    out = []
    for layers in module.fuse_layers:
        y = layers[0](maps[0])
        for layer, x in zip(layers[1:], maps[1:], strict=True):
            y = y + layer(x)
        out.append(module.fuse_act(y))
    return out


def side_by_side(maps: list[Tensor]) -> Tensor:
    """Concatenate maps at the first one's size."""
    size = (maps[0].shape[2], maps[0].shape[3])
    return torch.cat([maps[0], *(resize(x, size) for x in maps[1:])], 1)
