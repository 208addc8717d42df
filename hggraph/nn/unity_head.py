"""Unity head: of each cell, whether all its pixels have one label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.ops._distance import compute_dtype

__all__ = ["UnityHead", "check_divisible"]


class UnityHead(nn.Module):
    r"""Tell how far the most deviating pixel of each cell is from the cell's mean (Specialize and Fuse, Sec. 4.1).

    With :math:`X_u = W_u X`, the pixels p of cell i and a :math:`\mathrm{Conv1x1}` W that centroids and pixels share,

    .. math::
        U_i = \min_{p \in i} \sigma\Bigl(w \cdot \bigl(W X_u(p) - W\, \mathrm{mean}_{q \in i} X_u(q)\bigr) + b\Bigr)

    The paper names no normalisation or activation, and without them everything inside the sigmoid is linear. So one
    number per pixel, :math:`z = w W W_u X`, says it all: :math:`U_i = \sigma(\min z - \mathrm{mean}\, z + b)`. That is
    what is computed, exactly the head above, the sigmoid after the minimum.

    Args:
        in_channels: Channels of the input.
        levels: Levels of the pyramid, the finest included, which has no output; at least 1.
        channels: Channels of the embedding :math:`X_u`.
        shared: Centroids and pixels have one convolution W, the natural reading of the paper. False: each its own.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``, sides divisible by ``2 ** (levels - 1)``
        - **output:** coarse to fine, logits of unity of all levels but the finest, ``(B, H / k, W / k)`` with k from
          ``2 ** (levels - 1)`` to 2: their sigmoid is the probability

    The embedding has no biases: those of shared convolutions cancel in the difference, others in b.

    Raises:
        ValueError: if a number is not as said; in a call, if the map is empty or its sides are not divisible.

    Note:
        O(H W in_channels), one read of the map, whatever `channels`. Means and differences are in float32 under
        autocast too. Deterministic; of several smallest pixels one gets the gradient.

    Example:
        >>> [tuple(u.shape) for u in UnityHead(16, levels=3)(torch.rand(2, 16, 8, 12))]
        [(2, 2, 3), (2, 4, 6)]
    """

    def __init__(self, in_channels: int, levels: int = 4, *, channels: int = 64, shared: bool = True) -> None:
        super().__init__()
        for name, value in {"in_channels": in_channels, "levels": levels, "channels": channels}.items():
            check_positive(name, value)
        self.in_channels = in_channels
        self.levels = levels
        self.embed = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.pixel = nn.Conv2d(channels, channels, 1, bias=False)
        self.centroid = None if shared else nn.Conv2d(channels, channels, 1, bias=False)  # one tensor in checkpoints
        self.unity = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits of unity; see the class for shapes."""
        check_features("x", x)
        check_divisible(x, self.in_channels, self.levels)
        z = F.conv2d(x, self.weight()).to(compute_dtype(x))
        low, mean = z[:, :1], z[:, -1:]
        out: list[Tensor] = []
        bias = self.unity.bias
        assert bias is not None
        for _ in range(self.levels - 1):
            low, mean = -F.max_pool2d(-low, 2), F.avg_pool2d(mean, 2)
            out.append((low - mean)[:, 0] + bias)
        return out[::-1]

    def weight(self) -> Tensor:
        """Return the convolutions composed: ``(1, in_channels, 1, 1)``, or 2 outputs where pixels have their own."""
        layers = [self.pixel] if self.centroid is None else [self.pixel, self.centroid]
        inner = torch.cat([self.unity.weight.flatten(1) @ layer.weight.flatten(1) for layer in layers])
        return (inner @ self.embed.weight.flatten(1))[..., None, None]


def check_divisible(x: Tensor, in_channels: int, levels: int) -> None:
    """Raise unless a map has as many channels and can be pooled to the coarsest level."""
    if x.shape[1] != in_channels:
        raise ValueError(f"`x` must have {in_channels} channels, got shape {tuple(x.shape)}.")
    if x.shape[2] % 2 ** (levels - 1) or x.shape[3] % 2 ** (levels - 1):
        raise ValueError(
            f"`x` must have sides divisible by {2 ** (levels - 1)}, of which the coarsest of {levels} levels has a "
            f"cell, got shape {tuple(x.shape)}. Pad the images to multiples of the coarsest stride."
        )
