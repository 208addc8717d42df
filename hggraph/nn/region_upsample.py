"""Region upsampling: a coarse map brought back by what the pixels look like, in place of bilinear interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hggraph import ops
from hggraph._check import check_features, check_positive
from hggraph.graph import Assignment
from hggraph.nn._conv import span

__all__ = ["RegionUpsample"]

_CANDIDATES = 9  # coarse pixels that a fine one considers: 3 x 3 around it
_WIDTH = 0.1  # spread of an untrained embedding of a map whose channels have mean square 1


class RegionUpsample(nn.Module):
    r"""Bring a coarse map back to a finer level by learned soft regions (after T. Suzuki 2021, arXiv 2103.03435).

    Each pixel of a coarse level is a region, and each pixel of the finer level belongs softly to the 3 x 3 regions
    around it, by the distance of learned embeddings, 1x1 convolutions of the two maps:

    .. math::
        S_{jp} \propto \Bigl(b_{jp} + \frac{1 - \exp(-\operatorname{var}_j d_{jp})}{9}\Bigr) \exp(-d_{jp}), \qquad
        d_{jp} = \lVert e_p - e_j \rVert^2

    where b are the weights of bilinear interpolation (``align_corners=False``, each coarse pixel over the cell that the
    stride made, so that the rest of a side that it does not divide is cut off and nothing is stretched) and the
    variance is over the regions that exist. With these two the layer is bilinear interpolation where the embeddings say
    nothing, and can reach all nine regions where they do. Any strided network has such levels; its own path does not
    change.

    Args:
        channels: Channels of the maps of at least two levels, from fine to coarse.
        embedding: Channels of the embeddings. Each step between two levels has its own on both sides.

    Shapes:
        - **input:** one map ``(B, channels[i], H_i, W_i)`` for each level, each at most as large as the one before, of
          any ratio; and z ``(B, C, H, W)`` of the coarsest map's size, what to bring back *(optional: the coarsest map
          itself)*
        - **output:** ``(B, C, H_0, W_0)``, dtype of z; an empty batch gives an empty map

    The convolutions begin small, with standard deviation ``0.1 / sqrt(channels)``, so that an untrained layer is about
    bilinear: for maps of mean square 1 and 16 channels the distances are about 0.3 and their variance about 0.01. They
    do not begin at 0, where the gradient of a square is 0 too. Only the fine side has a bias: a distance knows nothing
    but the difference of the two.

    Raises:
        ValueError: if a number is not as said; in a call, if the number of maps, a map's channels, its batch or the
            size of z do not fit, or a coarse map is larger than the fine one.
        TypeError: if a map is not floating point.

    Note:
        O(9 B H W (embedding + C)) for each step and 9 B H W numbers for the weights, none of them depending on the
        number of regions. Distances and weights in float32 at least, under autocast too. Deterministic.

    Example:
        >>> up = RegionUpsample((8, 16, 32))
        >>> maps = torch.rand(1, 8, 45, 60), torch.rand(1, 16, 23, 30), torch.rand(1, 32, 12, 15)
        >>> up(maps).shape
        torch.Size([1, 32, 45, 60])
        >>> up.assign(maps[0], maps[1], 0)
        Assignment(batch_size=1, size=(45, 60), regions=690, entries=9)
    """

    def __init__(self, channels: Sequence[int], *, embedding: int = 16) -> None:
        super().__init__()
        self.channels = tuple(channels)
        if len(self.channels) < 2:
            raise ValueError(f"`channels` must be those of at least two levels, fine to coarse, got {self.channels}.")
        for number in self.channels:
            check_positive("channels", number)
        check_positive("embedding", embedding)
        self.fine = nn.ModuleList(_embed(number, embedding, bias=True) for number in self.channels[:-1])
        self.coarse = nn.ModuleList(_embed(number, embedding, bias=False) for number in self.channels[1:])

    def assign(self, fine: Tensor, coarse: Tensor, step: int) -> Assignment:
        """Assign the pixels of a level to those of the next coarser one, the regions, row by row.

        Args:
            fine: Map of level `step`, shape ``(B, channels[step], H, W)``.
            coarse: Map of level ``step + 1``, shape ``(B, channels[step + 1], h, w)``, with h <= H and w <= W.
            step: From 0, the finest, to ``len(channels) - 2``.

        Returns:
            An assignment of nine entries for each pixel; its `unpool` is the upsampling, its `pool` the way down.

        Raises:
            ValueError: if shapes disagree or there is no such step.
        """
        check_positive("step", step, 0)
        if step >= len(self.fine):
            raise ValueError(f"`step` must be below {len(self.fine)}, got {step}.")
        self._check_map("fine", fine, step)
        self._check_map("coarse", coarse, step + 1)
        _check_step("fine", fine, "coarse", coarse)
        return self._assign(fine, coarse, step)

    def forward(self, maps: Sequence[Tensor], z: Tensor | None = None) -> Tensor:
        """Bring `z` back to the size of ``maps[0]``; see the class for shapes."""
        if len(maps) != len(self.channels):
            raise ValueError(f"`maps` must be {len(self.channels)} maps, from fine to coarse, got {len(maps)}.")
        for level, x in enumerate(maps):
            self._check_map(f"maps[{level}]", x, level)
            if level:
                _check_step(f"maps[{level - 1}]", maps[level - 1], f"maps[{level}]", x)
        if z is None:
            z = maps[-1]
        check_features("z", z)
        if z.shape[0] != maps[-1].shape[0] or z.shape[2:] != maps[-1].shape[2:]:
            raise ValueError(
                f"`z` must have the batch and the size of the coarsest map, {tuple(maps[-1].shape)}, "
                f"got shape {tuple(z.shape)}."
            )
        for step in reversed(range(len(self.fine))):
            z = self._assign(maps[step], maps[step + 1], step).unpool(z.flatten(2).transpose(1, 2))
        return z

    def _assign(self, fine: Tensor, coarse: Tensor, step: int) -> Assignment:
        batch, size, grid = fine.shape[0], (fine.shape[2], fine.shape[3]), (coarse.shape[2], coarse.shape[3])
        spans = span(size[0], grid[0]), span(size[1], grid[1])
        row, tent_y, row_exists = _around(size[0], spans[0], grid[0], fine.device)
        column, tent_x, column_exists = _around(size[1], spans[1], grid[1], fine.device)
        index = _outer(row * grid[1], column, torch.add).to(torch.int32).expand(batch, -1, -1)
        nodes = self.coarse[step](coarse).flatten(2).transpose(1, 2)
        # exp(-d) over its sum, which keeps the differences of d and cannot overflow
        near = ops.soft_assign(self.fine[step](fine).flatten(2), nodes, index, threshold=0.0)
        bilinear = _outer(tent_y.to(near.dtype) / (2 * spans[0]), tent_x.to(near.dtype) / (2 * spans[1]), torch.mul)
        exists = _outer(row_exists, column_exists, torch.mul).to(near.dtype)
        # an exponential that is 0 makes a variance for which exp(-variance) is 0 as well, so its logarithm is free
        score = near.clamp(min=torch.finfo(near.dtype).tiny).log()
        number = exists.sum(0)
        mean = (score * exists).sum(1, keepdim=True) / number
        variance = ((score - mean).square() * exists).sum(1, keepdim=True) / number
        weight = (bilinear - torch.expm1(-variance) / _CANDIDATES * exists) * near
        weight = weight / weight.sum(1, keepdim=True)
        return Assignment._trusted(weight, size, index, grid[0] * grid[1], None, None, grid)

    def _check_map(self, name: str, x: Tensor, level: int) -> None:
        check_features(name, x)
        if x.shape[1] != self.channels[level]:
            raise ValueError(f"`{name}` must have {self.channels[level]} channels, got shape {tuple(x.shape)}.")

    def extra_repr(self) -> str:
        """Return the channels of the levels."""
        return f"channels={self.channels}"


def _embed(channels: int, embedding: int, *, bias: bool) -> nn.Conv2d:
    conv = nn.Conv2d(channels, embedding, 1, bias=bias)
    nn.init.normal_(conv.weight, std=_WIDTH * channels**-0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _check_step(fine_name: str, fine: Tensor, coarse_name: str, coarse: Tensor) -> None:
    """Raise unless two maps are neighbouring levels of the same images."""
    if fine.shape[0] != coarse.shape[0]:
        raise ValueError(
            f"`{coarse_name}` must have the batch of `{fine_name}`, {fine.shape[0]}, got {coarse.shape[0]}."
        )
    if coarse.shape[2] > fine.shape[2] or coarse.shape[3] > fine.shape[3]:
        raise ValueError(
            f"`{coarse_name}` must be no larger than `{fine_name}`, {tuple(fine.shape[2:])} pixels, "
            f"got {tuple(coarse.shape[2:])}. Order the maps from fine to coarse."
        )


def _around(length: int, spanned: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three cells around each pixel of an axis, shape ``(3, length)``: number, bilinear weight, existence.

    Whole numbers, so that no rounding parts a pixel from its cell: places and weights are in units of
    ``1 / (2 * spanned)`` of a cell, in which the middle of pixel p, less half a cell, is ``(2 p + 1) cells - spanned``.
    A cell outside has the number of the last one inside, and weight 0.
    """
    middle = (2 * torch.arange(length, device=device) + 1) * cells
    cell = middle // (2 * spanned) + torch.arange(-1, 2, device=device)[:, None]
    place = (middle - spanned).clamp(0, 2 * spanned * (cells - 1))
    tent = (2 * spanned - (place - 2 * spanned * cell).abs()).clamp(min=0)
    return cell.clamp(0, cells - 1), tent, (cell >= 0) & (cell < cells)


def _outer(of_row: Tensor, of_column: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Join ``(3, H)`` and ``(3, W)`` to one value for each of the nine cells and each pixel, shape ``(9, H W)``."""
    return join(of_row[:, None, :, None], of_column[None, :, None, :]).flatten(2).flatten(0, 1)
