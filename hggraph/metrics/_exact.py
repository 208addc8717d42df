"""Metrics whose results do not depend on how the data are split, to the last bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["ExactMetric", "QuietMetric", "fixed_mean", "to_fixed"]

_SCALE = 2**40


class QuietMetric(Metric):
    """A metric that does not warn when it has no data: in distributed evaluation a process may have none."""

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @wraps(wrapped)
        def quiet() -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric", category=UserWarning)
                return wrapped()

        return quiet


class ExactMetric(QuietMetric):
    """A metric whose states are sums of int64, so that no order of adding and no number of processes changes them.

    Counts are counted. Scores of images, in [0, 1], are added as whole multiples of 2^-40 (`to_fixed`): a sum of
    floating-point numbers would depend on the order. Without any data a result is NaN.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = True
    full_state_update: bool | None = False

    def add_counts(self, name: str, *shape: int) -> None:
        """Add a state of int64 zeros, summed over processes."""
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")


def to_fixed(score: Tensor) -> Tensor:
    """Return scores in [0, 1], float64, as multiples of 2^-40 (1e-12), int64: 8 million of them can be added."""
    return (score * _SCALE).round().to(torch.int64)


def fixed_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return the mean of `count` scores whose fixed-point sum is `total`, float64; NaN if there are none."""
    return total.double() / _SCALE / count.double()
