"""Means, sums and raw borders of the fast path against dense matrices in float64."""

import pytest
import torch

from hggraph.ops import fast
from hggraph.ops._region_pairs import RegionPairs
from hggraph.ops.region_adjacency import opposite_pairs
from hggraph.ops.region_edges import edges_of_pairs

pytest.importorskip("numba")

SQUARE = [(-1, -1), (-1, 0), (-1, 1), (0, -1)]
WIDE = [(-3, 0), (0, 3), (-3, 3), (2, 5)]
SIZES = [(1, 1), (1, 33), (40, 1), (9, 11), (35, 50)]


def shifted_products(dense, size, offsets):
    """Return ``S Shift_k S^T`` of S ``(R, P)``, diagonals 0, shape (K / 2, R, R)."""
    dense = dense.double().unflatten(1, size)
    out = []
    for dy, dx in offsets:
        moved = torch.zeros_like(dense)
        for y in range(size[0]):
            for x in range(size[1]):
                if 0 <= y + dy < size[0] and 0 <= x + dx < size[1]:
                    moved[:, y, x] = dense[:, y + dy, x + dx]
        product = dense.flatten(1) @ moved.flatten(1).T
        out.append(product - product.diag().diag())
    return torch.stack(out)


def one_hot(labels, regions):
    return torch.nn.functional.one_hot(labels.long().flatten(), regions).T.double()


