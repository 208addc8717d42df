"""Deformable convolution: each tap reads between four pixels, at a learned place."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import autocast
from hggraph.ops.segment import segment_reduce

__all__ = ["deform_conv2d"]


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Convolve with taps that are displaced by `offset` (Dai et al., "Deformable Convolutional Networks", 2017).

    The typed aggregation with soft types: tap k of pixel i has an edge from each of the four pixels around its place,
    weighted bilinearly; ``out_i = sum_k W_k sum_j a_ijk x_j``. Places outside the image read 0. The result is that of
    ``torchvision.ops.deform_conv2d`` without a mask, which runs on one core of a CPU; this runs on all.

    Args:
        x: Map, shape ``(B, C, H, W)``, floating point.
        offset: Displacements of the taps in pixels, ``(dy, dx)`` for each tap in row-major order, shape
            ``(B, 2 * k * k, H', W')``.
        weight: Shape ``(O, C, k, k)``.
        bias: Shape ``(O,)`` or None.
        stride: Step between targets.
        padding: Zeros around the image.
        dilation: Distance of the taps before they are displaced.

    Returns:
        Shape ``(B, O, H', W')``. Differentiable in all tensors; positions are computed in float32 at least.

    Raises:
        ValueError: if shapes disagree.

    Note:
        O(B P k^2 (C + C O)) time, B P k^2 C numbers of memory. Deterministic.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 1, 4)
        >>> half = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> deform_conv2d(x, half, torch.ones(1, 1, 1, 1))
        tensor([[[[0.5000, 1.5000, 2.5000, 1.5000]]]])
    """
    check_ndim("x", x, 4, shape="(B, C, H, W)")
    check_ndim("weight", weight, 4, shape="(O, C, k, k)")
    batch, channels, height, width = x.shape
    kernel_size = weight.shape[2]
    reach = dilation * (kernel_size - 1)
    out_size = [(side + 2 * padding - reach - 1) // stride + 1 for side in (height, width)]
    expected = (batch, 2 * kernel_size**2, *out_size)
    if weight.shape[1:] != (channels, kernel_size, kernel_size):
        raise ValueError(f"`weight` must have shape (O, C, k, k) with C = {channels}, got {tuple(weight.shape)}.")
    if offset.shape != expected:
        raise ValueError(f"`offset` must have shape (B, 2 k k, H', W') = {expected}, got {tuple(offset.shape)}.")

    x, weight, bias = autocast(x, weight, bias)
    index, corner_weight = _corners(offset, (height, width), kernel_size, stride, padding, dilation)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)  # a view for channels_last
    ptr = torch.arange(0, index.numel() + 1, 4, device=x.device)
    taps = segment_reduce(rows, ptr, index.flatten(), corner_weight.to(x.dtype).flatten())
    taps = taps.view(-1, kernel_size**2 * channels)
    out = taps @ weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])
    out = out if bias is None else out + bias
    return out.view(batch, *out_size, weight.shape[0]).permute(0, 3, 1, 2)


def _corners(
    offset: Tensor, size: tuple[int, int], kernel_size: int, stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Return the four pixels around each tap and their bilinear weights, both ``(B, H', W', k * k, 4)``."""
    batch, _, out_height, out_width = offset.shape
    dtype, device = compute_dtype(offset), offset.device
    taps = torch.arange(kernel_size, device=device, dtype=dtype) * dilation - padding
    rows = torch.arange(out_height, device=device, dtype=dtype) * stride
    columns = torch.arange(out_width, device=device, dtype=dtype) * stride
    places = offset.to(dtype).view(batch, kernel_size, kernel_size, 2, out_height, out_width)
    places = places.permute(3, 0, 4, 5, 1, 2)  # (2, B, H', W', k, k)
    y = (places[0] + rows.view(-1, 1, 1, 1) + taps.view(-1, 1)).flatten(3)
    x = (places[1] + columns.view(-1, 1, 1) + taps).flatten(3)

    top, left = y.floor().detach(), x.floor().detach()
    down, right = y - top, x - left
    corner_y = torch.stack([top, top, top + 1, top + 1], -1)
    corner_x = torch.stack([left, left + 1, left, left + 1], -1)
    weight = torch.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right],
        -1,
    )
    inside = (corner_y >= 0) & (corner_y < size[0]) & (corner_x >= 0) & (corner_x < size[1])
    weight = torch.where(inside, weight, 0)
    # a place outside, or none at all, has weight 0: it may read any pixel
    index = torch.where(inside, corner_y * size[1] + corner_x, 0).long()
    images = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    return index + images * (size[0] * size[1]), weight
