"""What all tasks share: optimiser, schedule, logging, counting; and the schedule that segmentation networks use."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
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
from hggraph.engine.loading import length_of

__all__ = ["OptimizerMaker", "SchedulerMaker", "Task", "find_task", "poly_schedule"]

OptimizerMaker = Callable[[Iterable[Any]], Optimizer]
SchedulerMaker = Callable[[Optimizer], LRScheduler]


class Task(lightning.LightningModule, ABC):
    """Train and evaluate a network; a subclass says what a batch costs and what it counts for.

    Args:
        net: The network.
        metric: Updated by `count`; computes a dict. Its numbers are logged.
        optimizer: Makes an optimiser of parameters.
        power: Exponent of the poly schedule; 0 keeps the learning rate.
        warmup: Steps in which the learning rate first rises from a tenth.
        scheduler: Makes another schedule of the optimiser, with a value for each epoch, in place of the poly schedule.
        lr_factors: Factors on the learning rate of parameters whose names begin so, such as ``{"net.head": 10}``; of
            several that fit, the longest counts.

    Logged are ``train/loss`` and the other losses, ``val/<number>`` and ``test/<number>``; all that the metric computed
    last, tables too, is in `results`.
    """

    def __init__(
        self,
        net: nn.Module,
        metric: Metric | MetricCollection,
        optimizer: OptimizerMaker = torch.optim.AdamW,
        power: float = 0.9,
        warmup: int = 0,
        scheduler: SchedulerMaker | None = None,
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.metric = metric
        self.make_optimizer = optimizer
        self.power = power
        self.warmup = warmup
        self.make_scheduler = scheduler
        self.lr_factors = dict(lr_factors or {})
        self.results: dict[str, Any] = {}

    @abstractmethod
    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the losses of a batch; ``"loss"`` is minimised."""

    @abstractmethod
    def count(self, batch: dict[str, Any]) -> None:
        """Update the metric with what the network makes of a batch."""

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """Return the loss of a batch."""
        losses = self.losses(batch)
        found = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(found, batch_size=length_of(batch), sync_dist=True)
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.metric.reset()

    def on_test_epoch_start(self) -> None:
        """Count anew."""
        self.metric.reset()

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Count what the network gets right."""
        self.count(batch)

    def test_step(self, batch: dict[str, Any], index: int) -> None:
        """Count what the network gets right."""
        self.count(batch)

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
        groups = self.make_groups()
        optimizer = self.make_optimizer([{"params": group} for group in groups.values()])
        for group, factor in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] *= factor
        if self.make_scheduler is not None:
            by_epoch: list[Any] = [{"scheduler": self.make_scheduler(optimizer), "interval": "epoch"}]
            if self.warmup:
                by_epoch.append({"scheduler": warmup_schedule(optimizer, self.warmup), "interval": "step"})
            return [optimizer], by_epoch
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = poly_schedule(optimizer, steps, power=self.power, warmup=self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_groups(self) -> dict[float, list[nn.Parameter]]:
        """Return trainable parameters by the factor on their learning rate.

        Raises:
            ValueError: if `lr_factors` names none.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        unused = set(self.lr_factors)
        for name, parameter in self.named_parameters():
            prefix = max((one for one in self.lr_factors if name.startswith(one)), key=len, default="")
            unused.discard(prefix)
            if parameter.requires_grad:
                groups.setdefault(float(self.lr_factors.get(prefix, 1)), []).append(parameter)
        if unused:
            parts = sorted({".".join(name.split(".")[:2]) for name, _ in self.named_parameters()})
            raise ValueError(f"`lr_factors` must begin names of parameters, got {sorted(unused)}; there are {parts}.")
        return groups

    def _finish(self, stage: str) -> None:
        self.results = self.metric.compute()  # sums over processes
        numbers = {name: value for name, value in self.results.items() if torch.as_tensor(value).numel() == 1}
        # the same on all processes: their mean is it too
        self.log_dict({f"{stage}/{name}": float(value) for name, value in numbers.items()}, sync_dist=True)


def find_task(name: str) -> type[Task]:
    """Return the task of this name, ``"hggraph.engine.ClassificationTask"`` for example.

    Raises:
        ValueError: if there is none.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`task` must be a class that can be imported, got {name!r}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"`task` must be a subclass of hggraph.engine.Task, got {name!r}.")
    return found


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
    return SequentialLR(optimizer, [warmup_schedule(optimizer, warmup), fall], [warmup])


def warmup_schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Make the learning rate rise linearly from a tenth, over some steps; it multiplies what other schedules do."""
    return LinearLR(optimizer, 0.1, total_iters=steps)
