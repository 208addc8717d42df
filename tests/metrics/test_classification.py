"""Top-k accuracy against sorting in plain Python and scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.metrics.classification import TopKAccuracy


@given(st.integers(0, 6), st.integers(2, 7), st.integers(0, 10**6), st.booleans())
@settings(max_examples=40)
def test_literal_sorting(batch, classes, seed, ignore):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(3, (batch, classes), generator=generator).float()  # many equal ones
    target = torch.randint(classes, (batch,), generator=generator)
    metric = TopKAccuracy((2, 1), ignore_index=0 if ignore else None)
    metric.update(logits, target)
    rows = [(row, t) for row, t in zip(logits.tolist(), target.tolist(), strict=True) if not (ignore and t == 0)]
    for k in (1, 2):
        right = sum(t in sorted(range(classes), key=lambda c, row=row: -row[c])[:k] for row, t in rows)
        got = metric.compute()[f"top{k}"]
        assert got.isnan() if not rows else got == right / len(rows)


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    logits, target = torch.randn(200, 10), torch.randint(10, (200,))
    metric = TopKAccuracy()
    for part in (slice(150, 200), slice(0, 150)):
        metric.update(logits[part], target[part])
    result = metric.compute()
    for k in (1, 5):
        want = metrics.top_k_accuracy_score(target.numpy(), logits.numpy(), k=k, labels=range(10))
        assert result[f"top{k}"].item() == pytest.approx(want, abs=1e-15)
    assert result["top1"] == (logits.argmax(1) == target).double().mean()


def test_constant_output_is_not_right():
    metric = TopKAccuracy((1, 5))
    metric.update(torch.zeros(10, 10, dtype=torch.bfloat16), torch.arange(10))
    assert [value.item() for value in metric.compute().values()] == [0.1, 0.5]


def test_infinite_logits():
    metric = TopKAccuracy((1,))
    metric.update(torch.tensor([[-torch.inf, 0.0], [torch.inf, torch.inf]]), torch.tensor([1, 1]))
    assert metric.compute()["top1"] == 0.5


@pytest.mark.parametrize(
    ("prediction", "target", "error", "text"),
    [
        (torch.rand(2, 6), torch.zeros(3).long(), ValueError, "one label for each row"),
        (torch.rand(2, 4), torch.zeros(2).long(), ValueError, "top-5 needs at least as many classes, got 4"),
        (torch.rand(2, 6), torch.tensor([0, 6]), ValueError, r"must be in \[0, 6\)"),
        (torch.rand(2, 6), torch.zeros(2), TypeError, "labels"),
        (torch.zeros(2, 6).long(), torch.zeros(2).long(), TypeError, "floating-point"),
        (torch.rand(2, 6, 1), torch.zeros(2).long(), ValueError, r"shape \(B, K\)"),
        (torch.full((2, 6), torch.nan), torch.zeros(2).long(), ValueError, "NaN at 12 of 12"),
    ],
)
def test_bad_batches_change_nothing(prediction, target, error, text):
    metric = TopKAccuracy()
    with pytest.raises(error, match=text):
        metric.update(prediction, target)
    assert metric.samples == 0


@pytest.mark.parametrize("top_k", [(), (0,), (1, 1), (1.0,)])
def test_bad_options(top_k):
    with pytest.raises(ValueError, match="`top_k` must be"):
        TopKAccuracy(top_k)
