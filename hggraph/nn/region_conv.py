"""A convolution over regions, with the weights of the convolution that it was."""

from __future__ import annotations

from torch import Tensor, nn

from hggraph.nn.dense_hg_conv import aggregate
from hggraph.nn.region_level import RegionLevel
from hggraph.stencil import Stencil

__all__ = ["RegionConv2d"]


class RegionConv2d(nn.Conv2d):
    """A convolution over nodes laid out as a map, along the typed edges of their level (HG-Conv Eq. 3).

    Holds the weights of the convolution that it was. Its dilation has no meaning on regions.
    """

    levels: list[RegionLevel]  # in a list: the level is another module's child

    @classmethod
    def of(cls, conv: nn.Conv2d, level: RegionLevel) -> RegionConv2d:
        """Take over a convolution's parameters themselves."""
        if type(conv).forward is not nn.Conv2d.forward and type(conv).__name__ != "Conv2dSame":
            raise ValueError(f"{type(conv).__name__} is no plain convolution and has no form on typed edges.")
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode={conv.padding_mode!r} has no meaning on regions.")
        out = cls.__new__(cls)
        out.__dict__ = conv.__dict__.copy()
        out.levels = [level]
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Convolve nodes ``(B, C, rows, columns)``."""
        adjacency = self.levels[0].adjacency(Stencil.square(tuple(self.kernel_size)))
        weight = self.weight.flatten(2).permute(2, 1, 0)
        out = aggregate(x.flatten(2).mT, weight, adjacency, self.groups)
        out = out if self.bias is None else out + self.bias.to(out.dtype)
        return out.mT.unflatten(2, x.shape[2:]).contiguous()
