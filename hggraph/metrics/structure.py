"""The structure measure of a saliency map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["structure_measure"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def structure_measure(
    prediction: Floats, target: Bools, counted: Bools | None = None, *, object_weight: float = 0.5
) -> float:
    r"""Return how alike a saliency map and its target are in structure, the S-measure.

    Fan et al., "Structure-measure: a new way to evaluate foreground maps", 2017:
    ``S = a S_object + (1 - a) S_region``, at least 0, where

    - ``S_object = w O(p in the object) + (1 - w) O(1 - p around it)``, w the object's share of the pixels and
      ``O(x) = 2 m / (m^2 + 1 + s)`` of the mean m and the standard deviation s (N - 1) of x;
    - ``S_region`` cuts the image into four blocks at the object's centre of mass and sums their similarity, weighted
      with their size: with means m, variances and covariance s of prediction and target,
      ``4 m_p m_t s_pt / ((m_p^2 + m_t^2) (s_pp + s_tt))``; where both are constant it is 1, and 0 otherwise if that
      has the value 0.

    An empty target gives 1 minus the mean prediction, a full one the mean prediction.

    Args:
        prediction: Saliency in [0, 1], shape ``(H, W)``.
        target: The object, shape ``(H, W)``.
        counted: Pixels that count, shape ``(H, W)``; None is all. The others are as if they were not there: they have
            no part in sizes, means, variances or the centre.
        object_weight: a, in [0, 1].

    Returns:
        S in [0, 1]; NaN if no pixel counts.

    Note:
        O(H W), in float64 on the CPU. The centre is rounded half up, as the authors' program does; where a block is
        constant its variance is exactly 0, which decides between 0 and 1.

    Example:
        >>> target = np.arange(16).reshape(4, 4) % 4 > 1
        >>> structure_measure(target.astype(float), target), structure_measure(np.full((4, 4), 0.5), target)
        (1.0, 0.4)
    """
    counted = np.ones_like(target) if counted is None else counted
    inside, outside = prediction[target & counted], prediction[~target & counted]
    pixels = inside.size + outside.size
    if not pixels:
        return math.nan
    if not inside.size:
        return 1.0 - float(outside.mean())
    if not outside.size:
        return float(inside.mean())
    share = inside.size / pixels
    objects = share * _object(inside) + (1 - share) * _object(1 - outside)
    y, x = (_centre(np.nonzero(target & counted)[axis]) for axis in (0, 1))
    regions = 0.0
    for rows in (slice(0, y), slice(y, None)):
        for columns in (slice(0, x), slice(x, None)):
            here = counted[rows, columns]
            values, truth = prediction[rows, columns][here], target[rows, columns][here]
            if values.size:
                regions += values.size / pixels * _similarity(values, truth.astype(np.float64))
    return max(0.0, object_weight * objects + (1 - object_weight) * regions)


def _object(values: Floats) -> float:
    mean = float(values.mean())
    return 2 * mean / (mean**2 + 1 + math.sqrt(_covariance(values, values)))


def _similarity(values: Floats, truth: Floats) -> float:
    mean, share = float(values.mean()), float(truth.mean())
    spread = _covariance(values, values) + _covariance(truth, truth)
    alike = 4 * mean * share * _covariance(values, truth)
    scale = (mean**2 + share**2) * spread
    return alike / scale if alike != 0 else float(scale == 0)


def _covariance(a: Floats, b: Floats) -> float:
    if a.size < 2 or a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(((a - a.mean()) * (b - b.mean())).sum()) / (a.size - 1)


def _centre(index: NDArray[np.int64]) -> int:
    """Return how many rows (or columns) lie before the cut: the rounded mean, counted from 1."""
    return (2 * int(index.sum()) + index.size) // (2 * index.size) + 1
