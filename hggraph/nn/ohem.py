"""Cross-entropy of the hard pixels alone, as two published training codes choose them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.nn._target import check_ignore_index, check_logits, check_number, check_weights, mean_or_zero
from hggraph.nn.losses import check_class_weights

__all__ = ["OhemCrossEntropy", "hard_pixels"]

Rule = Literal["gald", "hrnet"]


def hard_pixels(probability: Tensor, valid: Tensor, threshold: float, min_kept: int, rule: Rule = "gald") -> Tensor:
    """Return which pixels a loss keeps: those whose own class is predicted with little probability.

    The pixels of the whole batch are sorted together, the hardest first, and a limit is found:

    ======================= ==================================== =========================================
    ..                      ``"gald"``                           ``"hrnet"``
    ======================= ==================================== =========================================
    limit, the larger of    `threshold`, the `min_kept`-th value `threshold`, the one after it (or the last)
    kept are                those at most the limit              those below the limit
    fewer than `min_kept`   all are kept                         the easiest are dropped, if above `threshold`
    ======================= ==================================== =========================================

    Args:
        probability: Predicted probability of each pixel's own label, any shape, in [0, 1].
        valid: Which pixels count, bool, the same shape; the values of others are not looked at.
        threshold: Pixels up to this probability are hard, however many they are.
        min_kept: So many pixels of the batch are kept, if there are so many.
        rule: ``"gald"`` or ``"hrnet"``, as above.

    Returns:
        Bool, the same shape; without any True where nothing counts or, by a strict rule, nothing lies below the limit.

    Raises:
        ValueError: if `rule` is another one.

    Note:
        O(N) on the CPU, a sort on a GPU; nothing waits for the device and no shape depends on the data.
        Deterministic.

    Example:
        >>> probability = torch.tensor([0.9, 0.2, 0.8, 0.95])
        >>> everything = torch.ones(4, dtype=torch.bool)
        >>> hard_pixels(probability, everything, 0.7, 2)
        tensor([False,  True,  True, False])
        >>> hard_pixels(probability, everything, 0.7, 2, "hrnet")
        tensor([False,  True,  True, False])
        >>> hard_pixels(probability, everything, 0.7, 9), hard_pixels(probability, everything, 0.7, 9, "hrnet")
        (tensor([True, True, True, True]), tensor([ True,  True,  True, False]))
    """
    _check_rule(rule)
    number = probability.numel()
    if number == 0:
        return valid
    # ignored pixels come last; whether there are fewer valid ones than wanted shows in the value found: infinity
    ordered = torch.where(valid, probability, math.inf).flatten()
    if rule == "gald":
        if min_kept > number:
            return valid
        limit = _smallest(ordered, min_kept) if min_kept else probability.new_zeros(())
        return valid & (probability <= limit.clamp(min=threshold))
    limit = _smallest(ordered, min(min_kept, number - 1) + 1)
    last = torch.where(valid, probability, -math.inf).amax()
    limit = torch.where(limit.isinf(), last, limit)
    return valid & (probability < limit.clamp(min=threshold))


class OhemCrossEntropy(nn.Module):
    """Mean cross-entropy of the hard pixels (online hard example mining).

    A pixel is hard while the network gives its own label at most `threshold`; if these are fewer than `min_kept` pixels
    of the batch, the hardest so many are taken. Two rules are in use, of GALD's training code (0.7 and 100 000) and of
    HRNet's (0.9 and 131 072); `hard_pixels` says how they differ.

    Args:
        threshold: Probability in [0, 1].
        min_kept: Pixels of the batch, on this process, that are kept at least.
        rule: ``"gald"``, or ``"hrnet"``, which compares strictly and is usually used with ``threshold=0.9,
            min_kept=131_072``.
        ignore_index: The label that does not count.
        class_weights: One number >= 0 for each class, or None for 1. They weigh the mean over the kept pixels, and
            have no say in which are kept.

    Shapes:
        - **logits:** ``(B, K, ...)``, at least 2 classes; computed in float32, or in float64 if given so
        - **target:** ``(B, ...)``, labels in [0, K) or `ignore_index`, uint8 or int16 to int64
        - **output:** a scalar; exactly 0, with gradients 0, if no pixel is kept

    Raises:
        TypeError: in a call, if `logits` is not floating point, or `target` not of integers.
        ValueError: if an option is not as said; in a call, if shapes do not fit, or a label lies outside (looked at on
            the CPU alone).

    Note:
        The cost of `cross_entropy` and of a selection among B H W values. Nothing waits for the device and no shape
        depends on the data. With several processes each chooses among its own pixels, as both sources do.

    Example:
        >>> loss = OhemCrossEntropy(0.7, min_kept=1)
        >>> logits = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])[None, :, None]  # 0.5, 0.99 and 0.01
        >>> loss(logits, torch.tensor([[[0, 0, 0]]]))  # (log 2 + 5.0067) / 2
        tensor(2.8499)
    """

    class_weights: Tensor | None

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        *,
        rule: Rule = "gald",
        ignore_index: int = 255,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        check_positive("min_kept", min_kept, 0)
        _check_rule(rule)
        self.threshold = check_number("threshold", threshold, 0, 1)
        self.min_kept = min_kept
        self.rule: Rule = rule
        self.ignore_index = check_ignore_index(ignore_index)
        self.register_buffer("class_weights", check_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see the class for shapes and dtypes."""
        logits, target = check_logits(logits, target, self.ignore_index)
        check_class_weights(self.class_weights, logits)
        values = F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none")
        valid = target != self.ignore_index
        kept = hard_pixels(values.detach().neg().exp(), valid, self.threshold, self.min_kept, self.rule)
        weights = kept.to(values.dtype)
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(values.dtype)[torch.where(valid, target, 0)]
        return mean_or_zero(values * weights, weights)

    def extra_repr(self) -> str:
        """Return the options."""
        weights = "" if self.class_weights is None else f", class_weights={self.class_weights.tolist()}"
        return (
            f"threshold={self.threshold:g}, min_kept={self.min_kept}, rule={self.rule!r}, "
            f"ignore_index={self.ignore_index}{weights}"
        )


def _smallest(values: Tensor, k: int) -> Tensor:
    """Return the k-th smallest of ``(N,)``, counted from 1."""
    if values.device.type == "cpu":
        return values.kthvalue(k).values
    return values.sort().values[k - 1]  # kthvalue is not deterministic on a GPU


def _check_rule(rule: str) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f"`rule` must be one of {', '.join(map(repr, get_args(Rule)))}, got {rule!r}.")
