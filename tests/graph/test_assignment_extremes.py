"""Assignments with empty regions, in half precision, and without uninitialised memory."""

import pytest
import torch
from torch.testing import assert_close

from hggraph import Assignment
from hggraph.cluster import soft_slic


def with_empty_region(index=False):
    """Return an assignment of 2 x 3 pixels whose last of three regions is empty, its weights, and a map."""
    features = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[[1.0, 0.5, 0, 0, 0.25, 1], [0, 0.5, 1, 1, 0.75, 0], [0] * 6]])
    weight = (weight[:, :2] if index else weight).double().requires_grad_()
    regions = torch.arange(2).view(1, 2, 1).expand(1, 2, 6) if index else None
    seeds = torch.tensor([[0, 2, 4]])
    return Assignment(weight, (2, 3), index=regions, num_regions=3, seeds=seeds), weight, features


@pytest.mark.parametrize("index", [False, True])
def test_empty_region_pools_to_its_seed(index):
    """In whatever map, and at no cost but a gather of R pixels."""
    assignment, weight, features = with_empty_region(index)
    pooled = assignment.pool(features)
    assert torch.equal(pooled[0, 2], features[0, :, 1, 1])
    mass = weight[:, :2].sum(2, keepdim=True)
    means = weight[:, :2] @ features.flatten(2).transpose(1, 2) / mass
    assert_close(pooled[:, :2], means, rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(pooled[0, 2].sum(), features)
    assert grad[0, :, 1, 1].tolist() == [1, 1] and grad.sum() == 2


@pytest.mark.parametrize("index", [False, True])
def test_empty_region_without_seeds_pools_to_zero(index):
    assignment, weight, features = with_empty_region(index)
    pooled = Assignment(weight, (2, 3), index=assignment.index, num_regions=3).pool(features)
    assert not pooled[:, 2].any()
    pooled.sum().backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("index", [False, True])
def test_empty_region_in_gradients(index):
    """Nothing vanishes and nothing becomes NaN on the way back."""
    assignment, weight, features = with_empty_region(index)
    pooled = assignment.pool(features)
    grad_weight, grad_map = torch.autograd.grad(pooled, (weight, features), torch.randn_like(pooled))
    assert torch.isfinite(grad_weight).all() and torch.isfinite(grad_map).all()
    assert index or not grad_weight[:, 2].any()
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
    assert pooled.flatten().tolist() == [0, 0, 100]  # the emptied region is back at its seed, the pixel 4
    assert torch.equal(pooled, assignment.centers)
    (grad,) = torch.autograd.grad(pooled[0, 1, 0], x, retain_graph=True)
    assert grad.flatten().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    other = assignment.pool(torch.arange(9.0).double().view(1, 1, 1, 9))
    assert other.flatten().tolist() == [2, 4, 6.5]
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
