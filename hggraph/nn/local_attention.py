"""Local attention as a layer: on maps, on graphs with typed edges, and on dense region adjacency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph import ops
from hggraph._check import (
    check_dtype,
    check_ndim,
    check_one_device,
    check_one_dtype,
    check_positive,
    check_range,
    check_strengths,
)
from hggraph.graph import RegionAdjacency
from hggraph.nn.dense_hg_conv import check_regions
from hggraph.ops._distance import EXCLUDED, compute_dtype
from hggraph.ops.typed_aggregate import check_edge_index
from hggraph.stencil import Stencil

__all__ = ["DenseLocalAttention", "LocalAttention"]


class Inputs(NamedTuple):
    """What queries, keys and values are made of."""

    query: Tensor
    key: Tensor
    value: Tensor


class LocalAttention(nn.Module):
    r"""Attend from each pixel to its neighbours, or from each node to its incoming edges (GALD Eq. 8).

    .. math::
        x^{\prime}_i = \sum_e w_e V x_{j(e)}, \qquad
        w = \operatorname{softmax}_{e \to i}\bigl(s\, (Q x_i)^\top K x_{j(e)} + b_{k(e)}\bigr)

    over the edges e from j to i of type k: on a map those of the stencil, on a graph those that are given. The same
    weights serve both; on `grid_graph` with the same stencil both are one function with ``border="mask"``.

    Args:
        in_channels: Channels of the input, or of the three inputs of queries, keys and values.
        out_channels: Channels of values and output; those of the (values') input when None.
        stencil: The K displacements, or the directions that edge types are; ``Stencil.square(3)`` when None.
        heads: Parts of the channels that attend on their own.
        key_channels: Channels of queries and keys; those of the output when None.
        border: What a neighbour outside a map is: ``"zero"``, ``"mask"`` or ``"shift"``, see `ops.local_attention`.
            On a graph what is not there makes no edge.
        direction_bias: Learn a logit b for each direction and head, from 0.
        bias: Learn additive biases of queries, keys and values.
        scale: s; ``(key_channels / heads) ** -0.5`` when None.

    Shapes:
        - **input:** a map ``(B, in_channels, H, W)``; or node features ``(N, in_channels)``, edge indices ``(2, E)``,
          edge types ``(E,)`` in [0, K) *(needed with `direction_bias`)* and edge weights ``(E,)`` not negative
          *(optional)*. Or, in place of one input, three: of queries, keys and values; on a graph queries are of the
          targets, keys and values of the sources
        - **output:** ``(B, out_channels, H, W)``, or ``(N, out_channels)``; 0 for a node without an edge

    Edge weights multiply the exponentials: an edge of weight 2 is two edges, one of weight 0 is none.

    Raises:
        ValueError: if `heads` does not divide the channels or a number is not as said; in a call, if shapes disagree,
            the window is larger than the map, or an edge type or weight is out of range (checked on the CPU).

    Note:
        O(B H W K) or O(E) times the channels; no tensor of all neighbours is made. Deterministic.

    Example:
        >>> layer = LocalAttention(16, 8, Stencil.square(5, dilation=3), heads=2)
        >>> layer(torch.rand(2, 16, 13, 20)).shape
        torch.Size([2, 8, 13, 20])
        >>> layer(torch.rand(4, 16), torch.tensor([[0, 1, 2], [1, 2, 2]])).shape
        torch.Size([4, 8])
    """

    direction_bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | None = None,
        stencil: Stencil | None = None,
        *,
        heads: int = 1,
        key_channels: int | None = None,
        border: str = "zero",
        direction_bias: bool = False,
        bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        given = (in_channels,) * 3 if isinstance(in_channels, int) else tuple(in_channels)
        if len(given) != 3:
            raise ValueError(f"`in_channels` must be one number or three, of queries, keys and values, got {given}.")
        for value in given:
            check_positive("in_channels", value)
        out_channels = given[2] if out_channels is None else out_channels
        key_channels = out_channels if key_channels is None else key_channels
        for name, value in {"heads": heads, "out_channels": out_channels, "key_channels": key_channels}.items():
            check_positive(name, value)
        if out_channels % heads or key_channels % heads:
            raise ValueError(
                f"`heads` must divide `out_channels` and `key_channels`, got {heads}, {out_channels}, {key_channels}."
            )
        self.in_channels, self.out_channels, self.key_channels = given, out_channels, key_channels
        self.stencil = Stencil.square(3) if stencil is None else stencil
        self.heads, self.border = heads, border
        self.scale = (key_channels // heads) ** -0.5 if scale is None else float(scale)
        self.query = nn.Linear(given[0], key_channels, bias)
        self.key = nn.Linear(given[1], key_channels, bias)
        self.value = nn.Linear(given[2], out_channels, bias)
        shape = (heads, len(self.stencil))
        self.register_parameter("direction_bias", nn.Parameter(torch.zeros(shape)) if direction_bias else None)

    def forward(
        self,
        x: Tensor | Sequence[Tensor],
        edge_index: Tensor | None = None,
        edge_type: Tensor | None = None,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        """Attend; see the class for shapes."""
        if edge_index is None:
            q, k, v = self._on_map(x)
            out = ops.local_attention(
                q, k, v, self.stencil.offsets, scale=self.scale, border=self.border, bias=self._map_bias(len(q))
            )
            return out.view(-1, self.out_channels, *out.shape[2:])
        inputs = self._inputs(x, 2, "(N, C) with edges")
        check_edge_index(edge_index)
        check_one_device(x=inputs.query, edge_index=edge_index, edge_type=edge_type, edge_weight=edge_weight)
        # what heads make of indices is checked below; its error would name other numbers
        if self.heads > 1 and edge_index.device.type == "cpu" and not torch.compiler.is_compiling():
            check_range("edge_index[0]", edge_index[0], len(inputs.key), "Sources must be rows of `x`.")
            check_range("edge_index[1]", edge_index[1], len(inputs.query), "Targets must be rows of `x`.")
        if edge_weight is not None:
            edge_index, edge_type, edge_weight = _present(edge_index, edge_type, edge_weight)
        q, k, v = (self._heads(y) for y in self._project(inputs))
        head = torch.arange(self.heads, device=edge_index.device)
        folded = (edge_index[:, :, None] * self.heads + head).flatten(1)
        bias = self._edge_bias(edge_index, edge_type, edge_weight)
        out = ops.edge_attention(q, k, v, folded, scale=self.scale, bias=bias)
        return out.view(-1, self.out_channels)

    def affinity(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the weights of a map's neighbours, shape ``(B, heads, K, H, W)``, for pictures (GALD Fig. 9)."""
        q, k, _ = self._on_map(x)
        weights = ops.local_affinity(
            q, k, self.stencil.offsets, scale=self.scale, border=self.border, bias=self._map_bias(len(q))
        )
        return weights.unflatten(0, (-1, self.heads))

    def extra_repr(self) -> str:
        """Return channels, stencil and what differs from the defaults."""
        same = len(set(self.in_channels)) == 1
        heads = f", heads={self.heads}" if self.heads != 1 else ""
        shown = self.in_channels[0] if same else self.in_channels
        return f"{shown}, {self.out_channels}, stencil={self.stencil!r}{heads}, border={self.border!r}"

    def _inputs(self, x: Tensor | Sequence[Tensor], ndim: int, shape: str) -> Inputs:
        if not isinstance(x, Tensor) and not (isinstance(x, tuple | list) and len(x) == 3):
            raise TypeError(f"`x` must be a tensor or three, of queries, keys and values, got {type(x).__name__}.")
        inputs, weight = Inputs(x, x, x) if isinstance(x, Tensor) else Inputs(*x), self.query.weight
        for name, y, channels in zip(Inputs._fields, inputs, self.in_channels, strict=True):
            check_ndim(f"x ({name})", y, ndim, shape=shape)
            check_dtype(f"x ({name})", y)
            check_one_device(weight=weight, x=y)
            check_one_dtype(weight=weight, x=y)
            found = y.shape[1 if ndim == 4 else -1]
            if found != channels:
                raise ValueError(f"`x` ({name}) must have {channels} channels, got shape {tuple(y.shape)}.")
        return inputs

    def _project(self, inputs: Inputs) -> list[Tensor]:
        layers = (self.query, self.key, self.value)
        return [layer(y) for layer, y in zip(layers, inputs, strict=True)]

    def _on_map(self, x: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return queries, keys and values of a map, heads folded into the batch."""
        inputs = self._inputs(x, 4, "(B, C, H, W) without edges")
        self._check_window(inputs.query)
        layers = (self.query, self.key, self.value)
        maps = [
            F.conv2d(y, layer.weight[:, :, None, None], layer.bias) for layer, y in zip(layers, inputs, strict=True)
        ]
        return maps if self.heads == 1 else [y.unflatten(1, (self.heads, -1)).flatten(0, 1) for y in maps]

    def _check_window(self, x: Tensor) -> None:
        for axis, name in enumerate(("height", "width")):
            steps = [offset[axis] for offset in self.stencil]
            window = max(steps) - min(steps) + 1
            if window > x.shape[2 + axis]:
                raise ValueError(
                    f"The window must fit the map: {self.stencil!r} spans {window} pixels, the map has a {name} of "
                    f"{x.shape[2 + axis]}. Take a larger image `x`, a smaller window or a smaller dilation."
                )

    def _heads(self, x: Tensor) -> Tensor:
        return x if self.heads == 1 else x.reshape(-1, x.shape[1] // self.heads)

    def _map_bias(self, batch: int) -> Tensor | None:
        """Return the logits of the directions, shape (K,) or, of several heads, (B * heads, K)."""
        bias = self.direction_bias
        if bias is None or self.heads == 1:
            return None if bias is None else bias[0]
        return bias.repeat(batch // self.heads, 1)

    def _edge_bias(self, edge_index: Tensor, edge_type: Tensor | None, edge_weight: Tensor | None) -> Tensor | None:
        """Return what is added to the logit of each edge and head, shape (E * heads,)."""
        edges = (edge_index.shape[1],)
        bias = None
        if self.direction_bias is not None:
            if edge_type is None:
                raise ValueError(f"`edge_type` must have shape {edges} for `direction_bias`, got None.")
            check_ndim("edge_type", edge_type, 1, shape=f"{edges} for `direction_bias`")
            check_dtype("edge_type", edge_type, "integers")
            if edge_type.shape != edges:
                raise ValueError(
                    f"`edge_type` must have shape {edges} for `direction_bias`, got {tuple(edge_type.shape)}, "
                    "one for each edge in `edge_index`."
                )
            if edge_type.device.type == "cpu":
                check_range("edge_type", edge_type, len(self.stencil), "Was the graph built with another stencil?")
            bias = ops.gather(self.direction_bias.t(), edge_type)  # (E, heads)
        if edge_weight is not None:
            strength = edge_weight.to(compute_dtype(edge_weight)).log()[:, None].expand(-1, self.heads)
            bias = strength if bias is None else bias + strength
        return None if bias is None else bias.flatten()


class DenseLocalAttention(LocalAttention):
    """Attend from each region to those that it touches, on dense adjacency: `LocalAttention` on the same edges.

    The same arguments and ``state_dict``; static shapes and no host synchronisation, for networks: a block of an
    `HGStage`. The strengths of the adjacency are the edge weights.

    Shapes:
        - **input:** region features ``(B, R, in_channels)`` (or three), a `RegionAdjacency` over the same stencil
        - **output:** ``(B, R, out_channels)``; 0 for a region without a neighbour

    Raises:
        ValueError: as `LocalAttention`, and if the adjacency is over another stencil.

    Note:
        O(B R^2 (K + channels)). Deterministic.

    Example:
        >>> adjacency = RegionAdjacency(Stencil.square(3), torch.rand(2, 9, 5, 5))
        >>> DenseLocalAttention(3, 8, direction_bias=True)(torch.rand(2, 5, 3), adjacency).shape
        torch.Size([2, 5, 8])
    """

    def forward(self, x: Tensor | Sequence[Tensor], adjacency: RegionAdjacency) -> Tensor:  # type: ignore[override]
        """Attend; see the class for shapes."""
        if adjacency.stencil != self.stencil:
            raise ValueError(f"`adjacency` must be over {self.stencil!r}, got {adjacency.stencil!r}.")
        inputs = self._inputs(x, 3, "(B, R, C)")
        for name, y, channels in zip(Inputs._fields, inputs, self.in_channels, strict=True):
            check_regions(f"x ({name})", y, channels, adjacency)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in self._project(inputs))
        strength = adjacency.to_dense().unsqueeze(1)  # (B, 1, K, R, R)
        logits = _log_strength(strength)
        if self.direction_bias is not None:
            logits = logits + self.direction_bias[:, :, None, None]
        mask = logits.logsumexp(2)  # several directions between two regions are several edges
        near = (strength > 0).any(2).any(3)  # (B, 1, R)
        mask = mask.clamp(min=torch.finfo(q.dtype).min / 2).to(q.dtype)  # no infinity in half precision
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return (out * near[..., None]).transpose(1, 2).flatten(2)


def _present(edge_index: Tensor, edge_type: Tensor | None, edge_weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the edges of positive weight."""
    check_ndim("edge_weight", edge_weight, 1, shape="(E,)")
    check_dtype("edge_weight", edge_weight, "real numbers")
    if edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"`edge_weight` must have shape ({edge_index.shape[1]},), got {tuple(edge_weight.shape)}, "
            "one for each edge in `edge_index`."
        )
    if edge_type is not None and edge_type.shape != edge_weight.shape:
        raise ValueError(f"`edge_type` must have shape {tuple(edge_weight.shape)}, got {tuple(edge_type.shape)}.")
    check_strengths("edge_weight", edge_weight)
    kept = edge_weight > 0
    if not kept.all():
        edge_type = None if edge_type is None else edge_type[kept]
        edge_index, edge_weight = edge_index[:, kept], edge_weight[kept]
    return edge_index, edge_type, edge_weight


def _log_strength(weight: Tensor) -> Tensor:
    """Return logarithms of strengths, finite for 0, which leaves an edge out."""
    dtype = compute_dtype(weight)
    weight = weight.to(dtype)
    return torch.where(weight > 0, weight.clamp(min=torch.finfo(dtype).tiny).log(), EXCLUDED)
