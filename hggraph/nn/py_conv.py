"""Pyramidal convolution: kernels of several sizes side by side, the larger the less connected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hggraph import ops
from hggraph._check import check_ndim, check_positive
from hggraph.stencil import Stencil

__all__ = ["Level", "PyConv2d", "PyConv3d", "auto_groups", "equal_splits"]

Size = int | tuple[int, ...]


class Level(NamedTuple):
    """A level of a pyramid: its kernel size per axis, groups, and outputs."""

    kernel_size: tuple[int, ...]
    groups: int
    out_channels: int


class _PyConv(nn.Module):
    """What the two and the three dimensional layer share."""

    ndim: int
    conv: type[nn.Conv2d] | type[nn.Conv3d]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[Size],
        groups: Sequence[int] | str = "auto",
        out_splits: Sequence[int] | None = None,
        stride: Size = 1,
        dilation: Size = 1,
        *,
        padding: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        check_positive("out_channels", out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.dilation = _per_axis("stride", stride, self.ndim), _per_axis("dilation", dilation, self.ndim)
        self.padding = padding
        self.pyramid = make_pyramid(in_channels, out_channels, kernel_sizes, groups, out_splits, self.ndim)
        if not padding and len({level.kernel_size for level in self.pyramid}) > 1:
            raise ValueError(
                f"`padding` can be False for one kernel size only, others give other maps, got {tuple(kernel_sizes)}."
            )
        self.levels = nn.ModuleList(
            self.conv(
                in_channels,
                level.out_channels,
                level.kernel_size,  # type: ignore[arg-type]
                stride=self.stride,  # type: ignore[arg-type]
                padding=stencil.reach if padding else 0,  # type: ignore[arg-type]
                dilation=self.dilation,  # type: ignore[arg-type]
                groups=level.groups,
                bias=bias,
            )
            for level, stencil in zip(self.pyramid, self.stencils, strict=True)
        )

    @property
    def stencils(self) -> tuple[Stencil, ...]:
        """The stencil of each level."""
        return tuple(Stencil.square(level.kernel_size, dilation=self.dilation) for level in self.pyramid)

    def forward(self, x: Tensor) -> Tensor:
        """Return the levels' outputs, concatenated; see the class for shapes."""
        shape = ("B", "C", "T", "H", "W") if self.ndim == 3 else ("B", "C", "H", "W")
        check_ndim("x", x, self.ndim + 2, shape=f"({', '.join(shape)})")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"`x` must have {self.in_channels} channels, got shape {tuple(x.shape)}.")
        self._check_size(x.shape[2:])
        levels = [self.convolve(x, level) for level in self.levels]
        return levels[0] if len(levels) == 1 else torch.cat(levels, 1)

    def convolve(self, x: Tensor, level: Any) -> Tensor:
        """Return the output of one of the levels."""
        out: Tensor = level(x)
        return out

    def parameters_per_level(self) -> list[int]:
        """Return the parameters of each level: ``K^2 FM_i / G FM_o`` (Eq. 1), and its biases."""
        return [sum(parameter.numel() for parameter in level.parameters()) for level in self.levels]

    def macs_per_level(self, size: Sequence[int]) -> list[int]:
        """Return the multiply-adds of each level for one map of a size (H, W) or (T, H, W) (Eq. 1).

        Args:
            size: Of the input, in pixels.
        """
        if len(size) != self.ndim:
            raise ValueError(f"`size` must be {self.ndim} numbers, got {tuple(size)}.")
        shrink = (0,) * self.ndim if self.padding else tuple(2 * reach for reach in self.stencils[0].reach)
        out = math.prod(-(-(side - less) // step) for side, less, step in zip(size, shrink, self.stride, strict=True))
        return [out * level.weight.numel() for level in self.levels]  # type: ignore[union-attr,operator]

    def extra_repr(self) -> str:
        """Return channels and levels."""
        levels = ", ".join(
            f"{'x'.join(map(str, level.kernel_size))} /{level.groups} -> {level.out_channels}" for level in self.pyramid
        )
        return f"{self.in_channels}, {self.out_channels}, [{levels}]"

    def _check_size(self, size: Sequence[int]) -> None:
        for level, stencil in zip(self.pyramid, self.stencils, strict=True):
            for axis, (side, taps, reach) in enumerate(zip(size, level.kernel_size, stencil.reach, strict=True)):
                padded = side + 2 * reach if self.padding else side
                if side < 1 or 2 * reach + 1 > padded:
                    raise ValueError(
                        f"The kernel must fit the padded map: {taps} taps span {2 * reach + 1} pixels of axis {axis}, "
                        f"and there are {padded}, {padded - side} of them padding. Take a larger map or fewer taps."
                    )


class PyConv2d(_PyConv):
    r"""Convolve with several kernel sizes, each on all inputs, and concatenate (PyConv, Duta et al. 2020, Eq. 1).

    .. math::
        y = \operatorname{concat}_l\, \operatorname{conv}_{k_l \times k_l,\, g_l}(x)

    Level l is the `Stencil` ``square(k_l)`` with g_l groups; the larger the kernel, the more groups, so that the levels
    cost about the same.

    Args:
        in_channels: Channels of the input; each level sees them all.
        out_channels: Channels of the output, of all levels together.
        kernel_sizes: Taps per axis of each level, odd: numbers, or one per axis.
        groups: Groups of each level, which divide its inputs and outputs; ``"auto"``: the divisors nearest to
            ``k_l^2 / k_1^2``, the paper's rule. Its networks use 1, 4, 8 and 16 for 3, 5, 7 and 9.
        out_splits: Outputs of each level; when None equal ones of a power of two in all, the last levels having what
            is left: halves for 2 levels, a quarter, a quarter and a half for 3, quarters for 4, as in the paper.
        stride: Of all levels.
        dilation: Of all levels, in pixels.
        padding: Pad with zeros by ``dilation * (k // 2)``; False does not pad, for levels of one size.
        bias: Learn additive biases.

    Shapes:
        - **input:** ``(B, in_channels, H, W)``
        - **output:** ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, the levels in their order

    Raises:
        ValueError: if groups divide neither, splits do not add up, a kernel is even; in a call, if shapes do not fit.
            The text gives the numbers and the nearest valid ones.

    Note:
        ``sum_l k_l^2 in_channels / g_l out_l`` parameters, each used once per output pixel.

    Example:
        >>> layer = PyConv2d(64, 64, (3, 5, 7, 9), (1, 4, 8, 16))
        >>> layer(torch.rand(1, 64, 14, 14)).shape, layer.parameters_per_level()
        (torch.Size([1, 64, 14, 14]), [9216, 6400, 6272, 5184])
    """

    ndim, conv = 2, nn.Conv2d

    def convolve(self, x: Tensor, level: Any) -> Tensor:
        """Return the output of one of the levels."""
        return ops.grouped_conv2d(
            x,
            level.weight,
            level.bias,
            stride=level.stride,
            padding=level.padding,
            dilation=level.dilation,
            groups=level.groups,
        )


class PyConv3d(_PyConv):
    """`PyConv2d` for video: kernels over time, height and width (PyConv's supplement, Table 2).

    Args:
        in_channels: As for `PyConv2d`, and so are the other arguments; sizes may be given per axis (t, y, x), for
            example ``kernel_sizes=[(3, 3, 3), (3, 5, 5), (5, 7, 7), (7, 9, 9)]``.

    Shapes:
        - **input:** ``(B, in_channels, T, H, W)``
        - **output:** ``(B, out_channels, T', H', W')``

    Example:
        >>> PyConv3d(8, 8, [3, (3, 5, 5)], (1, 4))(torch.rand(1, 8, 4, 6, 6)).shape
        torch.Size([1, 8, 4, 6, 6])
    """

    ndim, conv = 3, nn.Conv3d


def make_pyramid(
    in_channels: int,
    out_channels: int,
    kernel_sizes: Sequence[Size],
    groups: Sequence[int] | str,
    out_splits: Sequence[int] | None,
    ndim: int,
) -> tuple[Level, ...]:
    """Return the levels of a pyramid, or raise and say what would be valid."""
    sizes = [_per_axis("kernel_sizes", size, ndim) for size in kernel_sizes]
    if not sizes:
        raise ValueError("`kernel_sizes` must name at least one level, got none.")
    for size in sizes:
        if any(taps % 2 == 0 for taps in size):
            near = tuple(taps + 1 - taps % 2 for taps in size)
            raise ValueError(f"`kernel_sizes` must be odd, so that levels have one centre, got {size}; take {near}.")
    splits = equal_splits(out_channels, len(sizes)) if out_splits is None else tuple(out_splits)
    if len(splits) != len(sizes) or sum(splits) != out_channels or min(splits) < 1:
        raise ValueError(
            f"`out_splits` must be {len(sizes)} numbers that add up to {out_channels}, got {splits}, which add up to "
            f"{sum(splits)}; take {equal_splits(out_channels, len(sizes))}."
        )
    if isinstance(groups, str):
        if groups != "auto":
            raise ValueError(f"`groups` must be 'auto' or a number for each level, got {groups!r}.")
        groups = auto_groups(in_channels, splits, sizes)
    if len(groups) != len(sizes):
        raise ValueError(f"`groups` must be {len(sizes)} numbers, one for each level, got {tuple(groups)}.")
    for count, outputs in zip(groups, splits, strict=True):
        check_positive("groups", count)
        if in_channels % count or outputs % count:
            common = math.gcd(in_channels, outputs)
            raise ValueError(
                f"`groups` must divide the {in_channels} inputs and the {outputs} outputs of its level, got {count}; "
                f"the nearest that does is {_nearest_divisor(common, count)}."
            )
    return tuple(Level(*level) for level in zip(sizes, groups, splits, strict=True))


def equal_splits(out_channels: int, levels: int) -> tuple[int, ...]:
    """Return how many outputs each of some levels has: shares of a power of two, the last ones double where needed.

    Example:
        >>> equal_splits(64, 3), equal_splits(64, 4)
        ((16, 16, 32), (16, 16, 16, 16))
    """
    parts = 1 << (levels - 1).bit_length()
    if out_channels < parts:
        raise ValueError(f"`out_channels` must be at least {parts} for {levels} levels, got {out_channels}.")
    share, double = out_channels // parts, parts - levels
    splits = [share] * (levels - double) + [2 * share] * double
    splits[-1] += out_channels - sum(splits)
    return tuple(splits)


def auto_groups(
    in_channels: int, out_splits: Sequence[int], kernel_sizes: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """Return for each level the divisor of its inputs and outputs nearest to ``k_l^2 / k_1^2`` (PyConv Sec. 3).

    Example:
        >>> auto_groups(64, (16, 16, 16, 16), [(3, 3), (5, 5), (7, 7), (9, 9)])
        (1, 2, 4, 8)
    """
    first = math.prod(kernel_sizes[0])
    return tuple(
        _nearest_divisor(math.gcd(in_channels, outputs), math.prod(size) / first)
        for outputs, size in zip(out_splits, kernel_sizes, strict=True)
    )


def _nearest_divisor(number: int, wanted: float) -> int:
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    return min(divisors, key=lambda divisor: (abs(divisor - wanted), divisor))


def _per_axis(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * ndim
    if len(values) != ndim:
        raise ValueError(f"`{name}` must be one number or {ndim}, one for each axis, got {values}.")
    for one in values:
        check_positive(name, one)
    return values
