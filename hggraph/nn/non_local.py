"""Non-local block: attention of every pixel to all pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import conv_norm_relu

__all__ = ["NonLocal"]


class NonLocal(nn.Module):
    """Attend from each pixel to all, concatenate with the input, and mix (GALD Eq. 4; Wang et al. 2018).

    In the form of OCNet's base block, which the segmentation literature compares with: keys and queries are one 1x1
    convolution with normalisation, values another, the result's 1x1 starts at zero.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; those of the input when None.
        key_channels: Channels of keys, queries and values.
        dropout: Share of channels dropped at the end in training.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``
        - **output:** map ``(B, out_channels, H, W)``; an empty batch gives an empty map

    Raises:
        ValueError: if a number is not as said; in a call, if the map is empty.

    Note:
        O((H W)^2 key_channels) time; the (H W)^2 affinities are not held in memory where PyTorch has fused attention
        for the device.

    Example:
        >>> NonLocal(16, 8, key_channels=4).eval()(torch.rand(1, 16, 9, 12)).shape
        torch.Size([1, 8, 9, 12])
    """

    def __init__(
        self, in_channels: int, out_channels: int | None = None, *, key_channels: int = 256, dropout: float = 0.05
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        names = {"in_channels": in_channels, "out_channels": out_channels, "key_channels": key_channels}
        for name, value in names.items():
            check_positive(name, value)
        self.key = nn.Sequential(nn.Conv2d(in_channels, key_channels, 1, bias=False), nn.BatchNorm2d(key_channels))
        self.value = nn.Conv2d(in_channels, key_channels, 1)
        self.context = nn.Conv2d(key_channels, in_channels, 1)
        self.project = conv_norm_relu(2 * in_channels, out_channels)
        self.dropout = nn.Dropout2d(dropout)
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map; see the class for shapes."""
        check_features("x", x)
        key, value = (y.flatten(2).mT.unsqueeze(1) for y in (self.key(x), self.value(x)))  # (B, 1, H W, C)
        attended = F.scaled_dot_product_attention(key, key, value)
        context = self.context(attended.squeeze(1).mT.unflatten(2, (x.shape[2], x.shape[3])))
        out: Tensor = self.dropout(self.project(torch.cat([context, x], 1)))
        return out
