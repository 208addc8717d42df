"""Heads: from features to logits."""

from __future__ import annotations

from torch import nn

from hggraph.nn._conv import conv_norm_relu

__all__ = ["fcn_head"]


def fcn_head(in_channels: int, num_classes: int, *, channels: int | None = None, dropout: float = 0.1) -> nn.Sequential:
    """Return 3x3 convolution, normalisation, ReLU, dropout and a 1x1 classifier, as PSPNet's code has them.

    Args:
        in_channels: Channels of the features.
        num_classes: Channels of the logits.
        channels: Channels between; a quarter of `in_channels` when None.
        dropout: Share of channels dropped in training.

    Example:
        >>> import torch
        >>> fcn_head(16, 3)(torch.rand(2, 16, 5, 4)).shape
        torch.Size([2, 3, 5, 4])
    """
    channels = in_channels // 4 if channels is None else channels
    return nn.Sequential(
        *conv_norm_relu(in_channels, channels, 3), nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1)
    )
