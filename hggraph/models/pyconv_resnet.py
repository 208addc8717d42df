"""PyConvResNet: residual networks whose 3x3 convolutions are pyramids."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.models.weights import load_weights
from hggraph.nn import PyConv2d

__all__ = ["PyConvResNet", "from_official", "pyconv_hg_resnet", "pyconv_resnet"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
KERNELS = ((3, 5, 7, 9), (3, 5, 7), (3, 5), (3,))


class Family(NamedTuple):
    """What tells the two families apart: widths inside the blocks, and the groups of each stage's levels."""

    widths: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]


PLAIN = Family((64, 128, 256, 512), ((1, 4, 8, 16), (1, 4, 8), (1, 4), (1,)))
HIGH_GROUPING = Family((128, 256, 512, 1024), ((32, 32, 32, 32), (32, 64, 64), (32, 64), (32,)))


class Residual(nn.Module, ABC):
    """A block whose branch is added to its input, or to what `downsample` makes of it."""

    def __init__(self, downsample: nn.Module | None) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    @abstractmethod
    def last_norm(self) -> nn.Module:
        """The normalisation before the addition."""

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """Return what is added."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, of maps or of videos."""
        identity = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.branch(x).add_(identity))
        return out


class Bottleneck(Residual):
    """A 1x1, something of the same width inside, a 1x1; of maps, or of videos with layers for them.

    Args:
        in_channels: Channels of the input.
        middle: What lies between, from `width` to `width` channels.
        width: Its channels.
        out_channels: Channels of the output.
        downsample: See `Residual`.
        conv: The class of the convolutions.
        norm: The class of the normalisations.
    """

    def __init__(
        self,
        in_channels: int,
        middle: nn.Module,
        width: int,
        out_channels: int,
        downsample: nn.Module | None,
        *,
        conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d,
        norm: type[nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__(downsample)
        self.conv1 = conv(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = middle
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the addition."""
        return self.bn3

    def branch(self, x: Tensor) -> Tensor:
        """Return the three convolutions' result."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class PyConvBottleneck(Bottleneck):
    """1x1, a pyramid, 1x1 (PyConv Fig. 4)."""

    def __init__(
        self, in_channels: int, width: int, out_channels: int, pyramid: dict[str, Any], stride: int, dilation: int
    ) -> None:
        middle = PyConv2d(width, width, stride=stride, dilation=dilation, **pyramid)
        super().__init__(in_channels, middle, width, out_channels, shortcut(in_channels, out_channels, stride))


class PyConvBasicBlock(Residual):
    """A pyramid and a 1x1, or two pyramids."""

    def __init__(
        self, in_channels: int, width: int, pyramid: dict[str, Any], stride: int, dilation: int, *, twice: bool
    ) -> None:
        super().__init__(shortcut(in_channels, width, stride))
        self.conv1 = PyConv2d(in_channels, width, stride=stride, dilation=dilation, **pyramid)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = (
            PyConv2d(width, width, dilation=dilation, **pyramid) if twice else nn.Conv2d(width, width, 1, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(width)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the addition."""
        return self.bn2

    def branch(self, x: Tensor) -> Tensor:
        """Return the two convolutions' result."""
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class PyConvResNet(nn.Module):
    """A residual network of pyramids; see `pyconv_resnet` and `pyconv_hg_resnet`.

    Args:
        family: Widths and groups.
        depth: 18, 34, 50, 101 or 152.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        output_stride: Image pixels per pixel of the last map: 32, 16 or 8.
        twice: Blocks of depth 18 and 34 have two pyramids instead of one and a 1x1.
        zero_init: Blocks start as identities: the scale of their last normalisation is 0.
        dropout: Share of features dropped before the classifier in training.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        family: Family,
        depth: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        twice: bool = False,
        zero_init: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"`depth` must be one of {tuple(BLOCKS)}, got {depth!r}.")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"`output_stride` must be 8, 16 or 32, got {output_stride!r}.")
        check_positive("num_classes", num_classes)
        check_positive("in_channels", in_channels)
        self.in_channels, self.num_classes = in_channels, num_classes
        bottleneck = depth >= 50
        self.channels = [256, 512, 1024, 2048] if bottleneck else list(family.widths)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        before, reached = 64, 2
        for i, (count, width, channels, kernels, groups) in enumerate(
            zip(BLOCKS[depth], family.widths, self.channels, KERNELS, family.groups, strict=True), start=1
        ):
            stride = 2 if reached < output_stride else 1
            reached *= stride
            dilation = 2 ** (i + 1) // reached  # what the missing strides would have given
            pyramid = {"kernel_sizes": kernels, "groups": groups}
            blocks: list[nn.Module] = []
            for number in range(count):
                step = stride if number == 0 else 1
                if bottleneck:
                    blocks.append(PyConvBottleneck(before, width, channels, pyramid, step, dilation))
                else:
                    blocks.append(PyConvBasicBlock(before, width, pyramid, step, dilation, twice=twice))
                before = channels
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(before, num_classes)
        initialise(self, zero_init=zero_init)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the four stages, at strides 4, 8, 16 and 32 or, dilated, fewer."""
        check_features("x", x, f"(B, {self.in_channels}, H, W)")
        x = self.relu(self.bn1(self.conv1(x)))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` of images ``(B, in_channels, H, W)``."""
        out: Tensor = self.fc(self.dropout(self.forward_features(x)[-1].mean((2, 3))))
        return out


def pyconv_resnet(
    depth: int = 50,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    output_stride: int = 32,
    twice: bool = False,
    zero_init: bool = False,
    dropout: float = 0.0,
    pretrained: bool | str | Path = False,
) -> PyConvResNet:
    """Make a PyConvResNet (Duta et al. 2020, *Pyramidal Convolution*, Table 1).

    A ResNet whose 3x3 convolutions are pyramids of 4, 3, 2 and 1 levels in its four stages. There is no max pooling
    after the stem; each stage halves the size in its first block, by the pyramid and, on the shortcut, by max pooling.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        output_stride: Image pixels per pixel of the last map: 32; 16 or 8 dilate the last stages instead.
        twice: For depth 18 and 34: two pyramids in a block instead of one and a 1x1.
        zero_init: Blocks start as identities.
        dropout: Share of features dropped before the classifier in training.
        pretrained: A file of weights, of this layout or the published one (see `from_official`); False for random ones.

    Returns:
        The network: images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``. `forward_features` gives the maps
        of the four stages.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's.
        FileNotFoundError: if there is no such file.

    Note:
        24.85, 42.31 and 56.64 M parameters at depth 50, 101 and 152, 3.82, 7.23 and 10.61 G multiply-adds at
        224 x 224 (the paper counts normalisation and activation too: 3.88, 7.31, 10.72); 5.91 and 11.09 M at depth 18
        and 34, `twice` 11.21 and 20.44 M.

    Example:
        >>> import torch
        >>> pyconv_resnet(18, num_classes=10).eval()(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    return _make(PLAIN, depth, num_classes, in_channels, output_stride, twice, zero_init, dropout, pretrained)


def pyconv_hg_resnet(
    depth: int = 50,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    output_stride: int = 32,
    twice: bool = False,
    zero_init: bool = False,
    dropout: float = 0.0,
    pretrained: bool | str | Path = False,
) -> PyConvResNet:
    """Make a PyConvHGResNet: high grouping, blocks twice as wide inside with 32 and 64 groups (PyConv Table 1).

    HG stands for high grouping here; it has nothing to do with regions. The arguments are those of `pyconv_resnet`.
    Depths 18 and 34 are not in the paper: their widths are the blocks' of depth 50.

    Note:
        25.23, 44.63 and 60.66 M parameters at depth 50, 101 and 152, 4.53, 8.32 and 12.15 G multiply-adds at 224 x 224
        (the paper, which counts more: 4.61, 8.42, 12.29).

    Example:
        >>> import torch
        >>> pyconv_hg_resnet(18, num_classes=10).eval()(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    return _make(HIGH_GROUPING, depth, num_classes, in_channels, output_stride, twice, zero_init, dropout, pretrained)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights under this package's names.

    The published code (iduta/pyconv, iduta/pyconvsegnet) names level n of a pyramid ``conv2_n``, and a pyramid of one
    level is a plain convolution; here level n is ``levels.<n - 1>`` of every pyramid. All else has the same name.

    Args:
        state: Tensors by name; names of this package's are kept.

    Example:
        >>> import torch
        >>> published = ["layer1.0.conv2.conv2_2.weight", "layer4.0.conv2.weight", "fc.bias"]
        >>> list(from_official(dict.fromkeys(published, torch.zeros(1, 1, 3, 3))))
        ['layer1.0.conv2.levels.1.weight', 'layer4.0.conv2.levels.0.weight', 'fc.bias']
    """
    out = {}
    for name, value in state.items():
        new = re.sub(r"\.conv2_(\d+)\.", lambda found: f".levels.{int(found[1]) - 1}.", name)
        if value.dim() > 2 and value.shape[-1] > 1:  # a 1x1 of that name is none
            new = re.sub(r"(layer\d\.\d+\.conv2)\.weight$", r"\1.levels.0.weight", new)
        out[new] = value
    return out


def make_trunk(
    depth: int, *, in_channels: int = 3, output_stride: int = 32, pretrained: bool | str | Path = False
) -> PyConvResNet:
    """Return a `pyconv_resnet` without its classifier, as a backbone."""
    net = pyconv_resnet(depth, in_channels=in_channels, output_stride=output_stride, pretrained=pretrained)
    net.fc = nn.Identity()  # type: ignore[assignment]
    return net


def _make(
    family: Family,
    depth: int,
    num_classes: int,
    in_channels: int,
    output_stride: int,
    twice: bool,
    zero_init: bool,
    dropout: float,
    pretrained: bool | str | Path,
) -> PyConvResNet:
    if pretrained is True:
        raise ValueError("There are no weights of PyConvResNets to download; give a file: pretrained='weights.pth'.")
    net = PyConvResNet(
        family,
        depth,
        num_classes,
        in_channels=in_channels,
        output_stride=output_stride,
        twice=twice,
        zero_init=zero_init,
        dropout=dropout,
    )
    if pretrained is not False:
        load_weights(net, pretrained, rename=from_official)
    return net


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Return a block's shortcut: max pooling where there is a stride, a 1x1 where channels change."""
    pool = nn.MaxPool2d(3, stride, 1)
    if in_channels == out_channels:
        return pool if stride > 1 else None
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


def initialise(net: nn.Module, *, zero_init: bool = False) -> None:
    """Draw convolutions as He et al. do (fan out); with `zero_init` blocks start as identities."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init and isinstance(part, Residual):
            nn.init.zeros_(part.last_norm.weight)  # type: ignore[arg-type]
