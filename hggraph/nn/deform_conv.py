"""Deformable convolution with a learned offset for each tap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hggraph import ops

__all__ = ["DeformConv2d"]


class DeformConv2d(nn.Module):
    r"""Convolve with taps that a second convolution displaces (deformable convolution v1).

    Dai et al., "Deformable Convolutional Networks", https://arxiv.org/abs/1703.06211. The second convolution starts
    at 0, so that the layer starts as the ordinary convolution. On a GPU ``torchvision.ops.deform_conv2d`` computes it,
    elsewhere `hggraph.ops.deform_conv2d`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd number of taps along an axis.
        stride: Step between targets.
        padding: Zeros around the image.
        dilation: Distance of the taps before they are displaced.
        bias: Learn an additive bias.

    Shapes:
        - **input:** ``(B, in_channels, H, W)``
        - **output:** ``(B, out_channels, H', W')`` as ``Conv2d`` gives

    Example:
        >>> DeformConv2d(8, 16, 3, padding=1)(torch.rand(1, 8, 5, 6)).shape
        torch.Size([1, 16, 5, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.offset = nn.Conv2d(in_channels, 2 * kernel_size**2, kernel_size, stride, padding, dilation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as ``Conv2d`` does; the taps start where an ordinary convolution has them."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.zeros_(self.offset.weight)
        for bias in (self.bias, self.offset.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> DeformConv2d:
        """Take over a convolution's weights; the layer then gives what the convolution gives.

        Raises:
            ValueError: if the convolution is grouped, not square or not padded with zeros.
        """
        sides: list[Any] = [conv.kernel_size, conv.stride, conv.padding, conv.dilation]
        square = all(isinstance(side, tuple) and len(set(side)) == 1 for side in sides)
        if not square or conv.groups != 1 or conv.padding_mode != "zeros":
            raise ValueError(f"`conv` must be a square, ungrouped convolution padded with zeros, got {conv}.")
        kernel_size, stride, padding, dilation = (side[0] for side in sides)
        out = cls(
            conv.in_channels,
            conv.out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=conv.bias is not None,
        )
        out.to(conv.weight)
        with torch.no_grad():
            out.weight.copy_(conv.weight)
            if conv.bias is not None and out.bias is not None:
                out.bias.copy_(conv.bias)
        return out.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; see the class for shapes."""
        offset = self.offset(x)
        if x.is_cuda:
            from torchvision.ops import deform_conv2d

            out: Tensor = deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation)
            return out
        return ops.deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )

    def extra_repr(self) -> str:
        """Show channels and geometry."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )
