"""Spline convolution: the matrix of an edge is a B-spline of its pseudo-coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear

from hggraph._check import check_positive
from hggraph.nn._soft_types import channels, check_aggr, endpoints, soft_typed_aggregate
from hggraph.ops.spline_basis import DEGREES, spline_basis

__all__ = ["SplineConv"]


class SplineConv(nn.Module):
    r"""Convolve with a continuous B-spline kernel over the edges' pseudo-coordinates (SplineCNN).

    .. math::
        \mathbf{x}^{\prime}_i = \mathbf{\Theta} \mathbf{x}_i + \mathbf{b}
        + \frac{1}{|\mathcal{N}(i)|} \sum_{j \in \mathcal{N}(i)} \sum_k
        B_k(\mathbf{e}_{ij}) \, \mathbf{x}_j \mathbf{W}_k

    The typed aggregation with soft types: an edge belongs to (degree + 1) ** dim control points k
    at once, weighted by their B-splines, `hggraph.ops.spline_basis`. From Fey et al., "SplineCNN:
    Fast Geometric Deep Learning with Continuous B-Spline Kernels",
    https://arxiv.org/abs/1711.08920. Same ``state_dict``, call and result as
    ``torch_geometric.nn.SplineConv``, and no compiled library is needed.

    Args:
        in_channels: Channels of `x`, or of sources and targets as a pair; at least 1.
        out_channels: Channels of the result, at least 1.
        dim: Number of pseudo-coordinates, at least 1.
        kernel_size: Control points per dimension, one number or `dim`; at least `degree` where
            open, at least 1 where closed.
        is_open_spline: Whether a dimension is open, one value or `dim`; a closed one is periodic,
            as angles are.
        degree: Degree of the B-splines, 1, 2 or 3.
        aggr: ``"mean"`` over the neighbours or their sum, ``"add"``.
        root_weight: Add the target's own features times a matrix of their own.
        bias: Add a learned bias.

    Shapes:
        - **x:** :math:`(|\mathcal{V}|, F_{in})`, or if bipartite
          :math:`((|\mathcal{V}_s|, F_s), (|\mathcal{V}_t|, F_t))`, the second possibly None
        - **edge_index:** :math:`(2, |\mathcal{E}|)`, sources and targets, in any order
        - **edge_attr:** :math:`(|\mathcal{E}|, dim)`, in [0, 1]
        - **output:** :math:`(|\mathcal{V}|, F_{out})` or :math:`(|\mathcal{V}_t|, F_{out})`

    Raises:
        ValueError: if a number is not as said; in a call also if a shape does not fit, `edge_attr`
            is missing or leaves [0, 1], or an index is out of range.

    Note:
        O(E S C + N K C O) time with S = (degree + 1) ** dim; neither an (E, K, C) nor an (E, O)
        tensor is made. A node without neighbours gets root and bias alone. Deterministic.

    Example:
        >>> conv = SplineConv(2, 4, dim=2, kernel_size=3)
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> edge_attr = torch.tensor([[0.0, 0.5], [1.0, 0.5]])
        >>> conv, conv(torch.rand(2, 2), edge_index, edge_attr).shape
        (SplineConv(2, 4, dim=2), torch.Size([2, 4]))
    """

    kernel_size: Tensor
    is_open_spline: Tensor

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        dim: int,
        kernel_size: int | Sequence[int],
        is_open_spline: bool | Sequence[bool] = True,
        degree: int = 1,
        aggr: str = "mean",
        root_weight: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._channels = channels(in_channels, out_channels)
        check_positive("dim", dim)
        check_aggr(aggr, "SplineConv")
        if degree not in DEGREES:
            raise ValueError(f"`degree` must be one of {DEGREES}, got {degree!r}.")
        sizes = [kernel_size] * dim if isinstance(kernel_size, int) else list(kernel_size)
        is_open = [is_open_spline] * dim if isinstance(is_open_spline, int) else list(is_open_spline)
        if len(sizes) != dim or len(is_open) != dim:
            raise ValueError(
                f"`kernel_size` and `is_open_spline` must be one value or `dim` = {dim} values, "
                f"got {kernel_size!r} and {is_open_spline!r}."
            )
        for size, opened in zip(sizes, is_open, strict=True):
            check_positive("kernel_size", size, least=degree if opened else 1)

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dim = dim
        self.degree = degree
        self.aggr = aggr
        self.root_weight = root_weight
        self.K = prod(sizes)
        self.register_buffer("kernel_size", torch.tensor(sizes))
        self.register_buffer("is_open_spline", torch.tensor(is_open, dtype=torch.uint8))
        self.weight = nn.Parameter(torch.empty(self.K, self._channels[0], out_channels))
        self.lin: Linear | None = None
        if root_weight:
            self.lin = Linear(self._channels[1], out_channels, bias=False, weight_initializer="uniform")
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters as PyG does: uniform within 1 / sqrt(K C), the bias 0."""
        bound = (self.K * self._channels[0]) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.lin is not None:
            self.lin.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        size: tuple[int | None, int | None] | None = None,
    ) -> Tensor:
        """Return the targets' new features; `size` tells their number where `x` does not."""
        x_src, x_dst, num_targets = endpoints(x, edge_index, edge_attr, size, self._channels, self.dim)
        assert edge_attr is not None
        basis, index = spline_basis(edge_attr, self.kernel_size, self.is_open_spline, self.degree)
        out = soft_typed_aggregate(x_src, self.weight, edge_index, index, basis, num_targets, self.aggr)
        if x_dst is not None and self.lin is not None:
            out = out + self.lin(x_dst)
        return out if self.bias is None else out + self.bias

    def __repr__(self) -> str:
        """Name the channels and the number of pseudo-coordinates, as PyG does."""
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, dim={self.dim})"
