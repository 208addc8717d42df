"""Compact generalised non-local block: one number per channel group as the global context."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import resize
from hggraph.ops._distance import compute_dtype

__all__ = ["CGNL", "strided_conv"]


class CGNL(nn.Module):
    r"""Scale groups of channels by their global correlation (CGNL, Yue et al. 2018, with the dot product).

    With 1x1 convolutions t, p and g, for each group c of channels

    .. math::
        a_c = \sum_{i, k \in c} p_{ik} g_{ik}, \qquad y = x + \mathrm{GroupNorm}\bigl(W (a_c\, t)\bigr)

    GALD's default global aggregation (Li et al. 2021, Sec. III-A) runs it at half the size: a depthwise 3x3 of stride 2
    before, bilinear upsampling after.

    Args:
        channels: Channels of input and output.
        inner_channels: Channels of t, p and g; half of `channels` when None.
        groups: Groups of both.
        downsample: Run at half the size.

    Shapes:
        - **input:** map ``(B, channels, H, W)``, at least 3 x 3 pixels with `downsample`
        - **output:** the same shape; an empty batch gives an empty map

    Raises:
        ValueError: if `groups` does not divide both numbers of channels; in a call, if the map is too small.

    Note:
        ``3 channels inner_channels + channels inner_channels / groups`` parameters per pixel of the small map and
        nothing quadratic. The sums are float32 under autocast too: they outgrow half precision.

    Example:
        >>> import torch
        >>> CGNL(16)(torch.rand(2, 16, 9, 12)).shape
        torch.Size([2, 16, 9, 12])
    """

    def __init__(
        self, channels: int, inner_channels: int | None = None, *, groups: int = 8, downsample: bool = True
    ) -> None:
        super().__init__()
        inner_channels = channels // 2 if inner_channels is None else inner_channels
        names = {"channels": channels, "inner_channels": inner_channels, "groups": groups}
        for name, value in names.items():
            check_positive(name, value)
        if channels % groups or inner_channels % groups:
            raise ValueError(
                f"`groups` must divide `channels` and `inner_channels`, got {groups}, {channels} and {inner_channels}."
            )
        self.groups = groups
        self.down = strided_conv(channels) if downsample else None
        self.t = nn.Conv2d(channels, inner_channels, 1, bias=False)
        self.p = nn.Conv2d(channels, inner_channels, 1, bias=False)
        self.g = nn.Conv2d(channels, inner_channels, 1, bias=False)
        self.z = nn.Conv2d(inner_channels, channels, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its context; see the class for shapes."""
        check_features("x", x)
        size = (x.shape[2], x.shape[3])
        if self.down is not None:
            if min(size) < 3:
                raise ValueError(
                    f"The map must have at least 3 x 3 pixels to be downsampled, got {size[0]} x {size[1]}."
                )
            x = self.down(x)
        p, g = (y.unflatten(1, (self.groups, -1)).flatten(2) for y in (self.p(x), self.g(x)))
        dtype = compute_dtype(p)
        a = (p.to(dtype) * g.to(dtype)).sum(2)
        # W (a t) = a (W t), group by group: the large factor comes after the convolution in half precision
        y = self.z(self.t(x)).to(dtype).unflatten(1, (self.groups, -1)) * a[:, :, None, None, None]
        norm = self.norm
        y = F.group_norm(y.flatten(1, 2), norm.num_groups, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
        out = y.to(x.dtype) + x
        return out if self.down is None else resize(out, size)


def strided_conv(channels: int) -> nn.Sequential:
    """Return GALD's downsampling by 2: a depthwise 3x3 without padding, normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
