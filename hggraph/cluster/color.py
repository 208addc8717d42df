"""Photos as points for clustering: CIELAB colour and position in the scaling of Superpixel Sampling Networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hggraph._check import check_features
from hggraph.cluster._blur import blur
from hggraph.ops import fast
from hggraph.ops._library import full_precision

__all__ = ["COLOR_SCALE", "POSITION_SCALE", "photo_colors", "photo_features", "rgb_to_lab"]

_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees
COLOR_SCALE = 0.26  # SSN
_CHROMA = 2.0  # of lightness: people's borders follow hue more than light (docs/clustering.md)
POSITION_SCALE = 2.5  # SSN at test time: 2.5 regions' spacings per unit
_ROUNDING = 1e-3  # what resizing may leave outside [0, 1]


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB to CIELAB (CIE 1976, white point D65).

    Args:
        rgb: Colours in [0, 1], shape ``(B, 3, H, W)``, floating point.

    Returns:
        Shape ``(B, 3, H, W)``: L in [0, 100], a and b about -100 to 100. Differentiable.

    Raises:
        ValueError: if there are not 3 channels.

    Example:
        >>> rgb_to_lab(torch.ones(1, 3, 1, 1)).round().flatten().abs()
        tensor([100.,   0.,   0.])
    """
    check_features("rgb", rgb, "(B, 3, H, W)")
    if rgb.shape[1] != 3:
        raise ValueError(f"`rgb` must have 3 channels, got shape {tuple(rgb.shape)}.")
    linear = torch.where(rgb > 0.04045, _power((rgb.clamp(min=0.04045) + 0.055) / 1.055, 2.4), rgb / 12.92)
    matrix = torch.tensor(_XYZ, dtype=rgb.dtype, device=rgb.device)
    matrix = matrix / torch.tensor(_WHITE, dtype=rgb.dtype, device=rgb.device)[:, None]
    with full_precision(rgb):
        xyz = (matrix @ linear.flatten(2)).view_as(rgb)
    cubic = torch.where(xyz > 0.008856, _power(xyz.clamp(min=0.008856), 1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = cubic.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _power(x: Tensor, exponent: float) -> Tensor:
    """Return ``x ** exponent`` for positive `x`; twice as fast on a CPU as the general power."""
    return (x.log() * exponent).exp()


def photo_colors(image: Tensor, smooth: float = 0.0) -> Tensor:
    """Return the colours by which a photo is clustered: 0.26 L, 0.52 a, 0.52 b, blurred before.

    Args:
        image: Colours in [0, 1], shape ``(B, 3, H, W)``, or grey values, ``(B, 1, H, W)``, floating point.
        smooth: Deviation of a Gaussian blur, in pixels.

    Returns:
        Shape ``(B, 3, H, W)``. Differentiable.

    Raises:
        ValueError: if there are neither 1 nor 3 channels, or values are not in [0, 1] (checked on a CPU).

    Example:
        >>> photo_colors(torch.rand(1, 1, 8, 8), 1.0).shape
        torch.Size([1, 3, 8, 8])
    """
    check_features("image", image)
    if image.shape[1] not in (1, 3):
        raise ValueError(f"`image` must have 3 channels (or 1, grey), got shape {tuple(image.shape)}.")
    if image.device.type == "cpu" and not torch.compiler.is_compiling() and image.numel():
        low, high = (float(value) for value in torch.aminmax(image.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("`image` must be finite, got NaN or infinite values. Check where it comes from.")
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"`image` must be a photo with values in [0, 1], got values from {low:g} to {high:g}. Divide "
                'bytes by 255; for other maps take feature_scale="auto".'
            )
    if len(image) and fast.takes(image):
        scale = (COLOR_SCALE, COLOR_SCALE * _CHROMA, COLOR_SCALE * _CHROMA)
        return fast.each(lambda one: fast.lab(one, smooth, scale=scale), image.expand(-1, 3, -1, -1))
    return rgb_to_lab(blur(image, smooth).expand(-1, 3, -1, -1)) * _weights(image)


def photo_features(image: Tensor, num_regions: int) -> Tensor:
    """Return the points in which a photo is clustered: 0.26 Lab and (y, x) over 0.4 of the regions' spacing.

    The scaling of Superpixel Sampling Networks (Jampani et al., ECCV 2018): two pixels one region's spacing
    apart differ as much as colours about 10 Lab units apart.

    Args:
        image: Colours in [0, 1], shape ``(B, 3, H, W)``, or grey values, ``(B, 1, H, W)``, floating point.
        num_regions: Regions per image; ``sqrt(H * W / num_regions)`` pixels is their spacing.

    Returns:
        Shape ``(B, 5, H, W)``: scaled L, a, b, y, x.

    Raises:
        ValueError: if there are neither 1 nor 3 channels, or values are not in [0, 1] (checked on a CPU).

    Example:
        >>> photo_features(torch.rand(1, 3, 8, 8), 4).shape
        torch.Size([1, 5, 8, 8])
    """
    return as_points(photo_colors(image), num_regions)


def _weights(like: Tensor) -> Tensor:
    return torch.tensor([1.0, _CHROMA, _CHROMA], dtype=like.dtype, device=like.device).view(3, 1, 1) * COLOR_SCALE


def as_points(colors: Tensor, num_regions: int) -> Tensor:
    """Return the points of `photo_features` of the colours of `photo_colors`."""
    colors = colors * (COLOR_SCALE / _weights(colors))
    batch, _, height, width = colors.shape
    scale = POSITION_SCALE * (num_regions / (height * width)) ** 0.5
    y = torch.arange(height, dtype=colors.dtype, device=colors.device)[:, None] * scale
    x = torch.arange(width, dtype=colors.dtype, device=colors.device)[None, :] * scale
    position = torch.stack([y.expand(height, width), x.expand(height, width)])
    return torch.cat([colors, position.expand(batch, -1, -1, -1)], 1)
