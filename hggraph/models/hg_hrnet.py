"""HG-HRNetV2: the high-resolution network whose last module runs on regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hggraph.models._network import Clustered, SegmentationNetwork
from hggraph.models.heads import fcn_head
from hggraph.models.hrnet_trunk import (
    branch_widths,
    clusterers_of_branches,
    create_hrnet,
    exchange,
    put_on_regions,
    run_branches,
    side_by_side,
)

__all__ = ["HGHRNet", "hg_hrnet"]


class HGHRNet(SegmentationNetwork):
    """HRNetV2 with its segmentation head; see `hg_hrnet`."""

    multiple = 32  # the lowest resolution has a pixel for 32 x 32

    def __init__(
        self,
        hrnet: Any,
        in_channels: int,
        num_classes: int,
        *,
        clusterers: list[nn.Module] | None,
        aux: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        *modules, last = hrnet.stage4
        hrnet.stage4 = type(hrnet.stage4)(*modules)
        self.trunk, self.last_module = hrnet, last
        channels = sum(branch_widths(last))
        self.aux_head: nn.Module | None = None
        if clusterers is not None:
            put_on_regions(last, clusterers)
            if aux:
                self.aux_head = fcn_head(channels, num_classes, channels=channels // 4, dropout=dropout)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_classes, 1),
        )

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the first branch's size, a quarter of the image's."""
        before = list(self.trunk.forward_features(x))
        after, clustered = run_branches(self.last_module, before, attention)
        logits = {"out": self.head(side_by_side(exchange(self.last_module, after)))}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(side_by_side(before))
        return logits, clustered

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head."""
        self.aux_head = None


def hg_hrnet(
    width: str = "w48",
    hg: bool = True,
    num_classes: int = 19,
    *,
    in_channels: int = 3,
    clusterer: nn.Module | None = None,
    aux: bool = True,
    dropout: float = 0.1,
    pretrained: bool | str | Path = False,
) -> HGHRNet:
    """Make an HRNetV2 for segmentation with the branches of its last module on regions, or the dense network.

    HG-HRNetV2 of HG-Conv (Sec. 4.4): "all the 4 branches at the last block of stage 4", which is the last exchange
    module by the paper's operation count. Each branch clusters its own map; its output is concatenated with its input
    and goes through a linear 1x1 convolution, as in HG-ResNet. The exchange between the branches stays on pixels.

    Args:
        width: ``"w18"``, ``"w32"``, ``"w48"`` or ``"w18_small_v2"``.
        hg: False makes the dense network.
        num_classes: Channels of the logits, at least 1.
        in_channels: Channels of the images.
        clusterer: What clusters; each branch gets a copy. None: 64 pixels to a region and one iteration. A branch
            with more than 512 regions has edges in place of matrices, and so no static shapes.
        aux: Have an auxiliary head on what the regions are made of (HG only).
        dropout: Share of channels dropped in that head in training.
        pretrained: True for timm's ImageNet weights, a path for a file of them, False for random ones.

    Returns:
        The network; called with images it returns what `SegmentationNetwork.forward` says. Images are padded to
        multiples of 32 and the logits cropped.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Example:
        >>> import torch
        >>> from hggraph import SoftSLIC
        >>> net = hg_hrnet("w18_small_v2", num_classes=5, clusterer=SoftSLIC(4)).eval()
        >>> net(torch.rand(1, 3, 100, 128))["out"].shape
        torch.Size([1, 5, 100, 128])
    """
    hrnet = create_hrnet(width, in_channels=in_channels, pretrained=pretrained)
    clusterers = clusterers_of_branches(clusterer) if hg else None
    return HGHRNet(hrnet, in_channels, num_classes, clusterers=clusterers, aux=aux, dropout=dropout)
