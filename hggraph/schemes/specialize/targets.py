"""Pyramid ground truth: which cells have one label, and which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_ndim, check_positive
from hggraph.nn._target import INTEGERS, check_ignore_index

__all__ = ["check_strides", "unity_pyramid"]


def unity_pyramid(target: Tensor, strides: Sequence[int], ignore_index: int = 255) -> list[tuple[Tensor, Tensor]]:
    """Return the pyramid ground truth of label maps (Hsiao et al. 2021, *Specialize and Fuse*, Sec. 3.1).

    A cell of stride s covers s x s pixels. It is a unity-cell if its labelled pixels share one label, which is then
    its label; a mix-cell has none. Ignored pixels, of which the paper does not speak, do not break a cell's unity.

    Args:
        target: Labels, shape ``(B, H, W)``, uint8 or int16 to int64.
        strides: Image pixels per cell and side, in any order, each twice the next smaller one: ``(32, 16, 8, 4)``.
        ignore_index: The label that does not count, in `target` and in what is returned.

    Returns:
        For each stride, the largest first, `unity` ``(B, h, w)`` bool and `label` ``(B, h, w)`` int64, with
        ``h = ceil(H / s)``: images are continued by ignored pixels to multiples of the largest stride. Coarser levels
        give mix-cells the label `ignore_index`. At the finest level, of which the paper says that all cells are taken
        for unity-cells and not what a mix-cell's label is, it is the label of most of its pixels, of several the
        smallest. A cell without labelled pixels has unity (none of its labels differ) and the label `ignore_index`.

    Raises:
        TypeError: if `target` is not of integers.
        ValueError: if `target` has another shape, or the strides do not double.

    Note:
        O(P log s) for P pixels and finest stride s, a few passes; nothing waits for the device; deterministic.

    Example:
        >>> target = torch.tensor([[[1, 1, 2, 2], [1, 1, 2, 3], [1, 1, 255, 255], [1, 255, 255, 255]]])
        >>> [(unity.tolist(), label.tolist()) for unity, label in unity_pyramid(target, (4, 2))]
        [([[[False]]], [[[255]]]), ([[[True, False], [True, True]]], [[[1, 2], [1, 255]]])]
    """
    check_ndim("target", target, 3, shape="(B, H, W)")
    if target.dtype not in INTEGERS:
        raise TypeError(f"`target` must hold labels, uint8 or int16 to int64, got {target.dtype}.")
    strides = check_strides(strides)
    check_ignore_index(ignore_index)
    coarsest, finest = strides[0], strides[-1]
    height, width = target.shape[1:]
    bottom, right = (-(-side // coarsest) * coarsest - side for side in (height, width))
    target = F.pad(target.long(), (0, right, 0, bottom), value=ignore_index)

    cells = target.unflatten(2, (-1, finest)).unflatten(1, (-1, finest)).transpose(2, 3).flatten(3)  # (B, h, w, s * s)
    counts = cells != ignore_index
    limits = torch.iinfo(torch.int64)
    low = torch.where(counts, cells, limits.max).amin(3)
    high = torch.where(counts, cells, limits.min).amax(3)
    unity = low >= high  # without labelled pixels the two are the limits
    label = torch.where(low > high, ignore_index, _majority(cells, counts))
    pyramid = [(unity, label)]
    for _ in strides[1:]:
        low, high = (_blocks(low).amin((2, 4)), _blocks(high).amax((2, 4)))
        pyramid.append((low >= high, torch.where(low == high, low, ignore_index)))
    return pyramid[::-1]


def check_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """Return strides, the largest first.

    Raises:
        ValueError: unless they are whole numbers of which each is twice the next smaller one.
    """
    if isinstance(strides, int | str) or not len(strides):
        raise ValueError(f"`strides` must be at least one whole number, such as (32, 16, 8, 4), got {strides!r}.")
    for stride in strides:
        check_positive("strides", stride)
    found = tuple(sorted(strides, reverse=True))
    if any(coarse != 2 * fine for coarse, fine in pairwise(found)):
        raise ValueError(
            f"`strides` must double from level to level, as (32, 16, 8, 4) do: a cell has four children. Got "
            f"{tuple(strides)}."
        )
    return found


def _majority(cells: Tensor, counts: Tensor) -> Tensor:
    """Return the most frequent of the labels that count in each row ``(..., N)``, of several the smallest."""
    ordered, order = cells.sort(-1)
    places = torch.arange(cells.shape[-1], device=cells.device)
    new = F.pad(ordered[..., 1:] != ordered[..., :-1], (1, 0), value=True)
    first = torch.where(new, places, 0).cummax(-1).values
    run = torch.where(counts.gather(-1, order), places - first, -1)  # how many of the same come before
    return ordered.gather(-1, run.argmax(-1, keepdim=True))[..., 0]  # the first of several, so the smallest label


def _blocks(x: Tensor) -> Tensor:
    """View ``(B, h, w)`` as ``(B, h / 2, 2, w / 2, 2)``."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
