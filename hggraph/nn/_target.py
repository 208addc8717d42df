"""What losses share: checks of logits, targets and options, and a mean that all-ignored targets leave at 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "check_ignore_index",
    "check_logits",
    "check_number",
    "check_weights",
    "match_size",
    "mean_or_zero",
    "two_logits",
]

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def check_logits(logits: Tensor, target: Tensor, ignore_index: int, num_classes: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits in float32 (float64 stays) and labels as int64, once they fit together.

    Labels are looked at on the CPU only: on a GPU that would stop the stream. There the assertions in torch's own
    kernels catch a wrong one.

    Args:
        logits: Shape ``(B, K, ...)``, floating point.
        target: Shape ``(B, ...)``, integers.
        ignore_index: The label that does not count.
        num_classes: Labels are in [0, num_classes) or `ignore_index`; 0 stands for K, which must then be at least 2.

    Raises:
        TypeError: if a dtype is not as said.
        ValueError: if shapes do not fit, or a label lies outside.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"`logits` must be a floating-point tensor, got {_kind(logits)}.")
    if not isinstance(target, Tensor) or target.dtype not in INTEGERS:
        raise TypeError(
            f"`target` must be a tensor of labels, uint8 or int16 to int64, got {_kind(target)}. "
            f"Convert true and false with `target.long()`; probabilities are no labels."
        )
    if logits.dim() < 2 or logits.shape[1] < 1:
        raise ValueError(f"`logits` must have shape (B, K, ...) with K >= 1 classes, got {tuple(logits.shape)}.")
    if not num_classes and logits.shape[1] == 1:
        raise ValueError(
            f"`logits` must have at least 2 classes, got shape {tuple(logits.shape)}: a softmax over one class is "
            f"always 1. For one channel with a sigmoid there is `BinaryCrossEntropy`."
        )
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"`target` must have shape {wanted} for logits of shape {tuple(logits.shape)}, got {tuple(target.shape)}. "
            f"`OutputLoss` brings smaller logits to the target's size."
        )
    target = target.long()
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_labels(target, num_classes or logits.shape[1], ignore_index)
    return logits if logits.dtype == torch.float64 else logits.float(), target


def two_logits(logits: Tensor) -> Tensor:
    """Return binary logits as those of two classes: one channel ``x`` is ``(0, x)``, whose softmax is the sigmoid.

    Raises:
        ValueError: if there are neither one nor two channels.
    """
    if logits.dim() < 2 or logits.shape[1] not in (1, 2):
        raise ValueError(
            f"`logits` must have shape (B, 1, ...), a sigmoid's, or (B, 2, ...), a softmax's, got "
            f"{tuple(logits.shape)}. For more classes there is `CrossEntropy`."
        )
    return logits if logits.shape[1] == 2 else torch.cat([torch.zeros_like(logits), logits], 1)


def mean_or_zero(values: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum(values) / sum(weights)``; where the weights sum to 0, the values do too, and so does the result."""
    total = weights.sum()
    return values.sum() / torch.where(total > 0, total, torch.ones_like(total))


def match_size(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """Return logits ``(B, K, h, w)`` at the size of a target ``(B, H, W)``: bilinear, corners on corners, in float32.

    Raises:
        ValueError: if the target is the smaller one.
    """
    if logits.dim() != 4 or target.dim() != 3 or logits.shape[2:] == target.shape[1:]:
        return logits
    height, width = target.shape[1:]
    if logits.shape[2] > height or logits.shape[3] > width:
        raise ValueError(
            f"The logits {name!r} of {logits.shape[2]} x {logits.shape[3]} pixels cannot be compared with a smaller "
            f"target, {height} x {width}. Give targets of the images' size."
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)


def check_weights(weights: Sequence[float] | Tensor | None) -> Tensor | None:
    """Return class weights as a float32 tensor ``(K,)``.

    Raises:
        ValueError: unless they are finite numbers of at least 0, one of them above.
    """
    if weights is None:
        return None
    found = torch.as_tensor(weights, dtype=torch.float32).detach().clone()
    if found.dim() != 1 or not (torch.isfinite(found) & (found >= 0)).all() or not found.any():
        raise ValueError(f"`class_weights` must be a list of finite numbers >= 0, not all of them 0, got {weights}.")
    return found


def check_number(name: str, value: float, low: float, high: float = math.inf, *, open_end: bool = False) -> float:
    """Return a number of [low, high], or of [low, high) with `open_end`.

    Raises:
        ValueError: if it lies outside.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (open_end and value == high):
        limits = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}{')' if open_end else ']'}"
        raise ValueError(f"`{name}` must be a number {limits}, got {value!r}.")
    return float(value)


def check_ignore_index(value: int) -> int:
    """Return a whole number.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`ignore_index` must be a whole number, usually 255, got {value!r}.")
    return value


def _check_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    wrong = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
    if wrong.any():
        values = sorted(set(target[wrong].tolist()))
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise ValueError(
            f"Labels must be in [0, {num_classes}) or {ignore_index} (ignored), got {shown} at {int(wrong.sum())} of "
            f"{target.numel()} pixels. Map the data set's labels to classes, or give the network more of them."
        )


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
