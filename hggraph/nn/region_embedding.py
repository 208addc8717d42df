"""Region embedding: what a photo's pixels are clustered by, learned through the clustering."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import conv_norm_relu

__all__ = ["RegionEmbedding"]


class RegionEmbedding(nn.Module):
    """Add learned channels to the points of a photo (Superpixel Sampling Networks, Jampani et al. 2018, Sec. 4.2).

    Two 3x3 convolutions with batch normalisation and ReLU at each of three scales, 3x3 max-pooling of stride 2 between
    them; the scales brought back to full size and concatenated with the input; a 3x3 convolution and ReLU.

    A clusterer takes it as ``SoftSLIC(projection=RegionEmbedding(), feature_scale="photo")``: the distances in which
    pixels are grouped are then those of the learned channels and the photo's own. The last convolution begins small, as
    in the paper, so that an untrained embedding gives about the regions of the photo alone.

    Args:
        in_channels: Channels of the input: with `photo_features` scaled L, a, b, y, x.
        out_channels: Learned channels.
        channels: Channels of the hidden layers.
        position: Show (y, x), the last two channels, to the convolutions, as the paper does. False hides them, so that
            the learned channels of a place do not depend on where in the photo it lies, nor on the number of regions.

    Shapes:
        - **input:** points ``(B, in_channels, H, W)``, the scaled (y, x) last, as `photo_features` returns them
        - **output:** ``(B, out_channels + in_channels, H, W)``: the learned channels, then the input, so that (y, x)
          are the last two again; an empty batch gives an empty map

    Raises:
        ValueError: if a number is not as said; in a call, if the input has other channels or no pixels.

    Note:
        214,578 parameters by default; 90 thousand multiply-adds for each pixel. Deterministic.

    Example:
        >>> RegionEmbedding().eval()(torch.rand(1, 5, 9, 12)).shape
        torch.Size([1, 20, 9, 12])
    """

    def __init__(
        self, in_channels: int = 5, out_channels: int = 15, channels: int = 64, *, position: bool = True
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels, 3)
        check_positive("out_channels", out_channels)
        check_positive("channels", channels)
        self.in_channels = in_channels
        self.out_channels = out_channels + in_channels
        self.position = position
        seen = in_channels if position else in_channels - 2
        self.scales = nn.ModuleList(
            [
                nn.Sequential(conv_norm_relu(width, channels, 3), conv_norm_relu(channels, channels, 3))
                for width in (seen, channels, channels)
            ]
        )
        self.mix = nn.Conv2d(seen + len(self.scales) * channels, out_channels, 3, padding=1)
        nn.init.normal_(self.mix.weight, std=0.001)
        assert self.mix.bias is not None
        nn.init.zeros_(self.mix.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Return learned channels and points; see the class for shapes."""
        check_features("points", points, f"(B, {self.in_channels}, H, W)")
        if points.shape[1] != self.in_channels:
            raise ValueError(
                f"`points` must have {self.in_channels} channels, (y, x) last, got shape {tuple(points.shape)}."
            )
        seen = points if self.position else points[:, :-2]
        found, x = [seen], seen
        for number, scale in enumerate(self.scales):
            x = scale(F.max_pool2d(x, 3, 2, 1) if number else x)
            whole = x if not number else F.interpolate(x, points.shape[2:], mode="bilinear", align_corners=False)
            found.append(whole)
        learned = self.mix(torch.cat(found, 1)).relu()
        return torch.cat([learned, points.to(learned.dtype)], 1)
