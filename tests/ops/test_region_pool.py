"""Pooling and unpooling, against loops, and as each other's adjoints up to the normalisers."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hggraph.ops import region_pool, region_unpool
from hggraph.ops.region_pool import region_pool_reference
from hggraph.ops.region_unpool import region_unpool_reference

close = {"rtol": 1e-10, "atol": 1e-10}
both = pytest.mark.parametrize("pool", [True, False], ids=["pool", "unpool"])


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def soft(batch, regions, pixels):
    return double(batch, regions, pixels).softmax(1)


def pool_loop(x, assignment):
    out = torch.zeros(x.shape[0], assignment.shape[1], x.shape[1], dtype=torch.float64)
    for b in range(x.shape[0]):
        for r in range(assignment.shape[1]):
            mass = sum(assignment[b, r].tolist())
            for c in range(x.shape[1]):
                total = sum(s * v for s, v in zip(assignment[b, r].tolist(), x[b, c].tolist(), strict=True))
                out[b, r, c] = total / mass if mass > 0 else 0.0
    return out


def unpool_loop(z, assignment):
    out = torch.zeros(z.shape[0], z.shape[2], assignment.shape[2], dtype=torch.float64)
    for b in range(z.shape[0]):
        for p in range(assignment.shape[2]):
            for r in range(z.shape[1]):
                out[b, :, p] += float(assignment[b, r, p]) * z[b, r]
    return out


@settings(max_examples=40)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 4)],
    *[st.integers(1, 4), st.integers(0, 6)],
)
@example(0, 3, 4, 4, 6)  # nothing small
def test_loop(seed, batch, channels, regions, pixels):
    torch.manual_seed(seed)
    x, z = double(batch, channels, pixels), double(batch, regions, channels)
    assignment = soft(batch, regions, pixels)
    assignment[:, 0] = 0  # a region without pixels
    pooled = region_pool(x, assignment)
    torch.testing.assert_close(pooled, pool_loop(x, assignment), **close)
    torch.testing.assert_close(region_pool_reference(x, assignment, None, regions), pooled, **close)
    assert not pooled[:, 0].any()
    unpooled = region_unpool(z, assignment)
    torch.testing.assert_close(unpooled, unpool_loop(z, assignment), **close)
    torch.testing.assert_close(region_unpool_reference(z, assignment, None), unpooled, **close)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 8))
def test_adjoint(seed, regions, pixels):
    """Pooling times mass is the adjoint of unpooling: <mass * pool(x), z> = <x, unpool(z)>."""
    torch.manual_seed(seed)
    x, z, assignment = double(2, 3, pixels), double(2, regions, 3), soft(2, regions, pixels)
    mass = assignment.sum(2, keepdim=True)
    left = (mass * region_pool(x, assignment) * z).sum()
    torch.testing.assert_close(left, (x * region_unpool(z, assignment)).sum(), **close)
    leaf = z.requires_grad_()
    (grad,) = torch.autograd.grad(region_unpool(leaf, assignment), leaf, x)
    torch.testing.assert_close(grad, mass * region_pool(x, assignment), **close)


def test_hard():
    """Without shared pixels pooling is a mean per label, and undoes unpooling."""
    labels = torch.tensor([0, 2, 2, 0, 1, 2])
    assignment = (labels == torch.arange(3)[:, None]).double()[None]
    x, z = double(1, 4, 6), double(1, 3, 4)
    expected = torch.stack([x[0, :, labels == r].mean(1) for r in range(3)])[None]
    torch.testing.assert_close(region_pool(x, assignment), expected, **close)
    torch.testing.assert_close(region_unpool(z, assignment), z[:, labels].mT, **close)
    torch.testing.assert_close(region_pool(region_unpool(z, assignment), assignment), z, **close)


def test_constant():
    """A constant survives both, whatever the weights."""
    one = torch.ones(1, 4, 6, dtype=torch.float64)
    pooled = region_pool(one, soft(1, 3, 6))
    torch.testing.assert_close(pooled, torch.ones_like(pooled), **close)
    torch.testing.assert_close(region_unpool(pooled, soft(1, 3, 6)), one, **close)


@both
def test_layouts(agree_everywhere, pool):
    assignment = torch.rand(2, 4, 6, dtype=torch.float64)
    if pool:
        assignment[1, 2] = 0
        agree_everywhere(region_pool, region_pool_reference, double(2, 3, 6), assignment, None, 4)
    else:
        agree_everywhere(region_unpool, region_unpool_reference, double(2, 4, 3), assignment, None)


def entries(batch, some, regions, pixels):
    """Return weights and regions of `some` entries a pixel, the last region never, others twice in a pixel."""
    index = torch.randint(max(1, regions - 1), (batch, some, pixels))
    return torch.rand(batch, some, pixels, dtype=torch.float64), index


@settings(max_examples=40)
@given(
    *[st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 4), st.integers(1, 4)],
    *[st.integers(1, 5), st.integers(0, 6)],
)
@example(0, 2, 3, 3, 5, 6)  # nothing small
@example(0, 2, 40, 3, 5, 6)  # more channels than are added one by one
def test_index(agree, seed, batch, channels, some, regions, pixels):
    """With an index it is the same on the weights as matrices, and masses too."""
    torch.manual_seed(seed)
    weight, index = entries(batch, some, regions, pixels)
    dense = torch.zeros(batch, regions, pixels, dtype=torch.float64)
    for t in range(some):
        for b in range(batch):
            for p in range(pixels):
                dense[b, index[b, t, p], p] += weight[b, t, p]
    x, z = double(batch, channels, pixels), double(batch, regions, channels)
    pooled, mass = region_pool(x, weight, index.int(), regions, return_mass=True)
    torch.testing.assert_close(pooled, pool_loop(x, dense), **close)
    torch.testing.assert_close(mass, dense.sum(2), **close)
    torch.testing.assert_close(region_unpool(z, weight, index), unpool_loop(z, dense), **close)
    agree(region_pool, region_pool_reference, x, weight, index, regions)
    agree(region_unpool, region_unpool_reference, z, weight, index)


@both
def test_index_layouts(agree_everywhere, pool):
    weight, index = entries(2, 3, 4, 6)
    if pool:
        agree_everywhere(region_pool, region_pool_reference, double(2, 3, 6), weight, index, 4)
    else:
        agree_everywhere(region_unpool, region_unpool_reference, double(2, 4, 3), weight, index)


@pytest.mark.parametrize("some", [None, 2])
def test_gradcheck_of_masses(some):
    weight, index = entries(2, 2, 3, 4)
    weight = weight if some else torch.rand(2, 3, 4, dtype=torch.float64)
    leaves = double(2, 2, 4).requires_grad_(), weight.add_(0.1).requires_grad_()

    def pooled(x, weight):
        return region_pool(x, weight, index if some else None, 3, return_mass=True)

    assert torch.autograd.gradcheck(pooled, leaves)


@pytest.mark.parametrize("channels", [3, 40])
def test_index_of_float32(channels):
    """Against float64 on a large map, whatever runs it; twice the same bits."""
    weight, index = entries(2, 5, 70, 900)
    x = double(2, channels, 900)
    expected, mass = region_pool(x, weight, index, 70, return_mass=True)
    for _ in range(2):
        actual, area = region_pool(x.float(), weight.float(), index.int(), 70, return_mass=True)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)  # sums of 60 float32
        torch.testing.assert_close(area.double(), mass, rtol=1e-5, atol=1e-5)
    again = region_pool(x.float(), weight.float(), index.int(), 70)
    assert torch.equal(actual, again)


@both
def test_gradcheck(pool):
    """In the assignment too, at weights that are not normalised: nothing is assumed about them."""
    assignment = (torch.rand(2, 3, 4, dtype=torch.float64) + 0.1).requires_grad_()
    features = (double(2, 2, 4) if pool else double(2, 3, 2)).requires_grad_()
    assert torch.autograd.gradcheck(region_pool if pool else region_unpool, (features, assignment))


def test_no_pixels():
    """A region without pixels gives 0 and takes no part in the gradients."""
    x = double(1, 2, 5).requires_grad_()
    assignment = torch.zeros(1, 3, 5, dtype=torch.float64)
    assignment[0, 0], assignment[0, 2, 0] = 1.0, 1e-300
    assignment.requires_grad_()
    out = region_pool(x, assignment)
    assert out[0, 1].tolist() == [0, 0]
    torch.testing.assert_close(out[0, 2], x[0, :, 0], **close)
    grads = torch.autograd.grad(out[:, 1], (x, assignment), double(1, 2))
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@both
def test_half(near_float32, dtype, autocast, pool):
    """Also with half features, as a convolution leaves them, and the float32 of soft_assign."""
    assignment = torch.randn(2, 4, 30).softmax(1)
    features = torch.randn(2, 3, 30) if pool else torch.randn(2, 4, 3)
    function = region_pool if pool else region_unpool
    near_float32(function, dtype, features, assignment, autocast=autocast)
    near_float32(lambda f: function(f, assignment), dtype, features, autocast=autocast)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_sum(dtype):
    """A region of 20000 pixels: their sum is no float16, their mean is."""
    x = torch.full((1, 1, 20000), 10.0, dtype=dtype, requires_grad=True)
    assignment = torch.ones(1, 1, 20000, requires_grad=True)
    out = region_pool(x, assignment)
    assert out.dtype == dtype
    assert out.item() == 10
    grads = torch.autograd.grad(out, (x, assignment), torch.full_like(out, 16.0))
    assert [g.dtype for g in grads] == [dtype, torch.float32]
    torch.testing.assert_close(grads[0], torch.full_like(x, 16 / 20000))
    torch.testing.assert_close(grads[1], torch.zeros_like(assignment), rtol=0, atol=1e-8)


@both
def test_batch(pool):
    """A batch is its items, and NaN in one stays there."""
    features, assignment = double(3, 2, 5) if pool else double(3, 4, 2), soft(3, 4, 5)
    function = region_pool if pool else region_unpool
    alone = [function(features[b : b + 1], assignment[b : b + 1])[0] for b in range(3)]
    torch.testing.assert_close(function(features, assignment), torch.stack(alone), **close)
    features[1] = float("nan")
    out = function(features.requires_grad_(), assignment.requires_grad_())
    torch.testing.assert_close(out[::2], torch.stack(alone[::2]), **close)
    grads = torch.autograd.grad(out, (features, assignment), torch.randn_like(out))
    assert all(g[::2].isfinite().all() for g in grads)


@pytest.mark.parametrize(("batch", "channels", "pixels"), [(0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 1, 1)])
@both
def test_little(batch, channels, pixels, pool):
    features = double(batch, channels, pixels) if pool else double(batch, 2, channels)
    leaves = features.requires_grad_(), soft(batch, 2, pixels).requires_grad_()
    out = (region_pool if pool else region_unpool)(*leaves)
    assert out.shape == ((batch, 2, channels) if pool else (batch, channels, pixels))
    assert [g.shape for g in torch.autograd.grad(out.sum(), leaves)] == [t.shape for t in leaves]


@pytest.mark.parametrize(
    ("function", "features", "assignment", "message"),
    [
        (region_pool, (2, 3), (2, 4, 5), "`x` must have shape"),
        (region_pool, (2, 3, 5), (2, 5), "`assignment` must have shape"),
        (region_pool, (2, 3, 5), (2, 4, 6), "same number of images and of pixels"),
        (region_pool, (2, 3, 5), (1, 4, 5), "same number of images and of pixels"),
        (region_unpool, (2, 4), (2, 4, 5), "`z` must have shape"),
        (region_unpool, (), (2, 4, 5), "`z` must have shape"),
        (region_unpool, (2, 3, 2), (2, 4, 5), r"`z` must have shape \(B, R, C\) = \(2, 4"),
        (region_unpool, (1, 4, 2), (2, 4, 5), r"`z` must have shape \(B, R, C\) = \(2, 4"),
        (region_unpool, (2, 4, 2), (4, 5), "`assignment` must have shape"),
    ],
)
def test_errors(function, features, assignment, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(features), torch.zeros(assignment))


@pytest.mark.parametrize(
    ("index", "num_regions", "message"),
    [
        (torch.zeros(2, 3, 5).long(), None, "`num_regions` must be given"),
        (torch.zeros(2, 2, 5).long(), 4, r"shape of the weights, \(2, 3, 5\)"),
        (torch.full((2, 3, 5), 4), 4, r"`index` must be in \[0, 4\)"),
        (torch.full((2, 3, 5), -1).int(), 4, r"`index` must be in \[0, 4\)"),
    ],
)
def test_index_errors(index, num_regions, message):
    x, weight = torch.zeros(2, 1, 5), torch.ones(2, 3, 5)
    with pytest.raises(ValueError, match=message):
        region_pool(x, weight, index, num_regions)
    if num_regions is not None:
        with pytest.raises(ValueError, match=message):
            region_unpool(torch.zeros(2, num_regions, 1), weight, index)
