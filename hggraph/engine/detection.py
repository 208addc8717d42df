"""What it is to train and to evaluate a detector of torchvision's form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hggraph.data.transforms import undo_detections
from hggraph.engine.task import OptimizerMaker, SchedulerMaker, Task

__all__ = ["DetectionTask"]

TARGETS = ("boxes", "labels", "masks", "iscrowd", "area")


class DetectionTask(Task):
    """Train and evaluate a network that finds objects.

    Args:
        net: Called as torchvision's detectors: in training with a list of images and one of targets it returns a dict
            of losses, which are added up, in eval mode with a list of images a list of detections.
        metric: Updated with lists of detections and targets, as `hggraph.metrics.CocoAP` is.
        optimizer: See `Task`, as for all that follow.
        power: Exponent of the poly schedule.
        warmup: Steps in which the learning rate first rises.
        scheduler: Another schedule, by epoch.
        lr_factors: Factors on the learning rate by the parameters' names.

    A batch is a dict of lists with one entry for each image: ``"image"`` ``(3, H, W)`` in [0, 1], ``"boxes"``
    ``(N, 4)`` as corners in pixels, ``"labels"`` ``(N,)`` from 1, and as far as there are any ``"masks"``,
    ``"iscrowd"`` and ``"area"``.

    Example:
        >>> from hggraph.models import pyconv_ssd
        >>> from torchmetrics.detection import MeanAveragePrecision
        >>> task = DetectionTask(pyconv_ssd(50, 3), MeanAveragePrecision())  # doctest: +SKIP
        >>> box = torch.tensor([[10.0, 10.0, 50.0, 60.0]])
        >>> batch = {"image": [torch.rand(3, 90, 90)] * 2, "boxes": [box] * 2, "labels": [torch.tensor([1])] * 2}
        >>> sorted(task.losses(batch))  # doctest: +SKIP
        ['bbox_regression', 'classification', 'loss']
    """

    def __init__(
        self,
        net: nn.Module,
        metric: Metric,
        optimizer: OptimizerMaker = torch.optim.AdamW,
        power: float = 0.9,
        warmup: int = 0,
        scheduler: SchedulerMaker | None = None,
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__(net, metric, optimizer, power, warmup, scheduler, lr_factors)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections in each image, in eval mode."""
        found: list[dict[str, Tensor]] = self.net(images)
        return found

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the network's losses and their sum."""
        losses: dict[str, Tensor] = self.net(batch["image"], _targets(batch))
        return losses | {"loss": torch.stack(list(losses.values())).sum()}

    def count(self, batch: dict[str, Any]) -> None:
        """Compare detections, brought back to the images' own size, with targets."""
        found = self.net(batch["image"])
        if "shown" in batch:
            found = [undo_detections(*one) for one in zip(found, batch["shown"], batch["size"], strict=True)]
        self.metric.update(found, _targets(batch))  # type: ignore[arg-type]


def _targets(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Return a dict for each image."""
    names = [name for name in TARGETS if name in batch]
    return [dict(zip(names, one, strict=True)) for one in zip(*(batch[name] for name in names), strict=True)]
