"""What it is to train and to evaluate a segmentation network, for Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, PolynomialLR, SequentialLR
from torchmetrics import Metric, MetricCollection

from hggraph._check import check_positive
from hggraph.engine.checkpoint import check_parameters

__all__ = ["SegmentationTask", "poly_schedule"]

OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerMaker = Callable[[Optimizer], LRScheduler]


class SegmentationTask(lightning.LightningModule):
    """Train and evaluate a network that maps images to logits of their size.

    Args:
        net: Maps ``(B, C, H, W)`` to a dict of logits, ``"out"`` among them, as those of `hggraph.models` do.
        criterion: Maps that dict and the targets by name to a dict of losses, of which ``"loss"`` is minimised, as
            `hggraph.nn.OutputLoss` does.
        metric: Updated with the logits ``"out"`` and the mask; computes a dict. Its numbers are logged.
        optimizer: Makes an optimiser of parameters.
        power: Exponent of the poly schedule; 0 keeps the learning rate.
        warmup: Steps in which the learning rate first rises from a tenth.
        scheduler: Makes another schedule of the optimiser, with a value for each epoch, in place of these.

    A batch is a dict with ``"image"`` and ``"mask"``; what else the criterion has losses for stands under the output's
    name, for example ``"orientation"``. Logged are ``train/loss``, ``train/<output>``, ``val/<number>`` and
    ``test/<number>``; all that the metric computed last, tables too, is in `results`.

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
    ) -> None:
        super().__init__()
        self.net = net
        self.criterion = criterion
        self.metric = metric
        self.make_optimizer = optimizer
        self.power = power
        self.warmup = warmup
        self.make_scheduler = scheduler
        self.results: dict[str, Any] = {}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run the network."""
        out: dict[str, Tensor] = self.net(x)
        return out

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """Return the loss of a batch."""
        losses: dict[str, Tensor] = self.criterion(self.net(batch["image"]), _targets(batch))
        found = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(found, batch_size=len(batch["image"]), sync_dist=True)
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.metric.reset()

    def on_test_epoch_start(self) -> None:
        """Count anew."""
        self.metric.reset()

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Count what the network gets right."""
        self.metric.update(self.net(batch["image"])["out"], batch["mask"])

    def test_step(self, batch: dict[str, Any], index: int) -> None:
        """Count what the network gets right."""
        self.validation_step(batch, index)

    def on_validation_epoch_end(self) -> None:
        """Log the metric of all processes."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log the metric of all processes."""
        self._finish("test")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise if the checkpoint is another network's."""
        check_parameters(checkpoint, self, self.trainer.ckpt_path or "the checkpoint")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser and its schedule."""
        optimizer = self.make_optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        if self.make_scheduler is not None:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make_scheduler(optimizer)}}
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = poly_schedule(optimizer, steps, power=self.power, warmup=self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _finish(self, stage: str) -> None:
        self.results = self.metric.compute()  # sums over processes
        numbers = {name: value for name, value in self.results.items() if torch.as_tensor(value).numel() == 1}
        # the same on all processes: their mean is it too
        self.log_dict({f"{stage}/{name}": float(value) for name, value in numbers.items()}, sync_dist=True)


def poly_schedule(optimizer: Optimizer, steps: int, *, power: float = 0.9, warmup: int = 0) -> LRScheduler:
    """Make the learning rate rise linearly and then fall to 0 as ``(1 - step / steps) ** power``.

    Args:
        optimizer: Whose learning rates are scheduled.
        steps: All steps, those of the warm-up among them.
        power: Exponent; 0 keeps the learning rate.
        warmup: Steps in which it rises from a tenth, fewer than `steps`.

    Raises:
        ValueError: if there are as many steps to warm up as in all.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = poly_schedule(optimizer, 4, power=1)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
        ...     _ = optimizer.step(), schedule.step()
        >>> rates
        [1.0, 0.75, 0.5, 0.25]
    """
    check_positive("steps", steps)
    if not 0 <= warmup < steps:
        raise ValueError(f"`warmup` must be in [0, {steps}), as there are {steps} steps, got {warmup}.")
    fall = PolynomialLR(optimizer, steps - warmup, power)
    if not warmup:
        return fall
    rise = LinearLR(optimizer, 0.1, total_iters=warmup)
    return SequentialLR(optimizer, [rise, fall], [warmup])


def _targets(batch: dict[str, Any]) -> dict[str, Any]:
    return {"out": batch["mask"]} | {name: value for name, value in batch.items() if name not in ("image", "mask")}
