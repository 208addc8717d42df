"""A stage of a network on regions, one level of them or several: pool, blocks, unpool."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hggraph.cluster import SoftSLIC
from hggraph.graph import Assignment
from hggraph.graph.directions import check_directions, directed
from hggraph.nn.hg_block import HGBasicBlock, HGBottleneck
from hggraph.nn.on_regions import RegionLevels, on_regions
from hggraph.stencil import Stencil

__all__ = ["HGStage"]


class HGStage(nn.Module):
    """Run blocks on regions instead of pixels (HG-Conv Eq. 8 to 10).

    Args:
        blocks: Modules called as ``block(z, adjacency)`` with region features ``(B, R, C)``, for example
            `HGBottleneck`.
        clusterer: What makes the `Assignment` of a map, for example `SoftSLIC`; the stage takes a copy.
        stencil: Directions of the adjacency; ``Stencil.square(3)`` when None.
        fuse: A convolution over the input and the unpooled output, concatenated in this order (HG-ResNet, Sec. 4.4,
            with a 1x1); computed as ``X Wa + S (Z Wb) + b``. None returns the unpooled output alone.
        directions: How edges are typed, see `hggraph.graph.directions.directed`; ``"borders"`` is the paper's form.
        noise_cancel: Subtract the opposite direction from each (HG-Conv Eq. 7). Its Table 7 compares with False.
        max_direction: Keep only the strongest direction of each pair of regions; likewise.

    A stage that `from_stage` makes of other blocks, or with `steps`, has the blocks of the CNN, and its `levels`: then
    nodes go through them as a map, and each stride is a level of regions.

    Shapes:
        - **input:** map ``(B, C, H, W)``; attention ``(B, H, W)`` in [0, 1], an `Assignment` to use instead of
          clustering, and a map ``(B, C'', H, W)`` that `fuse` takes instead of the input *(all optional)*
        - **output:** map ``(B, C', H, W)``

    Example:
        >>> import torch
        >>> stage = HGStage([HGBasicBlock(8, 16)], SoftSLIC(num_regions=5))
        >>> stage(torch.rand(2, 8, 12, 12)).shape
        torch.Size([2, 16, 12, 12])
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        clusterer: nn.Module,
        *,
        stencil: Stencil | None = None,
        fuse: nn.Conv2d | None = None,
        directions: str = "borders",
        noise_cancel: bool = True,
        max_direction: bool = True,
    ) -> None:
        super().__init__()
        if fuse is not None:
            _check_fuse(fuse)
        check_directions(directions)
        self.blocks = nn.ModuleList(blocks)
        self.clusterer: nn.Module | None = copy.deepcopy(clusterer)  # it may be another stage's or network's too
        self.levels: RegionLevels | None = None
        self.directions = directions
        self.stencil = Stencil.square(3) if stencil is None else stencil
        self.fuse = fuse
        self.noise_cancel = noise_cancel
        self.max_direction = max_direction

    @classmethod
    def from_stage(
        cls,
        stage: Iterable[nn.Module],
        clusterer: nn.Module | Sequence[nn.Module] | None = None,
        *,
        steps: bool = False,
        pooling: str = "mean",
        back: str = "soft",
        stencil: Stencil | None = None,
        fuse: nn.Conv2d | None = None,
        directions: str | None = None,
        noise_cancel: bool = True,
        max_direction: bool = True,
    ) -> HGStage:
        """Wrap a stage of a CNN, with its weights. The output has the size of the stage's input.

        Args:
            stage: Blocks of timm or torchvision, for example ``resnet.layer4`` or ``mobilenet.features[7:18]``.
            clusterer: What makes the regions, with `steps` one for all levels or one for each. None: ``SoftSLIC()``;
                with `steps` ``SoftSLIC(4)``.
            steps: Make each stride of the blocks a level of regions, see `hggraph.convert`. False: one level, before
                the blocks, in which strides and dilations have no meaning: the paper's form.
            pooling: See `hggraph.nn.RegionLevel`.
            back: Likewise.
            stencil: As above; with `steps` each convolution has its own.
            fuse: As above.
            directions: As above; None: ``"birth"`` with `steps`, else ``"borders"``.
            noise_cancel: As above.
            max_direction: As above.

        Raises:
            ValueError: if a block does not carry over to regions; the text says why.
        """
        blocks = list(stage)
        if not blocks:
            raise ValueError("`stage` must hold at least one block.")
        directions = directions or ("birth" if steps else "borders")
        options: Any = {"directions": directions, "noise_cancel": noise_cancel, "max_direction": max_direction}
        if not steps and (pooling, back) == ("mean", "soft"):
            one: Any = SoftSLIC() if clusterer is None else clusterer
            try:
                return cls(_on_rows(blocks, stencil), one, stencil=stencil, fuse=fuse, **options)
            except ValueError:
                if stencil is not None:
                    raise
        out = cls([nn.Sequential(*(copy.deepcopy(block) for block in blocks))], nn.Identity(), fuse=fuse, **options)
        out.clusterer = None
        out.levels = on_regions(
            out.blocks[0], clusterer, pooling=pooling, back=back, before=not steps, restore=False, **options
        )
        return out

    def to_stage(self) -> nn.Sequential:
        """Return the stage on pixels with the same weights: timm's blocks, stride 1, no dilation, without `fuse`.

        Raises:
            ValueError: if a block is neither `HGBasicBlock` nor `HGBottleneck`.
        """
        foreign = [type(block).__name__ for block in self.blocks if not isinstance(block, HGBasicBlock | HGBottleneck)]
        if foreign:
            raise ValueError(f"Only HGBasicBlock and HGBottleneck have a form on pixels, got {', '.join(foreign)}.")
        blocks: Any = self.blocks
        return nn.Sequential(*(block.to_block() for block in blocks))

    def forward(
        self,
        x: Tensor,
        attention: Tensor | None = None,
        assignment: Assignment | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Run the stage; see the class for shapes."""
        if self.levels is not None:
            return self._in_levels(self.levels, x, attention, assignment, skip)
        if assignment is None:
            assignment = self.cluster(x, attention)
        z = assignment.pool(x)
        adjacency = directed(
            assignment,
            self.directions,
            self.stencil,
            noise_cancel=self.noise_cancel,
            max_direction=self.max_direction,
        )
        for block in self.blocks:
            z = block(z, adjacency)
        if self.fuse is None:
            return assignment.unpool(z)
        return assignment.unpool_conv(x if skip is None else skip, z, self.fuse.weight, self.fuse.bias)

    def cluster(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Return the assignment that `forward` uses, with several levels that of the first."""
        clusterer: Any = self.clusterer if self.levels is None else self.levels[0].clusterer
        assignment: Any = clusterer(x) if attention is None else clusterer(x, attention)
        return assignment

    def _in_levels(
        self,
        levels: RegionLevels,
        x: Tensor,
        attention: Tensor | None,
        assignment: Assignment | None,
        skip: Tensor | None,
    ) -> Tensor:
        levels.begin()
        levels.attention, levels.given = attention, assignment
        z = self.blocks[0](levels.start(x))
        if self.fuse is None:
            return levels.to_map(z)
        x = x if skip is None else skip
        side = self.fuse.kernel_size[0] // 2
        on_pixels, on_regions_ = self.fuse.weight.split([x.shape[1], z.shape[1]], 1)
        out = F.conv2d(x, on_pixels, self.fuse.bias, padding=side)
        if side:
            return out + F.conv2d(levels.to_map(z), on_regions_, padding=side)
        return out + levels.to_map(F.conv2d(z, on_regions_))  # fewer nodes than pixels


def _on_rows(blocks: list[nn.Module], stencil: Stencil | None) -> list[nn.Module]:
    """Return plain residual blocks in the form that takes rows of nodes."""
    return [
        (HGBottleneck if hasattr(block, "conv3") else HGBasicBlock).from_block(block, stencil=stencil)
        for block in blocks
    ]


def _check_fuse(fuse: nn.Conv2d) -> None:
    side = fuse.kernel_size[0]
    same = fuse.padding == "same" or fuse.padding == (side // 2, side // 2) or (side == 1 and fuse.padding == "valid")
    square = fuse.kernel_size == (side, side) and side % 2 == 1 and fuse.dilation == (1, 1)
    plain = fuse.stride == (1, 1) and fuse.groups == 1 and fuse.padding_mode == "zeros"
    if not (same and square and plain):
        raise ValueError(
            f"`fuse` must be an ungrouped 1x1 convolution, or a k x k one with odd k, of stride 1 and padded with "
            f"zeros by k // 2, got {fuse}."
        )
