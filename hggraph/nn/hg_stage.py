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
        fuse: A 1x1 convolution over the input and the unpooled output, concatenated in this order (HG-ResNet,
            Sec. 4.4); computed as ``X Wa + S (Z Wb) + b``. None returns the unpooled output alone.

    Shapes:
        - **input:** map ``(B, C, H, W)``, attention ``(B, H, W)`` in [0, 1] *(optional)*, and an `Assignment` to
          use instead of clustering *(optional)*
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
    ) -> None:
        super().__init__()
        if fuse is not None and (
            (fuse.kernel_size, fuse.stride, fuse.groups) != ((1, 1), (1, 1), 1)
            or fuse.padding not in ((0, 0), "same", "valid")
        ):
            raise ValueError(f"`fuse` must be an ungrouped 1x1 convolution of stride 1 without padding, got {fuse}.")
        self.blocks = nn.ModuleList(blocks)
        self.clusterer = clusterer
        self.stencil = Stencil.square(3) if stencil is None else stencil
        self.fuse = fuse

    @classmethod
    def from_stage(
        cls,
        stage: Iterable[nn.Module],
        clusterer: nn.Module | None = None,
        *,
        stencil: Stencil | None = None,
        fuse: nn.Conv2d | None = None,
    ) -> HGStage:
        """Wrap a stage of a CNN, with its weights.

        Args:
            stage: Residual blocks of timm or torchvision, for example ``resnet.layer4``. Strides and dilations
                have no meaning on regions: the output has the size of the stage's input.
            clusterer: ``SoftSLIC()`` when None.
            stencil: As above.
            fuse: As above.

        Raises:
            ValueError: if a block does not carry over to regions; the text says why.
        """
        blocks = [
            (HGBottleneck if hasattr(block, "conv3") else HGBasicBlock).from_block(block, stencil=stencil)
            for block in stage
        ]
        if not blocks:
            raise ValueError("`stage` must hold at least one block.")
        return cls(blocks, SoftSLIC() if clusterer is None else clusterer, stencil=stencil, fuse=fuse)

    def forward(self, x: Tensor, attention: Tensor | None = None, assignment: Assignment | None = None) -> Tensor:
        """Run the stage; see the class for shapes."""
        if assignment is None:
            assignment = self.cluster(x, attention)
        z = assignment.pool(x)
        adjacency = assignment.adjacency(self.stencil)
        for block in self.blocks:
            z = block(z, adjacency)
        if self.fuse is None:
            return assignment.unpool(z)
        return assignment.unpool_conv1x1(x, z, self.fuse.weight, self.fuse.bias)

    def cluster(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Return the assignment that `forward` uses."""
        assignment: Any = self.clusterer(x) if attention is None else self.clusterer(x, attention)
        return assignment
