"""How often the class is the first, or among the first few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_positive
from hggraph.metrics._exact import ExactMetric
from hggraph.metrics._inputs import check_scores, check_target

__all__ = ["TopKAccuracy"]


class TopKAccuracy(ExactMetric):
    """The share of samples whose class has one of the k largest logits.

    Of equal logits the class of the lower number comes first, so that top-1 is what `torch.argmax` chooses, and a
    constant output does not count as right.

    Args:
        top_k: Different whole numbers, at least 1.
        ignore_index: Label of samples that do not count; None counts all.

    Shapes:
        - **prediction:** logits or probabilities ``(B, K)``
        - **target:** labels ``(B,)``, integers in [0, K)
        - **output:** a dict ``{"top1": ..., "top5": ...}``, float64 in [0, 1]; NaN without data

    Raises:
        TypeError: in `update`, if `prediction` is not floating point or `target` not of integers.
        ValueError: if `top_k` is not as above; in `update`, if shapes disagree, there are fewer classes than the
            largest k, a label lies outside the classes or a logit is NaN.

    Note:
        O(B K). Exact counts, the same on any number of processes.

    Example:
        >>> metric = TopKAccuracy((1, 2))
        >>> metric.update(torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3]]), torch.tensor([1, 2]))
        >>> metric.compute()
        {'top1': tensor(0.5000, dtype=torch.float64), 'top2': tensor(1., dtype=torch.float64)}
    """

    correct: Tensor
    samples: Tensor

    def __init__(self, top_k: Sequence[int] = (1, 5), ignore_index: int | None = None) -> None:
        super().__init__()
        for k in top_k:
            check_positive("top_k", k)
        if not top_k or len(set(top_k)) != len(top_k):
            raise ValueError(f"`top_k` must be different whole numbers, got {tuple(top_k)}.")
        self.top_k = tuple(top_k)
        self.ignore_index = ignore_index
        self.add_counts("correct", len(self.top_k))
        self.add_counts("samples")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch; see the class for shapes."""
        check_ndim("prediction", prediction, 2, shape="(B, K)")
        logits = check_scores("prediction", prediction, "(B, K)")
        classes = logits.shape[1]
        if isinstance(target, Tensor) and target.shape != logits.shape[:1]:
            raise ValueError(
                f"`target` must have shape (B,) = {tuple(logits.shape[:1])}, one label for each row of `prediction`, "
                f"got {tuple(target.shape)}."
            )
        if classes < max(self.top_k):
            raise ValueError(f"top-{max(self.top_k)} needs at least as many classes, got {classes}; choose `top_k`.")
        counted = check_target(target, classes, self.ignore_index)
        logits, label = logits[counted], target[counted].long()[:, None]
        own = logits.gather(1, label)
        before = (logits > own) | ((logits == own) & (torch.arange(classes, device=logits.device) < label))
        place = before.sum(1)
        self.correct += torch.stack([(place < k).sum() for k in self.top_k])
        self.samples += len(place)

    def compute(self) -> dict[str, Tensor]:
        """Return the accuracies that the class lists."""
        shares = self.correct.double() / self.samples.double()
        return {f"top{k}": share for k, share in zip(self.top_k, shares, strict=True)}
