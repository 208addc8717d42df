"""What becomes of single layers of a network on regions: those with a stride, and global means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph.nn.region_conv import RegionConv2d
from hggraph.nn.region_level import RegionLevel

__all__ = ["BLUR", "Mean", "Strided", "Unstrided"]

SAME = ("Conv2dSame", "StdConv2dSame", "ScaledStdConv2dSame", "MaxPool2dSame", "AvgPool2dSame")  # timm pads by size
BLUR = ("BlurPool2d",)


class Strided:
    """A strided layer in two steps: the same layer at every pixel of the finer level, then the regions' pooling."""

    def __init__(self, layer: Any, level: RegionLevel) -> None:
        self.level, self.name = level, type(layer).__name__
        self.stride = _pair(layer.stride)
        self.kernel = _pair(getattr(layer, "kernel_size", 1))
        self.reach = tuple(
            step * (k - 1) for k, step in zip(self.kernel, _pair(getattr(layer, "dilation", 1)), strict=True)
        )
        self.padding = (0, 0) if isinstance(getattr(layer, "padding", 0), str) else _pair(getattr(layer, "padding", 0))
        self.average = isinstance(layer, nn.AvgPool2d)
        self.partial = self.average and (not layer.count_include_pad or self.padding == (0, 0))
        self.fill = -torch.inf if isinstance(layer, nn.MaxPool2d) else 0.0
        whole = self.average and self.kernel == self.stride and level.pooling == "mean"  # its window is the region
        self.first = whole or self.reach == (0, 0)  # what acts on pixels one by one acts on their means
        self.offset = (0, 0)
        self.sized = self.name in SAME + BLUR or isinstance(layer, RegionConv2d)  # keeps the size without a stride
        if self.first and self.average:
            layer.kernel_size = (1, 1)
        if not self.sized:
            layer.padding = (0, 0)
        layer.stride = 1 if self.name in BLUR else (1, 1)
        if self.average:
            layer.ceil_mode = False

    def before(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pool a map, or pad it so that the layer keeps its size."""
        x = args[0]
        self.offset = self._offset(x.shape[2:])
        if self.first:
            return (self.level.pool(x, self.offset), *args[1:])
        if self.sized:
            return args
        (top, bottom), (left, right) = ((r // 2, r - r // 2) for r in self.reach)
        return (F.pad(x, (left, right, top, bottom), value=self.fill), *args[1:])

    def after(self, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Pool what the layer has computed at the finer level."""
        if self.first:
            return out
        if self.partial and not self.sized:
            height, width = args[0].shape[2:]
            (top, bottom), (left, right) = ((r // 2, r - r // 2) for r in self.reach)
            ones = out.new_ones(1, 1, height - top - bottom, width - left - right)
            out = out / F.avg_pool2d(F.pad(ones, (left, right, top, bottom)), self.kernel, 1)
        return self.level.pool(out, self.offset)

    def _offset(self, size: Sequence[int]) -> tuple[int, int]:
        """Return where in a cell the window's middle stands."""
        out = []
        for length, stride, reach, padding in zip(size, self.stride, self.reach, self.padding, strict=True):
            if self.name in SAME:
                padding = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0) // 2
            out.append(0 if self.name in BLUR else min(max(reach // 2 - padding, 0), stride - 1))
        return out[0], out[1]


class Unstrided(Strided):
    """A layer that has had a stride, at every node: in one jump the regions stand for it already."""

    def before(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pad the nodes so that the layer keeps their number."""
        return args if self.first else super().before(layer, args)

    def after(self, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Return what the layer has computed."""
        return out


class Mean:
    """A global mean in which each node counts by its area; for squeeze-and-excitation and global pooling."""

    def __init__(self, level: RegionLevel) -> None:
        self.level = level
        self.held: Tensor | None = None

    def hold(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the map that a module will take the mean of."""
        self.held = args[0]

    def put(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give the layer that gets the mean the mean by area."""
        assert self.held is not None
        mean, self.held = self.level.mean(self.held), None
        return (mean.view(args[0].shape), *args[1:])

    def replace(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Return the mean by area in place of the mean."""
        return self.level.mean(args[0]).view(out.shape)


def _pair(value: Any) -> tuple[int, int]:
    """Return one number, or one for each axis, as two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
