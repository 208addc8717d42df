"""The fused loop, the soft assignment and the labels of the fast path against dense formulas in float64."""

import pytest
import torch

from hggraph.ops import fast
from hggraph.ops.soft_assign import soft_assign_reference

pytest.importorskip("numba")

CASES = [  # size, regions, candidates, side of a block
    ((37, 50), 12, 6, 8),
    ((37, 50), 12, 5, 16),
    ((20, 23), 40, 6, 2),
    ((20, 23), 40, 3, 4),
    ((1, 40), 5, 6, 8),
    ((40, 1), 5, 2, 1),
    ((5, 6), 30, 6, 1),
    ((9, 9), 1, 6, 8),
]


def photo(size):
    """Return patches with noise: weights from 0 to 1."""
    coarse = torch.rand(1, 3, 4, 4) * 6
    smooth = torch.nn.functional.interpolate(coarse, size, mode="nearest")[0]
    return smooth + 0.3 * torch.randn(3, *size)


def features(lab, position):
    height, width = lab.shape[1:]
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return torch.cat([lab.double(), torch.stack([y, x]) * position]).flatten(1)  # (5, P)


def listed(positions, size, side, candidates):
    """Return each pixel's list, shape (T, P)."""
    lists = fast.nearest_regions(positions, size, side, candidates).long()
    wide = lists.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return wide[:, : size[0], : size[1]].flatten(1)


def soft_k_means(lab, seeds, position, candidates, side, iterations):
    size, regions = tuple(lab.shape[1:]), len(seeds)
    points = features(lab, position)
    centers = points[:, seeds].T.clone()  # (R, 5)
    where = features(lab, 1.0)[3:]
    positions = where[:, seeds].T
    for iteration in range(iterations):
        index = listed(positions.float(), size, side, candidates)
        if iteration == 0:
            distance = (positions[index] - where.T).square().sum(2)
            weight = torch.zeros_like(distance).scatter_(0, distance.argmin(0, keepdim=True), 1)
        else:
            weight = (-(centers[index] - points.T).square().sum(2)).softmax(0)
        dense = torch.zeros(regions, points.shape[1], dtype=torch.double).scatter_add_(0, index, weight)
        mass = dense.sum(1)
        full = mass >= 1e-12
        centers[full] = (dense @ points.T)[full] / mass[full, None]
        positions = centers[:, 3:] / position
    return centers


@pytest.mark.parametrize(("size", "regions", "candidates", "side"), CASES)
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_slic(size, regions, candidates, side, iterations):
    lab = photo(size)
    seeds = torch.randperm(size[0] * size[1])[:regions]
    position = 2.0 * (regions / (size[0] * size[1])) ** 0.5
    out = fast.slic(lab, seeds, position, candidates, side, iterations)
    expected = soft_k_means(lab, seeds, position, min(candidates, regions), side, iterations)
    error = (out.double() - expected).abs()
    # Weights to 4e-6, three times. The last of a list may be another one where two are equally far up to rounding
    # (centres in float32 here, in float64 there): such a centre has a small weight, in one block.
    assert error.max() < 1e-3
    assert (error > 5e-5).sum() <= 1


