"""Fusing: each pixel has the logits of the coarsest unity-cell it lies in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hggraph._check import check_features, check_ndim

__all__ = ["check_threshold", "children", "fuse", "levels_used"]


def fuse(semantic: Sequence[Tensor], unity: Sequence[Tensor], threshold: float = 0.9) -> Tensor:
    r"""Fuse a pyramid of logits into one map (Hsiao et al. 2021, *Specialize and Fuse*, Eq. 2).

    .. math::
        \hat Y = \sum_l 1[\mathrm{Up}(\hat U^l) \ge \tau] \odot \mathrm{Up}(\hat Y^l) \odot
                 \prod_{k < l} 1[\mathrm{Up}(\hat U^k) < \tau]

    The finest level's cells are taken for unity-cells. Up, which the paper does not specify, repeats values: a cell
    has one label.

    Args:
        semantic: Logits, coarse to fine, each ``(B, C, h, w)`` with twice the sides of the one before.
        unity: Probabilities of unity of all levels but the finest, each ``(B, h, w)``.
        threshold: A cell is a unity-cell if its probability reaches it, a number >= 0. 0 gives the coarsest level,
            any above 1 the finest.

    Returns:
        Logits of the finest level's shape ``(B, C, H, W)``, each those of one level, unchanged. One level is returned
        as it is.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: if a level is missing or does not have twice the sides, or the threshold is negative or no number.

    Note:
        Reads and writes each level once and upsamples none: the traffic is 3 times the finest level's size. Gradients
        reach the level that is chosen, and `unity` none. Deterministic.

    Example:
        >>> semantic = [torch.full((1, 5, 1, 2), 1.0), torch.full((1, 5, 2, 4), 2.0)]
        >>> fuse(semantic, [torch.tensor([[[0.95, 0.3]]])])[0, 0]
        tensor([[1., 1., 2., 2.],
                [1., 1., 2., 2.]])
    """
    check_threshold(threshold)
    _check_pyramid(semantic, unity)
    out = semantic[0]
    done: Tensor | None = None
    for probability, finer in zip(unity, semantic[1:], strict=True):
        here = probability >= threshold
        done = here if done is None else children(done) | here
        # (B, C, h, 2, w, 2) at the finer level: the coarser one is broadcast, and never upsampled in memory
        chosen = torch.where(
            done[:, None, :, None, :, None],
            out[:, :, :, None, :, None],
            finer.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)),
        )
        out = chosen.flatten(4).flatten(2, 3)
    return out


def levels_used(unity: Sequence[Tensor], threshold: float = 0.9) -> Tensor:
    """Return which level `fuse` takes each pixel from, 0 for the coarsest.

    Args:
        unity: Probabilities of unity of all levels but the finest, coarse to fine, each ``(B, h, w)``; at least one.
        threshold: As in `fuse`.

    Returns:
        Levels ``(B, H, W)`` int64 at the finest level's size, which is twice that of the last one given.

    Raises:
        ValueError: if there is no level, one does not have twice the sides of the one before, or the threshold is
            negative or no number.

    Example:
        >>> levels_used([torch.tensor([[[0.95, 0.3]]])])
        tensor([[[0, 0, 1, 1],
                 [0, 0, 1, 1]]])
    """
    check_threshold(threshold)
    if not len(unity):
        raise ValueError("`unity` must hold at least one level, got none.")
    _check_unity(unity)
    level: Tensor | None = None
    for i, probability in enumerate(unity):
        here = torch.where(probability >= threshold, i, len(unity))
        level = here if level is None else torch.minimum(children(level), here)
    assert level is not None
    return children(level)


def children(x: Tensor) -> Tensor:
    """Give each cell's value ``(B, h, w)`` to its four children ``(B, 2 h, 2 w)``."""
    batch, height, width = x.shape
    return x[:, :, None, :, None].expand(-1, -1, 2, -1, 2).reshape(batch, 2 * height, 2 * width)


def check_threshold(threshold: float) -> float:
    """Return a threshold on probabilities.

    Raises:
        ValueError: unless it is a number >= 0.
    """
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool) and math.isfinite(threshold)
    if not number or threshold < 0:
        raise ValueError(f"`threshold` must be in [0, 1], or above 1 for no unity-cells at all, got {threshold!r}.")
    return float(threshold)


def _check_pyramid(semantic: Sequence[Tensor], unity: Sequence[Tensor]) -> None:
    if not len(semantic):
        raise ValueError("`semantic` must hold logits of at least one level, coarse to fine, got none.")
    if len(unity) != len(semantic) - 1:
        raise ValueError(
            f"`unity` must hold probabilities for all of the {len(semantic)} levels of `semantic` but the finest, got "
            f"{len(unity)}. A level needs both."
        )
    for level, y in enumerate(semantic):
        check_features(f"semantic[{level}]", y)
        if level:
            coarse = semantic[level - 1].shape
            _check_doubled(f"semantic[{level}]", y, (*coarse[:2], 2 * coarse[2], 2 * coarse[3]))
    _check_unity(unity)
    if len(unity) and tuple(unity[0].shape) != (semantic[0].shape[0], *semantic[0].shape[2:]):
        raise ValueError(
            f"`unity[0]` must have one value for each cell of `semantic[0]` {tuple(semantic[0].shape)}, got shape "
            f"{tuple(unity[0].shape)}."
        )


def _check_unity(unity: Sequence[Tensor]) -> None:
    for level, u in enumerate(unity):
        check_ndim(f"unity[{level}]", u, 3, shape="(B, h, w)")
        if not u.is_floating_point():
            raise TypeError(f"`unity[{level}]` must hold probabilities, floating point, got {u.dtype}.")
        if level:
            batch, height, width = unity[level - 1].shape
            _check_doubled(f"unity[{level}]", u, (batch, 2 * height, 2 * width))


def _check_doubled(name: str, x: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(x.shape) != wanted:
        raise ValueError(
            f"`{name}` must have shape {wanted}, twice the sides of the level before, got {tuple(x.shape)}. Levels go "
            f"from coarse to fine, and strides double."
        )
