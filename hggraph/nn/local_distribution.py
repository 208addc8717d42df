"""GALD's two ways to distribute global context to pixels: masks, and local attention."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import resize
from hggraph.nn.cgnl import strided_conv
from hggraph.nn.local_attention import LocalAttention
from hggraph.stencil import Stencil

__all__ = ["LocalDistributionV1", "LocalDistributionV2"]

Downsample = Literal["conv", "bilinear", "average"]
Residual = Literal["paper", "code"]
Source = Literal["both", "global", "local"]


class LocalDistributionV1(nn.Module):
    r"""Weigh global features by a mask of each channel's extent (GALD, Li et al. 2021, Eq. 1 and 2).

    .. math::
        M = \sigma(\operatorname{upsample}(W_d X_g)), \qquad X_{gald} = M \odot X_g + X_g

    Args:
        channels: Channels of input and output.
        steps: Halvings of the size; the paper's rate d of 8 is 3 of them.
        downsample: ``"conv"``: depthwise 3x3 convolutions of stride 2, without padding, each with normalisation and
            ReLU, so that masks are at least a half; ``"bilinear"`` or ``"average"``: resizing or means over cells,
            without parameters, the ablations of Table II(a).
        residual: ``"paper"``: Eq. 2. ``"code"``: the published code, which adds the input once more, ``M * X + 2 X``.

    Shapes:
        - **input:** global features ``(B, channels, H, W)``, with ``"conv"`` at least ``2^(steps + 1) - 1`` pixels
          along each side
        - **output:** the same shape; an empty batch gives an empty map

    Raises:
        ValueError: if an option is not as said; in a call, if the map is too small or has other channels.

    Note:
        12 parameters per channel and step. Deterministic on a CPU; upsampling's gradient adds in any order on a GPU.

    Example:
        >>> LocalDistributionV1(8)(torch.rand(2, 8, 17, 20)).shape
        torch.Size([2, 8, 17, 20])
    """

    def __init__(
        self, channels: int, *, steps: int = 3, downsample: Downsample = "conv", residual: Residual = "paper"
    ) -> None:
        super().__init__()
        check_positive("channels", channels)
        check_positive("steps", steps)
        _check_option("downsample", downsample, Downsample)
        _check_option("residual", residual, Residual)
        self.channels, self.steps = channels, steps
        self.downsample: Downsample = downsample
        self.residual: Residual = residual
        count = steps if downsample == "conv" else 0
        self.down = nn.Sequential(*(layer for _ in range(count) for layer in strided_conv(channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the distributed features; see the class for shapes."""
        mask = self.mask(x)
        return x * (mask + 1) if self.residual == "paper" else x * (mask + 2)

    def mask(self, x: Tensor) -> Tensor:
        """Return M, shape ``(B, channels, H, W)``, in (0, 1)."""
        check_features("x", x)
        if x.shape[1] != self.channels:
            raise ValueError(f"`x` must have {self.channels} channels, got shape {tuple(x.shape)}.")
        size = (x.shape[2], x.shape[3])
        return resize(self._shrink(x, size), size).sigmoid()

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{self.channels}, steps={self.steps}, downsample={self.downsample!r}, residual={self.residual!r}"

    def _shrink(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.downsample == "conv":
            least = 2 ** (self.steps + 1) - 1
            if min(size) < least:
                raise ValueError(
                    f"The map must have at least {least} x {least} pixels for {self.steps} convolutions of stride 2, "
                    f"got {size[0]} x {size[1]}. Take a larger image, or fewer `steps`."
                )
            return self.down(x)  # type: ignore[no-any-return]
        rate = 2**self.steps
        if self.downsample == "average":
            return F.avg_pool2d(x, rate, ceil_mode=True)
        height, width = (-(-side // rate) for side in size)
        return resize(x, (height, width))


class LocalDistributionV2(nn.Module):
    r"""Distribute global features by attention to neighbours (GALD, Li et al. 2021, Eq. 6 to 8).

    With x the concatenation of global and local features, s its samples at k x k neighbours of dilation r:

    .. math::
        X_{gald}(i) = \sum_n \operatorname{softmax}_n\bigl(W_\theta x(i) \cdot W_\phi s(n)\bigr)\, W_g s(n)

    The stencil is ``Stencil.square(k, dilation=r)`` and the message passing `LocalAttention`'s.

    Args:
        global_channels: Channels of the global features.
        local_channels: Channels of the local features; 0: there are none, and the first stand for both (the paper's
            "FCN + LDv2").
        out_channels: Channels of the output; those of the global features when None.
        kernel_size: k, odd.
        dilation: r, in pixels of the map. The paper's best is 6, its text and most data sets use 3.
        key_channels: Channels of queries and keys; those of the output when None, as the paper has one C' for all.
        query: What queries are made of: ``"both"``, ``"global"`` or ``"local"`` features (Table II(c)).
        key: Likewise keys.
        value: Likewise values.
        heads: Parts of the channels that attend on their own; the paper has 1.
        border: As for `LocalAttention`. The paper pads with zeros.
        scale: Factor of the products. The paper does not say; ``(key_channels / heads) ** -0.5`` when None.

    Shapes:
        - **input:** global features ``(B, global_channels, H, W)``, local ones ``(B, local_channels, H, W)``
        - **output:** ``(B, out_channels, H, W)``; an empty batch gives an empty map

    Raises:
        ValueError: if `kernel_size` is even, `dilation` is below 1, `heads` does not divide the channels or an option
            is unknown; in a call, if shapes disagree or the window is larger than the map.

    Note:
        With 512 channels everywhere 1.57 M parameters, once per pixel, and 50 multiply-adds per pixel and channel.
        Deterministic.

    Example:
        >>> layer = LocalDistributionV2(8, 4)
        >>> layer(torch.rand(2, 8, 13, 20), torch.rand(2, 4, 13, 20)).shape
        torch.Size([2, 8, 13, 20])
    """

    def __init__(
        self,
        global_channels: int,
        local_channels: int = 0,
        out_channels: int | None = None,
        *,
        kernel_size: int = 5,
        dilation: int = 3,
        key_channels: int | None = None,
        query: Source = "both",
        key: Source = "both",
        value: Source = "both",
        heads: int = 1,
        border: str = "zero",
        scale: float | None = None,
    ) -> None:
        super().__init__()
        check_positive("global_channels", global_channels)
        check_positive("local_channels", local_channels, 0)
        check_positive("kernel_size", kernel_size)
        check_positive("dilation", dilation)
        if kernel_size % 2 == 0:
            near = f"{kernel_size - 1} or {kernel_size + 1}"
            raise ValueError(
                f"`kernel_size` must be odd, so that a pixel is its window's centre, got {kernel_size}; take {near}."
            )
        for name, source in (("query", query), ("key", key), ("value", value)):
            _check_option(name, source, Source)
        self.channels = (global_channels, local_channels)
        self.sources: tuple[Source, ...] = (query, key, value) if local_channels else ("global",) * 3
        width = {"both": global_channels + local_channels, "global": global_channels, "local": local_channels}
        self.attention = LocalAttention(
            tuple(width[source] for source in self.sources),
            global_channels if out_channels is None else out_channels,
            Stencil.square(kernel_size, dilation=dilation),
            heads=heads,
            key_channels=key_channels,
            border=border,
            scale=scale,
        )

    def forward(self, x: Tensor, local: Tensor | None = None) -> Tensor:
        """Return the distributed features; see the class for shapes."""
        out: Tensor = self.attention(self._inputs(x, local))
        return out

    def affinity(self, x: Tensor, local: Tensor | None = None) -> Tensor:
        """Return the weights of each pixel's neighbours, shape ``(B, heads, K, H, W)`` (Fig. 9)."""
        return self.attention.affinity(self._inputs(x, local))

    def _inputs(self, x: Tensor, local: Tensor | None) -> tuple[Tensor, ...]:
        check_features("x", x)
        shape = None if local is None else tuple(local.shape)
        wanted = (x.shape[0], self.channels[1], *x.shape[2:]) if self.channels[1] else None
        if shape != wanted or x.shape[1] != self.channels[0]:
            raise ValueError(
                f"`x` must have {self.channels[0]} channels and `local` {self.channels[1] or 'not be given'}, on maps "
                f"of one size, got {tuple(x.shape)} and {shape}."
            )
        maps = {"global": x}
        if local is not None:
            maps["local"] = local
            if "both" in self.sources:
                maps["both"] = torch.cat([x, local], 1)
        return tuple(maps[source] for source in self.sources)


def _check_option(name: str, value: str, options: object) -> None:
    if value not in get_args(options):
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, get_args(options)))}, got {value!r}.")
