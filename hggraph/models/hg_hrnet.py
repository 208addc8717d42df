"""HG-HRNetV2: the high-resolution network whose last module runs on regions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hggraph.cluster import SoftSLIC
from hggraph.models._network import Clustered, SegmentationNetwork, assign
from hggraph.models.heads import fcn_head
from hggraph.models.weights import create_backbone
from hggraph.nn import HGStage
from hggraph.nn._conv import resize

__all__ = ["HGHRNet", "hg_hrnet"]

WIDTHS = ("w18", "w32", "w48", "w18_small_v2")
NUM_BRANCHES = 4


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
        # what classification needs and segmentation does not
        for name in ("incre_modules", "downsamp_modules", "final_layer", "global_pool", "head_drop", "classifier"):
            setattr(hrnet, name, None)
        *modules, last = hrnet.stage4
        hrnet.stage4 = type(hrnet.stage4)(*modules)
        self.trunk, self.last_module = hrnet, last
        widths = [branch[-1].conv2.out_channels for branch in last.branches]
        self.aux_head: nn.Module | None = None
        if clusterers is not None:
            for i, (width, clusterer) in enumerate(zip(widths, clusterers, strict=True)):
                fuse = nn.Conv2d(2 * width, width, 1, bias=False)
                last.branches[i] = HGStage.from_stage(last.branches[i], clusterer, fuse=fuse)
            if aux:
                self.aux_head = fcn_head(sum(widths), num_classes, channels=sum(widths) // 4, dropout=dropout)
        channels = sum(widths)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_classes, 1),
        )

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the first branch's size, a quarter of the image's."""
        before = list(self.trunk.forward_features(x))
        after, clustered = [], []
        for i, (branch, y) in enumerate(zip(self.last_module.branches, before, strict=True)):
            if isinstance(branch, HGStage):
                assignment = assign(branch, y, attention)
                clustered.append(Clustered(f"branch {i + 1}", y, assignment))
                after.append(branch(y, assignment=assignment))
            else:
                after.append(branch(y))
        logits = {"out": self.head(_side_by_side(self._fuse(after)))}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(_side_by_side(before))
        return logits, clustered

    def _fuse(self, maps: list[Tensor]) -> list[Tensor]:
        """Exchange between the resolutions, as HRNet's module does after its branches."""
        out = []
        for layers in self.last_module.fuse_layers:
            y = layers[0](maps[0])
            for layer, x in zip(layers[1:], maps[1:], strict=True):
                y = y + layer(x)
            out.append(self.last_module.fuse_act(y))
        return out

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
        clusterer: What clusters; each branch gets a copy. None: 64 pixels to a region and one iteration, of the 16
            nearest centres in the two finest branches and of all in the others. ``SoftSLIC(iterations=1)`` considers
            all everywhere and has static shapes, for torch.compile and export; on large images that is slow, since
            the adjacency costs P R^2.
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
        >>> net = hg_hrnet("w18_small_v2", num_classes=5, clusterer=SoftSLIC(4)).eval()
        >>> net(torch.rand(1, 3, 100, 128))["out"].shape
        torch.Size([1, 5, 100, 128])
    """
    if width not in WIDTHS:
        raise ValueError(f"`width` must be one of {WIDTHS}, got {width!r}.")
    hrnet = create_backbone(f"hrnet_{width}", pretrained=pretrained, in_channels=in_channels)
    clusterers: list[nn.Module] | None = None
    if hg and clusterer is None:
        clusterers = [SoftSLIC(iterations=1, candidates=16 if i < 2 else None) for i in range(NUM_BRANCHES)]
    elif hg:
        clusterers = [copy.deepcopy(clusterer) for _ in range(NUM_BRANCHES)]  # type: ignore[misc]
    return HGHRNet(hrnet, in_channels, num_classes, clusterers=clusterers, aux=aux, dropout=dropout)


def _side_by_side(maps: list[Tensor]) -> Tensor:
    height, width = maps[0].shape[2:]
    rest = [resize(y, (height, width)) for y in maps[1:]]
    return torch.cat([maps[0], *rest], 1)
