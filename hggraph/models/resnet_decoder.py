"""A lightweight decoder: the stages of a ResNet as branches of an HRNet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.models.hrnet_trunk import side_by_side
from hggraph.nn._conv import conv_norm_relu, resize

__all__ = ["HRNetFusion", "ResNetDecoder"]


class HRNetFusion(nn.Module):
    """Exchange between maps of four sizes, each half the one before (HRNet, Sun et al. 2019), bilinear upwards.

    The output of branch i is ReLU of a sum: of its own map, of coarser ones after a 1x1 and normalisation, upsampled
    with corners on corners, and of finer ones after a 3x3 of stride 2 and normalisation for each halving, the last of
    which changes the channels and the others of which have a ReLU.

    Args:
        channels: Channels of each branch.

    Shapes:
        - **input and output:** maps ``(B, channels[i], H / 2**i, W / 2**i)``, rounded up

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, 4, 8, 6), torch.rand(2, 8, 4, 3)]
        >>> [tuple(x.shape) for x in HRNetFusion([4, 8])(maps)]
        [(2, 4, 8, 6), (2, 8, 4, 3)]
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for width in channels:
            check_positive("channels", width)
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the fused maps; see the class for shapes."""
        out = []
        for x, paths in zip(maps, self.paths, strict=True):
            layers: Any = paths
            parts = [layer(y) for layer, y in zip(layers, maps, strict=True)]
            size = (x.shape[2], x.shape[3])
            total, *rest = (y if y.shape[2:] == x.shape[2:] else resize(y, size) for y in parts)
            for y in rest:
                total = total + y
            out.append(F.relu(total))
        return out


class ResNetDecoder(nn.Module):
    """Make features of stride 4 from a ResNet's four stages (Hsiao et al. 2021, *Specialize and Fuse*, Sec. 5.1.2).

    Each stage's channels are reduced, HRNet's fusion exchanges between the four, and the results are put side by side
    at the first one's size. The paper states neither the reduced channels nor their layers: 1x1, normalisation and
    ReLU to those of an HRNet-W48 make its 720 channels.

    Args:
        in_channels: Channels of the four stages.
        channels: Channels of the first stage, reduced; each next has twice as many, the output 15 times.

    Shapes:
        - **input:** four maps ``(B, in_channels[i], h, w)``, each half the size of the one before; a larger one, a
          stage on regions for example, is averaged to that
        - **output:** map ``(B, 15 * channels, H, W)`` of the first one's size

    Raises:
        ValueError: if a number is not as said; in a call, if there are not four maps or one is empty.

    Note:
        With 48 channels on a ResNet-50, 101 or 152 1.9 10^9 multiply-adds for an image of 512 x 512 pixels.

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, c, s, s) for c, s in ((8, 16), (16, 8), (32, 4), (64, 2))]
        >>> ResNetDecoder([8, 16, 32, 64], 4)(maps).shape
        torch.Size([2, 60, 16, 16])
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 48) -> None:
        super().__init__()
        if isinstance(in_channels, int) or len(in_channels) != 4:
            raise ValueError(f"`in_channels` must be those of four stages, got {in_channels!r}.")
        check_positive("channels", channels)
        widths = [channels * 2**i for i in range(4)]
        self.channels = sum(widths)
        self.reduce = nn.ModuleList(conv_norm_relu(a, b) for a, b in zip(in_channels, widths, strict=True))
        self.fuse = HRNetFusion(widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the features; see the class for shapes."""
        if len(maps) != 4:
            raise ValueError(f"`maps` must be those of four stages, got {len(maps)}.")
        reduced = []
        size = (maps[0].shape[2], maps[0].shape[3])
        for i, (layers, x) in enumerate(zip(self.reduce, maps, strict=True)):
            check_features(f"maps[{i}]", x)
            if x.shape[2:] != size:
                x = F.adaptive_avg_pool2d(x, size)
            reduced.append(layers(x))
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return side_by_side(self.fuse(reduced))


def _path(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """Return what a map of one branch goes through on its way to another."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(*list(conv_norm_relu(channels[source], channels[target]))[:2])
    layers: list[nn.Module] = []
    widths = [channels[source]] * (target - source) + [channels[target]]
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
