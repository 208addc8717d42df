"""Confusion counts and mean IoU against literal loops in exact fractions, scikit-learn and hand-made cases."""

import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from hggraph.metrics.confusion import ConfusionMatrix, MeanIoU

NAMES = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou")


def loops(labels, target, classes, ignore=255):
    counts = [[0] * classes for _ in range(classes)]
    for p, t in zip(labels.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != ignore:
            counts[t][p] += 1
    return counts


def exact(counts):
    """Return the means as fractions, None where there is nothing to average."""
    classes, total = range(len(counts)), sum(map(sum, counts))
    own = [sum(row) for row in counts]
    union = [own[k] + sum(row[k] for row in counts) - counts[k][k] for k in classes]
    iou = [Fraction(counts[k][k], union[k]) if union[k] else None for k in classes]
    accuracy = [Fraction(counts[k][k], own[k]) if own[k] else None for k in classes]

    def mean(values):
        values = [value for value in values if value is not None]
        return sum(values) / Fraction(len(values)) if values else None

    weighted = [Fraction(own[k], total) * iou[k] for k in classes if own[k]]
    single = [mean(iou), Fraction(sum(counts[k][k] for k in classes), total) if total else None, mean(accuracy)]
    return dict(zip(NAMES, [*single, sum(weighted) if total else None], strict=True)), iou, accuracy


def same(got, want):
    assert got.dtype == torch.float64
    assert got.isnan() if want is None else abs(Fraction(got.item()) - want) < Fraction(1, 10**15)


@st.composite
def batches(draw):
    classes = draw(st.integers(2, 5))
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes))
    ignored = draw(st.sampled_from([0.0, 0.3, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    choose = torch.tensor(present)
    target = choose[torch.randint(len(present), shape, generator=generator)]
    target[torch.rand(shape, generator=generator) < ignored] = 255
    return classes, torch.randint(classes, shape, generator=generator), target


@settings(max_examples=50)
@given(batches(), st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
def test_literal_loops_in_fractions(batch, dtype):
    classes, labels, target = batch
    want = loops(labels, target, classes)
    matrix, metric = ConfusionMatrix(classes), MeanIoU(classes)
    matrix.update(labels.to(dtype), target.to(torch.int64 if dtype == torch.int16 else torch.uint8))
    metric.update(labels, target)
    assert matrix.compute().tolist() == want and matrix.compute().dtype == torch.int64
    result = metric.compute()
    means, iou, accuracy = exact(want)
    for name, value in means.items():
        same(result[name], value)
    for name, values in (("iou", iou), ("accuracy", accuracy)):
        for got, value in zip(result[name], values, strict=True):
            same(got, value)
    assert result["pixels"].tolist() == [sum(row) for row in want]


@settings(max_examples=25)
@given(batches(), st.randoms(use_true_random=False))
def test_any_partition_and_order(batch, random):
    classes, labels, target = batch
    whole, parts = MeanIoU(classes), MeanIoU(classes)
    whole.update(labels, target)
    rows = [(labels[b, y], target[b, y]) for b in range(len(labels)) for y in range(labels.shape[1])]
    random.shuffle(rows)
    for label, truth in rows:
        parts.update(label[None, None], truth[None, None])
    for name, value in whole.compute().items():
        assert value.numpy().tobytes() == parts.compute()[name].numpy().tobytes(), name


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    labels, target = torch.randint(6, (2, 40, 30)), torch.randint(6, (2, 40, 30))
    target[labels == 3] = 3  # one class is found whole
    target[torch.rand(target.shape) < 0.1] = 255
    counted = target != 255
    truth, found = target[counted].numpy(), labels[counted].numpy()
    matrix, metric = ConfusionMatrix(6), MeanIoU(6)
    matrix.update(labels, target)
    metric.update(labels, target)
    result = metric.compute()
    assert matrix.compute().tolist() == metrics.confusion_matrix(truth, found, labels=range(6)).tolist()
    torch.testing.assert_close(
        result["iou"], torch.tensor(metrics.jaccard_score(truth, found, average=None)), rtol=1e-14, atol=0
    )
    assert result["miou"].item() == pytest.approx(metrics.jaccard_score(truth, found, average="macro"), abs=1e-14)
    assert result["fwiou"].item() == pytest.approx(metrics.jaccard_score(truth, found, average="weighted"), abs=1e-14)
    assert result["pixel_accuracy"].item() == pytest.approx(metrics.accuracy_score(truth, found), abs=1e-14)
    assert result["mean_accuracy"].item() == pytest.approx(metrics.balanced_accuracy_score(truth, found), abs=1e-14)


def test_absent_classes():
    metric = MeanIoU(4)
    metric.update(torch.tensor([[[0, 0, 2, 3]]]), torch.tensor([[[0, 0, 0, 255]]]))  # 1 nowhere, 2 only predicted
    result = metric.compute()
    assert result["iou"].nan_to_num(-1).tolist() == [2 / 3, -1, 0, -1]
    assert result["miou"] == pytest.approx(1 / 3)  # over classes 0 and 2
    assert result["mean_accuracy"] == pytest.approx(2 / 3)  # over class 0


def test_counts_beyond_float32():
    pixels = 2**24 + 1
    metric = ConfusionMatrix(2)
    metric.update(torch.ones(1, 1, pixels, dtype=torch.uint8), torch.ones(1, 1, pixels, dtype=torch.uint8))
    assert metric.compute().tolist() == [[0, 0], [0, pixels]]
    metric.counts.fill_(2**53)  # more than float64 can count
    metric.update(torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(1, 1, 1, dtype=torch.long))
    assert metric.compute()[0, 0] == 2**53 + 1


@pytest.mark.parametrize("feed", [None, (0, 4), (2, 0), (2, 4)])
def test_no_data(feed):
    metric, matrix = MeanIoU(3), ConfusionMatrix(3)
    if feed is not None:
        batch, height = feed
        target = torch.full((batch, height, 4), 255)
        for each in (metric, matrix):
            each.update(torch.rand(batch, 3, height, 4), target)
            each.update(torch.full_like(target, 77), target)  # what is predicted there does not count
    assert matrix.compute().tolist() == [[0] * 3] * 3
    result = metric.compute()
    assert all(result[name].isnan() for name in NAMES) and result["iou"].isnan().all()
    assert result["pixels"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_logits(dtype):
    logits = torch.randint(-2, 3, (2, 4, 5, 7)).to(dtype)  # with equal ones: the first counts
    logits[0, 1, 0, 0], logits[0, 2, 1, 1] = torch.inf, -torch.inf
    target = torch.randint(4, (2, 5, 7))
    want = torch.zeros(2, 5, 7, dtype=torch.long)
    for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in (2, 5, 7))).tolist():
        values = logits[b, :, y, x].tolist()
        want[b, y, x] = values.index(max(values))
    for given_logits in (logits, logits.to(memory_format=torch.channels_last), logits.flip(3).flip(3)):
        metric = ConfusionMatrix(4)
        metric.update(given_logits.requires_grad_(), target)
        assert metric.compute().tolist() == loops(want, target, 4)


def test_one_channel_and_bool():
    x, target = torch.tensor([[[[-1.0, 0.0, 2.0, 3.0]]]]), torch.tensor([[[False, True, True, False]]])
    both = torch.cat([torch.zeros_like(x), x], 1)
    results = []
    for prediction in (x, both, both.argmax(1), both.argmax(1).bool()):
        metric = ConfusionMatrix(2)
        metric.update(prediction, target)
        results.append(metric.compute().tolist())
    assert results == [[[1, 1], [1, 1]]] * 4


def test_masks_of_torchvision_and_layouts():
    labels, target = torch.randint(3, (2, 6, 8)), torch.randint(3, (2, 6, 8), dtype=torch.uint8)
    metric = ConfusionMatrix(3)
    metric.update(labels.mT.contiguous().mT, tv_tensors.Mask(target.repeat_interleave(2, 2)[..., ::2]))
    assert metric.compute().tolist() == loops(labels, target, 3)


def test_forward_pickle_and_reset():
    labels, target = torch.randint(3, (4, 6, 8)), torch.randint(3, (4, 6, 8))
    metric, whole = MeanIoU(3), MeanIoU(3)
    for label, truth in zip(labels[:, None], target[:, None], strict=True):
        alone = MeanIoU(3)
        alone.update(label, truth)
        assert metric(label, truth)["miou"] == alone.compute()["miou"]
    metric = pickle.loads(pickle.dumps(metric))
    whole.update(labels, target)
    assert metric.compute()["miou"] == whole.compute()["miou"]
    metric.reset()
    assert metric.compute()["miou"].isnan()


def test_report_and_table():
    metric = MeanIoU(3, class_names=("sky", "road", "car"), report=["road"])
    metric.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    assert metric.compute()["iou_road"] == metric.compute()["iou"][1] == 2 / 3
    columns = [list(column.cells) for column in metric.table().columns]
    assert columns[0] == ["sky", "road", "car", "mean", "all pixels"]
    assert columns[1] == ["50.0", "66.7", "-", "58.3", "58.3 (weighted)"]
    assert columns[2] == ["50.0", "100.0", "-", "75.0", "75.0"]
    assert columns[3] == ["50.0", "50.0", "0.0", "", ""]
    assert [list(column.cells) for column in MeanIoU(2).table().columns][1] == ["-", "-", "-", "- (weighted)"]


@pytest.mark.parametrize(
    ("prediction", "target", "error", "text"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5, dtype=torch.long), ValueError, "resize the logits"),
        (torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), ValueError, "with K = 3"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), ValueError, "with K = 3"),
        (torch.zeros(1, 4, 5, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long), ValueError, "same shape"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), TypeError, "`target` must be a tensor of labels"),
        (torch.zeros(1, 4, 4), [[0]], TypeError, "got list"),
        ([[0]], torch.zeros(1, 4, 4, dtype=torch.long), TypeError, "got list"),
        (torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 3), ValueError, r"`target` must be in \[0, 3\).* be 255"),
        (torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), -1), ValueError, "values from -1 to -1"),
        (torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2).long(), ValueError, r"`prediction` must be in \[0, 3\)"),
        (torch.full((1, 3, 2, 2), torch.nan), torch.zeros(1, 2, 2).long(), ValueError, "is NaN at 4 of 4 places"),
    ],
)
@pytest.mark.parametrize("kind", [ConfusionMatrix, MeanIoU])
def test_bad_batches_change_nothing(kind, prediction, target, error, text):
    metric = kind(3)
    metric.update(torch.ones(1, 1, 2).long(), torch.ones(1, 1, 2).long())
    with pytest.raises(error, match=text):
        metric.update(prediction, target)
    assert metric.counts.sum() == 2


def test_bad_options():
    with pytest.raises(ValueError, match="`num_classes` must be a whole number >= 2, got 1"):
        ConfusionMatrix(1)
    with pytest.raises(ValueError, match="outside the 300 classes"):
        MeanIoU(300)
    with pytest.raises(ValueError, match="3 different names"):
        MeanIoU(3, class_names=["a", "b", "a"])
    with pytest.raises(ValueError, match=r"`report` must name classes of \['0', '1'\], got \['road'\]"):
        MeanIoU(2, report=["road"])
    assert MeanIoU(300, ignore_index=-1).compute()["iou"].shape == (300,)
