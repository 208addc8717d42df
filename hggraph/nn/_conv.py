"""What layers and networks are made of: a convolution with its normalisation, and resizing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["check_statistics", "conv_norm_relu", "grow", "resize", "span"]


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 1, *, dilation: int = 1) -> nn.Sequential:
    """Return a convolution without bias that keeps the size, batch normalisation and ReLU.

    Example:
        >>> import torch
        >>> conv_norm_relu(4, 8, 3, dilation=2)(torch.rand(2, 4, 5, 6)).shape
        torch.Size([2, 8, 5, 6])
    """
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map ``(B, C, h, w)`` at another size: bilinear, corners on corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def span(length: int, cells: int) -> int:
    """Return how many fine pixels the cells of a coarse axis stand for: more than there are where a stride left a rest.

    Example:
        >>> span(45, 23), span(45, 12), span(48, 12), span(10, 7)
        (46, 48, 48, 10)
    """
    ratio = -(-length // max(1, cells))
    return ratio * cells if cells == -(-length // ratio) else length


def grow(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the map ``(B, C, h, w)`` of a strided layer at the size of its input: bilinear, each value over its cell.

    Example:
        >>> import torch
        >>> grow(torch.rand(1, 2, 12, 15), (45, 60)).shape
        torch.Size([1, 2, 45, 60])
    """
    whole = (span(size[0], x.shape[2]), span(size[1], x.shape[3]))
    return F.interpolate(x, whole, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def check_statistics(x: Tensor, norm: nn.Module) -> None:
    """Raise where batch normalisation in training would see one value per channel: its deviation is 0."""
    values = x.shape[0] * x.shape[2] * x.shape[3]
    if norm.training and type(norm) is nn.BatchNorm2d and values == 1:
        raise ValueError(
            "One image makes one value per channel after global pooling, and batch normalisation in training needs "
            "two: train on batches of at least 2 images, or on several processes with "
            "torch.nn.SyncBatchNorm.convert_sync_batchnorm."
        )
