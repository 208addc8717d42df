"""Accuracy against the number of classes, and how many classes a tap should have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from hggraph.schemes.hs3.grouping import Grouping, check_confusion

__all__ = ["TradeOff", "at_angle", "equal_ratio", "mean_iou", "trade_off"]


class TradeOff(NamedTuple):
    """The curve of a tap: its mean IoU on groupings of every size (HS3 Fig. 2).

    `sizes` are numbers of classes, rising; `miou` their mean IoU in [0, 1]; `groupings` what was merged.
    """

    sizes: tuple[int, ...]
    miou: tuple[float, ...]
    groupings: tuple[Grouping, ...]


def mean_iou(confusion: Tensor) -> float:
    """Return the mean IoU of a confusion matrix ``(K, K)``, over the classes that occur or are predicted.

    Example:
        >>> import torch
        >>> mean_iou(torch.tensor([[3, 1], [0, 4]]))
        0.775
    """
    values = check_confusion(confusion) if len(confusion) > 1 else confusion.double()
    common = values.diagonal()
    union = values.sum(0) + values.sum(1) - common
    return float((common / union)[union > 0].mean())


def trade_off(confusion: Tensor, groupings: Mapping[int, Grouping]) -> TradeOff:
    """Return the mean IoU that a tap reaches on groupings of its classes (HS3 Sec. 3.1.1).

    Args:
        confusion: The tap's counts, shape ``(K, K)``.
        groupings: By their sizes, as `spectral_groupings` and `kmeans_groupings` return them.

    Raises:
        ValueError: if `confusion` is none, or a grouping is for another number of classes.

    Note:
        The network is not run again: a pixel is right if its class and the one predicted are in one group. O(K^2) for
        each grouping.

    Example:
        >>> import torch
        >>> confusion = torch.tensor([[5, 5, 0], [5, 5, 0], [0, 0, 10]])
        >>> curve = trade_off(confusion, {2: Grouping([[0, 1], [2]]), 3: Grouping.identity(3)})
        >>> curve.sizes, [round(value, 3) for value in curve.miou]
        ((2, 3), [1.0, 0.556])
    """
    check_confusion(confusion)
    sizes = tuple(sorted(groupings))
    chosen = tuple(groupings[size] for size in sizes)
    return TradeOff(sizes, tuple(mean_iou(grouping.merge_confusion(confusion)) for grouping in chosen), chosen)


def equal_ratio(curve: TradeOff, miou: float, num_classes: int) -> int:
    """Return the number of classes at which mean IoU per class is nearest to the output's (HS3 Sec. 3.1.2).

    Args:
        curve: Of the tap.
        miou: Mean IoU of the network's output, in (0, 1].
        num_classes: Its classes K; ``miou / num_classes`` is the ratio.

    Raises:
        ValueError: if an argument is not as said.

    Example:
        >>> curve = TradeOff((2, 3, 4), (0.6, 0.45, 0.3), (Grouping.identity(2),) * 3)
        >>> equal_ratio(curve, 0.6, 4)  # 0.15 per class
        3
    """
    _check(miou, num_classes)
    away = [abs(value / size - miou / num_classes) for size, value in zip(curve.sizes, curve.miou, strict=True)]
    return curve.sizes[away.index(min(away))]


def at_angle(curve: TradeOff, miou: float, num_classes: int, theta: float, *, aspect: float = 1.0) -> int:
    """Return the number of classes where the curve meets a line through the output's point (HS3 Sec. 3.1.2).

    The axes are the number of classes as a share of all, and the mean IoU as a share of the output's times `aspect`:
    the output lies at (1, aspect). The line leaves it at an angle from the vertical: at 0 degrees all classes are kept
    (deep supervision), at 90 the mean IoU is the output's. The line through the origin, `equal_ratio`, has
    ``atan(1 / aspect)``: 45 degrees with the default, and the paper's 76 with an aspect of 0.249.

    Args:
        curve: Of the tap.
        miou: Mean IoU of the network's output, in (0, 1].
        num_classes: Its classes.
        theta: Degrees in [0, 90].
        aspect: Length of the axis of the mean IoU, above 0.

    Raises:
        ValueError: if an argument is not as said.

    Example:
        >>> curve = TradeOff((2, 3, 4), (0.6, 0.45, 0.3), (Grouping.identity(2),) * 3)
        >>> [at_angle(curve, 0.6, 4, theta) for theta in (0, 45, 90)]
        [4, 3, 2]
    """
    _check(miou, num_classes)
    if not 0 <= theta <= 90 or not aspect > 0:
        raise ValueError(f"`theta` must be degrees in [0, 90] and `aspect` above 0, got {theta} and {aspect}.")
    sin, cos = math.sin(math.radians(theta)), math.cos(math.radians(theta))
    away = [
        abs((1 - value / miou) * aspect * sin - (1 - size / num_classes) * cos)
        for size, value in zip(curve.sizes, curve.miou, strict=True)
    ]
    return curve.sizes[away.index(min(away))]


def _check(miou: float, num_classes: int) -> None:
    if not 0 < miou <= 1 or num_classes < 2:
        raise ValueError(f"`miou` must be in (0, 1] and `num_classes` >= 2, got {miou} and {num_classes}.")
