"""Heterogeneous grid convolution on graphs with typed edges."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from hggraph import ops
from hggraph._check import check_ndim, check_strengths
from hggraph.ops.typed_aggregate import EPSILON, check_arguments
from hggraph.stencil import Stencil

__all__ = ["HGConv"]


class HGConv(MessagePassing):
    r"""Convolve a graph with one matrix per direction (HG-Conv Eq. 2 and 3).

    .. math::
        \mathbf{x}^{\prime}_i = \sum_k \frac{1}{D_{ik}} \sum_{j \in \mathcal{N}_k(i)} a_{ij} \mathbf{x}_j \mathbf{W}_k
        + \mathbf{b}, \qquad D_{ik} = \max\Bigl(\sum_{j \in \mathcal{N}_k(i)} a_{ij}, 10^{-7}\Bigr)

    On `grid_graph` with the same stencil and a convolution's weights this is that convolution. Between
    ``RGCNConv`` (types, with a mean for each) and ``SplineConv`` (soft types): a direction is a hard type, and
    edges carry strengths. A direction without a neighbour adds exactly 0.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stencil: The K directions; edge types are its indices.
        groups: As in ``Conv2d``; divides both numbers of channels.
        bias: Learn an additive bias.

    Shapes:
        - **input:** node features ``(N, in_channels)``, edge indices ``(2, E)``, edge types ``(E,)`` in [0, K),
          edge weights ``(E,)`` not negative *(optional)*
        - **output:** ``(num_targets or N, out_channels)``

    Runs as one fused gather, scale and matrix product; while a PyG explainer or hook is at work, message by
    message. Deterministic.

    Example:
        >>> from hggraph import grid_graph
        >>> graph = grid_graph((4, 4), Stencil.square(3))
        >>> HGConv(3, 8)(torch.rand(16, 3), graph.edge_index, graph.edge_type).shape
        torch.Size([16, 8])
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stencil: Stencil | None = None,
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(aggr="sum", node_dim=0)
        self.stencil = init_typed_parameters(self, in_channels, out_channels, stencil, groups, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as ``Conv2d`` does."""
        super().reset_parameters()
        reset_typed_parameters(self)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d | nn.Conv3d) -> HGConv:
        """Make the graph convolution of a convolution, with its weights.

        Args:
            conv: Padded with zeros by ``dilation * (kernel_size // 2)``. Its stride belongs to the graph:
                ``grid_graph(..., stride=...)``.

        Returns:
            A layer equal to `conv` on the grid graph of its stencil.

        Raises:
            ValueError: if `conv` is padded otherwise or is not a Conv2d or Conv3d.

        Example:
            >>> HGConv.from_conv(nn.Conv2d(3, 8, 3, padding=1))
            HGConv(3, 8, stencil=Stencil(3x3, dilation=1))
        """
        stencil = conv_stencil(conv)
        layer = cls(conv.in_channels, conv.out_channels, stencil, groups=conv.groups, bias=conv.bias is not None)
        return load_conv(layer, conv)

    def to_conv(self, *, stride: int = 1) -> nn.Conv2d | nn.Conv3d:
        """Return the convolution with this layer's weights, the inverse of `from_conv`.

        Args:
            stride: Of the convolution.

        Raises:
            ValueError: if the stencil is not that of a convolution.
        """
        return make_conv(self, stride)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        edge_weight: Tensor | None = None,
        num_targets: int | None = None,
    ) -> Tensor:
        """Convolve; see the class for shapes."""
        if self._is_watched():
            out = self._message_by_message(x, edge_index, edge_type, edge_weight, num_targets)
        else:
            out = ops.typed_aggregate(
                x, self.weight, edge_index, edge_type, edge_weight, num_targets=num_targets, groups=self.groups
            )
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def message(self, x_j: Tensor, edge_type: Tensor, coefficient: Tensor) -> Tensor:
        """Return each edge's term ``a_ij / D_ik x_j W_k``, shape ``(E, out_channels)``."""
        out = x_j.new_empty(x_j.shape[0], self.out_channels)
        for k, weight in enumerate(self.weight):
            edges = (edge_type == k).nonzero().squeeze(1)
            inputs, matrices = x_j[edges].chunk(self.groups, 1), weight.chunk(self.groups, 1)
            part = torch.cat([a @ w for a, w in zip(inputs, matrices, strict=True)], 1)
            out = out.index_copy(0, edges, part.to(out.dtype))  # autocast makes the product a half
        return coefficient[:, None] * out

    def _message_by_message(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        edge_weight: Tensor | None,
        num_targets: int | None,
    ) -> Tensor:
        num_targets = check_arguments(x, self.weight, edge_index, edge_type, edge_weight, num_targets, self.groups)
        check_ndim("edge_type", edge_type, 1, shape="(E,)")
        edge_index, edge_type = edge_index.long(), edge_type.long()
        if edge_weight is not None:
            check_strengths("edge_weight", edge_weight)
        strength = x.new_ones(edge_type.shape[0]) if edge_weight is None else edge_weight.to(x.dtype)
        key = edge_index[1] * len(self.stencil) + edge_type
        degree = x.new_zeros(num_targets * len(self.stencil)).index_add(0, key, strength)
        return self.propagate(
            edge_index,
            x=(x, None),
            edge_type=edge_type,
            coefficient=strength / degree.clamp(min=EPSILON)[key],
            size=(x.shape[0], num_targets),
        )

    def _is_watched(self) -> bool:
        return bool(
            self.explain
            or self._propagate_forward_pre_hooks
            or self._propagate_forward_hooks
            or self._message_forward_pre_hooks
            or self._message_forward_hooks
            or self._aggregate_forward_pre_hooks
            or self._aggregate_forward_hooks
        )

    def __repr__(self) -> str:
        """Show channels and stencil."""
        return typed_repr(self)


def init_typed_parameters(
    layer: Any, in_channels: int, out_channels: int, stencil: Stencil | None, groups: int, bias: bool
) -> Stencil:
    """Give a layer the attributes and parameters of a typed convolution; return its stencil."""
    stencil = Stencil.square(3) if stencil is None else stencil
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"`groups` must divide `in_channels` and `out_channels`, got {groups}, {in_channels}, {out_channels}."
        )
    layer.in_channels, layer.out_channels, layer.groups = in_channels, out_channels, groups
    layer.weight = nn.Parameter(torch.empty(len(stencil), in_channels // groups, out_channels))
    layer.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
    return stencil


def reset_typed_parameters(layer: Any) -> None:
    """Draw weight and bias as ``Conv2d`` does: uniform within ``1 / sqrt(K * in_channels / groups)``."""
    bound = 1 / math.sqrt(max(1, layer.weight.shape[0] * layer.weight.shape[1]))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound)


def conv_stencil(conv: nn.Module) -> Stencil:
    """Return the stencil of a convolution, or raise if it is padded in another way."""
    plain = (nn.Conv2d.forward, nn.Conv3d.forward)  # a subclass may standardise its weights, for example
    if not isinstance(conv, nn.Conv2d | nn.Conv3d) or type(conv).forward not in plain:
        raise ValueError(f"`conv` must be a plain Conv2d or Conv3d, got {type(conv).__name__}.")
    padding = tuple(d * (k // 2) for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    given = conv.padding
    if given == "same" and all(k % 2 for k in conv.kernel_size):
        given = padding
    elif given == "valid":
        given = (0,) * len(padding)
    if conv.padding_mode != "zeros" or given != padding:
        raise ValueError(
            f"`conv` must be padded with zeros by dilation * (kernel_size // 2) = {padding}, "
            f"got padding={conv.padding}, padding_mode={conv.padding_mode!r}."
        )
    return Stencil.square(tuple(conv.kernel_size), dilation=tuple(conv.dilation))


def load_conv(layer: Any, conv: Any) -> Any:
    """Copy a convolution's weights into a typed convolution and return it, on the same device and dtype."""
    layer.to(device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(2).permute(2, 1, 0))
        if conv.bias is not None:
            layer.bias.copy_(conv.bias)
    return layer


def make_conv(layer: Any, stride: int) -> nn.Conv2d | nn.Conv3d:
    """Return the convolution with a typed convolution's weights."""
    stencil, ndim = layer.stencil, layer.stencil.ndim
    square = stencil.as_square
    if ndim not in (2, 3) or square is None:
        raise ValueError(f"Only the stencil of a 2-D or 3-D convolution can become one, got {stencil!r}.")
    kernel, dilation = square
    conv = (nn.Conv2d if ndim == 2 else nn.Conv3d)(
        layer.in_channels,
        layer.out_channels,
        kernel,  # type: ignore[arg-type]
        stride=stride,
        padding=tuple(d * (k // 2) for k, d in zip(kernel, dilation, strict=True)),  # type: ignore[arg-type]
        dilation=dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(layer.weight.permute(2, 1, 0).view_as(conv.weight))
        if conv.bias is not None:
            conv.bias.copy_(layer.bias)
    return conv


def typed_repr(layer: Any) -> str:
    """Return ``Name(in, out, stencil=...)`` with what differs from the defaults."""
    groups = f", groups={layer.groups}" if layer.groups != 1 else ""
    bias = ", bias=False" if layer.bias is None else ""
    return f"{type(layer).__name__}({layer.in_channels}, {layer.out_channels}, stencil={layer.stencil!r}{groups}{bias})"
