"""Gaussian blur."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.ops._library import full_precision

__all__ = ["blur"]


def blur(x: Tensor, deviation: float) -> Tensor:
    """Return maps ``(B, ..., H, W)`` blurred by a Gaussian (deviation in pixels; radius of two, edges repeated).

    Example:
        >>> blur(torch.ones(1, 2, 3), 1.0).round(decimals=4)
        tensor([[[1., 1., 1.],
                 [1., 1., 1.]]])
    """
    radius = math.ceil(2 * deviation)
    if radius == 0 or x.numel() == 0:
        return x
    step = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (step / deviation).square()).exp()
    kernel = kernel / kernel.sum()
    maps = x.reshape(-1, 1, *x.shape[-2:])
    with full_precision(x):
        maps = F.conv2d(F.pad(maps, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
        maps = F.conv2d(F.pad(maps, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return maps.view_as(x)
