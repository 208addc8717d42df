"""Gaussian-mixture convolution: an edge uses every matrix, weighted by learned Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import glorot

from hggraph._check import check_positive
from hggraph.nn._soft_types import channels, check_aggr, endpoints, soft_typed_aggregate

__all__ = ["GMMConv"]

EPSILON = 1e-15  # least variance, PyG's


class GMMConv(nn.Module):
    r"""Convolve with K learned Gaussians over the edges' pseudo-coordinates (MoNet).

    .. math::
        \mathbf{x}^{\prime}_i = \mathbf{\Theta} \mathbf{x}_i + \mathbf{b}
        + \frac{1}{|\mathcal{N}(i)|} \sum_{j \in \mathcal{N}(i)} \sum_{k=1}^K \exp \left(
        -\frac{1}{2} \sum_d \frac{(e_{ijd} - \mu_{kd})^2}{\sigma_{kd}^2} \right)
        \mathbf{x}_j \mathbf{G}_k

    The typed aggregation with soft types: an edge belongs to all K types at once, weighted by the
    Gaussians. From Monti et al., "Geometric Deep Learning on Graphs and Manifolds using Mixture
    Model CNNs", https://arxiv.org/abs/1611.08402. Same ``state_dict``, call and result as
    ``torch_geometric.nn.GMMConv``, whose docstring has a factor 1 / K that its code has not.

    Args:
        in_channels: Channels of `x`, or of sources and targets as a pair; at least 1.
        out_channels: Channels of the result, at least 1.
        dim: Number of pseudo-coordinates, at least 1.
        kernel_size: Number of Gaussians K, at least 1.
        separate_gaussians: Must be False. A Gaussian for each pair of channels takes E K C O
            exponentials, and no order of summation saves them.
        aggr: ``"mean"`` over the neighbours or their sum, ``"add"``.
        root_weight: Add the target's own features times a matrix of their own.
        bias: Add a learned bias.

    Shapes:
        - **x:** :math:`(|\mathcal{V}|, F_{in})`, or if bipartite
          :math:`((|\mathcal{V}_s|, F_s), (|\mathcal{V}_t|, F_t))`, the second possibly None
        - **edge_index:** :math:`(2, |\mathcal{E}|)`, sources and targets, in any order
        - **edge_attr:** :math:`(|\mathcal{E}|, dim)`, usually displacements
        - **output:** :math:`(|\mathcal{V}|, F_{out})` or :math:`(|\mathcal{V}_t|, F_{out})`

    Raises:
        ValueError: if a number is not as said; in a call also if a shape does not fit, `edge_attr`
            is missing, or an index is out of range.

    Note:
        O(E K C + N K C O) time; the largest tensor per edge is (E, K, dim), PyG's is (E, K, O). A
        node without neighbours gets root and bias alone. Deterministic.

    Example:
        >>> conv = GMMConv(2, 4, dim=1, kernel_size=3)
        >>> edge_index, edge_attr = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[-1.0], [1.0]])
        >>> conv, conv(torch.rand(2, 2), edge_index, edge_attr).shape
        (GMMConv(2, 4, dim=1), torch.Size([2, 4]))
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        dim: int,
        kernel_size: int,
        separate_gaussians: bool = False,
        aggr: str = "mean",
        root_weight: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._channels = channels(in_channels, out_channels)
        check_positive("dim", dim)
        check_positive("kernel_size", kernel_size)
        check_aggr(aggr, "GMMConv")
        if separate_gaussians:
            raise ValueError(
                "`separate_gaussians` must be False, got True. A Gaussian per pair of channels "
                "is no typed aggregation: use torch_geometric.nn.GMMConv for it."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dim = dim
        self.kernel_size = kernel_size
        self.separate_gaussians = separate_gaussians
        self.aggr = aggr
        self.root_weight = root_weight
        self.g = nn.Parameter(torch.empty(self._channels[0], kernel_size * out_channels))
        self.mu = nn.Parameter(torch.empty(kernel_size, dim))
        self.sigma = nn.Parameter(torch.empty(kernel_size, dim))
        self.root: Linear | None = None
        if root_weight:
            self.root = Linear(self._channels[1], out_channels, bias=False, weight_initializer="glorot")
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters as PyG does: Glorot's uniform distribution, the bias 0."""
        for parameter in (self.g, self.mu, self.sigma):
            glorot(parameter)
        if self.root is not None:
            self.root.reset_parameters()
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
        gaussian = self._gaussian(edge_attr)
        edge_type = torch.arange(self.kernel_size, device=gaussian.device).expand_as(gaussian)
        weight = self.g.view(-1, self.kernel_size, self.out_channels).transpose(0, 1).contiguous()
        out = soft_typed_aggregate(x_src, weight, edge_index, edge_type, gaussian, num_targets, self.aggr)
        if x_dst is not None and self.root is not None:
            out = out + self.root(x_dst)
        return out if self.bias is None else out + self.bias

    def _gaussian(self, edge_attr: Tensor) -> Tensor:
        """Return the weight of each edge in each Gaussian, (E, K), in float32 at least."""
        dtype = torch.promote_types(torch.float32, torch.promote_types(edge_attr.dtype, self.mu.dtype))
        mu, sigma = self.mu.to(dtype), self.sigma.to(dtype)
        distance = (edge_attr.to(dtype).unsqueeze(1) - mu).square() / (EPSILON + sigma.square())
        return torch.exp(-0.5 * distance.sum(-1))

    def __repr__(self) -> str:
        """Name the channels and the number of pseudo-coordinates, as PyG does."""
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, dim={self.dim})"
