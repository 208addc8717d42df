"""A stage of a network on regions: pool, blocks, unpool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from hggraph.cluster import SoftSLIC
from hggraph.graph import Assignment
from hggraph.nn.hg_block import HGBasicBlock, HGBottleneck
from hggraph.stencil import Stencil

__all__ = ["HGStage"]


class HGStage(nn.Module):
    """Run blocks on regions instead of pixels (HG-Conv Eq. 8 to 10).

    Args:
        blocks: Modules called as ``block(z, adjacency)`` with region features ``(B, R, C)``, for example
            `HGBottleneck`.
        clusterer: What makes the `Assignment` of a map, for example `SoftSLIC`.
        stencil: Directions of the adjacency; ``Stencil.square(3)`` when None.
        fuse: A convolution over the input and the unpooled output, concatenated in this order (HG-ResNet, Sec. 4.4,
            with a 1x1); computed as ``X Wa + S (Z Wb) + b``. None returns the unpooled output alone.
        noise_cancel: Subtract the opposite direction from each (HG-Conv Eq. 7). Its Table 7 compares with False.
        max_direction: Keep only the strongest direction of each pair of regions; likewise.

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
        noise_cancel: bool = True,
        max_direction: bool = True,
    ) -> None:
        super().__init__()
        if fuse is not None:
            _check_fuse(fuse)
        self.blocks = nn.ModuleList(blocks)
        self.clusterer = clusterer
        self.stencil = Stencil.square(3) if stencil is None else stencil
        self.fuse = fuse
        self.noise_cancel = noise_cancel
        self.max_direction = max_direction

    @classmethod
    def from_stage(
        cls,
        stage: Iterable[nn.Module],
        clusterer: nn.Module | None = None,
        *,
        stencil: Stencil | None = None,
        fuse: nn.Conv2d | None = None,
        noise_cancel: bool = True,
        max_direction: bool = True,
    ) -> HGStage:
        """Wrap a stage of a CNN, with its weights.

        Args:
            stage: Residual blocks of timm or torchvision, for example ``resnet.layer4``. Strides and dilations
                have no meaning on regions: the output has the size of the stage's input.
            clusterer: ``SoftSLIC()`` when None.
            stencil: As above.
            fuse: As above.
            noise_cancel: As above.
            max_direction: As above.

        Raises:
            ValueError: if a block does not carry over to regions; the text says why.
        """
        blocks = [
            (HGBottleneck if hasattr(block, "conv3") else HGBasicBlock).from_block(block, stencil=stencil)
            for block in stage
        ]
        if not blocks:
            raise ValueError("`stage` must hold at least one block.")
        return cls(
            blocks,
            SoftSLIC() if clusterer is None else clusterer,
            stencil=stencil,
            fuse=fuse,
            noise_cancel=noise_cancel,
            max_direction=max_direction,
        )

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
        if assignment is None:
            assignment = self.cluster(x, attention)
        z = assignment.pool(x)
        adjacency = assignment.adjacency(self.stencil, noise_cancel=self.noise_cancel, max_direction=self.max_direction)
        for block in self.blocks:
            z = block(z, adjacency)
        if self.fuse is None:
            return assignment.unpool(z)
        return assignment.unpool_conv(x if skip is None else skip, z, self.fuse.weight, self.fuse.bias)

    def cluster(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Return the assignment that `forward` uses."""
        assignment: Any = self.clusterer(x) if attention is None else self.clusterer(x, attention)
        return assignment


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