def check(edges, expected, tolerance):
    low, high, forward, backward = edges
    regions = expected.shape[1]
    touching = (expected + expected.mT).sum(0).triu(1)
    assert torch.equal(torch.stack([low, high]), torch.stack((touching > 0).nonzero(as_tuple=True)))
    made = torch.zeros(forward.shape[1], regions, regions, dtype=torch.double)
    made[:, low, high] = forward.T.double()
    made[:, high, low] = backward.T.double()
    torch.testing.assert_close(made, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offsets", [SQUARE, WIDE])
@pytest.mark.parametrize("kind", ["noise", "stripes", "one"])
def test_edges_of_labels(size, offsets, kind):
    labels = torch.randint(6, size)
    if kind == "stripes":
        labels = (torch.arange(size[1]) // 5 % 6).expand(size)
    elif kind == "one":
        labels = torch.zeros(size, dtype=torch.int32)
    check(fast.edges_of_labels(labels, 6, offsets), shifted_products(one_hot(labels, 6), size, offsets), 0)


def weights(size, regions, entries, kind):
    pixels = size[0] * size[1]
    index = torch.rand(pixels, regions).argsort(1)[:, :entries].T.int()
    if kind == "blocks":  # one list for 8 x 8 pixels, with a few pixels that have another
        y, x = torch.meshgrid(torch.arange(size[0]) // 8, torch.arange(size[1]) // 8, indexing="ij")
        first = (y * size[1] + x).flatten()
        index = torch.where(torch.rand(pixels) < 0.05, index, index[:, first])
    weight = torch.rand(entries, pixels) * (torch.rand(entries, pixels) < 0.5)
    dense = torch.zeros(regions, pixels).scatter_add_(0, index.long(), weight)
    return weight, index, dense


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offsets", [SQUARE, WIDE])
@pytest.mark.parametrize(("regions", "kind"), [(5, "noise"), (5, "blocks"), (70, "noise"), (1, "noise")])
def test_edges_of_weights(size, offsets, regions, kind):
    weight, index, dense = weights(size, regions, min(regions, 4), kind)
    edges = fast.edges_of_weights(weight, index, size, regions, offsets)
    check(edges, shifted_products(dense, size, offsets), 1e-5)  # float32 sums of a tile


def test_without_offsets_there_is_no_edge():
    low, high, forward, backward = fast.edges_of_labels(torch.tensor([[0, 1]]), 2, [])
    assert low.shape == high.shape == (0,) and forward.shape == backward.shape == (0, 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [0, 1, 3, 7])
def test_pool_labels(size, channels):
    x, labels = torch.randn(channels, *size), torch.randint(4, size)
    means, positions, area = fast.pool_labels(x, labels, 6)  # two regions without pixels
    dense = one_hot(labels, 6)
    count = dense.sum(1)
    y, column = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    place = torch.stack([y.flatten(), column.flatten()], 1)
    assert torch.equal(area.double(), count)
    divisor = count.clamp(min=1)[:, None]
    torch.testing.assert_close(means.double(), dense @ x.double().flatten(1).T / divisor, rtol=0, atol=1e-5)
    torch.testing.assert_close(positions.double(), dense @ place / divisor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["noise", "blocks"])
@pytest.mark.parametrize("channels", [0, 3])
def test_pool(size, kind, channels):
    weight, index, dense = weights(size, 9, 3, kind)
    x = torch.randn(channels, size[0] * size[1])
    sums, mass = fast.pool(x, weight, index, 9)
    torch.testing.assert_close(sums.double(), dense.double() @ x.double().T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(mass.double(), dense.double().sum(1), rtol=1e-5, atol=1e-5)
    placed, again = fast.pool(x, weight, index, 9, size)
    y, column = (axis.flatten().double() for axis in torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    place = torch.stack([*x.double(), y, column])
    torch.testing.assert_close(placed.double(), dense.double() @ place.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(again, mass, rtol=1e-5, atol=1e-5)


def test_sums_of_many_pixels_are_exact():
    labels, x = torch.zeros(2000, 3000, dtype=torch.int32), torch.full((1, 2000, 3000), 0.1)
    means, positions, area = fast.pool_labels(x, labels, 1)
    torch.testing.assert_close(means, torch.tensor([[0.1]]), rtol=1e-5, atol=0)
    assert positions.tolist() == [[999.5, 1499.5]] and area.item() == 6e6


def test_errors():
    labels = torch.tensor([[0, 3]])
    for call in (
        lambda: fast.edges_of_labels(labels, 3, SQUARE),
        lambda: fast.pool_labels(torch.zeros(1, 1, 2), labels, 3),
        lambda: fast.edges_of_weights(torch.zeros(1, 2), labels, (1, 2), 3, SQUARE),
        lambda: fast.pool(torch.zeros(1, 2), torch.zeros(1, 2), labels, 3),
    ):
        with pytest.raises(ValueError, match=r"\[0, 3\)"):
            call()
    with pytest.raises(ValueError, match="size"):
        fast.edges_of_weights(torch.zeros(1, 2), torch.zeros(1, 2), (2, 2), 1, SQUARE)
    with pytest.raises(ValueError, match="displacements"):
        fast.edges_of_labels(labels, 4, [(0, 0)])


@pytest.mark.parametrize("noise_cancel", [True, False])
@pytest.mark.parametrize("max_direction", [True, False])
@pytest.mark.parametrize("offsets", [[(0, -1), (0, 0), (-1, 0), (0, 1)], [(1, 1), (-2, 0)]])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_clean_edges(noise_cancel, max_direction, offsets, count):
    flat = [value for offset in offsets for value in offset]
    half = len(opposite_pairs(flat))
    pair = torch.combinations(torch.arange(20)).to(torch.long)[torch.randperm(190)[:count].sort()[0]]
    forward, backward = torch.randint(4, (2, count, half)).float()  # with ties and zeros
    forward[: count // 3] *= 1e-8
    parts = (flat, 20, noise_cancel, max_direction)
    out = edges_of_pairs(RegionPairs(*pair.T, forward, backward), *parts)
    expected = edges_of_pairs(RegionPairs(*pair.T, forward.requires_grad_(), backward), *parts)  # in PyTorch
    assert torch.equal(out[0], expected[0]) and torch.equal(out[1], expected[1])
    torch.testing.assert_close(out[2], expected[2].detach(), rtol=0, atol=0)
