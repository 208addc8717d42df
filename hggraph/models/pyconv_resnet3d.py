"""PyConvResNet3D: video classification by pyramids over time and space, beside its ResNet3D baseline."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hggraph._check import check_ndim, check_positive
from hggraph.models.pyconv_resnet import BLOCKS, Bottleneck, initialise
from hggraph.nn import PyConv3d

__all__ = ["ResNet3D", "pyconv_resnet3d"]

Axes = tuple[int, int, int]
WIDTHS = (64, 128, 256, 512)
STRIDES: tuple[Axes, ...] = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
# kernel sizes (t, y, x) and groups of each stage's levels (PyConv, supplement, Table 2)
PYRAMIDS: tuple[tuple[tuple[Axes, ...], tuple[int, ...]], ...] = (
    (((3, 3, 3), (3, 5, 5), (5, 7, 7), (7, 9, 9)), (1, 4, 8, 16)),
    (((3, 3, 3), (3, 5, 5), (5, 7, 7)), (1, 4, 8)),
    (((3, 3, 3), (3, 5, 5)), (1, 4)),
    (((3, 3, 3),), (1,)),
)


class ResNet3D(nn.Module):
    """A residual network for video; see `pyconv_resnet3d`."""

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        pyramids: bool = True,
        in_channels: int = 3,
        zero_init: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS or depth < 50:
            raise ValueError(f"`depth` must be one of {tuple(d for d in BLOCKS if d >= 50)}, got {depth!r}.")
        check_positive("num_classes", num_classes)
        check_positive("in_channels", in_channels)
        self.in_channels, self.num_classes, self.pyramids = in_channels, num_classes, pyramids
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, 64, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
            nn.Identity() if pyramids else nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        before, stages = 64, []
        for i, (count, width) in enumerate(zip(BLOCKS[depth], WIDTHS, strict=True)):
            blocks = []
            for number in range(count):
                stride = (1, 1, 1) if number or (i == 0 and not pyramids) else STRIDES[i]
                middle: nn.Module = nn.Conv3d(width, width, 3, stride, 1, bias=False)
                if pyramids:
                    middle = PyConv3d(width, width, *PYRAMIDS[i], stride=stride)
                side = None if number else shortcut(before, 4 * width, stride, pooled=pyramids)
                layers: dict[str, Any] = {"conv": nn.Conv3d, "norm": nn.BatchNorm3d}
                blocks.append(Bottleneck(before, middle, width, 4 * width, side, **layers))
                before = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(before, num_classes)
        initialise(self, zero_init=zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` of clips ``(B, in_channels, T, H, W)``."""
        check_ndim("x", x, 5, shape=f"(B, {self.in_channels}, T, H, W)")
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.fc(self.dropout(x.mean((2, 3, 4))))
        return out


def pyconv_resnet3d(
    depth: int = 50,
    num_classes: int = 400,
    *,
    pyramids: bool = True,
    in_channels: int = 3,
    zero_init: bool = False,
    dropout: float = 0.5,
) -> ResNet3D:
    """Make a PyConvResNet3D for video, or its baseline (Duta et al. 2020, supplement, Table 2).

    `PyConv3d` where the baseline has a 3x3x3; no max pooling after the stem, but on each shortcut with a stride, as in
    `pyconv_resnet`. Time is halved in stages 3 and 4.

    Args:
        depth: 50, 101 or 152.
        num_classes: Outputs of the classifier.
        pyramids: False makes the baseline, ResNet3D.
        in_channels: Channels of the frames.
        zero_init: Blocks start as identities.
        dropout: Share of features dropped before the classifier in training.

    Returns:
        The network: clips ``(B, in_channels, T, H, W)`` to logits ``(B, num_classes)``.

    Raises:
        ValueError: if an argument is not as said.

    Note:
        At depth 50, for 16 frames of 224 x 224: the baseline has 47.00 M parameters, as published, and 92.5 G
        multiply-adds (93.26 with normalisation and activation); pyramids 45.37 M and 91.0 G (44.91 M and 91.81 G). The
        table's shapes give the published operations and not its parameters; how shortcuts pool is not said, here over
        the axes that have a stride.

    Example:
        >>> import torch
        >>> pyconv_resnet3d(50, num_classes=4).eval()(torch.rand(1, 3, 8, 32, 32)).shape
        torch.Size([1, 4])
    """
    return ResNet3D(
        depth, num_classes, pyramids=pyramids, in_channels=in_channels, zero_init=zero_init, dropout=dropout
    )


def shortcut(in_channels: int, out_channels: int, stride: Axes, *, pooled: bool) -> nn.Sequential:
    """Return a block's shortcut: a 1x1x1, its stride by max pooling over the axes that have one, or its own."""
    kernel = tuple(3 if step > 1 else 1 for step in stride)
    pool = nn.MaxPool3d(kernel, stride, tuple(size // 2 for size in kernel)) if pooled else nn.Identity()
    project = nn.Conv3d(in_channels, out_channels, 1, stride=1 if pooled else stride, bias=False)
    return nn.Sequential(pool, project, nn.BatchNorm3d(out_channels))
