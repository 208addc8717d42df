"""The boundary F-score against literal loops, dilation with disks and hand-made borders."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.metrics.boundary import BoundaryF, _matched, boundary_map


def border(mask):
    """The published rule, pixel by pixel."""
    height, width = len(mask), len(mask[0])
    found = []
    for y in range(height):
        for x in range(width):
            near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if y == height - 1:
                near = [(y, x + 1)] if x < width - 1 else []
            elif x == width - 1:
                near = [(y + 1, x)]
            if any(mask[v][u] != mask[y][x] for v, u in near):
                found.append((y, x))
    return found


def score(ours, theirs, tolerance):
    ours, theirs = border(ours), border(theirs)
    if not ours or not theirs:
        return Fraction(ours == theirs)
    near = [any((a - c) ** 2 + (b - d) ** 2 <= tolerance**2 for c, d in theirs) for a, b in ours]
    found = [any((a - c) ** 2 + (b - d) ** 2 <= tolerance**2 for a, b in ours) for c, d in theirs]
    precision, recall = Fraction(sum(near), len(near)), Fraction(sum(found), len(found))
    return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)


def published(labels, target, classes, tolerances):
    """Mean over images of each tolerance and class, as fractions."""
    rows = []
    for tolerance in tolerances:
        row = []
        for k in range(classes):
            scores = []
            for label, truth in zip(labels.tolist(), target.tolist(), strict=True):
                counted = [[t != 255 for t in line] for line in truth]
                masks = [
                    [[v == k and c for v, c in zip(*lines, strict=True)] for lines in zip(values, counted, strict=True)]
                    for values in (label, truth)
                ]
                scores.append(score(*masks, tolerance))
            row.append(sum(scores) / len(scores))
        rows.append(row)
    return rows


@st.composite
def batches(draw):
    classes, batch = draw(st.integers(2, 3)), draw(st.integers(1, 2))
    height, width, grain = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def blocks():
        coarse = torch.randint(classes, (batch, -(-height // grain), -(-width // grain)), generator=generator)
        return coarse.repeat_interleave(grain, 1).repeat_interleave(grain, 2)[:, :height, :width]

    target = blocks()
    target[torch.rand(target.shape, generator=generator) < draw(st.sampled_from([0.0, 0.2, 1.0]))] = 255
    return classes, blocks(), target


@given(batches(), st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True))
@settings(max_examples=40)
def test_literal_loops_in_fractions(batch, tolerances):
    classes, labels, target = batch
    metric = BoundaryF(classes, tolerances)
    metric.update(labels, target)
    result = metric.compute()
    want = published(labels, target, classes, tolerances)
    assert result["boundary_f"].shape == (len(tolerances), classes)
    for tolerance, row, expected in zip(tolerances, result["boundary_f"], want, strict=True):
        for got, value in zip(row, expected, strict=True):
            assert abs(Fraction(got.item()) - value) < Fraction(1, 10**12)
        assert abs(result[f"boundary_f_{tolerance}px"].item() - float(sum(expected) / classes)) < 1e-12


@given(batches())
@settings(max_examples=15)
def test_boundary_map(batch):
    _, labels, _ = batch
    for mask in labels == 1:
        assert boundary_map(mask).nonzero().tolist() == [list(at) for at in border(mask.tolist())]


@pytest.mark.parametrize("size", [(60, 70), (1, 70), (60, 1)])
def test_dilation_with_disks(size):
    morphology = pytest.importorskip("skimage.morphology")
    shape = (1, *size)
    target = (torch.rand(1, size[0] // 8 + 1, size[1] // 8 + 1) > 0.5).long()
    target = target.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : size[0], : size[1]]
    labels = torch.where(torch.rand(shape) < 0.02, 1 - target, target).roll(2, 2)
    metric = BoundaryF(2, (3, 5, 9, 12))
    metric.update(labels, target)
    ours, theirs = (boundary_map(values[0] == 1).numpy() for values in (labels, target))
    for tolerance, row in zip(metric.tolerances, metric.compute()["boundary_f"], strict=True):
        disk = morphology.disk(tolerance)
        wide_ours, wide_theirs = (morphology.dilation(mask, disk) for mask in (ours, theirs))
        precision, recall = (ours & wide_theirs).sum() / ours.sum(), (theirs & wide_ours).sum() / theirs.sum()
        assert row[1].item() == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
        assert row[0] == row[1]  # the same borders


def test_published_cases():
    empty, square = torch.zeros(1, 20, 20, dtype=torch.long), torch.zeros(1, 20, 20, dtype=torch.long)
    square[:, 5:15, 5:15] = 1
    for prediction, target, want in [(empty, empty, 1), (square, empty, 0), (empty, square, 0), (square, square, 1)]:
        metric = BoundaryF(3, (1,))
        metric.update(prediction, target)
        assert metric.compute()["boundary_f"].tolist() == [[want, want, 1]]  # class 2 is nowhere: 1
    metric = BoundaryF(2, (1,))
    metric.update(torch.cat([square, empty]), torch.cat([square, square]))
    assert metric.compute()["boundary_f"].tolist() == [[0.5, 0.5]]  # images first


@pytest.mark.parametrize(("shift", "want"), [(3, [1, 1, 1, 1]), (4, [0, 1, 1, 1]), (12, [0, 0, 0, 1]), (13, [0] * 4)])
def test_tolerance_is_a_distance(shift, want):
    target = (torch.arange(64) >= 30).long().expand(1, 40, 64)
    metric = BoundaryF(2)
    metric.update((torch.arange(64) >= 30 + shift).long().expand(1, 40, 64), target)
    assert metric.compute()["boundary_f"].tolist() == [[value] * 2 for value in want]


@pytest.mark.parametrize(
    ("step", "want"),
    [((3, 4), [0, 1, 1, 1]), ((8, 9), [0, 0, 0, 0]), ((-8, 8), [0, 0, 0, 1]), ((0, -9), [0, 0, 1, 1])]
    + [(step, [0, 0, 0, 1]) for step in [(12, 0), (-12, 0), (0, 12), (0, -12)]]
    + [(step, [0, 0, 0, 0]) for step in [(13, 0), (-13, 0), (0, 13), (0, -13)]],
)
def test_distance_is_euclidean(step, want):
    ours, theirs = torch.zeros(40, 41, dtype=torch.bool), torch.zeros(40, 41, dtype=torch.bool)
    ours[20, 20] = theirs[20 + step[0], 20 + step[1]] = True
    assert _matched(ours, theirs, (4, 5, 9, 12)).tolist() == want
    assert _matched(theirs, ours, (4, 5, 9, 12)).tolist() == want


def test_ignored_pixels_are_in_no_mask():
    target = torch.zeros(1, 9, 9, dtype=torch.long)
    target[:, :, 5:] = 255
    metric = BoundaryF(2, (1,))
    metric.update(torch.where(target == 255, 99, 0), target)
    assert metric.compute()["boundary_f"].tolist() == [[1, 1]]  # of class 0 both have the border of what counts
    metric = BoundaryF(2, (1,))
    metric.update(torch.zeros_like(target), torch.full_like(target, 255))
    assert metric.compute()["boundary_f"].tolist() == [[1, 1]]


def test_order_and_partition():
    labels, target = torch.randint(3, (7, 30, 40)), torch.randint(3, (7, 30, 40))
    whole, parts = BoundaryF(3), BoundaryF(3)
    whole.update(labels, target)
    for index in [3, 0, 6, 1, 5, 2, 4]:
        parts.update(labels[index : index + 1], target[index : index + 1])
    assert torch.equal(whole.total, parts.total)
    assert torch.equal(whole.compute()["boundary_f"], parts.compute()["boundary_f"])
    logits = torch.nn.functional.one_hot(labels, 3).movedim(3, 1).to(torch.bfloat16)
    again = BoundaryF(3)
    again.update(logits, target.to(torch.uint8))
    assert torch.equal(whole.total, again.total)


def test_report_and_no_data():
    metric = BoundaryF(2, (1, 300), class_names=["ground", "road"], report=["road"])
    assert set(metric.compute()) == {
        *("boundary_f_1px", "boundary_f_1px_road", "boundary_f_300px", "boundary_f_300px_road", "boundary_f")
    }
    assert all(value.isnan().all() for value in metric.compute().values())
    metric.update(torch.zeros(0, 4, 4).long(), torch.zeros(0, 4, 4).long())
    assert math.isnan(metric.compute()["boundary_f_1px"])
    target = torch.zeros(1, 8, 8).long()
    target[0, :2] = 1
    metric.update(target.flip(1), target)
    assert metric.compute()["boundary_f_1px_road"] == 0
    assert metric.compute()["boundary_f_300px_road"] == 1


@pytest.mark.parametrize(
    ("prediction", "target", "text"),
    [
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5).long(), "resize the logits"),
        (torch.zeros(4, 4).long(), torch.zeros(4, 4).long(), r"`target` must have shape \(B, H, W\)"),
        (torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), 2), r"must be in \[0, 2\)"),
        (torch.full((1, 4, 4), 2), torch.zeros(1, 4, 4).long(), r"`prediction` must be in \[0, 2\)"),
    ],
)
def test_bad_batches_change_nothing(prediction, target, text):
    metric = BoundaryF(2)
    with pytest.raises(ValueError, match=text):
        metric.update(prediction, target)
    assert metric.images == 0 and not metric.total.any()


@pytest.mark.parametrize("tolerances", [(), (0,), (3, 3), (1.5,), (True,)])
def test_bad_tolerances(tolerances):
    with pytest.raises(ValueError, match="`tolerances` must be"):
        BoundaryF(2, tolerances)
