"""The loss of saliency maps against sums over pixels."""

import math

import pytest
import torch

from hggraph.nn.losses import BinaryCrossEntropy
from hggraph.nn.saliency_loss import SaliencyLoss


def literal(logits, target, bce_weight, iou_weight, smooth):
    entropies, losses = [], []
    for image, labels in zip(logits[:, 0].tolist(), target.tolist(), strict=True):
        common = union = 0.0
        counted = False
        for row, label_row in zip(image, labels, strict=True):
            for x, t in zip(row, label_row, strict=True):
                if t == 255:
                    continue
                counted = True
                p = 1 / (1 + math.exp(-x))
                entropies.append(-math.log(p if t else 1 - p))
                common += p * t
                union += p + t - p * t
        if counted:
            losses.append(1 - (common + smooth) / (union + smooth))
    return bce_weight * sum(entropies) / len(entropies) + iou_weight * sum(losses) / len(losses)


@pytest.mark.parametrize("options", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.01), (0.0, 1.0, 3.0), (1.0, 0.0, 1.0)])
def test_is_the_literal_sum(options):
    logits = torch.randn(3, 1, 4, 5, dtype=torch.float64)
    target = torch.randint(2, (3, 4, 5))
    target[0, 1:3] = 255
    target[2] = 255  # does not count among the images
    loss = SaliencyLoss(255, *options)
    assert loss(logits, target).item() == pytest.approx(literal(logits, target, *options), rel=1e-12)
    shift = torch.randn(3, 1, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(loss(torch.cat([shift, logits + shift], 1), target), loss(logits, target))


def test_perfect_and_empty_maps():
    target = torch.zeros(1, 6, 6, dtype=torch.long)
    right = torch.full((1, 1, 6, 6), -60.0, requires_grad=True)
    assert SaliencyLoss()(right, target) < 1e-6  # no object, and none found
    found = torch.full((1, 1, 6, 6), 1.0, requires_grad=True)
    loss = SaliencyLoss(bce_weight=0)(found, target)
    (grad,) = torch.autograd.grad(loss, found)
    assert 0.9 < loss < 1 and (grad > 0).all()  # the empty map is asked for
    target[0, 2:4, 2:4] = 1
    perfect = torch.where(target[:, None] == 1, 60.0, -60.0)
    assert SaliencyLoss()(perfect, target) < 1e-6
    assert SaliencyLoss()(-perfect, target) > 60


def test_parts_add_up():
    logits, target = torch.randn(2, 1, 4, 4), torch.randint(2, (2, 4, 4))
    parts = BinaryCrossEntropy()(logits, target) + SaliencyLoss(bce_weight=0)(logits, target)
    torch.testing.assert_close(SaliencyLoss()(logits, target), parts)
    text = "ignore_index=255, bce_weight=1, iou_weight=1, smooth=1"
    assert text in repr(SaliencyLoss())
