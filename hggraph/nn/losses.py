"""Losses that look at each pixel for itself: cross-entropy of many classes and of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph.nn._target import (
    check_ignore_index,
    check_logits,
    check_number,
    check_weights,
    mean_or_zero,
    two_logits,
)

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "check_class_weights", "cross_entropy"]


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Return the mean cross-entropy of the pixels that count.

    .. math::
        \sum_p - w_{t_p} \log \mathrm{softmax}(x_p)_{t_p} \Big/ \sum_p w_{t_p}

    over the pixels p whose label t is not ignored: ``torch.nn.functional.cross_entropy`` with 0 instead of NaN where
    no pixel counts.

    Args:
        logits: Shape ``(B, K, ...)``, at least 2 classes; computed in float32, or in float64 if given so.
        target: Labels in [0, K) or `ignore_index`, shape ``(B, ...)``, uint8 or int16 to int64.
        ignore_index: The label that does not count.
        class_weights: Weights ``(K,)``, not negative; None stands for 1.
        label_smoothing: Share of each target that is spread evenly over the classes, in [0, 1).

    Returns:
        A scalar; exactly 0, with gradients 0, if every pixel is ignored or there is none.

    Raises:
        TypeError: if `logits` is not floating point, or `target` not of integers.
        ValueError: if shapes do not fit, or a label lies outside (looked at on the CPU alone).

    Note:
        O(B K H W) time and a float32 copy of the logits. Nothing waits for the device; deterministic on a GPU too.

    Example:
        >>> logits = torch.zeros(1, 4, 1, 3, requires_grad=True)
        >>> cross_entropy(logits, torch.tensor([[[0, 3, 255]]])).item()  # log 4
        1.3862943649291992
    """
    logits, target = check_logits(logits, target, ignore_index)
    check_class_weights(class_weights, logits)
    # not summed in there: on a GPU torch adds up pixels in any order
    values = F.cross_entropy(
        logits,
        target,
        None if class_weights is None else class_weights.to(logits.dtype),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    counted = target != ignore_index
    if class_weights is None:
        return mean_or_zero(values, counted.to(values.dtype))
    weights = class_weights.to(values.dtype)[torch.where(counted, target, 0)]
    return mean_or_zero(values, torch.where(counted, weights, 0.0))


def check_class_weights(class_weights: Tensor | None, logits: Tensor) -> None:
    """Raise unless there is a weight for each channel of the logits."""
    if class_weights is not None and tuple(class_weights.shape) != (logits.shape[1],):
        raise ValueError(
            f"`class_weights` must hold a weight for each of {logits.shape[1]} classes, got shape "
            f"{tuple(class_weights.shape)}."
        )


class CrossEntropy(nn.Module):
    """Mean cross-entropy of the pixels that count; see `cross_entropy`, which this calls.

    Args:
        ignore_index: The label that does not count.
        class_weights: One number >= 0 for each class, or None for 1.
        label_smoothing: Share of each target that is spread evenly over the classes, in [0, 1).

    Shapes:
        - **logits:** ``(B, K, ...)``, for example ``(B, K, H, W)`` or, of whole images, ``(B, K)``
        - **target:** ``(B, ...)``, labels
        - **output:** a scalar

    Raises:
        ValueError: if an option is not as said.

    Example:
        >>> loss = CrossEntropy(class_weights=[1.0, 2.0])
        >>> loss(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 255))
        tensor(0.)
    """

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        class_weights: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1, open_end=True)
        # an option, no state: it moves with the module and stays out of checkpoints
        self.register_buffer("class_weights", check_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see `cross_entropy` for shapes, dtypes and errors."""
        return cross_entropy(
            logits,
            target,
            ignore_index=self.ignore_index,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """Return the options."""
        weights = "" if self.class_weights is None else f", class_weights={self.class_weights.tolist()}"
        smoothing = f", label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return f"ignore_index={self.ignore_index}{weights}{smoothing}"


class BinaryCrossEntropy(nn.Module):
    r"""Mean cross-entropy of two classes, the background 0 and the object 1.

    .. math::
        - \frac{1}{N} \sum_p \left( w \, t_p \log \sigma(x_p) + (1 - t_p) \log (1 - \sigma(x_p)) \right)

    over the N pixels p whose label t is not ignored: ``torch.nn.functional.binary_cross_entropy_with_logits`` with an
    ignored label. Two channels stand for one: the sigmoid of their difference is their softmax.

    Args:
        ignore_index: The label that does not count.
        positive_weight: The weight w of the object's pixels; the mean is over pixels, not over weights.

    Shapes:
        - **logits:** ``(B, 1, ...)`` or ``(B, 2, ...)``; computed in float32, or in float64 if given so
        - **target:** ``(B, ...)``, labels 0, 1 or `ignore_index`, uint8 or int16 to int64
        - **output:** a scalar; exactly 0, with gradients 0, if every pixel is ignored or there is none

    Raises:
        TypeError: in a call, if `logits` is not floating point, or `target` not of integers.
        ValueError: if an option is not as said; in a call, if shapes do not fit, or a label is another one (looked at
            on the CPU alone).

    Note:
        O(B H W). Nothing waits for the device; deterministic on a GPU too.

    Example:
        >>> BinaryCrossEntropy()(torch.zeros(1, 1, 1, 3), torch.tensor([[[0, 1, 255]]]))  # log 2
        tensor(0.6931)
    """

    def __init__(self, ignore_index: int = 255, positive_weight: float = 1.0) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index)
        self.positive_weight = check_number("positive_weight", positive_weight, 0)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see the class for shapes and dtypes."""
        logits, target = check_logits(logits, target, self.ignore_index, num_classes=2)
        values = F.cross_entropy(two_logits(logits), target, ignore_index=self.ignore_index, reduction="none")
        if self.positive_weight != 1:
            values = torch.where(target == 1, values * self.positive_weight, values)
        return mean_or_zero(values, (target != self.ignore_index).to(values.dtype))

    def extra_repr(self) -> str:
        """Return the options."""
        weight = f", positive_weight={self.positive_weight:g}" if self.positive_weight != 1 else ""
        return f"ignore_index={self.ignore_index}{weight}"
