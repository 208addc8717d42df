"""What metrics are given: logits or labels, and targets, checked before anything is counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hggraph._check import check_positive, check_range

__all__ = [
    "check_ignore_index",
    "check_labels",
    "check_names",
    "check_nan",
    "check_scores",
    "check_target",
    "predicted_labels",
]


def check_ignore_index(ignore_index: int, num_classes: int) -> int:
    """Return the label that does not count; raise if it is one of the classes."""
    check_positive("num_classes", num_classes, 2)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or 0 <= ignore_index < num_classes:
        raise ValueError(
            f"`ignore_index` must be a whole number outside the {num_classes} classes [0, {num_classes}), "
            f"got {ignore_index!r}."
        )
    return ignore_index


def check_names(class_names: Sequence[str] | None, num_classes: int, report: Sequence[str] = ()) -> list[str]:
    """Return a name for each class, those given or the numbers; raise if `report` has another one."""
    names = [str(k) for k in range(num_classes)] if class_names is None else list(class_names)
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise ValueError(f"`class_names` must be {num_classes} different names, one for each class, got {names}.")
    unknown = [name for name in report if name not in names]
    if unknown:
        raise ValueError(f"`report` must name classes of {names}, got {unknown}.")
    return names


def check_target(target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Return which labels count, a boolean map; raise if one that does lies outside the classes."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        got = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"`target` must be a tensor of labels (integers), got {got}.")
    counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    hint = "" if ignore_index is None else f"Labels that do not count must be {ignore_index}."
    check_labels("target", target if ignore_index is None else torch.where(counted, target, 0), num_classes, hint)
    return counted


def check_scores(name: str, scores: Tensor, shape: str) -> Tensor:
    """Return a tensor of numbers without gradient; raise if it is none or has a NaN."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor of shape {shape}, got {got}.")
    check_nan(name, scores)
    return scores.detach()


def check_nan(name: str, values: Tensor) -> None:
    """Raise if there is a NaN: it would be counted as some class."""
    bad = int(values.isnan().sum())
    if bad:
        raise ValueError(f"`{name}` is NaN at {bad} of {values.numel()} places; has the training diverged?")


def predicted_labels(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the predicted labels and which pixels count, both of the target's shape ``(B, H, W)``.

    Args:
        prediction: Logits ``(B, K, H, W)``, where the first largest counts, or for K = 2 one channel x that stands for
            the logits 0 and x; or labels ``(B, H, W)``, integers or bool. A label where the target is ignored may be
            anything.
        target: Labels ``(B, H, W)``, integers or bool.
        num_classes: K.
        ignore_index: The label of pixels that do not count.

    Raises:
        TypeError: if `target` is not of integers.
        ValueError: if shapes disagree, a label that counts lies outside the classes, or a logit is NaN.
    """
    counted = check_target(target, num_classes, ignore_index)
    if isinstance(prediction, Tensor) and not prediction.is_floating_point():
        if prediction.shape != target.shape:
            raise ValueError(
                f"`prediction` and `target` must have the same shape (B, H, W) when both are labels, got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}."
            )
        check_labels("prediction", torch.where(counted, prediction, 0), num_classes)
        return prediction, counted
    if not isinstance(prediction, Tensor):
        raise TypeError(f"`prediction` must be a tensor of logits or labels, got {type(prediction).__name__}.")
    logits = prediction.detach()
    channels = (1, num_classes) if num_classes == 2 else (num_classes,)
    shape = (*logits.shape[:1], *logits.shape[2:])
    if logits.dim() < 2 or logits.shape[1] not in channels or shape != tuple(target.shape):
        raise ValueError(
            f"`prediction` must have shape (B, K, H, W) with K = {num_classes} for a target (B, H, W) = "
            f"{tuple(target.shape)}, got {tuple(logits.shape)}; resize the logits to the target first."
        )
    value, label = logits.max(1)  # a NaN is the largest
    check_nan("prediction", value)
    return value > 0 if logits.shape[1] == 1 else label, counted


def check_labels(name: str, labels: Tensor, num_classes: int, hint: str = "") -> None:
    """Raise if a label lies outside the classes."""
    check_range(name, labels.to(torch.uint8) if labels.dtype == torch.bool else labels, num_classes, hint)
