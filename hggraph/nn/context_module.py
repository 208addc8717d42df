"""The coarse-to-fine contextual module: each level of a pyramid attends to what the coarser ones have gathered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.nn._conv import conv_norm_relu

__all__ = [
    "BINS",
    "ComposedAggregation",
    "ContextAggregation",
    "ContextUpdate",
    "check_bins",
    "pyramid_pool",
]

BINS = (1, 3, 6, 8)  # ANL's spatial pyramid, 110 cells


def pyramid_pool(x: Tensor, bins: Sequence[int] = BINS) -> Tensor:
    """Return the means of a map over the cells of coarse grids, one after the other (Specialize and Fuse, Eq. 6).

    Args:
        x: Map ``(B, C, H, W)``.
        bins: Cells per side of each grid. Cells of a grid that does not divide the map overlap.

    Returns:
        Tokens ``(B, C, T, 1)`` with T the sum of the squares of `bins`, each grid row by row.

    Note:
        A read of the map per grid. Deterministic on a CPU; its gradient adds in any order on a GPU.

    Example:
        >>> pyramid_pool(torch.rand(2, 16, 12, 20)).shape
        torch.Size([2, 16, 110, 1])
    """
    return torch.cat([F.adaptive_avg_pool2d(x, size).flatten(2) for size in bins], 2).unsqueeze(3)


class ContextAggregation(nn.Module):
    r"""Attend from the pixels of a level to the context, concatenate and mix (Specialize and Fuse, Eq. 8 and 9).

    .. math::
        X' = \mathrm{Conv1x1}_{agg}\bigl(\mathrm{concat}(\mathrm{Attention}(W_q X, W_k \theta, W_v \theta), X)\bigr)

    Nothing non-linear stands between the pixels' convolutions, so they are composed, which is exact: scores are
    :math:`X \cdot W_q^T W_k \theta`, values :math:`W_{agg, 1} W_v \theta` come out of the attention already mixed, and
    a linear convolution that made X becomes part of both. Of the convolutions over pixels one remains, and it does not
    see the concatenation.

    Args:
        channels: Channels of the map, the context and the output.
        key_channels: Channels of queries and keys, which the paper does not state; ANL has 256. The attention is that
            of Vaswani et al.: scores are divided by the root of their number.

    Queries, keys and values have no bias: a key's cancels in the softmax, a value's in the normalisation that follows.

    Shapes:
        - **x:** map ``(B, channels, H, W)``, or ``(B, D, H, W)`` with `before`
        - **context:** tokens ``(B, channels, T, 1)``
        - **before:** a 1x1 convolution from D to `channels`, without bias, that still has to be applied to `x`
          *(optional)*
        - **output:** map ``(B, channels, H, W)``

    Note:
        O(H W (D channels + T (D + channels))). Deterministic.

    Example:
        >>> ContextAggregation(8, 4).eval()(torch.rand(2, 8, 5, 6), torch.rand(2, 8, 110, 1)).shape
        torch.Size([2, 8, 5, 6])
    """

    def __init__(self, channels: int, key_channels: int = 256) -> None:
        super().__init__()
        check_positive("channels", channels)
        check_positive("key_channels", key_channels)
        self.query = nn.Conv2d(channels, key_channels, 1, bias=False)
        self.key = nn.Conv2d(channels, key_channels, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.aggregate = conv_norm_relu(2 * channels, channels)
        self.scale = key_channels**-0.5

    def forward(self, x: Tensor, context: Tensor, before: nn.Conv2d | None = None) -> Tensor:
        """Return the refined map; see the class for shapes."""
        conv, *after = self.aggregate
        assert isinstance(conv, nn.Conv2d)
        attended_half, weight = conv.weight.flatten(1).chunk(2, 1)
        key = self.query.weight.flatten(1).mT @ self.key(context).flatten(2)  # (B, C, T)
        value = attended_half @ self.value(context).flatten(2)
        if before is not None:
            linear = before.weight.flatten(1)
            key, weight = linear.mT @ key, weight @ linear
        y = _attend_and_mix(x, key, value, weight, conv.bias, self.scale)
        for layer in after:
            y = layer(y)
        return y

    @torch.no_grad()
    def composed(self, before: nn.Conv2d | None = None) -> ComposedAggregation:
        """Return the same function with its weights multiplied once and for all; `before` becomes part of it."""
        conv, *after = self.aggregate
        assert isinstance(conv, nn.Conv2d)
        query, key, value, both = (part.weight.flatten(1).double() for part in (self.query, self.key, self.value, conv))
        attended_half, weight = both.chunk(2, 1)
        to_key, to_value = query.mT @ key, attended_half @ value
        if before is not None:
            linear = before.weight.flatten(1).double()
            to_key, weight = linear.mT @ to_key, weight @ linear
        to_key, to_value, weight = (matrix.to(conv.weight.dtype) for matrix in (to_key, to_value, weight))
        out = ComposedAggregation(to_key, to_value, weight, conv.bias, nn.Sequential(*after), self.scale)
        return out.train(self.training)


class ComposedAggregation(nn.Module):
    """What `ContextAggregation` is at inference: a matrix for keys, one for values, and one for pixels.

    Args:
        to_key: From the context to keys for maps of D channels, shape ``(D, channels)``.
        to_value: From the context to what is added to the output, shape ``(channels, channels)``.
        weight: From the map to the output, shape ``(channels, D)``.
        bias: Of the output, shape ``(channels,)``, or None.
        after: What follows the sum.
        scale: Of the scores.

    Shapes: as those of `ContextAggregation`, without `before`.
    """

    def __init__(
        self, to_key: Tensor, to_value: Tensor, weight: Tensor, bias: Tensor | None, after: nn.Module, scale: float
    ) -> None:
        super().__init__()
        self.to_key = nn.Parameter(to_key)
        self.to_value = nn.Parameter(to_value)
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.after = after
        self.scale = scale

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the refined map."""
        tokens = context.flatten(2)
        y = _attend_and_mix(x, self.to_key @ tokens, self.to_value @ tokens, self.weight, self.bias, self.scale)
        out: Tensor = self.after(y)
        return out


