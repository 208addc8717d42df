"""What all tasks share: optimiser, schedules, logging, counting."""

from __future__ import annotations

import importlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection

from hggraph.data.loading import length_of
from hggraph.engine.checkpoint import check_parameters
from hggraph.engine.schedule import SCHEDULED, UnderWarmUp, WarmUp, poly_schedule

__all__ = ["DEFAULT_TASK", "OptimizerMaker", "SchedulerMaker", "Task", "find_task"]

OptimizerMaker = Callable[[Iterable[Any]], Optimizer]
SchedulerMaker = Callable[[Optimizer], LRScheduler]
DEFAULT_TASK = "hggraph.engine.SegmentationTask"
PLATEAU = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")  # what ReduceLROnPlateau has seen


class Task(lightning.LightningModule, ABC):
    """Train and evaluate a network; a subclass says what a batch costs and what it counts for.

    Args:
        net: The network.
        metric: Updated by `count`; computes a dict, or a tensor, named as its class: ``mean_squared_error``.
            Its numbers are logged.
        optimizer: Makes an optimiser of parameters.
        power: Exponent of the poly schedule; 0 keeps the learning rate.
        warmup: Steps in which the learning rate first rises from a tenth.
        scheduler: Makes another schedule of the optimiser, with a value for each epoch, in place of the poly schedule;
            any of torch's, or ``lightning.pytorch.cli.ReduceLROnPlateau`` with `monitor`. The warm-up multiplies it.
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
        self._schedules: list[Any] | None = None  # states from a checkpoint, until training begins
        self._plateau: dict[str, float] = {}

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

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Count what the network gets right."""
        self.count(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metric of all processes."""
        found = self.metric.compute()  # sums over processes
        self.results = dict(found) if isinstance(found, Mapping) else {_snake(type(self.metric).__name__): found}
        stage = "test" if self.trainer.testing else "val"
        numbers = {name: value for name, value in self.results.items() if torch.as_tensor(value).numel() == 1}
        # the same on all processes: their mean is it too
        self.log_dict({f"{stage}/{name}": float(value) for name, value in numbers.items()}, sync_dist=True)

    on_test_epoch_start, test_step, on_test_epoch_end = (
        on_validation_epoch_start,
        validation_step,
        on_validation_epoch_end,
    )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what plateaus look at: a checkpoint of an epoch's end is written before they have."""
        found = self.trainer.callback_metrics
        names = [str(config.monitor) for config in self.trainer.lr_scheduler_configs if config.reduce_on_plateau]
        checkpoint["plateau"] = {name: float(found[name]) for name in names if name in found}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise if the checkpoint is another network's; of its optimiser and schedules keep what has to be kept."""
        if "state_dict" in checkpoint:  # a strategy of shards has loaded its own
            check_parameters(checkpoint, self, self.trainer.ckpt_path or "the checkpoint")
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._schedules, checkpoint["lr_schedulers"] = checkpoint["lr_schedulers"], []  # see `on_train_start`
        self._plateau = checkpoint.get("plateau", {})
        for state in checkpoint.get("optimizer_states", ()):
            fresh = self.make_grouped_optimizer()
            old, new = ([len(one["params"]) for one in each] for each in (state["param_groups"], fresh.param_groups))
            if old != new or not set(fresh.defaults) <= set(state["param_groups"][0]):
                rank_zero_warn(f"{type(fresh).__name__} starts anew: the checkpoint's optimiser is another one.")
                checkpoint["optimizer_states"] = []

    def on_train_start(self) -> None:
        """Bring the schedules to the step reached, when a run goes on.

        The recipe counts, not the checkpoint: options of the optimiser and schedules are made from it, and the rate of
        a step is that of a run that had the recipe's length from its start. What a plateau has seen is kept.
        """
        saved, self._schedules = self._schedules, None
        if saved is None:
            return
        optimizer, fresh = self.trainer.optimizers[0], self.make_grouped_optimizer()
        configs = self.trainer.lr_scheduler_configs
        if any(config.reduce_on_plateau for config in configs):
            for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
                new["lr"] = group.get(SCHEDULED, group["lr"])
        schedules = [one["scheduler"] for one in self.make_schedules(fresh)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the steps lie behind
            for number, (config, schedule) in enumerate(zip(configs, schedules, strict=True)):
                state = saved[number] if number < len(saved) else {}
                if config.reduce_on_plateau:
                    schedule.load_state_dict({name: state[name] for name in PLATEAU if name in state})
                    if config.monitor in self._plateau and state.get("last_epoch", 0) < self.trainer.current_epoch:
                        schedule.step(self._plateau[config.monitor])
                elif config.interval == "step":
                    schedule.last_epoch = self.trainer.global_step - 1
                    schedule.step()
                else:
                    same = state.keys() == schedule.state_dict().keys()
                    for _ in range(state["last_epoch"] if same else self.trainer.current_epoch):
                        schedule.step()
                config.scheduler.load_state_dict(schedule.state_dict())
        for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
            group.update({name: value for name, value in new.items() if name != "params"})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser and its schedules."""
        optimizer = self.make_grouped_optimizer()
        return [optimizer], self.make_schedules(optimizer)

    def make_grouped_optimizer(self) -> Optimizer:
        """Return a new optimiser of all trainable parameters, in groups by `lr_factors`."""
        groups = self.make_groups()
        optimizer = self.make_optimizer([{"params": group} for group in groups.values()])
        for group, factor in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] *= factor
        return optimizer

    def make_schedules(self, optimizer: Optimizer) -> list[Any]:
        """Return new schedules of an optimiser, as Lightning takes them: the one by epoch, then its warm-up by step."""
        if self.make_scheduler is None:
            steps = self._steps() if self.power else self.warmup + 1
            schedule = poly_schedule(optimizer, steps, power=self.power, warmup=self.warmup)
            return [{"scheduler": schedule, "interval": "step"}]
        inner: Any = self.make_scheduler(optimizer)
        by_epoch: dict[str, Any] = {"scheduler": inner, "interval": "epoch"}
        if isinstance(inner, ReduceLROnPlateau):
            by_epoch |= {"reduce_on_plateau": True, "monitor": self._monitor(inner)}
        if not self.warmup:
            return [by_epoch]
        warm = WarmUp(optimizer, self.warmup)
        return [by_epoch | {"scheduler": UnderWarmUp(inner, warm)}, {"scheduler": warm, "interval": "step"}]

    def _steps(self) -> int:
        """Return how many steps the training will have had at its end."""
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "The poly schedule needs the length of the training: give trainer.max_epochs or trainer.max_steps, "
                "model.power 0 for a constant rate, or model.scheduler."
            )
        # steps with batches of another size, before a change
        more = getattr(self.trainer.datamodule, "extra_steps", 0) if steps != self.trainer.max_steps else 0  # type: ignore[attr-defined]
        return int(steps) + more

    def _monitor(self, schedule: ReduceLROnPlateau) -> str:
        """Return what a plateau looks at: its own ``monitor``, as Lightning's has it, or that of the checkpoints."""
        if named := getattr(schedule, "monitor", None):
            return str(named)
        best: Any = self.trainer.checkpoint_callback
        if best is None or best.monitor is None or best.mode != schedule.mode:
            raise ValueError(
                f"ReduceLROnPlateau with mode {schedule.mode!r} needs a number to look at: use "
                f"lightning.pytorch.cli.ReduceLROnPlateau with `monitor`, or the mode of the run's own monitor."
            )
        return str(best.monitor)

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


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
