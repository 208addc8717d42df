"""The hard pixels are those that the published rules choose, read off a sorted list."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hggraph.nn.ohem import OhemCrossEntropy, hard_pixels


def kept_by_gald(probability, valid, threshold, min_kept):
    """Say which pixels are kept, as the words of the rule go, on plain lists."""
    if sum(valid) < min_kept:
        return list(valid)
    ordered = sorted(p if v else 1.0 for p, v in zip(probability, valid, strict=True))
    limit = threshold
    if min_kept > 0:
        limit = max(threshold, ordered[min(len(ordered), min_kept) - 1])
    return [v and p <= limit for p, v in zip(probability, valid, strict=True)]


def kept_by_hrnet(probability, valid, threshold, min_kept):
    ordered = sorted(p for p, v in zip(probability, valid, strict=True) if v)
    if not ordered:
        return list(valid)
    limit = max(ordered[min(min_kept, len(ordered) - 1)], threshold)
    return [v and p < limit for p, v in zip(probability, valid, strict=True)]


LITERAL = {"gald": kept_by_gald, "hrnet": kept_by_hrnet}
# few values, so that many are equal, and the threshold and 1 among them
values = st.sampled_from([0.0, 0.125, 0.5, 0.7, 0.75, 0.9, 1.0])


@pytest.mark.parametrize("rule", LITERAL)
@given(
    st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.5, 0.7, 1.0]),
    st.integers(0, 14),
)
def test_rules(rule, pixels, threshold, min_kept):
    probability, valid = [list(column) for column in zip(*pixels, strict=True)]
    given_as = torch.tensor(probability, dtype=torch.float64), torch.tensor(valid)
    kept = hard_pixels(*given_as, threshold, min_kept, rule)
    assert kept.tolist() == LITERAL[rule](probability, valid, threshold, min_kept)


@pytest.mark.parametrize("rule", LITERAL)
@pytest.mark.parametrize("min_kept", [0, 1, 7, 30, 59, 60, 61, 10**6])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 0.9])
def test_loss_is_the_mean_of_the_kept(rule, min_kept, threshold):
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64).mul_(2).requires_grad_()
    target = torch.randint(4, (2, 5, 6))
    target[0, :2] = 255
    probability = logits.softmax(1).gather(1, target.clamp(max=3)[:, None])[:, 0]
    valid = target != 255
    kept = LITERAL[rule](probability.flatten().tolist(), valid.flatten().tolist(), threshold, min_kept)
    picked = torch.tensor(kept).reshape(2, 5, 6)
    expected = -probability[picked].log().sum() / max(1, sum(kept))
    loss = OhemCrossEntropy(threshold, min_kept, rule=rule)(logits, target)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.equal(grad.any(1), picked)


def test_fewer_valid_pixels_than_wanted():
    """GALD's rule keeps them all, HRNet's drops the easiest unless it is hard."""
    logits = torch.tensor([[4.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)[None, :, None]
    target = torch.tensor([[[0, 0, 255]]])
    each = F.cross_entropy(logits, target, ignore_index=255, reduction="none")[0, 0]
    for min_kept in (3, 10):
        assert OhemCrossEntropy(0.5, min_kept)(logits, target) == each[:2].mean()
        assert OhemCrossEntropy(0.5, min_kept, rule="hrnet")(logits, target) == each[1]
        torch.testing.assert_close(OhemCrossEntropy(0.99, min_kept, rule="hrnet")(logits, target), each[:2].mean())


def test_nothing_hard_is_zero():
    logits = torch.tensor([[50.0, 50.0], [0.0, 0.0]])[None, :, None].requires_grad_()
    target = torch.zeros(1, 1, 2, dtype=torch.long)
    for loss in (OhemCrossEntropy(0.7, 0), OhemCrossEntropy(0.7, 5, rule="hrnet")):
        value = loss(logits, target)
        (grad,) = torch.autograd.grad(value, logits)
        assert value == 0 and not grad.any()


def test_weights_weigh_the_kept_and_do_not_choose():
    logits, target = torch.randn(1, 3, 6, 6, dtype=torch.float64), torch.randint(3, (1, 6, 6))
    weights = torch.tensor([0.1, 5.0, 1.0])
    probability = logits.softmax(1).gather(1, target[:, None])[:, 0]
    picked = hard_pixels(probability, target < 255, 0.2, 9)
    assert int(picked.sum()) >= 9
    chosen = torch.where(picked, target, 255)
    expected = F.cross_entropy(logits, chosen, weights.double(), ignore_index=255)
    torch.testing.assert_close(OhemCrossEntropy(0.2, 9, class_weights=weights)(logits, target), expected)


def test_a_sort_finds_what_selection_finds(monkeypatch):
    """What a GPU computes, on the CPU."""
    probability, valid = torch.rand(200), torch.rand(200) < 0.8
    kept = [hard_pixels(probability, valid, 0.1, k, rule) for k in (1, 50, 300) for rule in LITERAL]
    monkeypatch.setattr("hggraph.nn.ohem._smallest", lambda values, k: values.sort().values[k - 1])
    again = [hard_pixels(probability, valid, 0.1, k, rule) for k in (1, 50, 300) for rule in LITERAL]
    assert all(map(torch.equal, kept, again))
