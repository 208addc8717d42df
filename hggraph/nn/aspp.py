"""Atrous spatial pyramid pooling: context from dilated convolutions and the mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import conv_norm_relu
from hggraph.nn.pyramid_pooling import PooledBranch

__all__ = ["ASPP"]


class ASPP(nn.Module):
    """Concatenate a 1x1, dilated 3x3 convolutions and the global mean, and mix (DeepLabv3, Chen et al. 2017).

    The global aggregation of GALD's second version (Li et al. 2021, Table I), with the widths of its code.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dilations: Of the 3x3 convolutions, in pixels; those of output stride 8. Half of them suit stride 16.
        branch_channels: Channels of each branch.
        dropout: Share of channels dropped at the end in training.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``
        - **output:** map ``(B, out_channels, H, W)``; an empty batch gives an empty map

    Raises:
        ValueError: if a number is not as said; in a call, if the map is empty, or is one image in training: batch
            normalisation has one value per channel of its mean.

    Note:
        15.86 M parameters with 2048 channels in and 512 out, 4.46 M with 512 in, each but those of the mean used once
        per pixel. Deterministic.

    Example:
        >>> ASPP(16, 8, branch_channels=4).eval()(torch.rand(1, 16, 9, 12)).shape
        torch.Size([1, 8, 9, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 512,
        *,
        dilations: Sequence[int] = (12, 24, 36),
        branch_channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            check_positive(name, value)
        check_positive("branch_channels", branch_channels)
        for dilation in dilations:
            check_positive("dilations", dilation)
        self.branches = nn.ModuleList(
            [
                PooledBranch(in_channels, branch_channels),
                conv_norm_relu(in_channels, branch_channels),
                *(conv_norm_relu(in_channels, branch_channels, 3, dilation=dilation) for dilation in dilations),
            ]
        )
        self.project = conv_norm_relu(len(self.branches) * branch_channels, out_channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map; see the class for shapes."""
        check_features("x", x)
        out: Tensor = self.dropout(self.project(torch.cat([branch(x) for branch in self.branches], 1)))
        return out
