"""What it is to train and to evaluate a segmentation network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from hggraph.data.transforms import undo
from hggraph.engine.task import OptimizerMaker, SchedulerMaker, Task

__all__ = ["SegmentationTask", "undone"]


class SegmentationTask(Task):
    """Train and evaluate a network that maps images to logits of their size.

    Args:
        net: Maps ``(B, C, H, W)`` to a dict of logits, ``"out"`` among them, as those of `hggraph.models` do.
        criterion: Maps that dict and the targets by name to a dict of losses, of which ``"loss"`` is minimised, as
            `hggraph.nn.OutputLoss` does.
        metric: Updated with the logits ``"out"`` at the images' own size, and the mask.
        optimizer: See `Task`, as for all that follow.
        power: Exponent of the poly schedule.
        warmup: Steps in which the learning rate first rises.
        scheduler: Another schedule, by epoch.
        lr_factors: Factors on the learning rate by the parameters' names.

    A batch is a dict with ``"image"`` and ``"mask"``; what else the criterion has losses for stands under the output's
    name, for example ``"orientation"``.

    Example:
        >>> from hggraph.metrics import MeanIoU
        >>> from hggraph.models import hg_resnet
        >>> from hggraph.nn import CrossEntropy, OutputLoss
        >>> task = SegmentationTask(hg_resnet(18, num_classes=3), OutputLoss(CrossEntropy()), MeanIoU(3))
        >>> task.eval()(torch.rand(1, 3, 64, 64))["out"].shape
        torch.Size([1, 3, 64, 64])
    """

    def __init__(
        self,
        net: nn.Module,
        criterion: nn.Module,
        metric: Metric | MetricCollection,
        optimizer: OptimizerMaker = torch.optim.AdamW,
        power: float = 0.9,
        warmup: int = 0,
        scheduler: SchedulerMaker | None = None,
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__(net, metric, optimizer, power, warmup, scheduler, lr_factors)
        self.criterion = criterion

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run the network."""
        out: dict[str, Tensor] = self.net(x)
        return out

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the losses of the outputs and their sum."""
        targets = {"out": batch["mask"]}
        targets |= {name: value for name, value in batch.items() if name not in ("image", "mask")}
        losses: dict[str, Tensor] = self.criterion(self.net(batch["image"]), targets)
        return losses

    def count(self, batch: dict[str, Any]) -> None:
        """Compare logits, brought back to the images' own size, with masks."""
        self.metric.update(undone(self.net(batch["image"])["out"], batch), batch["mask"])


def undone(x: Tensor, batch: dict[str, Any]) -> Tensor:
    """Return maps ``(B, K, h, w)`` at the size of the batch's images, if its samples say what `EvalTransform` has done.

    Images of one batch have masks of one size, so that all were brought to one size.
    """
    if "shown" not in batch:
        return x
    height, width = (int(side[0]) for side in batch["shown"])
    return undo(x, (height, width), (int(batch["size"][0][0]), int(batch["size"][1][0])))
