"""The region loss against literal sums over pixels and regions."""

import math

import pytest
import torch

from hggraph import Assignment, SoftSLIC
from hggraph.nn import RegionLoss
from hggraph.nn.region_loss import region_loss


def soft(batch=2, size=(4, 5), regions=3, seed=0):
    """Return a soft assignment with gradients, its weights ``(B, R, P)`` and logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, regions, size[0] * size[1], generator=generator, dtype=torch.float64) * 2
    logits.requires_grad_()
    return Assignment(logits.softmax(1), size), logits.softmax(1), logits


def literal(weight, size, target, ignore_index):
    """Return both parts of the loss of one image, pixel by pixel; weight ``(R, P)``, target ``(H, W)``."""
    regions, pixels = weight.shape
    flat = target.flatten().tolist()
    area = [sum(float(weight[r, p]) for p in range(pixels)) for r in range(regions)]
    counted = [p for p in range(pixels) if flat[p] != ignore_index]
    total = 0.0
    for p in counted:
        own = everything = 0.0
        for r in range(regions):
            for q in counted:
                share = float(weight[r, p]) * float(weight[r, q]) / area[r]
                everything += share
                own += share if flat[q] == flat[p] else 0.0
        total -= math.log(own / everything)
    apart = 0.0
    for p in range(pixels):
        r = max(range(regions), key=lambda r: float(weight[r, p]))
        for place in (lambda q: q // size[1], lambda q: q % size[1]):
            middle = sum(float(weight[r, q]) * place(q) for q in range(pixels)) / area[r]
            apart += (place(p) - middle) ** 2
    return total, len(counted), apart / pixels


@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("labels", [[0, 1, 2], [3, 700, 65000]])
def test_is_the_literal_sum(ignored, labels):
    assignment, weight, _ = soft()
    target = torch.tensor(labels)[torch.randint(3, (2, 4, 5))]
    target[torch.rand(target.shape) < ignored] = 255
    found = region_loss(assignment, target, compactness=0.25)
    each = [literal(w.detach(), (4, 5), t, 255) for w, t in zip(weight, target, strict=True)]
    label = sum(one[0] for one in each) / sum(one[1] for one in each)
    apart = sum(one[2] for one in each) / len(each)
    torch.testing.assert_close(float(found["labels"].detach()), label, rtol=1e-12, atol=0)
    torch.testing.assert_close(float(found["compactness"].detach()), apart, rtol=1e-12, atol=0)
    torch.testing.assert_close(float(found["loss"].detach()), label + 0.25 * apart, rtol=1e-12, atol=0)


def test_features_are_compared_by_absolute_differences():
    assignment, weight, _ = soft()
    target = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    back = torch.einsum("brp,brq,bcq->bcp", weight, weight / weight.sum(2, keepdim=True), target.flatten(2))
    expected = (back - target.flatten(2)).abs().sum(1).mean()
    torch.testing.assert_close(region_loss(assignment, target)["labels"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("features", [False, True])
def test_gradcheck(features):
    _, _, logits = soft(size=(3, 4))
    target = torch.rand(2, 2, 3, 4, dtype=torch.float64) if features else torch.randint(3, (2, 3, 4))
    if not features:
        target[:, 0, :2] = 255

    def value(logits):
        return region_loss(Assignment(logits.softmax(1), (3, 4)), target, compactness=0.1)["loss"]

    assert torch.autograd.gradcheck(value, logits)


def test_numbers_of_segments_mean_nothing():
    """Other numbers, another set in each image, as other data types: the same loss."""
    assignment, _, _ = soft()
    target = torch.randint(4, (2, 4, 5))
    expected = region_loss(assignment, target)["loss"]
    moved = target.clone()
    moved[0] = torch.tensor([9, 3, 1000, 5])[target[0]]
    moved[1] = torch.tensor([254, 0, 77, 256])[target[1]]
    torch.testing.assert_close(region_loss(assignment, moved)["loss"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(region_loss(assignment, moved.short())["loss"], expected, rtol=1e-12, atol=0)


def test_hard_regions_of_one_label_lose_nothing():
    labels = torch.tensor([[[0, 0, 1], [0, 1, 1]]])
    found = region_loss(Assignment.from_labels(labels, 4), labels + 5)  # two regions are empty
    assert found["labels"] == 0
    y, x = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    points = torch.stack([y, x], 2)
    apart = sum((p - p.mean(0)).square().sum() for p in (points[labels[0] == r] for r in (0, 1))) / 6
    torch.testing.assert_close(found["compactness"], apart)


def test_nothing_to_count():
    assignment, _, logits = soft()
    found = region_loss(assignment, torch.full((2, 4, 5), 255), compactness=0)
    found["loss"].backward()
    assert found["loss"] == 0 and not logits.grad.any()
    empty = Assignment(torch.rand(0, 3, 20), (4, 5))
    assert region_loss(empty, torch.zeros(0, 4, 5, dtype=torch.long))["loss"] == 0


def test_trains_through_the_clustering():
    """A few steps on the weights of three channels lower the loss."""
    torch.manual_seed(0)
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[..., 5:] = 1
    image = torch.rand(1, 3, 16, 16) * 2
    image[:, 1] += target
    clusterer = SoftSLIC(num_regions=8, feature_scale="none", projection=torch.nn.Conv2d(3, 3, 1, groups=3)).eval()
    torch.nn.init.constant_(clusterer.projection.weight, 0.1)
    optimizer = torch.optim.Adam(clusterer.parameters(), 0.3)
    values = []
    for _ in range(12):
        loss = region_loss(clusterer(image), target)["labels"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]


def test_half_precision_is_summed_in_single():
    _, weight, _ = soft()
    found = region_loss(Assignment(weight.detach().bfloat16(), (4, 5)), torch.randint(3, (2, 4, 5)))
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        (torch.zeros(2, 4, 6, dtype=torch.long), ValueError, "4 x 5"),
        (torch.zeros(1, 4, 5, dtype=torch.long), ValueError, "2 images"),
        (torch.zeros(2, 1, 4, 5, dtype=torch.long), ValueError, r"\(B, H, W\)"),
        (torch.zeros(2, 4, 5), ValueError, r"\(B, C, H, W\)"),
        (torch.zeros(2, 4, 5, dtype=torch.bool), TypeError, "torch.bool"),
        ([0], TypeError, "list"),
    ],
)
def test_wrong_targets(target, error, says):
    with pytest.raises(error, match=says):
        region_loss(soft()[0], target)


def test_options():
    loss = RegionLoss(ignore_index=0, compactness=0.5)
    assert "ignore_index=0, compactness=0.5" in repr(loss)
    assignment, _, _ = soft()
    target = torch.randint(3, (2, 4, 5))
    torch.testing.assert_close(
        loss(assignment, target)["loss"], region_loss(assignment, target, ignore_index=0, compactness=0.5)["loss"]
    )
    for options in ({"compactness": -1}, {"compactness": math.nan}, {"ignore_index": 0.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            RegionLoss(**options)
