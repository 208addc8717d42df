"""Supervision of regions: what a tap on an HG stage says of each region, and what it should say."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.graph import Assignment
from hggraph.nn._target import mean_or_zero

__all__ = ["RegionLogits", "class_shares", "majority_labels", "region_loss"]


class RegionLogits(NamedTuple):
    """Logits ``(B, K, R)`` of regions, whose pixels these are, and the size of the (padded) images."""

    logits: Tensor
    assignment: Assignment
    size: tuple[int, int]


def majority_labels(
    target: Tensor,
    assignment: Assignment,
    num_classes: int,
    *,
    size: tuple[int, int] | None = None,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """Return the label that most of each region has, and how pure the region is.

    Args:
        target: Labels of pixels in [0, num_classes) or `ignore_index`, shape ``(B, H, W)``.
        assignment: Of a map of the images, which may be smaller: each of its pixels has the label of the nearest
            pixel.
        num_classes: K.
        size: Height and width of the images as they were clustered, at least (H, W), where they were padded on the
            right and below; padding does not count. None: (H, W).
        ignore_index: The label that does not count.

    Returns:
        Labels ``(B, R)``, int64, `ignore_index` for regions without a pixel that counts; and their share of the
        region's pixels that count, soft assignments counted in part, ``(B, R)`` in [0, 1], 0 for those regions.

    Raises:
        ValueError: if the target is larger than `size`.

    Note:
        O(B K P). No gradient, nothing waits for the device.

    Example:
        >>> assignment = Assignment.from_labels(torch.tensor([[[0, 0, 0, 1]]]), 2)  # four pixels, two regions
        >>> labels, purity = majority_labels(torch.tensor([[[2, 0, 2, 255]]]), assignment, 3)
        >>> labels.tolist(), [[round(value, 2) for value in row] for row in purity.tolist()]
        ([[2, 255]], [[0.67, 0.0]])
    """
    shares = class_shares(target, assignment, num_classes, size=size, ignore_index=ignore_index)
    total, (most, winner) = shares.sum(2), shares.max(2)
    some = total > 1e-6
    purity = torch.where(some, most / torch.where(some, total, 1), 0)
    return torch.where(some, winner, ignore_index), purity


def class_shares(
    target: Tensor,
    assignment: Assignment,
    num_classes: int,
    *,
    size: tuple[int, int] | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Return the share of each region's pixels that each class has, ``(B, R, K)``; see `majority_labels`."""
    height, width = target.shape[1:]
    full = (height, width) if size is None else size
    if full[0] < height or full[1] < width:
        raise ValueError(f"`target` must not be larger than the images, {full}, got {(height, width)}.")
    with torch.no_grad():
        labels = F.pad(target.long(), (0, full[1] - width, 0, full[0] - height), value=ignore_index)
        labels = F.interpolate(labels[:, None].float(), assignment.size, mode="nearest-exact")[:, 0].long()
        counted = labels != ignore_index
        planes = F.one_hot(torch.where(counted, labels, num_classes), num_classes + 1)[..., :num_classes]
        return assignment.pool(planes.permute(0, 3, 1, 2).to(assignment.area.dtype))


def region_loss(found: RegionLogits, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    r"""Return the cross-entropy of regions with the majority of their pixels, weighted by purity.

    .. math::
        \sum_r \pi_r \left( - \log \mathrm{softmax}(z_r)_{t_r} \right) \Big/ \sum_r \pi_r

    Args:
        found: Logits ``(B, K, R)`` and the assignment.
        target: Labels of pixels, shape ``(B, H, W)``.
        ignore_index: The label that does not count.

    Returns:
        A scalar; exactly 0, with gradients 0, if no pixel counts.
    """
    labels, purity = majority_labels(
        target, found.assignment, found.logits.shape[1], size=found.size, ignore_index=ignore_index
    )
    logits = found.logits if found.logits.dtype == torch.float64 else found.logits.float()
    values = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    weights = purity.to(values.dtype)
    return mean_or_zero(values * weights, weights)
