"""How well salient objects are found: MAE, F-measure and S-measure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hggraph.metrics._exact import ExactMetric, fixed_mean, to_fixed
from hggraph.metrics._inputs import check_scores, check_target
from hggraph.metrics.structure import Bools, Floats, structure_measure

__all__ = ["SaliencyMetrics"]

_LEVELS = 255
_BETA2 = 0.3


class SaliencyMetrics(ExactMetric):
    r"""MAE, F-measures and S-measure of saliency maps, as DUTS, ECSSD and their kin are evaluated.

    Every number is the mean over images of what one image gives:

    - **MAE:** the mean of ``|p - t|`` over its pixels.
    - **F:** the map is rounded to 8 bits, as the maps that papers publish are, and taken as salient where it is at
      least k, for the 255 thresholds k = 1 ... 255. From the counts of an exact histogram follow precision P (0 where
      nothing is salient), recall R and :math:`F = 1.3 \, P R / (0.3 \, P + R)` (beta squared 0.3; 0 if P and R are).
      ``"max_f"`` and ``"mean_f"`` are the maximum and the mean over thresholds of the mean F curve. Some papers average
      precision and recall over images first, and take F of these: ``"max_f_pr"`` and ``"mean_f_pr"``.
      An image whose target is empty has no recall and is left out of these four.
    - **S:** `structure_measure`, with its rules for an empty and a full target.

    Args:
        from_logits: Predictions are logits: one channel for a sigmoid, or two for a softmax whose second is the object.
            Otherwise they are probabilities.
        ignore_index: Label of pixels that do not count. An image with no other pixel does not count.

    Shapes:
        - **prediction:** floating point, ``(B, 1, H, W)`` or ``(B, H, W)``, in [0, 1]; with `from_logits` any numbers,
          also ``(B, 2, H, W)``
        - **target:** ``(B, H, W)`` or ``(B, 1, H, W)``, bool or integers 0 and 1
        - **output:** a dict of float64 in [0, 1]: ``"mae"`` (lower is better), ``"max_f"``, ``"mean_f"``,
          ``"max_f_pr"``, ``"mean_f_pr"``, ``"s_measure"``. NaN without data; the F-measures also if every target was
          empty

    Raises:
        TypeError: in `update`, if `prediction` is not floating point or `target` not of integers.
        ValueError: in `update`, if shapes disagree, a probability lies outside [0, 1] or is NaN, or a label is neither
            0, 1 nor `ignore_index`.

    Note:
        O(pixels), on the CPU in float64, image by image, whatever the device and the number of threads: each image's
        scores are added with a precision of 1e-12, so that neither the order of the data nor the number of processes
        changes a bit. About 10 ms for an image of 300 x 400.

    Example:
        >>> metric = SaliencyMetrics()
        >>> metric.update(torch.tensor([[[0.9, 0.8], [0.3, 0.0]]]), torch.tensor([[[1, 1], [0, 0]]]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'mae': 0.15, 'max_f': 1.0, 'mean_f': 0.7958, 'max_f_pr': 1.0, 'mean_f_pr': 0.7958, 's_measure': 0.4567}
    """

    higher_is_better = None  # of the MAE lower is
    error: Tensor
    structure: Tensor
    images: Tensor
    precision: Tensor
    recall: Tensor
    f_curve: Tensor
    with_object: Tensor

    def __init__(self, *, from_logits: bool = False, ignore_index: int = 255) -> None:
        super().__init__()
        self.from_logits = from_logits
        if ignore_index in (0, 1):
            raise ValueError(f"`ignore_index` must be neither 0 nor 1, which are the labels, got {ignore_index}.")
        self.ignore_index = ignore_index
        for name in ("error", "structure", "images", "with_object"):
            self.add_counts(name)
        for name in ("precision", "recall", "f_curve"):
            self.add_counts(name, _LEVELS)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Compare a batch; see the class for shapes."""
        probability, target = self._probability(prediction, target)
        counted = check_target(target, 2, self.ignore_index)
        for p, t, here in zip(probability.numpy(), target.cpu().numpy() == 1, counted.cpu().numpy(), strict=True):
            if here.any():
                self._add(p, t, here)

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers that the class lists."""
        curve = fixed_mean(self.f_curve, self.with_object)
        pooled = _f_measure(fixed_mean(self.precision, self.with_object), fixed_mean(self.recall, self.with_object))
        return {
            "mae": fixed_mean(self.error, self.images),
            "max_f": curve.max(),
            "mean_f": curve.mean(),
            "max_f_pr": pooled.max(),
            "mean_f_pr": pooled.mean(),
            "s_measure": fixed_mean(self.structure, self.images),
        }

    def _add(self, p: Floats, t: Bools, counted: Bools) -> None:
        """Add what one image gives."""
        values, truth = p[counted], t[counted]
        self._score("error", torch.tensor(np.abs(values - truth).mean(), dtype=torch.float64))
        self._score("structure", torch.tensor(structure_measure(p, t, counted), dtype=torch.float64))
        self.images += 1
        if truth.any():
            precision, recall = _curves(values, truth)
            self._score("precision", precision)
            self._score("recall", recall)
            self._score("f_curve", _f_measure(precision, recall))
            self.with_object += 1

    def _score(self, name: str, score: Tensor) -> None:
        total: Tensor = getattr(self, name)
        total += to_fixed(score).to(total.device)

    def _probability(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities, float64, and the target, both ``(B, H, W)``."""
        values = check_scores("prediction", prediction, "(B, 1, H, W) or (B, H, W)").cpu().double()
        if isinstance(target, Tensor) and target.dim() == 4 and target.shape[1] == 1:
            target = target[:, 0]
        if self.from_logits and values.dim() == 4 and values.shape[1] == 2:
            values = (values[:, 1] - values[:, 0]).nan_to_num()[:, None]
        if values.dim() == 4 and values.shape[1] == 1:
            values = values[:, 0]
        if not isinstance(target, Tensor) or values.dim() != 3 or values.shape != target.shape:
            raise ValueError(
                f"`prediction` must have shape (B, 1, H, W) or (B, H, W){' or (B, 2, H, W)' * self.from_logits} for a "
                f"target (B, H, W), got {tuple(prediction.shape)} and {tuple(getattr(target, 'shape', ()))}."
            )
        if self.from_logits:
            return values.sigmoid(), target
        if values.numel() and (values.min() < 0 or values.max() > 1):
            low, high = values.min().item(), values.max().item()
            raise ValueError(
                f"`prediction` must be probabilities in [0, 1], got values from {low:.3g} to {high:.3g}. For logits "
                "use SaliencyMetrics(from_logits=True); divide 8-bit maps by 255."
            )
        return values, target


def _curves(values: Floats, truth: Bools) -> tuple[Tensor, Tensor]:
    """Return precision and recall for the thresholds 1 ... 255 of the map in 8 bits, of one image with an object."""
    level = np.floor(values * _LEVELS + 0.5).astype(np.int64)
    found = torch.from_numpy(np.bincount(level[truth], minlength=_LEVELS + 1)).flip(0).cumsum(0).flip(0)[1:]
    wrong = torch.from_numpy(np.bincount(level[~truth], minlength=_LEVELS + 1)).flip(0).cumsum(0).flip(0)[1:]
    return found.double() / (found + wrong).clamp(min=1).double(), found.double() / int(truth.sum())


def _f_measure(precision: Tensor, recall: Tensor) -> Tensor:
    both = _BETA2 * precision + recall
    return torch.where(both == 0, 0.0, (1 + _BETA2) * precision * recall / torch.where(both == 0, 1.0, both))
