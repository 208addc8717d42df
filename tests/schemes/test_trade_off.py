"""Curves against a loop over groups, and the choice of classes on curves that are formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.metrics import MeanIoU
from hggraph.schemes.hs3 import Grouping, TradeOff, at_angle, equal_ratio, mean_iou, trade_off


def formula(function, classes=20):
    sizes = tuple(range(2, classes + 1))
    return TradeOff(sizes, tuple(function(size) for size in sizes), (Grouping.identity(2),) * len(sizes))


def test_mean_iou_is_the_metrics():
    generator = torch.Generator().manual_seed(0)
    target, prediction = torch.randint(6, (2, 3, 9, 9), generator=generator)
    target[target == 4] = 1
    prediction[prediction == 4] = 2  # class 4 neither occurs nor is predicted
    metric = MeanIoU(6)
    metric.update(prediction, target)
    confusion = torch.bincount((target * 6 + prediction).flatten(), minlength=36).view(6, 6)
    assert mean_iou(confusion) == pytest.approx(float(metric.compute()["miou"]), abs=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_a_curve_is_a_loop_over_groupings(seed):
    generator = torch.Generator().manual_seed(seed)
    confusion = torch.randint(50, (5, 5), generator=generator)
    groupings = {2: Grouping([[0, 3, 4], [1, 2]]), 3: Grouping([[0, 3], [4], [1, 2]]), 5: Grouping.identity(5)}
    curve = trade_off(confusion, groupings)
    assert curve.sizes == (2, 3, 5)
    for value, grouping in zip(curve.miou, curve.groupings, strict=True):
        ious = []
        for group in grouping.groups:
            inside = sum(int(confusion[i, j]) for i in group for j in group)
            union = sum(int(confusion[i].sum()) + int(confusion[:, i].sum()) for i in group) - inside
            ious.append(inside / union if union else math.nan)
        ious = [iou for iou in ious if not math.isnan(iou)]
        assert value == pytest.approx(sum(ious) / len(ious), abs=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_merging_never_lowers_the_share_of_right_pixels(seed):
    """Where groups are nested: what was right stays right. Mean IoU has no such law."""
    generator = torch.Generator().manual_seed(seed)
    confusion = torch.randint(100, (6, 6), generator=generator)
    labels = torch.arange(6)
    before = -1.0
    for _ in range(5):
        merged = Grouping.of_labels(labels.tolist()).merge_confusion(confusion)
        right = float(merged.diagonal().sum() / merged.sum())
        assert right >= before
        before = right
        first, second = labels.unique()[:2]
        labels = torch.where(labels == second, first, labels)


def test_confused_pairs_give_a_falling_curve():
    """Pairs that are taken for one another evenly: whole, both have an IoU of 1; apart, 1 / 3."""
    confusion = torch.block_diag(*[torch.full((2, 2), 50)] * 4)
    pairs = {8: Grouping.identity(8), 4: Grouping([[0, 1], [2, 3], [4, 5], [6, 7]])}
    pairs |= {6: Grouping([[0, 1], [2, 3], [4], [5], [6], [7]]), 5: Grouping([[0, 1], [2, 3], [4, 5], [6], [7]])}
    curve = trade_off(confusion, pairs)
    assert curve.miou == pytest.approx((1, (3 + 2 / 3) / 5, (2 + 4 / 3) / 6, 1 / 3))


def test_the_choice_on_a_line():
    """A curve 1 - n / 40 and an output of 0.5 with 20 classes: equal ratios where 1 - n / 40 = n / 40."""
    curve = formula(lambda size: 1 - size / 40)
    assert equal_ratio(curve, 0.5, 20) == 20
    weaker = formula(lambda size: 0.75 * (1 - size / 40))  # 0.75 - 0.75 n / 40 = n / 40 at n = 17.1
    assert equal_ratio(weaker, 0.5, 20) == 17
    assert at_angle(weaker, 0.5, 20, 0) == 20  # deep supervision
    assert at_angle(weaker, 0.5, 20, 90) == 13  # 0.75 (1 - n / 40) = 0.5 at 13.3
    assert at_angle(weaker, 0.5, 20, 45) == 17
    chosen = [at_angle(weaker, 0.5, 20, theta) for theta in range(0, 91, 5)]
    assert chosen == sorted(chosen, reverse=True)


def test_the_papers_angle():
    """Its Fig. 2 has its reference at 40 classes and 41.2 %; equal ratios lie at 76 degrees there, so the aspect is."""
    aspect = 1 / math.tan(math.radians(76))
    curve = formula(lambda size: 0.6 * math.exp(-size / 30), classes=40)
    assert at_angle(curve, 0.412, 40, 76, aspect=aspect) == at_angle(curve, 0.412, 40, 45)


def test_a_tap_that_is_never_good_enough_has_few_classes():
    assert at_angle(formula(lambda size: 0.2 - size / 1000), 0.9, 20, 90) == 2


@pytest.mark.parametrize(
    ("miou", "classes", "theta", "message"),
    [(0, 20, 45, "`miou` must be in"), (0.5, 1, 45, "`num_classes` >= 2"), (0.5, 20, 91, r"degrees in \[0, 90\]")],
)
def test_wrong_arguments(miou, classes, theta, message):
    with pytest.raises(ValueError, match=message):
        at_angle(formula(lambda size: 0.5), miou, classes, theta)
