"""Asymmetric non-local block: attention of every pixel to the means over a few coarse grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import conv_norm_relu
from hggraph.nn.context_module import BINS, check_bins, pyramid_pool

__all__ = ["AsymmetricNonLocal"]


class AsymmetricNonLocal(nn.Module):
    """Attend from each pixel to a spatial pyramid, concatenate with the input, and mix (ANL, Zhu et al. 2019, APNB).

    As in the published code: keys and queries are one 1x1 convolution with normalisation and ReLU, values another, both
    are made of pixels and then pooled, and the result's 1x1 starts at zero. Its non-linear 1x1 over the concatenation
    follows.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; those of the input when None.
        key_channels: Channels of keys, queries and values.
        bins: Cells per side of each grid; each cell is a key.
        dropout: Share of channels dropped at the end in training.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``
        - **output:** map ``(B, out_channels, H, W)``; an empty batch gives an empty map

    Raises:
        ValueError: if a number is not as said; in a call, if the map is empty.

    Note:
        O(H W (in_channels (key_channels + out_channels) + T key_channels)) with T = sum of the squares of `bins`, 110
        by default. Deterministic on a CPU; the gradient of pooling adds in any order on a GPU.

    Example:
        >>> AsymmetricNonLocal(16, 8, key_channels=4).eval()(torch.rand(1, 16, 9, 12)).shape
        torch.Size([1, 8, 9, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        key_channels: int = 256,
        bins: Sequence[int] = BINS,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        names = {"in_channels": in_channels, "out_channels": out_channels, "key_channels": key_channels}
        for name, value in names.items():
            check_positive(name, value)
        self.bins = check_bins(bins)
        self.key = conv_norm_relu(in_channels, key_channels)
        self.value = nn.Conv2d(in_channels, key_channels, 1)
        self.context = nn.Conv2d(key_channels, in_channels, 1)
        self.project = conv_norm_relu(2 * in_channels, out_channels)
        self.dropout = nn.Dropout2d(dropout)
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map; see the class for shapes."""
        check_features("x", x)
        query = self.key(x)
        maps = query, pyramid_pool(query, self.bins), pyramid_pool(self.value(x), self.bins)
        q, k, v = (y.flatten(2).mT.unsqueeze(1) for y in maps)  # (B, 1, H W or T, key_channels)
        attended = F.scaled_dot_product_attention(q, k, v)
        context = self.context(attended.squeeze(1).mT.unflatten(2, (x.shape[2], x.shape[3])))
        out: Tensor = self.dropout(self.project(torch.cat([context, x], 1)))
        return out
