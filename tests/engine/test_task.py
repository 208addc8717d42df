"""Learning rates by step, epoch and part of the network, against their formulas."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    MultiStepLR,
    PolynomialLR,
    ReduceLROnPlateau,
)

from hggraph.data.loading import collate, length_of
from hggraph.engine import ClassificationTask
from hggraph.engine.schedule import UnderWarmUp, WarmUp, poly_schedule
from hggraph.engine.task import find_task
from hggraph.metrics import TopKAccuracy

SGD = functools.partial(torch.optim.SGD, lr=1.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.header = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 3)


def make_task(**options):
    return ClassificationTask(Net(), TopKAccuracy((1,)), optimizer=SGD, **options)


def test_factors_by_name():
    """The longest beginning counts; frozen parameters have no group."""
    task = make_task(lr_factors={"net.head": 10, "net.header": 0.5}, scheduler=lambda o: MultiStepLR(o, [9]))
    task.net.body.bias.requires_grad_(False)
    optimizer = task.configure_optimizers()[0][0]
    found = {group["lr"]: [tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups}
    assert found == {1.0: [(2, 2)], 10.0: [(3, 2), (3,)], 0.5: [(3, 3), (3,)]}


def test_no_factors_leave_one_group():
    optimizer = make_task(scheduler=lambda o: MultiStepLR(o, [9])).configure_optimizers()[0][0]
    assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 6


def test_a_factor_for_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"begin names of parameters, got \['net.neck'\]; there are \['net.body', "):
        make_task(lr_factors={"net.neck": 2.0}).configure_optimizers()


@pytest.mark.parametrize(
    ("maker", "formula"),
    [
        (lambda o: MultiStepLR(o, [2, 3]), lambda epoch: 0.1 ** ((epoch >= 2) + (epoch >= 3))),
        (lambda o: CosineAnnealingLR(o, 5, eta_min=0.5), lambda epoch: 0.75 + math.cos(epoch * math.pi / 5) / 4),
        (lambda o: LambdaLR(o, lambda epoch: 1 / (1 + epoch)), lambda epoch: 1 / (1 + epoch)),
        (lambda o: PolynomialLR(o, 4, 2.0), lambda epoch: (1 - epoch / 4) ** 2),
        (lambda o: CosineAnnealingWarmRestarts(o, 2), lambda epoch: (1 + math.cos(epoch % 2 * math.pi / 2)) / 2),
    ],
)
def test_warm_up_by_step_and_schedule_by_epoch(maker, formula):
    """Steps 0 to 5 rise from a tenth; four steps make an epoch."""
    optimizers, schedules = make_task(scheduler=maker, warmup=6).configure_optimizers()
    assert [one["interval"] for one in schedules] == ["epoch", "step"]
    by_epoch, by_step = (one["scheduler"] for one in schedules)
    for epoch in range(5):
        for step in range(4 * epoch, 4 * epoch + 4):
            warm = min(1.0, 0.1 + 0.9 * step / 6)
            assert optimizers[0].param_groups[0]["lr"] == pytest.approx(warm * formula(epoch), rel=1e-6, abs=1e-9)
            optimizers[0].step()
            by_step.step()
        by_epoch.step()


def test_plateau_under_warm_up():
    """It sees the rates without their warm-up: halved once where it has waited long enough, 0.1 never counts."""
    optimizer = SGD(Net().parameters())
    inner = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    warm = WarmUp(optimizer, 6)
    plateau = UnderWarmUp(inner, warm)
    rates = []
    for loss in (3.0, 2.0, 2.0, 1.0):
        for _ in range(2):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            warm.step()
        plateau.step(loss)
    factors = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.0]
    assert rates == pytest.approx([f * (0.5 if step >= 6 else 1) for step, f in enumerate(factors)])


@pytest.mark.parametrize(("steps", "warmup"), [(8, 0), (8, 3)])
def test_poly(steps, warmup):
    optimizer = SGD(Net().parameters())
    schedule = poly_schedule(optimizer, steps, power=0.9, warmup=warmup)
    for step in range(steps + 2):
        fall = max(0, 1 - (step - warmup) / (steps - warmup)) ** 0.9 if step >= warmup else 0.1 + 0.9 * step / warmup
        assert optimizer.param_groups[0]["lr"] == pytest.approx(fall)
        optimizer.step()
        schedule.step()


def test_find_task():
    assert find_task("hggraph.engine.ClassificationTask") is ClassificationTask
    for name in ("ClassificationTask", "hggraph.engine.Classification", "nowhere.Task", ""):
        with pytest.raises(ValueError, match="`task` must be a class that can be imported"):
            find_task(name)
    with pytest.raises(ValueError, match=r"`task` must be a subclass of hggraph\.engine\.Task"):
        find_task("torch.nn.Linear")


def test_batches_with_boxes_are_lists():
    samples = [{"image": torch.zeros(3, n, n), "boxes": torch.zeros(n, 4), "labels": torch.ones(n)} for n in (2, 5)]
    batch = collate(samples)
    assert [tuple(box.shape) for box in batch["boxes"]] == [(2, 4), (5, 4)] and length_of(batch) == 2