@pytest.mark.parametrize(("size", "regions", "candidates", "side"), CASES)
@pytest.mark.parametrize("threshold", [1e-3, 0.0, 0.4])
def test_assign_and_labels(size, regions, candidates, side, threshold):
    lab, position, candidates = photo(size), 0.3, min(candidates, regions)
    centers = features(lab, position)[:, torch.randperm(size[0] * size[1])[:regions]].T.float()
    centers[0, 0] += 100  # far from everything
    weight, index = fast.assign(lab, centers, position, candidates, side, threshold)
    assert weight.shape == index.shape == (candidates, size[0] * size[1])
    list_ = listed(centers[:, 3:] / position, size, side, candidates)
    assert torch.equal(index.long(), list_)
    expected = soft_assign_reference(features(lab, position)[None], centers.double()[None], list_[None], threshold)[0]
    torch.testing.assert_close(weight.double(), expected, rtol=0, atol=3e-5)
    assert torch.equal((weight > 0).sum(0) > 0, torch.ones(size[0] * size[1], dtype=torch.bool))
    strongest = index.gather(0, weight.argmax(0, keepdim=True)).view(size)
    assert torch.equal(fast.labels(lab, centers, position, candidates, side), strongest)


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 4, 8])
def test_kept_entries_are_the_largest(keep, side):
    lab = photo((30, 41)) * 0.3
    centers = features(lab, 0.3)[:, torch.randperm(30 * 41)[:60]].T.float()
    weight, index = fast.assign(lab, centers, 0.3, 6, side)
    kept, kept_index = fast.assign(lab, centers, 0.3, 6, side, keep=keep)
    assert kept.shape == (keep, 30 * 41)
    assert all(len(set(column)) == keep for column in kept_index.T.tolist())
    largest = torch.zeros_like(weight).scatter(0, (order := weight.topk(keep, 0).indices), weight.gather(0, order))
    expected = torch.zeros(60, 30 * 41).scatter_add_(0, index.long(), largest / largest.sum(0))
    dense = torch.zeros(60, 30 * 41).scatter_add_(0, kept_index.long(), kept)
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-6)


def test_constant_photo_is_cut_by_position():
    lab = torch.zeros(3, 16, 16)
    seeds = torch.tensor([3 * 16 + 3, 3 * 16 + 11, 11 * 16 + 3, 11 * 16 + 11])
    centers = fast.slic(lab, seeds, 0.5, 4, 8, 5)
    labels = fast.labels(lab, centers, 0.5, 4, 8)
    assert labels.unique(return_counts=True)[1].tolist() == [64] * 4


def test_nan_gives_an_answer():
    lab = torch.full((3, 9, 9), torch.nan)
    centers = fast.slic(lab, torch.tensor([0, 40]), 0.5, 2, 4, 3)
    labels = fast.labels(lab, centers, 0.5, 2, 4)
    assert labels.min() >= 0 and labels.max() < 2


def test_errors():
    lab = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match=r"\[0, 16\)"):
        fast.slic(lab, torch.tensor([16]), 1.0, 1, 1, 1)
    with pytest.raises(ValueError, match="iterations"):
        fast.slic(lab, torch.tensor([1]), 1.0, 1, 1, 0)
    with pytest.raises(ValueError, match="threshold"):
        fast.assign(lab, torch.zeros(1, 5), 1.0, 1, 1, 1.0)
    with pytest.raises(ValueError, match="at least one region"):
        fast.labels(lab, torch.zeros(0, 5), 1.0, 1, 1)
    with pytest.raises(ValueError, match="keep"):
        fast.assign(lab, torch.zeros(1, 5), 1.0, 1, 1, keep=0)


@pytest.mark.parametrize("pixels", [0, 1, 5000])
def test_strongest_and_give(pixels):
    weight, index = torch.rand(3, pixels).mul_(4).round_(), torch.randint(9, (3, pixels), dtype=torch.int32)
    before = index.gather(0, weight.argmax(0, keepdim=True))[0]
    assert torch.equal(fast.strongest(weight, index), before)
    after = torch.where(torch.rand(pixels) < 0.3, torch.randint(9, (pixels,), dtype=torch.int32), before)
    moved = before != after
    expected, numbers = weight.clone(), index.clone()
    expected[:, moved] = torch.tensor([1.0, 0, 0])[:, None]
    numbers[0, moved] = after[moved]
    fast.give(weight, index, before, after)
    assert torch.equal(weight, expected) and torch.equal(index, numbers)
    with pytest.raises(ValueError, match="at least one entry"):
        fast.give(weight[:0], index[:0], before, after)
