"""Pyramid pooling: means over the cells of coarse grids as context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import check_statistics, conv_norm_relu, resize

__all__ = ["PooledBranch", "PyramidPooling"]


class PyramidPooling(nn.Module):
    """Concatenate a map with its means over coarse grids, and mix (PSPNet, Zhao et al. 2017, Sec. 3.2).

    Per bin b: the means over b x b cells, a 1x1 convolution with normalisation, upsampled. Then a 1x1 convolution over
    the concatenation with the input. As in GALD's code (one of its global aggregations, Table I) the branches have no
    ReLU; the last convolution there is padded by one pixel, which enlarges the map and is not repeated here.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        bins: Cells per side of each grid.
        branch_channels: Channels of each branch; those of the output when None.
        dropout: Share of channels dropped at the end in training.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``
        - **output:** map ``(B, out_channels, H, W)``; an empty batch gives an empty map

    Raises:
        ValueError: if a number is not as said; in a call, if the map is empty, or is one image in training with a bin
            of 1, whose batch normalisation then has one value per channel.

    Note:
        ``in_channels * branch_channels`` parameters per bin and ``(in_channels + bins * branch_channels) *
        out_channels``. Deterministic on a CPU; upsampling's gradient adds in any order on a GPU.

    Example:
        >>> PyramidPooling(16, 8).eval()(torch.rand(1, 16, 9, 12)).shape
        torch.Size([1, 8, 9, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 512,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        branch_channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        check_positive("out_channels", out_channels)
        width = out_channels if branch_channels is None else branch_channels
        check_positive("branch_channels", width)
        if not bins:
            raise ValueError("`bins` must name at least one grid, got none.")
        for size in bins:
            check_positive("bins", size)
        self.branches = nn.ModuleList(PooledBranch(in_channels, width, size, relu=False) for size in bins)
        self.project = conv_norm_relu(in_channels + len(bins) * width, out_channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map; see the class for shapes."""
        check_features("x", x)
        out: Tensor = self.dropout(self.project(torch.cat([x, *(branch(x) for branch in self.branches)], 1)))
        return out


class PooledBranch(nn.Module):
    """Means over the cells of a grid, a 1x1 convolution with normalisation, upsampled to the input's size."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        self.size = size
        layers = list(conv_norm_relu(in_channels, out_channels))
        self.conv = nn.Sequential(*(layers if relu else layers[:2]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H, W)``."""
        pooled = F.adaptive_avg_pool2d(x, self.size)
        check_statistics(pooled, self.conv[1])
        return resize(self.conv(pooled), (x.shape[2], x.shape[3]))
