"""Saliency metrics against literal loops in exact fractions and hand-made cases."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.metrics.saliency import SaliencyMetrics
from hggraph.metrics.structure import structure_measure

NAMES = ("mae", "max_f", "mean_f", "max_f_pr", "mean_f_pr", "s_measure")
BETA2 = Fraction(3, 10)


def mean(values):
    return sum(values, Fraction(0)) / len(values)


def spread(a, b):
    if len(a) < 2:
        return Fraction(0)
    return sum((x - mean(a)) * (y - mean(b)) for x, y in zip(a, b, strict=True)) / (len(a) - 1)


def s_measure(p, t):
    """Fan et al. 2017 on lists of rows of fractions and bools, exact up to the square root."""
    height, width = len(t), len(t[0])
    inside = [p[y][x] for y in range(height) for x in range(width) if t[y][x]]
    outside = [p[y][x] for y in range(height) for x in range(width) if not t[y][x]]
    if not inside or not outside:
        return float(1 - mean(outside) if not inside else mean(inside))
    share = Fraction(len(inside), height * width)

    def alike(values):
        return float(2 * mean(values)) / (float(mean(values) ** 2 + 1) + math.sqrt(spread(values, values)))

    objects = float(share) * alike(inside) + float(1 - share) * alike([1 - v for v in outside])
    rows = [y for y in range(height) for x in range(width) if t[y][x]]
    columns = [x for y in range(height) for x in range(width) if t[y][x]]
    cut_y, cut_x = (math.floor(mean([v + 1 for v in values]) + Fraction(1, 2)) for values in (rows, columns))
    regions = Fraction(0)
    for ys in (range(cut_y), range(cut_y, height)):
        for xs in (range(cut_x), range(cut_x, width)):
            a = [p[y][x] for y in ys for x in xs]
            b = [Fraction(t[y][x]) for y in ys for x in xs]
            if a:
                top = 4 * mean(a) * mean(b) * spread(a, b)
                bottom = (mean(a) ** 2 + mean(b) ** 2) * (spread(a, a) + spread(b, b))
                score = top / bottom if top else Fraction(bottom == 0)
                regions += Fraction(len(a), height * width) * score
    return max(0.0, 0.5 * objects + 0.5 * float(regions))


def curves(p, t):
    """Precision, recall and F for the 255 thresholds, as fractions."""
    pairs = [(math.floor(v * 255 + Fraction(1, 2)), b) for rows in zip(p, t, strict=True) for v, b in zip(*rows)]  # noqa: B905
    result = []
    for threshold in range(1, 256):
        found = [b for level, b in pairs if level >= threshold]
        precision = Fraction(sum(found), len(found)) if found else Fraction(0)
        recall = Fraction(sum(found), sum(b for _, b in pairs))
        result.append((precision, recall, f_measure(precision, recall)))
    return list(zip(*result, strict=True))


def f_measure(precision, recall):
    bottom = BETA2 * precision + recall
    return (1 + BETA2) * precision * recall / bottom if bottom else Fraction(0)


def published(images):
    rows = [curves(p, t) for p, t in images if any(map(any, t))]
    errors = [
        mean([abs(v - b) for rows in zip(p, t, strict=True) for v, b in zip(*rows, strict=True)]) for p, t in images
    ]
    precision, recall, f = ([mean(column) for column in zip(*curve, strict=True)] for curve in zip(*rows, strict=True))
    pooled = [f_measure(a, b) for a, b in zip(precision, recall, strict=True)]
    scores = [s_measure(p, t) for p, t in images]
    return dict(
        zip(NAMES, [mean(errors), max(f), mean(f), max(pooled), mean(pooled), sum(scores) / len(scores)], strict=True)
    )


@st.composite
def batches(draw):
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    levels = draw(st.sampled_from([1, 4, 255, 1020]))
    target = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    target[0, 0, 0] = True  # one image with an object at least
    return torch.randint(levels + 1, shape, generator=generator), levels, target


def as_fractions(level, levels, target):
    return [
        ([[Fraction(v, levels) for v in row] for row in rows], truth)
        for rows, truth in zip(level.tolist(), target.tolist(), strict=True)
    ]


@given(batches())
@settings(max_examples=15)
def test_literal_loops_in_fractions(batch):
    level, levels, target = batch
    metric = SaliencyMetrics()
    metric.update((level.double() / levels)[:, None], target)
    want = published(as_fractions(level, levels, target))
    for name, value in metric.compute().items():
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(float(want[name]), abs=2e-12), name


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_any_partition_and_order(batch, random):
    level, levels, target = batch
    whole, parts = SaliencyMetrics(), SaliencyMetrics()
    whole.update(level / levels, target)
    order = list(range(len(level)))
    random.shuffle(order)
    for index in order:
        parts.update((level / levels)[None, index], target[None, index].long())
    for name, value in whole.compute().items():
        assert value.numpy().tobytes() == parts.compute()[name].numpy().tobytes(), name


def test_eight_bits_are_exact():
    level = torch.arange(256)[None, None].expand(1, 2, -1)
    target = (torch.arange(512).reshape(1, 2, 256) % 3 == 0).long()
    for dtype in (torch.float32, torch.float64):
        metric = SaliencyMetrics()
        metric.update(level.to(dtype) / 255, target)
        _, recall, _ = curves(*as_fractions(level, 255, target == 1)[0])
        assert metric.recall.tolist() == [round(value * 2**40) for value in recall]


@pytest.mark.parametrize(
    ("value", "full", "want"), [(0.0, False, 1), (0.25, False, 0.75), (1.0, True, 1), (0.25, True, 0.25)]
)
def test_structure_of_empty_and_full_targets(value, full, want):
    target = np.full((5, 7), full)
    assert structure_measure(np.full((5, 7), value), target) == pytest.approx(want, abs=1e-15)
    metric = SaliencyMetrics()
    metric.update(torch.full((1, 5, 7), value), torch.full((1, 5, 7), int(full)))
    assert metric.compute()["s_measure"].item() == pytest.approx(want, abs=1e-12)
    assert metric.compute()["max_f"].isnan() == (not full)  # no recall without an object


def test_structure_of_constants_is_not_left_to_rounding():
    target = np.zeros((7, 9), bool)
    target[2:4, 2:4] = True
    for value in (0.1, 0.3, 1 / 3, 0.7):
        p = np.full((7, 9), value)
        exact = s_measure([[Fraction(value)] * 9] * 7, target.tolist())
        assert structure_measure(p, target) == pytest.approx(exact, abs=1e-14)
    half = np.zeros((4, 4), bool)
    half[:2] = True
    assert structure_measure(half.astype(float), half) == 1
    assert structure_measure(1.0 - half, half) == 0.5  # each block is constant in both: as the paper has it


def test_empty_target_counts_for_error_and_structure_only():
    metric, alone = SaliencyMetrics(), SaliencyMetrics()
    p, t = torch.rand(1, 8, 8), (torch.rand(1, 8, 8) > 0.5).long()
    alone.update(p, t)
    metric.update(torch.cat([p, torch.full_like(p, 0.5)]), torch.cat([t, torch.zeros_like(t)]))
    for name in ("max_f", "mean_f", "max_f_pr", "mean_f_pr"):
        assert metric.compute()[name] == alone.compute()[name]
    assert metric.compute()["mae"].item() == pytest.approx((alone.compute()["mae"].item() + 0.5) / 2)
    assert metric.compute()["s_measure"].item() == pytest.approx((alone.compute()["s_measure"].item() + 0.5) / 2)


def test_ignored_pixels_are_as_if_not_there():
    p, t = torch.rand(1, 9, 8), (torch.rand(1, 9, 8) > 0.5).long()
    alone, padded = SaliencyMetrics(), SaliencyMetrics()
    alone.update(p, t)
    padded.update(
        torch.nn.functional.pad(p, (0, 3, 0, 5), value=0.9), torch.nn.functional.pad(t, (0, 3, 0, 5), value=255)
    )
    padded.update(torch.rand(1, 4, 4), torch.full((1, 4, 4), 255))  # no image at all
    for name, value in alone.compute().items():
        assert padded.compute()[name] == value, name


def test_logits():
    x, t = torch.randn(2, 1, 6, 7), torch.randint(2, (2, 6, 7))
    wanted, one, two = SaliencyMetrics(), SaliencyMetrics(from_logits=True), SaliencyMetrics(from_logits=True)
    wanted.update(x.double().sigmoid(), t)
    one.update(x.requires_grad_(), t[:, None])
    two.update(torch.cat([torch.zeros_like(x), x], 1), t)
    assert wanted.compute() == one.compute() == two.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_layouts(dtype):
    p, t = torch.rand(2, 6, 14).to(dtype), torch.randint(2, (2, 6, 14), dtype=torch.uint8)
    plain, strided = SaliencyMetrics(), SaliencyMetrics()
    plain.update(p[..., ::2].double().contiguous(), t[..., ::2].contiguous())
    strided.update(p[..., ::2], t[..., ::2])
    assert plain.compute() == strided.compute()


@pytest.mark.parametrize("feed", [None, (0, 4, 4), (2, 0, 4)])
def test_no_data(feed):
    metric = SaliencyMetrics()
    if feed is not None:
        metric.update(torch.rand(feed), torch.zeros(feed).long())
    assert all(value.isnan() for value in metric.compute().values())


@pytest.mark.parametrize(
    ("prediction", "target", "error", "text"),
    [
        (
            torch.full((1, 4, 4), 1.5),
            torch.zeros(1, 4, 4).long(),
            ValueError,
            r"in \[0, 1\], got values from 1.5 .*from_logits",
        ),
        (torch.full((1, 4, 4), -0.01), torch.zeros(1, 4, 4).long(), ValueError, "must be probabilities"),
        (torch.full((1, 4, 4), torch.nan), torch.zeros(1, 4, 4).long(), ValueError, "NaN at 16 of 16"),
        (torch.zeros(1, 4, 4).long(), torch.zeros(1, 4, 4).long(), TypeError, "floating-point"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), TypeError, "labels"),
        (torch.zeros(1, 4, 4), torch.full((1, 4, 4), 2), ValueError, r"must be in \[0, 2\)"),
        (torch.zeros(1, 4, 5), torch.zeros(1, 4, 4).long(), ValueError, "must have shape"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), ValueError, "must have shape"),
        (torch.zeros(4, 4), torch.zeros(4, 4).long(), ValueError, "must have shape"),
    ],
)
def test_bad_batches_change_nothing(prediction, target, error, text):
    metric = SaliencyMetrics()
    with pytest.raises(error, match=text):
        metric.update(prediction, target)
    assert metric.images == 0


def test_bad_options():
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        SaliencyMetrics(ignore_index=0)
