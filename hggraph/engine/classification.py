"""What it is to train and to evaluate a network that gives an image or a clip one class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from hggraph.engine.task import OptimizerMaker, SchedulerMaker, Task

__all__ = ["ClassificationTask"]

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ClassificationTask(Task):
    """Train and evaluate a network that maps images or clips to logits of classes.

    Args:
        net: Maps ``(B, C, H, W)`` or ``(B, C, T, H, W)`` to logits ``(B, K)``.
        metric: Updated with probabilities ``(B, K)`` and labels ``(B,)``, as `hggraph.metrics.TopKAccuracy` is.
        criterion: Maps logits and labels, or after `mix` shares of classes ``(B, K)``, to a scalar.
        mix: Maps training images and labels to mixed images and shares of classes: ``CutMix`` or ``MixUp`` of
            ``torchvision.transforms.v2``.
        views: Evaluation samples are several views each, ``(B, V, C, ...)``, whose probabilities are averaged.
        optimizer: See `Task`, as for all that follow.
        power: Exponent of the poly schedule.
        warmup: Steps in which the learning rate first rises.
        scheduler: Another schedule, by epoch.
        lr_factors: Factors on the learning rate by the parameters' names.

    A batch is a dict with ``"image"`` or ``"video"``, and ``"label"``.

    Example:
        >>> from hggraph.metrics import TopKAccuracy
        >>> from hggraph.models import pyconv_resnet
        >>> task = ClassificationTask(pyconv_resnet(18, 10), TopKAccuracy((1, 5)))
        >>> batch = {"image": torch.rand(2, 3, 32, 32), "label": torch.tensor([3, 7])}
        >>> task.losses(batch)["loss"].shape
        torch.Size([])
    """

    def __init__(
        self,
        net: nn.Module,
        metric: Metric | MetricCollection,
        criterion: nn.Module | None = None,
        mix: Mix | None = None,
        views: bool = False,
        optimizer: OptimizerMaker = torch.optim.AdamW,
        power: float = 0.9,
        warmup: int = 0,
        scheduler: SchedulerMaker | None = None,
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__(net, metric, optimizer, power, warmup, scheduler, lr_factors)
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.mix = mix
        self.views = views

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        logits: Tensor = self.net(x)
        return logits

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss, of mixed images if asked for."""
        x, target = _input(batch), batch["label"]
        if self.mix is not None:
            x, target = self.mix(x, target)
        return {"loss": self.criterion(self.net(x), target)}

    def count(self, batch: dict[str, Any]) -> None:
        """Compare probabilities, averaged over views, with labels."""
        x = _input(batch)
        if not self.views:
            probabilities = self.net(x).float().softmax(1)
        else:
            each = self.net(x.flatten(0, 1)).float().softmax(1)
            probabilities = each.unflatten(0, (len(x), x.shape[1])).mean(1)
        self.metric.update(probabilities, batch["label"])


def _input(batch: dict[str, Any]) -> Tensor:
    x: Tensor = batch["video"] if "video" in batch else batch["image"]
    return x