class ContextUpdate(nn.Module):
    r"""Put a refined level into the context (Specialize and Fuse, Eq. 10 and 11).

    .. math::
        \theta' = \mathrm{Conv1x1}_{upd}\bigl(\mathrm{concat}(\mathrm{PyramidPool}(X'), \theta)\bigr)

    Args:
        channels: Channels of the map, the context and the output.
        bins: Cells per side of each grid, as the context has been made with.

    Shapes:
        - **x:** map ``(B, channels, H, W)``
        - **context:** tokens ``(B, channels, T, 1)``
        - **output:** tokens ``(B, channels, T, 1)``

    Example:
        >>> ContextUpdate(8)(torch.rand(2, 8, 5, 6), torch.rand(2, 8, 110, 1)).shape
        torch.Size([2, 8, 110, 1])
    """

    def __init__(self, channels: int, bins: Sequence[int] = BINS) -> None:
        super().__init__()
        check_positive("channels", channels)
        self.bins = check_bins(bins)
        self.update = conv_norm_relu(2 * channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the new context; see the class for shapes."""
        out: Tensor = self.update(torch.cat([pyramid_pool(x, self.bins), context], 1))
        return out


def check_bins(bins: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of grids.

    Raises:
        ValueError: unless they are at least one whole number, all of at least 1.
    """
    if isinstance(bins, int) or not len(bins):
        raise ValueError(f"`bins` must name at least one grid, such as (1, 3, 6, 8), got {bins!r}.")
    for size in bins:
        check_positive("bins", size)
    return tuple(bins)


def _attend_and_mix(x: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return ``weight x + bias`` plus what the pixels of ``(B, D, H, W)`` attend to, ``(B, C, H, W)``.

    Keys are ``(B, D, T)``, values ``(B, C, T)``, and the weight is ``(C, D)``.
    """
    if bias is not None:
        value = value + bias[:, None]  # the weights of an attention sum to 1
    pixels = x.flatten(2)  # (B, D, H W)
    # not F.scaled_dot_product_attention: with keys and values of two widths it is these products, and would first copy
    # the map with its channels last
    attention = ((scale * key.mT) @ pixels).softmax(1)  # (B, T, H W)
    # one product that adds onto the attention: a pass over the map less than a convolution and a sum
    y = torch.baddbmm(value @ attention, weight.expand(x.shape[0], -1, -1), pixels)
    return y.unflatten(2, (x.shape[2], x.shape[3]))
