"""Means over annotators, then over images; what is not known or not defined is left out."""

import math

import pytest
import torch

from hggraph.metrics import MeanIoU, RegionQuality, compare_regions, describe_regions, majority_labels


def samples(count):
    for i in range(count):
        size = (20 + i, 30 - i)
        yield torch.randint(9, size), torch.randint(5, (1 + i % 3, *size)), torch.rand(3, *size)


def test_annotators_then_images():
    metric, rows = RegionQuality(), []
    for labels, truth, image in samples(4):
        alone = metric(labels, truth, image)
        want = describe_regions(labels, image) | compare_regions(labels, truth)
        rows.append({name: want[name].double().mean() for name in RegionQuality.MEASURES})
        for name, value in alone.items():  # of this image alone
            assert value.item() == pytest.approx(rows[-1][name].item(), abs=1e-11)
    result = metric.compute()
    assert tuple(result) == RegionQuality.MEASURES
    for name, value in result.items():
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(sum(row[name] for row in rows).item() / 4, abs=1e-11)


def test_order_and_partition():
    data = list(samples(5))
    whole, parts, rest = RegionQuality(), RegionQuality(), RegionQuality()
    for sample in data:
        whole.update(*sample)
    for i in [3, 0, 4, 1, 2]:
        (parts if i % 2 else rest).update(*data[i])
    assert torch.equal(whole.total, parts.total + rest.total) and torch.equal(whole.images, parts.images + rest.images)


def test_what_is_not_given_is_left_out():
    labels, truth, image = next(samples(1))
    metric = RegionQuality()
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(labels)
    result = metric.compute()
    missing = {"asa", "ue", "boundary_recall", "boundary_precision", "explained_variation"}
    assert {name for name, value in result.items() if value.isnan()} == missing
    metric.update(labels, truth, torch.zeros_like(image))
    assert metric.compute()["explained_variation"].isnan()  # one colour
    metric.update(labels, truth, image)
    result = metric.compute()
    assert result["explained_variation"] == pytest.approx(describe_regions(labels, image)["explained_variation"].item())
    assert result["asa"] == pytest.approx(compare_regions(labels, truth)["asa"].mean().item())
    assert metric.images.tolist() == [2, 2, 2, 2, 3, 1, 3, 3, 3]


def test_an_annotator_without_borders_has_no_recall():
    labels = torch.arange(6)[:, None] // 3 * 2 + torch.arange(8) // 4
    truth = torch.stack([torch.zeros_like(labels), labels])
    result = RegionQuality()(labels, truth)
    assert result["boundary_recall"] == 1 and result["boundary_precision"] == 0.5
    ignored = RegionQuality(ignore_index=0)(labels, torch.zeros_like(labels))
    assert ignored["asa"].isnan() and ignored["regions"] == 4


def test_tolerance():
    columns = torch.arange(40).expand(30, 40)
    labels, truth = (columns >= 13).long(), (columns >= 10).long()
    assert RegionQuality()(labels, truth)["boundary_recall"] == 0
    assert RegionQuality(tolerance=0.06)(labels, truth)["boundary_recall"] == 1
    with pytest.raises(ValueError, match="`tolerance` must be a share of the diagonal"):
        RegionQuality(tolerance=math.nan)


def test_bad_maps_change_nothing():
    metric = RegionQuality()
    with pytest.raises(ValueError, match="`truth` must be of the size"):
        metric.update(torch.zeros(3, 4).long(), torch.zeros(1, 4, 3).long())
    assert not metric.total.any() and not metric.images.any()


def test_best_mean_iou_by_majority():
    # the one region of the second image takes its pixel of class 1 for class 0
    metric = MeanIoU(2)
    for labels, target in [([[0, 0, 1, 1]], [[0, 0, 1, 1]]), ([[0, 0, 0, 0]], [[0, 0, 0, 1]])]:
        labels, target = torch.tensor(labels), torch.tensor(target)
        metric.update(majority_labels(labels, target)[None], target[None])
    assert metric.compute()["iou"].tolist() == [5 / 6, 2 / 3]
