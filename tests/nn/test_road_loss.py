"""Soft intersection over union against the sum over images and classes; orientations."""

import pytest
import torch
import torch.nn.functional as F

from hggraph.nn.road_loss import OrientationLoss, SoftIoU


def literal(probability, target):
    """Return minus the mean over batch and class, pixel by pixel, of ``(B, K, H, W)`` probabilities."""
    ratios = []
    for image, labels in zip(probability, target, strict=True):
        for k, plane in enumerate(image):
            common = union = 0.0
            for p, t in zip(plane.flatten().tolist(), labels.flatten().tolist(), strict=True):
                if t != 255:
                    common += p * (t == k)
                    union += p + (t == k) - p * (t == k)
            ratios.append(common / (union + 1e-8))
    return -sum(ratios) / len(ratios)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_soft_iou_is_the_literal_mean(classes, ignored):
    logits = torch.randn(3, classes, 4, 5, dtype=torch.float64)
    target = torch.randint(classes, (3, 4, 5))
    target[1] = 0  # other classes are absent here
    target[torch.rand(3, 4, 5) < ignored] = 255
    assert SoftIoU()(logits, target).item() == pytest.approx(literal(logits.softmax(1), target), rel=1e-12)


def test_soft_iou_of_one_channel_is_that_of_two():
    logits, target = torch.randn(2, 1, 4, 5, dtype=torch.float64), torch.randint(2, (2, 4, 5))
    p = logits.sigmoid()
    expected = literal(torch.cat([1 - p, p], 1), target)
    assert SoftIoU()(logits, target).item() == pytest.approx(expected, rel=1e-12)


def test_soft_iou_range():
    target = torch.randint(2, (2, 8, 8))
    perfect = F.one_hot(target, 2).movedim(-1, 1) * 100.0
    assert SoftIoU()(perfect, target).item() == pytest.approx(-1)
    assert SoftIoU()(-perfect, target).item() == pytest.approx(0)


def test_soft_iou_of_an_absent_class_has_no_say_in_it():
    """A class that is neither there nor predicted gives 0 / 1e-8, and no gradient of that size."""
    logits = torch.tensor([200.0, -200.0])[None, :, None, None].expand(1, 2, 3, 3).clone().requires_grad_()
    loss = SoftIoU()(logits, torch.zeros(1, 3, 3, dtype=torch.long))
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(-0.5) and grad.abs().max() < 1e-6


def test_labels_of_soft_iou():
    with pytest.raises(ValueError, match=r"\[0, 2\) or 255 \(ignored\), got 2"):
        SoftIoU()(torch.zeros(1, 1, 1, 2), torch.tensor([[[0, 2]]]))


def test_orientation():
    logits, target = torch.randn(2, 37, 4, 5), torch.randint(37, (2, 4, 5))
    target[0] = 255
    torch.testing.assert_close(OrientationLoss()(logits, target), F.cross_entropy(logits[1:], target[1:]))
    with pytest.raises(ValueError, match=r"must have 37 channels.*got shape \(2, 36, 4, 5\)"):
        OrientationLoss()(logits[:, 1:], target)
    assert repr(OrientationLoss(13)) == "OrientationLoss(num_orientations=13, ignore_index=255)"
