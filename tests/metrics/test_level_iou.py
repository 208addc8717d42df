"""Table 9 of Specialize and Fuse by a loop over pixels, levels and classes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.metrics import LevelIoU, MeanIoU


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3))
def test_a_loop_over_levels(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(4, (2, 5, 6), generator=generator)
    target[target == 3] = 255
    predictions = [torch.randint(3, (2, 5, 6), generator=generator) for _ in range(levels)]
    decided = torch.randint(levels, (2, 5, 6), generator=generator)
    metric = LevelIoU(3, levels)
    metric.update(predictions, decided, target)
    found = metric.compute()
    for column in range(levels):
        here = (decided == column) & (target != 255)
        for row, prediction in enumerate(predictions):
            ious = []
            for number in range(3):
                both = ((prediction == number) & (target == number) & here).sum().item()
                either = (((prediction == number) | (target == number)) & here).sum().item()
                ious += [both / either] if either else []
            expected = sum(ious) / len(ious) if ious else math.nan
            assert found["level_iou"][row, column].item() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert found["share"][column].item() == pytest.approx((here.sum() / (target != 255).sum()).item(), abs=1e-6)


def test_fused_is_the_mean_iou_of_what_is_decided():
    target, first, second = torch.randint(5, (3, 2, 8, 8))
    decided = torch.randint(2, (2, 8, 8))
    metric, whole = LevelIoU(5, 2), MeanIoU(5)
    metric.update([first, second], decided, target)
    whole.update(torch.where(decided == 0, first, second), target)
    assert float(metric.compute()["fused_iou"]) == pytest.approx(float(whole.compute()["miou"]), abs=1e-12)


def test_logits_and_table():
    target = torch.randint(3, (1, 4, 4))
    logits = torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2).float()
    metric = LevelIoU(3, 2)
    metric.update([logits, logits], torch.zeros(1, 4, 4, dtype=torch.long), target)
    found = metric.compute()
    assert found["level_iou"][:, 0].tolist() == [1, 1] and found["level_iou"][:, 1].isnan().all()
    assert metric.table().columns[2].header == "1" and metric.table().row_count == 3
    assert metric.class_table(["a", "b", "c"]).row_count == 3


def test_classes_of_each_level_are_mean_ious():
    target, first, second = torch.randint(5, (3, 2, 8, 8))
    metric, alone = LevelIoU(5, 2), [MeanIoU(5), MeanIoU(5)]
    metric.update([first, second], torch.randint(2, (2, 8, 8)), target)
    for level, (one, prediction) in enumerate(zip(alone, (first, second), strict=True)):
        one.update(prediction, target)
        torch.testing.assert_close(metric.compute()["class_iou"][level], one.compute()["iou"])


def test_wrong_input():
    metric, labels = LevelIoU(3, 2), torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="must hold 2 levels, got 1"):
        metric.update([labels], labels, labels)
    with pytest.raises(ValueError, match=r"levels in \[0, 2\), got \[5\]"):
        metric.update([labels, labels], labels + 5, labels)
    with pytest.raises(ValueError, match="of the target's shape"):
        metric.update([labels, labels], labels[:, :2], labels)
    with pytest.raises(ValueError, match="`levels` must be a whole number >= 2"):
        LevelIoU(3, 1)
