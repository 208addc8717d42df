"""How well the borders of classes are found: the boundary F-score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_positive
from hggraph.metrics._exact import ExactMetric, fixed_mean, to_fixed
from hggraph.metrics._inputs import check_ignore_index, check_names, predicted_labels

__all__ = ["BoundaryF", "boundary_map"]


class BoundaryF(ExactMetric):
    r"""F-score of the borders of each class, for several tolerances.

    As GSCNN evaluates Cityscapes (the contour measure of DAVIS): for each image and class both masks are taken, pixels
    of `ignore_index` in neither. Of each, the border is the pixels that differ from their right, lower or lower right
    neighbour (`boundary_map`). A pixel of one border is matched if one of the other border is at most `tolerance` away
    (Euclidean, between pixel centres: dilation with a disk). Precision is the matched share of the predicted border,
    recall that of the target's, and

    .. math::
        F = \frac{2 \cdot \text{precision} \cdot \text{recall}}{\text{precision} + \text{recall}},

    0 if nothing is matched or one border is empty and the other is not, and **1 if both are empty**: an image without
    a class counts for it, as published, so that rare classes score high. The mean over images comes first, then that
    over classes.

    Args:
        num_classes: K, at least 2.
        tolerances: Whole pixels. The published ones for 1024 x 2048 pixels are 3, 5, 9 and 12; for other sizes scale
            them with the diagonal (they are 0.00088, 0.001875, 0.00375 and 0.005 of it, rounded up).
        ignore_index: Label of pixels that do not count.
        class_names: A name for each class; numbers if None.
        report: Names of classes whose scores also stand alone in the result.

    Shapes:
        - **prediction:** logits ``(B, K, H, W)`` (for K = 2 also ``(B, 1, H, W)``), or labels ``(B, H, W)``, integers
        - **target:** labels ``(B, H, W)``, integers
        - **output:** a dict of float64 in [0, 1]: for each tolerance ``"boundary_f_<t>px"``, the mean over classes, and
          ``"boundary_f_<t>px_<name>"`` for each of `report`; ``"boundary_f"`` ``(T, K)``, per tolerance and class. NaN
          without data

    Raises:
        TypeError: in `update`, if `target` is not of integers.
        ValueError: if `tolerances` are not different whole numbers of at least 1, or an option does not fit the
            classes; in `update`, if shapes disagree, a label lies outside the classes or a logit is NaN.

    Note:
        O(H W max(tolerance)) per image and class that occurs in it; about 0.07 s for each of a 1024 x 2048 image on a
        CPU. Pixels are counted exactly and each image's F is added with a precision of 1e-12, so that neither the
        order of the data nor the number of processes changes a bit.

    Example:
        >>> target = (torch.arange(8) >= 4).long().expand(1, 8, 8)
        >>> prediction = (torch.arange(8) >= 6).long().expand(1, 8, 8)
        >>> metric = BoundaryF(2, tolerances=(1, 2))
        >>> metric.update(prediction, target)
        >>> {name: value.tolist() for name, value in metric.compute().items() if value.dim() == 0}
        {'boundary_f_1px': 0.0, 'boundary_f_2px': 1.0}
    """

    total: Tensor
    images: Tensor

    def __init__(
        self,
        num_classes: int,
        tolerances: Sequence[int] = (3, 5, 9, 12),
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        report: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index, num_classes)
        self.num_classes = num_classes
        for tolerance in tolerances:
            check_positive("tolerances", tolerance)
        if not tolerances or len(set(tolerances)) != len(tolerances):
            raise ValueError(f"`tolerances` must be different whole numbers of pixels, got {tuple(tolerances)}.")
        self.tolerances = tuple(tolerances)
        self.class_names = check_names(class_names, num_classes, report)
        self.report = list(report)
        self.add_counts("total", len(self.tolerances), num_classes)
        self.add_counts("images")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Compare a batch; see the class for shapes."""
        if isinstance(target, Tensor) and target.dim() != 3:
            raise ValueError(f"`target` must have shape (B, H, W), got {tuple(target.shape)}.")
        labels, counted = predicted_labels(prediction, target, self.num_classes, self.ignore_index)
        labels = torch.where(counted, labels.to(torch.int64), -1)
        truth = torch.where(counted, target.to(torch.int64), -1)
        for one, other in zip(labels, truth, strict=True):
            self.total += to_fixed(self._scores(one, other))
        self.images += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores that the class lists."""
        scores = fixed_mean(self.total, self.images)
        result = {}
        for tolerance, row in zip(self.tolerances, scores, strict=True):
            key = f"boundary_f_{tolerance}px"
            result[key] = row.mean()
            result |= {f"{key}_{name}": row[self.class_names.index(name)] for name in self.report}
        return {**result, "boundary_f": scores}

    def _scores(self, labels: Tensor, truth: Tensor) -> Tensor:
        """Return F for each tolerance and class, float64 ``(T, K)``, of one image."""
        scores = torch.ones(len(self.tolerances), self.num_classes, dtype=torch.float64, device=truth.device)
        present = torch.bincount(torch.cat([labels.flatten(), truth.flatten()]) + 1, minlength=self.num_classes + 1)[1:]
        for k in present.nonzero()[:, 0].tolist():
            ours, theirs = boundary_map(labels == k), boundary_map(truth == k)
            scores[:, k] = _f_score(ours, theirs, self.tolerances)
        return scores


def boundary_map(mask: Tensor) -> Tensor:
    """Return the pixels that differ from their right, lower or lower right neighbour.

    Args:
        mask: Bool ``(H, W)``.

    Returns:
        Bool ``(H, W)``. Pixels of the last row and column look along it only, and the last pixel is never a border.

    Example:
        >>> boundary_map(torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)).int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 0]], dtype=torch.int32)
    """
    if not mask.numel():
        return mask.clone()
    padded = torch.cat([mask, mask[-1:]])
    padded = torch.cat([padded, padded[:, -1:]], 1)
    here, right, below, both = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (here != right) | (here != below) | (here != both)


def _f_score(ours: Tensor, theirs: Tensor, tolerances: Sequence[int]) -> Tensor:
    """Return F of two borders for each tolerance, float64."""
    n, m = ours.sum().double(), theirs.sum().double()
    if not n or not m:
        return torch.full((len(tolerances),), float(n == m), dtype=torch.float64, device=ours.device)
    hits = _matched(ours, theirs, tolerances).double()
    found = _matched(theirs, ours, tolerances).double()
    return 2 * hits * found / (hits * m + found * n).clamp(min=1)  # of whole numbers: rounded once


def _matched(border: Tensor, other: Tensor, tolerances: Sequence[int]) -> Tensor:
    """Count the pixels of a border that have one of another at most each tolerance away, int64 ``(T,)``.

    The way up or down to the other border, found in each column by `reach` rounds, and then the columns at most
    `reach` to the left and right, of the border's pixels alone.
    """
    reach = max(tolerances)
    far = reach + 1  # and whatever is beyond
    y, x = border.nonzero(as_tuple=True)
    top, bottom, left, right = y.min() - reach, y.max() + far, x.min() - reach, x.max() + far
    top, left = top.clamp(min=0), left.clamp(min=0)
    column = torch.where(other[top:bottom, left:right], 0, far).to(torch.uint8 if far < 255 else torch.int32)
    for _ in range(min(reach, column.shape[0] - 1)):
        step = column + 1
        column[1:] = torch.minimum(column[1:], step[:-1])
        column[:-1] = torch.minimum(column[:-1], step[1:])
    column = F.pad(column, (reach, reach), value=far)
    aside = torch.arange(2 * reach + 1, device=border.device)
    squared = column[(y - top)[:, None], (x - left)[:, None] + aside].long() ** 2 + (aside - reach) ** 2
    nearest = squared.amin(1)
    return torch.stack([(nearest <= tolerance**2).sum() for tolerance in tolerances])
