"""Learning rates over steps: the schedule that segmentation networks use, and a warm-up over any other."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hggraph._check import check_positive

__all__ = ["UnderWarmUp", "WarmUp", "poly_schedule"]

SCHEDULED = "scheduled_lr"  # of a parameter group: its rate without the warm-up


def poly_schedule(optimizer: Optimizer, steps: int, *, power: float = 0.9, warmup: int = 0) -> LRScheduler:
    """Make the learning rate rise linearly and then fall to 0 as ``(1 - step / steps) ** power``.

    Args:
        optimizer: Whose learning rates are scheduled.
        steps: All steps, those of the warm-up among them; beyond them the rate is 0.
        power: Exponent; 0 keeps the learning rate.
        warmup: Steps in which it rises from a tenth, fewer than `steps`.

    Raises:
        ValueError: if there are as many steps to warm up as in all.

    Example:
        >>> import torch
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

    def factor(step: int) -> float:
        if step < warmup:
            return _rise(step, warmup)
        left = max(0.0, 1 - (step - warmup) / (steps - warmup))
        return float(left**power)

    return LambdaLR(optimizer, factor)


class WarmUp(LRScheduler):
    """Multiply learning rates by a factor that rises linearly from a tenth to 1, whatever else schedules them.

    Args:
        optimizer: Whose learning rates are multiplied.
        steps: Steps until the factor is 1.

    The schedule beside it has to be wrapped in `UnderWarmUp`.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / 4)
        >>> warm = WarmUp(optimizer, 2)  # after the schedule, which sets the first rate
        >>> by_epoch = UnderWarmUp(schedule, warm)
        >>> rates = []
        >>> for epoch in range(2):
        ...     for _ in range(2):
        ...         rates.append(round(optimizer.param_groups[0]["lr"], 4))
        ...         _ = optimizer.step(), warm.step()
        ...     by_epoch.step()
        >>> rates
        [0.1, 0.55, 0.75, 0.75]
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        self.steps = steps
        for group in optimizer.param_groups:
            group[SCHEDULED] = group["lr"]
        super().__init__(optimizer)

    @property
    def factor(self) -> float:
        """The factor of the step that comes next."""
        return _rise(self.last_epoch, self.steps)

    def get_lr(self) -> list[Any]:
        """Return the learning rates of the step that comes next."""
        return [group[SCHEDULED] * self.factor for group in self.optimizer.param_groups]


class UnderWarmUp(LRScheduler):
    """A schedule, that of a plateau too, which sees the learning rates without their warm-up.

    Args:
        schedule: Any schedule of torch, made before the warm-up has changed the rates.
        warmup: The warm-up of the same optimiser.
    """

    def __init__(self, schedule: LRScheduler, warmup: WarmUp) -> None:
        self.schedule, self.warmup, self.optimizer = schedule, warmup, schedule.optimizer

    def step(self, *metrics: Any) -> None:
        """Go on to the next epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = group[SCHEDULED]
        self.schedule.step(*metrics)
        for group in self.optimizer.param_groups:
            group[SCHEDULED] = group["lr"]
            group["lr"] *= self.warmup.factor

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the schedule's state."""
        self.schedule.load_state_dict(state_dict)


def _rise(step: int, steps: int) -> float:
    return min(1.0, 0.1 + 0.9 * step / steps)
