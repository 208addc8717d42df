"""How well each level of a pyramid does on the pixels that each level decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hggraph._check import check_positive
from hggraph.metrics._exact import ExactMetric
from hggraph.metrics._inputs import check_ignore_index, check_names, predicted_labels

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LevelIoU"]


class LevelIoU(ExactMetric):
    """Mean IoU of each level of a pyramid on the pixels that each level decides (Specialize and Fuse, Table 9).

    Args:
        num_classes: K, at least 2.
        levels: L, at least 2.
        ignore_index: Label of pixels that do not count.

    Shapes:
        - **prediction:** coarse to fine, L tensors of logits ``(B, K, H, W)`` or labels ``(B, H, W)``, of the target's
          size
        - **decided:** the level that decides each pixel, 0 for the coarsest, ``(B, H, W)``, integers
        - **target:** labels ``(B, H, W)``, integers
        - **output:** a dict: ``"level_iou"`` ``(L, L)``, float64, row: the level that predicts, column: the level that
          decides, NaN where none of its pixels count; ``"share"`` ``(L,)`` of the pixels that each level decides;
          ``"fused_iou"``, the mean IoU of what is decided; and on all pixels the IoU of each class, ``"class_iou"``
          ``(L, K)`` by each level and ``"fused_class_iou"`` ``(K,)`` by what is decided, NaN for classes that neither
          occur nor are predicted

    Raises:
        TypeError: in `update`, if a tensor is not of its kind.
        ValueError: if there are not L levels, shapes disagree, or a label or level lies outside.

    Note:
        Exact counts, the same on any number of processes.

    Example:
        >>> metric = LevelIoU(2, 2)
        >>> target = torch.tensor([[[0, 0, 1, 1]]])
        >>> metric.update([torch.tensor([[[0, 0, 1, 0]]]), target], torch.tensor([[[0, 0, 0, 1]]]), target)
        >>> metric.compute()["level_iou"].tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """

    counts: Tensor

    def __init__(self, num_classes: int, levels: int, ignore_index: int = 255) -> None:
        super().__init__()
        check_positive("levels", levels, 2)
        self.ignore_index = check_ignore_index(ignore_index, num_classes)
        self.num_classes, self.levels = num_classes, levels
        self.add_counts("counts", levels, levels, num_classes, num_classes)

    def update(self, prediction: Sequence[Tensor], decided: Tensor, target: Tensor) -> None:
        """Count a batch; see the class for shapes."""
        if len(prediction) != self.levels:
            raise ValueError(f"`prediction` must hold {self.levels} levels, got {len(prediction)}.")
        if decided.shape != target.shape or decided.is_floating_point():
            raise ValueError(
                f"`decided` must be levels of the target's shape {tuple(target.shape)}, got {decided.dtype} of shape "
                f"{tuple(decided.shape)}."
            )
        if decided.numel() and not 0 <= int(decided.min()) <= int(decided.max()) < self.levels:
            raise ValueError(f"`decided` must be levels in [0, {self.levels}), got {decided.unique().tolist()[:6]}.")
        classes, found = self.num_classes, []
        for level in prediction:
            labels, counted = predicted_labels(level, target, classes, self.ignore_index)
            pairs = (decided.long() * classes + target.long()) * classes + labels.long()
            spare = self.levels * classes**2
            pairs = torch.where(counted, pairs, spare)  # the last is thrown away
            found.append(torch.bincount(pairs.flatten(), minlength=spare + 1)[:-1])
        self.counts += torch.stack(found).view_as(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Return what the class lists."""
        iou = torch.stack([torch.stack([_mean_iou(cell) for cell in row]) for row in self.counts])
        pixels = self.counts[0].sum((1, 2)).double()
        own = torch.stack([self.counts[level, level] for level in range(self.levels)]).sum(0)
        return {
            "level_iou": iou,
            "share": pixels / pixels.sum(),
            "fused_iou": _mean_iou(own),
            "class_iou": torch.stack([_iou(level) for level in self.counts.sum(1)]),
            "fused_class_iou": _iou(own),
        }

    def table(self) -> Table:
        """Return the result as a table for rich, levels from the finest as in the paper."""
        from rich.table import Table

        found = self.compute()
        order = list(reversed(range(self.levels)))
        title = f"mean IoU by level, %; fused {100 * float(found['fused_iou']):.1f}"
        table = Table("predicted by \\ decided by", *(str(level + 1) for level in order), title=title)
        for row in order:
            table.add_row(str(row + 1), *(f"{100 * float(found['level_iou'][row, column]):.1f}" for column in order))
        table.add_row("share of pixels, %", *(f"{100 * float(found['share'][level]):.1f}" for level in order))
        return table

    def class_table(self, class_names: Sequence[str] | None = None) -> Table:
        """Return what each class loses where one level decides everything (as Specialize and Fuse, Fig. 3)."""
        from rich.table import Table

        found = self.compute()
        names = check_names(class_names, self.num_classes)
        order = list(reversed(range(self.levels)))
        title = "IoU of each class, %, and the difference if one level decides"
        table = Table("class", "fused", *(f"level {level + 1}" for level in order), title=title)
        for number, name in enumerate(names):
            fused = 100 * float(found["fused_class_iou"][number])
            lost = (100 * float(found["class_iou"][level, number]) - fused for level in order)
            table.add_row(name, f"{fused:.1f}", *(f"{value:+.1f}" for value in lost))
        return table


def _iou(counts: Tensor) -> Tensor:
    return counts.diagonal().double() / (counts.sum(0) + counts.sum(1) - counts.diagonal())  # 0 / 0 is NaN


def _mean_iou(counts: Tensor) -> Tensor:
    iou = _iou(counts)
    return iou[~iou.isnan()].mean()  # NaN of none
