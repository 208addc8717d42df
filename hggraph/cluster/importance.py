"""Where the detail is: importance maps and their modulation by attention, HG-Conv Sec. 4.1 and appendix D."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hggraph._check import check_features, check_ndim
from hggraph.ops._distance import compute_dtype

__all__ = ["active_focus", "importance_map", "object_attention", "uncertainty_attention"]

_STEPS = {4: ((0, 1), (1, 0)), 8: ((0, 1), (1, 0), (1, 1), (1, -1))}


def importance_map(x: Tensor, *, neighbors: int = 4) -> Tensor:
    """Return how much each pixel differs from its neighbours (HG-Conv Sec. 4.1).

    The mean of the L2 distances between a pixel's feature and those of its neighbours inside the image.

    Args:
        x: Map, shape ``(B, C, H, W)``, floating point.
        neighbors: 4 or 8.

    Returns:
        Shape ``(B, H, W)``, dtype of `x`, not negative; 0 for a pixel without neighbours. Differentiable (with
        gradient 0 where neighbours are equal), deterministic, O(B C H W).

    Raises:
        ValueError: if `neighbors` is neither 4 nor 8, or the map is empty.
        TypeError: if `x` is not floating point.

    Example:
        >>> importance_map(torch.tensor([[[[0.0, 0.0, 3.0]]]]))
        tensor([[[0.0000, 1.5000, 3.0000]]])
    """
    check_features("x", x)
    if neighbors not in _STEPS:
        raise ValueError(f"`neighbors` must be 4 or 8, got {neighbors!r}.")
    height, width = x.shape[2:]
    total = x.new_zeros(x.shape[0], height, width)
    count = x.new_zeros(height, width)
    for dy, dx in _STEPS[neighbors]:
        here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
        distance = _distance(x[:, :, *there], x[:, :, *here])
        total[:, *here] += distance
        total[:, *there] += distance
        count[here] += 1
        count[there] += 1
    return total / count.clamp(min=1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the L2 distance over channels, piece by piece so that differences stay in the cache."""
    dtype = compute_dtype(a)  # the square of a difference may leave a half's range where the distance does not
    pieces = [
        (p.to(dtype) - q.to(dtype)).square().sum(1) for p, q in zip(a.split(128, 1), b.split(128, 1), strict=True)
    ]
    square = sum(pieces[1:], pieces[0])
    # the gradient of a square root at 0 is infinite; that of equal neighbours is 0 here
    return (torch.where(square > 0, square, 1).sqrt() * (square > 0)).to(a.dtype)


def object_attention(prob: Tensor, index: int) -> Tensor:
    """Return the attention to one class: its probability (HG-Conv Eq. 12).

    Args:
        prob: Class probabilities in [0, 1], shape ``(B, K, H, W)``.
        index: The class, in [0, K).

    Returns:
        Shape ``(B, H, W)``, in [0, 1].

    Raises:
        ValueError: if `index` is out of range.

    Example:
        >>> object_attention(torch.tensor([[[[0.25]], [[0.75]]]]), 1)
        tensor([[[0.7500]]])
    """
    check_features("prob", prob, "(B, K, H, W)")
    if not 0 <= index < prob.shape[1]:
        raise ValueError(f"`index` must be a class in [0, {prob.shape[1]}), got {index}.")
    return prob[:, index]


def uncertainty_attention(prob: Tensor) -> Tensor:
    """Return the attention to doubt: the entropy of the class probabilities over log K (HG-Conv Eq. 13).

    Args:
        prob: Class probabilities in [0, 1] that sum to 1 over classes, shape ``(B, K, H, W)``.

    Returns:
        Shape ``(B, H, W)``, in [0, 1]; 0 when there is a single class. Probabilities of 0 count 0.

    Example:
        >>> uncertainty_attention(torch.tensor([[[[0.5, 1.0]], [[0.5, 0.0]]]]))
        tensor([[[1., 0.]]])
    """
    check_features("prob", prob, "(B, K, H, W)")
    if prob.shape[1] == 1:
        return torch.zeros_like(prob[:, 0])
    tiny = torch.finfo(prob.dtype).tiny  # keeps the gradient at 0 finite
    entropy = (prob * -prob.clamp(min=tiny).log()).sum(1)
    return (entropy / math.log(prob.shape[1])).clamp(0, 1)


def active_focus(importance: Tensor, attention: Tensor, alpha: float = 10.0) -> Tensor:
    """Draw centres to where attention lies (HG-Conv Eq. 11): ``importance / max(importance) + alpha attention``.

    Args:
        importance: Importance map, not negative, shape ``(B, H, W)``.
        attention: Attention in [0, 1], of the same shape.
        alpha: Weight of the attention.

    Returns:
        Shape ``(B, H, W)``. An image whose importance is 0 everywhere is led by attention alone.

    Raises:
        ValueError: if the shapes differ, or attention lies outside [0, 1] (checked on the CPU).

    Example:
        >>> active_focus(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]]))
        tensor([[[10.5000,  1.0000]]])
    """
    check_ndim("importance", importance, 3, shape="(B, H, W)")
    check_attention(attention, importance.shape)
    largest = importance.amax((1, 2), keepdim=True)
    return importance / torch.where(largest > 0, largest, 1) + alpha * attention.to(importance.dtype)


def check_attention(attention: Tensor, shape: torch.Size | tuple[int, ...]) -> None:
    """Raise unless `attention` is a map of the given shape (B, H, W) with values in [0, 1] (read on the CPU)."""
    check_ndim("attention", attention, 3, shape="(B, H, W)")
    if attention.shape != tuple(shape):
        raise ValueError(
            f"`attention` must have the size of the map, {tuple(shape)}, got {tuple(attention.shape)}. "
            "Resize it, for example with torch.nn.functional.interpolate."
        )
    if not attention.is_floating_point():
        raise TypeError(f"`attention` must be floating point in [0, 1], got {attention.dtype}.")
    if attention.device.type == "cpu" and attention.numel() and not torch.compiler.is_compiling():
        low, high = (float(value) for value in torch.aminmax(attention.detach()))
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(f"`attention` must be in [0, 1], got values from {low:g} to {high:g}.")
