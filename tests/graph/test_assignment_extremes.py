"""Assignments with empty regions, in half precision, and without uninitialised memory."""

import pytest
import torch
from torch.testing import assert_close

from hggraph import Assignment
from hggraph.cluster import soft_slic


def with_empty_region(dtype=torch.float64):
    """Return an assignment of 2 x 3 pixels whose last of three regions is empty, and its parts."""
    features = torch.randn(1, 2, 2, 3, dtype=dtype)
    centers = torch.randn(1, 3, 2, dtype=dtype, requires_grad=True)
    weight = torch.tensor([[[1.0, 0.5, 0, 0, 0.25, 1], [0, 0.5, 1, 1, 0.75, 0], [0] * 6]])
    weight = weight.to(dtype).requires_grad_()
    assignment = Assignment(weight, (2, 3), features=features, centers=centers)
    return assignment, weight, features, centers


def test_empty_region_pools_to_its_last_centre():
    assignment, weight, features, centers = with_empty_region()
    pooled = assignment.pool(features)
    assert torch.equal(pooled[:, 2], centers[:, 2])
    mass = weight[:, :2].sum(2, keepdim=True)
    means = weight[:, :2] @ features.flatten(2).transpose(1, 2) / mass
    assert_close(pooled[:, :2], means, rtol=0, atol=1e-12)


def test_empty_region_in_another_map():
    """There it is the mean under the centre's soft membership, which the formula gives literally."""
    assignment, _, features, centers = with_empty_region()
    other = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    pooled = assignment.pool(other)
    closeness = [-(features[0, :, p // 3, p % 3] - centers[0, 2]).square().sum() for p in range(6)]
    membership = torch.stack(closeness).softmax(0)
    expected = other.flatten(2)[0] @ membership
    assert_close(pooled[0, 2], expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(expected)
    grads = torch.autograd.grad(pooled[0, 2], (other, centers), cotangent, retain_graph=True)
    assert_close(grads, torch.autograd.grad(expected, (other, centers), cotangent), rtol=1e-10, atol=1e-12)


def test_empty_region_without_centres_pools_to_zero():
    _, weight, features, _ = with_empty_region()
    pooled = Assignment(weight, (2, 3)).pool(features)
    assert not pooled[:, 2].any()
    pooled.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_empty_region_in_gradients():
    """Nothing vanishes and nothing becomes NaN on the way back."""
    assignment, weight, features, centers = with_empty_region()
    pooled = assignment.pool(features)
    grad_weight, grad_centers = torch.autograd.grad(pooled, (weight, centers), torch.randn_like(pooled))
    assert torch.isfinite(grad_weight).all() and not grad_weight[:, 2].any()
    assert grad_centers[:, 2].all() and not grad_centers[:, :2].any()
    adjacency = assignment.adjacency().to_dense()
    assert not adjacency[0, :4, 2].any() and not adjacency[0, :, :2, 2].any()
    assert adjacency[0, 4, 2].tolist() == [0, 0, 1]  # no neighbour but itself


@pytest.mark.parametrize("candidates", [None, 3, 2])
def test_region_that_clustering_empties(candidates):
    """The middle seed gathers a step, its mean 50 lies between, and every pixel prefers the others."""
    x = torch.tensor([0.0] * 5 + [100.0] * 4).double().view(1, 1, 1, 9).requires_grad_()
    seeds = torch.tensor([[0, 4, 8]])
    assignment = soft_slic(x, seeds, iterations=1, candidates=candidates)
    assert assignment.labels.tolist() == [[[0] * 5 + [2] * 4]]
    assert assignment.area.tolist() == [[5, 0, 4]]
    pooled = assignment.pool(x)
    assert pooled.flatten().tolist() == [0, 50, 100]
    # the last centre of the emptied region is the mean of the pixels 3 to 6 that began there
    (grad,) = torch.autograd.grad(pooled[0, 1, 0], x, retain_graph=True)
    assert grad.flatten().tolist() == [0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0]
    other = assignment.pool(torch.arange(9.0).double().view(1, 1, 1, 9))
    assert torch.isfinite(other).all()
    assert 0 <= other[0, 1, 0] <= 8
    (grad,) = torch.autograd.grad(pooled.sum() + other.sum(), x)
    assert torch.isfinite(grad).all()
    index, types, strengths = assignment.adjacency().to_edges()
    touching = (index == 1).any(0)
    assert index[:, touching].tolist() == [[1], [1]]
    assert types[touching].tolist() == [4] and strengths[touching].tolist() == [1]


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half(candidates, dtype, autocast):
    """Sums over a region leave the range of float16; means and their gradients do not."""
    x = (100 + torch.randn(1, 3, 64, 64)).to(dtype).requires_grad_()
    clustered = torch.randn(1, 2, 64, 64)
    assignment = soft_slic(clustered, torch.tensor([[0, 2080, 4095]]), candidates=candidates)
    reference = x.detach().float().requires_grad_()
    expected = assignment.pool(reference)
    with torch.autocast("cpu", dtype, enabled=autocast):
        pooled = assignment.pool(x)
        unpooled = assignment.unpool(pooled)
        fused = assignment.unpool_conv1x1(x, pooled, torch.full((2, 6), 0.1, dtype=dtype))
    assert pooled.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert_close(pooled.float(), expected, rtol=eps, atol=0)
    # every sum has weights that sum to one, so its error is some roundings of numbers near 100
    assert_close(unpooled.float(), assignment.unpool(expected), rtol=4 * eps, atol=0)
    weight = torch.full((2, 6), 0.1, dtype=dtype).float()
    both = assignment.unpool_conv1x1(reference, expected, weight)
    assert_close(fused.float(), both, rtol=4 * eps, atol=0)
    cotangent = torch.ones_like(pooled)
    (grad,) = torch.autograd.grad(pooled, x, cotangent, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected, reference, cotangent.float())
    assert_close(grad.float(), expected_grad, rtol=2 * eps, atol=1e-6)
    assert torch.isfinite(torch.autograd.grad(fused.float().sum(), x)[0]).all()


@pytest.mark.parametrize("candidates", [None, 4])
def test_batch_of_k_is_k_singles(candidates):
    x = torch.randn(3, 2, 7, 10, dtype=torch.float64)
    seeds = torch.rand(3, 70).argsort(1)[:, :6]
    z, weight = torch.randn(3, 6, 4).double(), torch.randn(5, 6).double()

    def run(b):
        assignment = soft_slic(x[b], seeds[b], candidates=candidates)
        pooled = assignment.pool(x[b])
        fused = assignment.unpool_conv1x1(x[b], z[b], weight)
        return [assignment.to_dense(), assignment.area, pooled, assignment.unpool(z[b]), fused]

    together = run(slice(None))
    for b in range(3):
        alone = run(slice(b, b + 1))
        for ours, theirs in zip(together, alone, strict=True):
            assert_close(ours[b : b + 1], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("candidates", [None, 3])
def test_area_looked_at_without_a_graph_has_a_gradient_later(candidates):
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assignment = soft_slic(x, torch.tensor([[0, 7, 19]]), candidates=candidates)
    with torch.no_grad():
        assignment.pool(x)
        before = assignment.area
    assert torch.equal(assignment.area, before)
    (grad,) = torch.autograd.grad(assignment.area[0, 0], x)
    assert grad.any()
