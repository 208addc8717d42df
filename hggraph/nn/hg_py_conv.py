"""Pyramidal convolution on graphs: several stencils side by side on one adjacency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from hggraph._check import check_range
from hggraph.graph import RegionAdjacency
from hggraph.graph.adjacency import retype
from hggraph.nn.dense_hg_conv import DenseHGConv
from hggraph.nn.hg_conv import HGConv
from hggraph.nn.py_conv import PyConv2d, Size, make_pyramid
from hggraph.stencil import Stencil

__all__ = ["DenseHGPyConv", "HGPyConv"]


class _HGPyConv(nn.Module):
    """What both layers share: a typed convolution for each level."""

    layer: type[HGConv] | type[DenseHGConv]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[Size] = (3, 5),
        groups: Sequence[int] | str = "auto",
        out_splits: Sequence[int] | None = None,
        dilation: Size = 1,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.dilation = in_channels, out_channels, dilation
        self.pyramid = make_pyramid(in_channels, out_channels, kernel_sizes, groups, out_splits, 2)
        self.stencils = tuple(Stencil.square(level.kernel_size, dilation=dilation) for level in self.pyramid)
        self.stencil = union(self.stencils)
        self.levels = nn.ModuleList(
            self.layer(in_channels, level.out_channels, stencil, groups=level.groups, bias=bias)
            for level, stencil in zip(self.pyramid, self.stencils, strict=True)
        )

    @classmethod
    def from_conv(cls, conv: PyConv2d) -> Self:
        """Take over the weights of a pyramid on pixels. Its stride belongs to the graph.

        Raises:
            ValueError: if it is not padded.
        """
        if not conv.padding:
            raise ValueError("`conv` must be padded with zeros, got one with padding=False.")
        kernels, groups, splits = zip(*conv.pyramid, strict=True)
        bias = conv.levels[0].bias is not None
        out = cls(conv.in_channels, conv.out_channels, kernels, groups, splits, conv.dilation, bias=bias)
        for i, level in enumerate(conv.levels):
            out.levels[i] = cls.layer.from_conv(level)  # type: ignore[arg-type]
        return out

    def to_conv(self, *, stride: int = 1) -> PyConv2d:
        """Return the pyramid on pixels with these weights, the inverse of `from_conv`."""
        kernels, groups, splits = zip(*self.pyramid, strict=True)
        levels: Any = self.levels
        bias = levels[0].bias is not None
        out = PyConv2d(self.in_channels, self.out_channels, kernels, groups, splits, stride, self.dilation, bias=bias)
        for i, level in enumerate(levels):
            out.levels[i] = level.to_conv(stride=stride)
        return out


class HGPyConv(_HGPyConv):
    """Convolve a graph with a pyramid of stencils, each on all inputs, and concatenate.

    `PyConv2d` (Duta et al. 2020) where `HGConv` (HG-Conv Eq. 3) stands for each level's convolution: HG-Conv with
    several scales, which no paper has. Edges are typed by the largest stencil, and a level sees those whose
    displacement is its own; only displacements that exist are computed. With one level it is `HGConv`, and on
    `grid_graph` of `stencil` it is the `PyConv2d` of these weights.

    Args:
        in_channels: As for `PyConv2d`, and so are out_channels, kernel_sizes, groups and out_splits.
        out_channels: Channels of all levels together.
        kernel_sizes: Taps per axis of each level, odd, up to 9 and more.
        groups: Of each level, or ``"auto"``.
        out_splits: Of each level.
        dilation: Of all levels.
        bias: Learn additive biases.

    Shapes:
        - **input:** as for `HGConv`; edge types are the indices of `stencil`, all levels' displacements in row-major
          order (``Stencil.square(9)`` for 3, 5, 7 and 9)
        - **output:** ``(num_targets or N, out_channels)``, the levels in their order

    Note:
        Edges of regions come from ``assignment.adjacency(layer.stencil, max_direction=False)`` and, to keep the
        strongest direction of each level, ``restrict``; `DenseHGPyConv` does so itself. Deterministic.

    Example:
        >>> from hggraph import grid_graph
        >>> layer = HGPyConv(4, 8, (3, 5), (1, 2))
        >>> graph = grid_graph((4, 6), layer.stencil)
        >>> layer(torch.rand(24, 4), graph.edge_index, graph.edge_type).shape
        torch.Size([24, 8])
    """

    layer = HGConv

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        edge_weight: Tensor | None = None,
        num_targets: int | None = None,
    ) -> Tensor:
        """Convolve; see the class for shapes."""
        check_range("edge_type", edge_type, len(self.stencil), "Was the graph built with `layer.stencil`?")
        num_targets = x.shape[0] if num_targets is None else num_targets
        out = []
        for level, stencil in zip(self.levels, self.stencils, strict=True):
            types = retype(edge_type, self.stencil, stencil)
            kept = types >= 0
            weight = None if edge_weight is None else edge_weight[kept]
            out.append(level(x, edge_index[:, kept], types[kept], weight, num_targets))
        return torch.cat(out, 1)


class DenseHGPyConv(_HGPyConv):
    """`HGPyConv` on dense region adjacency, with static shapes: for an `HGStage`.

    The same arguments and ``state_dict``. Each level has its own adjacency, as if it had been made of its stencil
    alone: with the strongest direction of each pair among its own displacements, unless `max_direction` is False.

    Args:
        in_channels: As for `HGPyConv`, and so are the others.
        max_direction: Keep the strongest direction of each pair, level by level.

    Shapes:
        - **input:** region features ``(B, R, in_channels)``; a `RegionAdjacency` over all the levels' displacements at
          least, made with ``max_direction=False``, as ``HGStage(..., stencil=layer.stencil, max_direction=False)`` does
        - **output:** ``(B, R, out_channels)``

    Example:
        >>> layer = DenseHGPyConv(4, 8, (3, 5), (1, 2))
        >>> adjacency = RegionAdjacency(layer.stencil, torch.rand(2, 25, 6, 6))
        >>> layer(torch.rand(2, 6, 4), adjacency).shape
        torch.Size([2, 6, 8])
    """

    layer = DenseHGConv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[Size] = (3, 5),
        groups: Sequence[int] | str = "auto",
        out_splits: Sequence[int] | None = None,
        dilation: Size = 1,
        *,
        bias: bool = False,
        max_direction: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_sizes, groups, out_splits, dilation, bias=bias)
        self.max_direction = max_direction

    def forward(self, x: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Convolve; see the class for shapes."""
        levels = zip(self.levels, self.stencils, strict=True)
        return torch.cat(
            [level(x, adjacency.restrict(stencil, max_direction=self.max_direction)) for level, stencil in levels], 2
        )


def union(stencils: Sequence[Stencil]) -> Stencil:
    """Return all displacements of some stencils, in row-major order.

    Example:
        >>> union([Stencil.square(3), Stencil.square(5)]) == Stencil.square(5)
        True
    """
    return Stencil(sorted({offset for stencil in stencils for offset in stencil}))
