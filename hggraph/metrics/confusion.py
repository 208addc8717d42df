"""How often each class is taken for each other one, and what follows from it: mean IoU and accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hggraph.metrics._exact import ExactMetric
from hggraph.metrics._inputs import check_ignore_index, check_names, predicted_labels

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ConfusionMatrix", "MeanIoU"]


class _PixelCounts(ExactMetric):
    """The counts of a confusion matrix."""

    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index, num_classes)
        self.num_classes = num_classes
        self.add_counts("counts", num_classes, num_classes)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch; see the class for shapes."""
        labels, counted = predicted_labels(prediction, target, self.num_classes, self.ignore_index)
        classes = self.num_classes
        pairs = torch.where(counted, target.int() * classes + labels.int(), classes**2)  # the last is thrown away
        found = torch.bincount(pairs.flatten(), minlength=classes**2 + 1)[:-1]
        self.counts += found.reshape(classes, classes)


class ConfusionMatrix(_PixelCounts):
    """Count pixels by their class and the class predicted for them.

    Args:
        num_classes: K, at least 2.
        ignore_index: Label of pixels that do not count, whatever is predicted there.

    Shapes:
        - **prediction:** logits ``(B, K, H, W)``, the first largest counts (for K = 2 also ``(B, 1, H, W)``, one x for
          the logits 0 and x), or labels ``(B, H, W)``, integers; any further dimensions in place of H and W
        - **target:** labels ``(B, H, W)``, integers
        - **output:** int64 ``(K, K)``, row: the class, column: the prediction; zeros without data

    Raises:
        TypeError: in `update`, if `target` is not of integers.
        ValueError: if `ignore_index` is a class; in `update`, if shapes disagree, a label lies outside the classes or
            a logit is NaN. A refused batch changes no count.

    Note:
        O(pixels) and a look at the labels, for which the device is waited on. Counts are int64: exact, whatever the
        order of the data and the number of processes.

    Example:
        >>> import torch
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 255]]]))
        >>> matrix.compute()
        tensor([[1, 1],
                [0, 1]])
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index)

    def compute(self) -> Tensor:
        """Return the counts."""
        return self.counts


class MeanIoU(_PixelCounts):
    r"""Mean intersection over union, and the accuracies that follow from the same counts.

    With t the pixels of a class, p those predicted to be of it and c the common ones,

    .. math::
        \text{IoU} = \frac{c}{t + p - c}, \qquad \text{accuracy} = \frac{c}{t}, \qquad
        \text{fwIoU} = \sum_k \frac{t_k}{\sum_j t_j} \, \text{IoU}_k

    summed over the whole data set before dividing, as Cityscapes, ADE20K and PASCAL-Context are evaluated. A class
    that neither the target nor the prediction has (t + p = 0) is left out of the mean; one that is only predicted
    counts with IoU 0. The mean accuracy is over the classes that the target has.

    Args:
        num_classes: K, at least 2.
        ignore_index: Label of pixels that do not count, whatever is predicted there.
        class_names: A name for each class, for the table; numbers if None.
        report: Names of classes whose IoU also stands alone in the result, as ``"iou_<name>"``: a logger takes single
            numbers only.

    Shapes:
        - **prediction**, **target:** as `ConfusionMatrix`
        - **output:** a dict of float64: ``"miou"``, ``"pixel_accuracy"``, ``"mean_accuracy"``, ``"fwiou"``, each in
          [0, 1], ``"iou_<name>"`` for each of `report`, and of shape ``(K,)`` ``"iou"`` and ``"accuracy"``, NaN for
          classes that are left out, and ``"pixels"``, int64, of each class. All NaN without data, the pixels 0

    Raises:
        ValueError: as `ConfusionMatrix`; if `class_names` does not fit or `report` names no class.

    Note:
        As `ConfusionMatrix`: the same to the last bit on any number of processes.

    Example:
        >>> import torch
        >>> metric = MeanIoU(3, class_names=["sky", "road", "car"], report=["road"])
        >>> metric.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 255]]]))
        >>> {name: value.tolist() for name, value in metric.compute().items() if value.dim() == 0}
        {'miou': 0.5, 'pixel_accuracy': 0.6666666666666666, 'mean_accuracy': 0.75, 'fwiou': 0.5, 'iou_road': 0.5}
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        report: Sequence[str] = (),
    ) -> None:
        super().__init__(num_classes, ignore_index)
        self.class_names = check_names(class_names, num_classes, report)
        self.report = list(report)

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers that the class lists."""
        common, of_class, predicted = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        total = self.counts.sum()
        iou = common.double() / (of_class + predicted - common).double()  # 0 / 0 is NaN: left out
        accuracy = common.double() / of_class.double()
        weighted = torch.where(of_class > 0, of_class.double() * iou, 0.0).sum() / total.double()
        single = {
            "miou": iou.nanmean(),
            "pixel_accuracy": common.sum().double() / total.double(),
            "mean_accuracy": accuracy.nanmean(),
            "fwiou": weighted,
        }
        named = {f"iou_{name}": iou[self.class_names.index(name)] for name in self.report}
        return {**single, **named, "iou": iou, "accuracy": accuracy, "pixels": of_class}

    def table(self, class_names: Sequence[str] | None = None) -> Table:
        """Return a table of the classes for the terminal, with the means in its last row.

        Args:
            class_names: A name for each class, in place of the metric's own.

        Returns:
            A rich table: per class the IoU and accuracy in percent and its share of the pixels; "-" for a class that
            is left out. With several processes call it on all of them: the counts are summed first.

        Raises:
            ValueError: if there are more or fewer names than classes.

        Example:
            >>> metric = MeanIoU(2, class_names=["ground", "road"])
            >>> metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
            >>> table = metric.table()
            >>> [list(column.cells) for column in table.columns][1]
            ['50.0', '0.0', '25.0', '50.0 (weighted)']
        """
        from rich.table import Table

        result = self.compute()
        share = result["pixels"].double() / result["pixels"].sum().double()
        table = Table("class")
        for head in ("IoU, %", "accuracy, %", "pixels, %"):
            table.add_column(head, justify="right")
        names = self.class_names if class_names is None else check_names(class_names, self.num_classes)
        for name, *row in zip(names, result["iou"], result["accuracy"], share, strict=True):
            table.add_row(name, *map(_percent, row))
        table.add_section()
        table.add_row("mean", _percent(result["miou"]), _percent(result["mean_accuracy"]), "")
        table.add_row("all pixels", f"{_percent(result['fwiou'])} (weighted)", _percent(result["pixel_accuracy"]), "")
        return table


def _percent(share: Tensor) -> str:
    return "-" if share.isnan() else f"{100 * float(share):.1f}"
