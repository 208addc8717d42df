"""PyConvSegNet: a parsing head of pyramids, local and global, on a ResNet or a PyConvResNet."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.models._network import Clustered, SegmentationNetwork
from hggraph.models.heads import fcn_head
from hggraph.models.hg_resnet import ResNetTrunk, resnet_trunk
from hggraph.models.pyconv_resnet import PyConvResNet, make_trunk
from hggraph.nn import PyConv2d
from hggraph.nn._conv import conv_norm_relu, resize

__all__ = ["PyConvParsingHead", "PyConvSegNet", "pyconv_segnet"]

KERNELS, GROUPS = (3, 5, 7, 9), (1, 4, 8, 16)


class PyConvParsingHead(nn.Module):
    """Parse a map by pyramids at its own size and over a few cells, and merge (PyConv Sec. 5, Fig. 5 and 6).

    Local: 1x1, `PyConv2d` of 3 to 9, 1x1. Global: means over at most `bins` x `bins` cells, the same three, upsampled;
    there a kernel of 9 sees everything. Merge: a 3x3 over both.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        channels: Width of the local and the global part.
        bins: Cells along the longer side; the other side has as many as its length asks for. The published code has
            `bins` along both.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``
        - **output:** map ``(B, out_channels, H, W)``; an empty batch gives an empty map

    Raises:
        ValueError: if a number is not as said; in a call, if the map is empty.

    Example:
        >>> PyConvParsingHead(32, 8, channels=64)(torch.rand(2, 32, 12, 15)).shape
        torch.Size([2, 8, 12, 15])
    """

    def __init__(self, in_channels: int, out_channels: int = 256, *, channels: int = 512, bins: int = 9) -> None:
        super().__init__()
        check_positive("bins", bins)
        self.bins = bins
        self.local_part = _parser(in_channels, channels)
        self.global_part = _parser(in_channels, channels)
        self.merge = conv_norm_relu(2 * channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged map; see the class for shapes."""
        check_features("x", x)
        height, width = x.shape[2:]
        pooled = F.adaptive_avg_pool2d(x, cells((height, width), self.bins))
        around = resize(self.global_part(pooled), (height, width))
        out: Tensor = self.merge(torch.cat([self.local_part(x), around], 1))
        return out


class PyConvSegNet(SegmentationNetwork):
    """A trunk and a `PyConvParsingHead`; see `pyconv_segnet`."""

    def __init__(
        self,
        trunk: ResNetTrunk | PyConvResNet,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 512,
        bins: int = 9,
        aux: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        before, features = trunk.channels[-2:]
        self.trunk = trunk
        self.head = PyConvParsingHead(features, channels // 2, channels=channels, bins=bins)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels // 2, num_classes, 1)
        self.aux_head = fcn_head(before, num_classes, channels=channels // 2, dropout=dropout) if aux else None

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the last map's size."""
        maps: list[Tensor]
        clustered: list[Clustered] = []
        if isinstance(self.trunk, PyConvResNet):
            maps = self.trunk.forward_features(x)
        else:
            maps, clustered = self.trunk(x, attention)
        logits = {"out": self.classify(self.dropout(self.head(maps[-1])))}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(maps[-2])
        return logits, clustered

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head."""
        self.aux_head = None


def pyconv_segnet(
    backbone: str = "resnet50",
    num_classes: int = 150,
    *,
    in_channels: int = 3,
    channels: int = 512,
    bins: int = 9,
    output_stride: int = 8,
    stem: str | None = "plain",
    clusterer: nn.Module | None = None,
    aux: bool = True,
    dropout: float = 0.1,
    pretrained: bool | str | Path = False,
) -> PyConvSegNet:
    """Make a PyConvSegNet (Duta et al. 2020, *Pyramidal Convolution*, Sec. 5).

    Called with images it returns what `SegmentationNetwork.forward` says; ``fold()`` gives a faster form for inference.

    Args:
        backbone: ``"resnet50"``, ``"pyconv_resnet50"`` and so on; ``"hg_resnet50"`` has stage 4 on regions, which the
            paper does not have.
        num_classes: Channels of the logits, at least 1.
        in_channels: Channels of the images.
        channels: Width of the head's two parts; what they are merged into is half as wide.
        bins: Cells of the global part along the longer side.
        output_stride: Image pixels per pixel of the map: 8, or 16 or 32.
        stem: Of a ResNet, see `hg_resnet`; the paper's is plain.
        clusterer: What clusters, for ``"hg_..."``; ``SoftSLIC()`` when None.
        aux: Have an auxiliary head on stage 3.
        dropout: Share of channels dropped before the classifiers in training.
        pretrained: Weights of the backbone: True for timm's, for ResNets; a path for a file of them, for PyConvResNets
            in this layout or the published one.

    Returns:
        The network.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Note:
        With 150 classes and auxiliary head 34.40, 53.39 and 69.03 M parameters on ResNet-50, 101 and 152, 33.69, 51.15
        and 65.48 M on PyConvResNets, as published.

    Example:
        >>> net = pyconv_segnet("resnet18", num_classes=5, channels=64).eval()
        >>> net(torch.rand(1, 3, 64, 80))["out"].shape
        torch.Size([1, 5, 64, 80])
    """
    found = re.fullmatch(r"(hg_|pyconv_)?resnet(\d+)", backbone)
    if found is None:
        raise ValueError(
            f"`backbone` must be a name such as 'resnet50', 'pyconv_resnet50' or 'hg_resnet50', got {backbone!r}."
        )
    depth = int(found[2])
    trunk: ResNetTrunk | PyConvResNet
    if found[1] == "pyconv_":
        trunk = make_trunk(depth, in_channels=in_channels, output_stride=output_stride, pretrained=pretrained)
    else:
        trunk = resnet_trunk(
            depth,
            hg_stages=(4,) if found[1] else (),
            in_channels=in_channels,
            stem=stem,
            output_stride=output_stride,
            clusterer=clusterer,
            pretrained=pretrained,
        )
    return PyConvSegNet(trunk, in_channels, num_classes, channels=channels, bins=bins, aux=aux, dropout=dropout)


def cells(size: tuple[int, int], bins: int) -> tuple[int, int]:
    """Return how many cells a map is pooled to: `bins` along its longer side, the other in proportion.

    Example:
        >>> cells((60, 60), 9), cells((64, 128), 9), cells((100, 3), 9)
        ((9, 9), (5, 9), (9, 1))
    """
    longer = max(size)
    height, width = (max(1, (2 * bins * side + longer) // (2 * longer)) for side in size)
    return height, width


def _parser(in_channels: int, channels: int) -> nn.Sequential:
    pyramid = nn.Sequential(
        PyConv2d(channels, channels, KERNELS, GROUPS), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )
    return nn.Sequential(conv_norm_relu(in_channels, channels), pyramid, conv_norm_relu(channels, channels))
