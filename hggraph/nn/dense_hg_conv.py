"""Heterogeneous grid convolution on dense region adjacency, with static shapes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hggraph import ops
from hggraph._check import check_dtype, check_ndim, check_one_dtype
from hggraph.graph import RegionAdjacency
from hggraph.nn.hg_conv import (
    conv_stencil,
    init_typed_parameters,
    load_conv,
    make_conv,
    reset_typed_parameters,
    typed_repr,
)
from hggraph.stencil import Stencil

__all__ = ["DenseHGConv"]


class DenseHGConv(nn.Module):
    r"""Convolve regions with one matrix per direction (HG-Conv Eq. 3), as `HGConv` on the same edges.

    The same arguments and ``state_dict`` as `HGConv`; static shapes and no host synchronisation, for networks.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stencil: The K directions.
        groups: As in ``Conv2d``.
        bias: Learn an additive bias.

    Shapes:
        - **input:** region features ``(B, R, in_channels)``, a `RegionAdjacency` over the same stencil
        - **output:** ``(B, R, out_channels)``

    Example:
        >>> import torch
        >>> adjacency = RegionAdjacency(Stencil.square(3), torch.rand(2, 9, 5, 5))
        >>> DenseHGConv(3, 8)(torch.rand(2, 5, 3), adjacency).shape
        torch.Size([2, 5, 8])
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    groups: int
    in_channels: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stencil: Stencil | None = None,
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stencil = init_typed_parameters(self, in_channels, out_channels, stencil, groups, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as ``Conv2d`` does."""
        reset_typed_parameters(self)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d | nn.Conv3d, *, stencil: Stencil | None = None) -> DenseHGConv:
        """Take over a convolution's weights, tap k becoming direction k.

        Args:
            conv: Padded with zeros by ``dilation * (kernel_size // 2)``.
            stencil: Directions instead of the convolution's taps, as many of them: on regions a dilation has no
                meaning, and a dilated 3x3 becomes ``Stencil.square(3)``.

        Raises:
            ValueError: if `conv` is padded otherwise, or the stencil has another number of directions.
        """
        taps = conv_stencil(conv)
        stencil = taps if stencil is None else stencil
        if len(stencil) != len(taps):
            raise ValueError(f"`stencil` must have {len(taps)} directions as `conv` has taps, got {stencil!r}.")
        layer = cls(conv.in_channels, conv.out_channels, stencil, groups=conv.groups, bias=conv.bias is not None)
        return load_conv(layer, conv)

    def to_conv(self, *, stride: int = 1) -> nn.Conv2d | nn.Conv3d:
        """Return the convolution with this layer's weights, the inverse of `from_conv`."""
        return make_conv(self, stride)

    def forward(self, x: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Convolve; see the class for shapes."""
        if adjacency.stencil != self.stencil:
            raise ValueError(f"`adjacency` must be over {self.stencil!r}, got {adjacency.stencil!r}.")
        check_regions("x", x, self.in_channels, adjacency)
        check_one_dtype(x=x, weight=self.weight)
        out = aggregate(x, self.weight, adjacency, self.groups)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def __repr__(self) -> str:
        """Show channels and stencil."""
        return typed_repr(self)


def check_regions(name: str, x: Tensor, channels: int, adjacency: RegionAdjacency) -> None:
    """Raise unless `x` holds features of the adjacency's regions, on its device."""
    shape = (adjacency.batch_size, adjacency.num_regions, channels)
    check_ndim(name, x, 3, shape="(B, R, C)")
    check_dtype(name, x)
    if x.shape != shape:
        raise ValueError(f"`{name}` must have shape (B, R, C) = {shape}, as `adjacency` has, got {tuple(x.shape)}.")
    if x.device != adjacency.device:
        raise ValueError(f"`{name}` must be on the device of `adjacency`, {adjacency.device}, got {x.device}.")


def aggregate(x: Tensor, weight: Tensor, adjacency: RegionAdjacency, groups: int = 1) -> Tensor:
    """Return ``D_k^-1 A_k x W_k`` summed over the directions, for regions ``(B, R, C)`` and weights ``(K, C / g, O)``.

    By the adjacency's form: a convolution over the nodes of a grid, matrix products, or sums over edges.
    """
    if adjacency.grid is not None and (square := adjacency.stencil.as_square) is not None:
        kernel, dilation = square
        taps = weight.permute(2, 1, 0).unflatten(2, kernel)
        nodes = F.pad(x.mT.unflatten(2, adjacency.grid), _padding(kernel, dilation))
        return F.conv2d(nodes, taps, dilation=dilation, groups=groups).flatten(2).mT
    if adjacency.is_dense:
        # the layers of a stage share one normalised adjacency
        return ops.typed_aggregate_dense(x, weight, adjacency.normalized(), groups=groups, normalize=False)
    edge_index, edge_type, edge_weight = adjacency.to_edges()
    rows = x.flatten(0, 1)
    return ops.typed_aggregate(rows, weight, edge_index, edge_type, edge_weight, groups=groups).unflatten(
        0, x.shape[:2]
    )


def _padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Return what `F.pad` takes for an output of the size of the input: last axis first."""
    sides = [(step * (size // 2), step * (size - 1 - size // 2)) for size, step in zip(kernel, dilation, strict=True)]
    return [length for side in reversed(sides) for length in side]
