"""Grouped convolution of images, on a CPU as depthwise convolution where groups are narrow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["grouped_conv2d"]

# multiply-adds from which depthwise convolutions are faster, for groups of one output and of two
LEAST = {1: 400_000, 2: 10_000_000}


def grouped_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    r"""Return ``F.conv2d`` of the same arguments, on a CPU faster for narrow groups on large maps.

    With one output to a group its taps are those of a depthwise convolution, whose results are added up in the group:

    .. math::
        y_g = \sum_{c \in g} w_{gc} * x_c = \sum_{c \in g} \operatorname{depthwise}(x)_c

    PyTorch's CPU library vectorises depthwise convolution over channels, and a group of one output not at all. On a
    GPU, on small maps, in half precision and in exported programs it is ``F.conv2d`` itself.

    Args:
        x: Shape ``(B, C, H, W)``, floating point.
        weight: Shape ``(O, C / groups, kh, kw)``.
        bias: Shape ``(O,)``.
        stride: Per axis, in pixels.
        padding: Zeros on both sides of each axis.
        dilation: Per axis, in pixels.
        groups: Divides C and O.

    Returns:
        Shape ``(B, O, H', W')``. Differentiable in `x`, `weight` and `bias`.

    Raises:
        RuntimeError: as ``F.conv2d`` does, if shapes do not fit.

    Note:
        The operations of a grouped convolution, and ``C O`` more per pixel. Deterministic; sums are in another order.

    Example:
        >>> x, weight = torch.rand(1, 8, 5, 6), torch.rand(2, 4, 3, 3)
        >>> torch.allclose(grouped_conv2d(x, weight, groups=2), F.conv2d(x, weight, groups=2), atol=1e-5)
        True
    """
    stride, padding, dilation = list(stride), list(padding), list(dilation)
    if not _narrow(x, weight, stride, groups):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    channels, outputs = x.shape[1], weight.shape[0] // groups
    # (outputs, C, 1, kh, kw): the j-th output of each group, channel by channel
    taps = weight.unflatten(0, (groups, outputs)).transpose(0, 1).flatten(1, 2).unsqueeze(2)
    total: Tensor | None = None
    for j, tap in enumerate(taps):
        alone = F.conv2d(x, tap.contiguous(), None, stride, padding, dilation, channels)
        part = F.conv2d(alone, _adding(x, groups, outputs, j))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total if bias is None else total.add_(bias.view(-1, 1, 1))


def _narrow(x: Tensor, weight: Tensor, stride: Sequence[int], groups: int) -> bool:
    """Say whether depthwise convolutions are the faster way; docs/performance.md has the times."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.compiler.is_exporting():
        return False
    if torch.is_autocast_enabled("cpu") or weight.shape[1] < 2 or weight.dtype != x.dtype:
        return False
    if x.dim() != 4 or x.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:  # PyTorch has the errors
        return False
    outputs = weight.shape[0] // groups
    macs = weight.numel() * x.shape[0] * x.shape[2] * x.shape[3] // (stride[0] * stride[1])
    if outputs not in LEAST or macs < LEAST[outputs]:
        return False
    if outputs == 1:
        return True
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return min(weight.shape[2:]) >= 7 and weight.shape[1] >= 8 and not trains


def _adding(x: Tensor, groups: int, outputs: int, j: int) -> Tensor:
    """Return the 1x1 weights that add up each group's channels into its j-th output."""
    width = x.shape[1] // groups
    own = torch.eye(groups, dtype=x.dtype).repeat_interleave(width, 1)  # (groups, C)
    out = own.new_zeros(groups, outputs, x.shape[1])
    out[:, j] = own
    return out.view(groups * outputs, -1, 1, 1)
