"""The unity head against Sec. 4.1 written out: embeddings, centroids, differences, sigmoids, minima."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hggraph.nn import UnityHead

close = {"rtol": 1e-10, "atol": 1e-10}


def made(levels=3, **options):
    torch.manual_seed(0)
    head = UnityHead(6, levels, channels=5, **options).double()
    for part in head.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight)
    nn.init.constant_(head.unity.bias, 0.7)
    return head


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("shared", [True, False])
def test_as_written_in_the_paper(shared):
    head, x = made(shared=shared), double(2, 6, 8, 12)
    assert (head.centroid is None) == shared
    of_centroids = head.pixel if shared else head.centroid
    found = head(x)
    assert len(found) == 2
    embedded = head.embed(x)
    for level, cell in zip(found, (4, 2), strict=True):
        centroids = of_centroids(F.avg_pool2d(embedded, cell))
        difference = head.pixel(embedded) - F.interpolate(centroids, scale_factor=cell, mode="nearest")
        probability = head.unity(difference).sigmoid()[:, 0]
        assert level.shape == (2, 8 // cell, 12 // cell)
        for b in range(2):
            for i in range(8 // cell):
                for j in range(12 // cell):
                    least = probability[b, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].min()
                    torch.testing.assert_close(level[b, i, j].sigmoid(), least, **close)


def test_biases_would_cancel():
    """In the shared convolutions; that is why there are none."""
    head, x = made(), double(1, 6, 4, 4)
    embedded = head.embed(x) + double(1, 5, 1, 1)
    shift = double(1, 5, 1, 1)
    for level, cell in zip(head(x), (4, 2), strict=True):
        centroids = head.pixel(F.avg_pool2d(embedded, cell)) + shift
        difference = head.pixel(embedded) + shift - F.interpolate(centroids, scale_factor=cell, mode="nearest")
        torch.testing.assert_close(level, -F.max_pool2d(-head.unity(difference), cell)[:, 0], **close)


def test_published_size():
    """[arith] of 720 channels, embeddings of 64: 54.5 thousand parameters with two inner layers."""
    with torch.device("meta"):
        assert sum(p.numel() for p in UnityHead(720, shared=False).parameters()) == 720 * 64 + 2 * 64 * 64 + 65
        assert sum(p.numel() for p in UnityHead(720).parameters()) == 720 * 64 + 64 * 64 + 65


@pytest.mark.parametrize("shared", [True, False])
def test_gradients(shared):
    head = made(shared=shared)
    x = double(2, 6, 4, 8).requires_grad_()
    inputs = (x, *head.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: tuple(head(x)), inputs, fast_mode=True)


def test_batches_layouts_and_levels():
    head, x = made(), double(3, 6, 8, 4)
    one_by_one = [torch.cat(parts) for parts in zip(*(head(image[None]) for image in x), strict=True)]
    for same in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(head(same), one_by_one, **close)
    assert [u.shape for u in head(x[:0])] == [(0, 2, 1), (0, 4, 2)]
    assert made(1)(x) == []


def test_autocast_differs_by_the_rounding_of_the_projection():
    head, x = made().float(), torch.randn(2, 6, 16, 16) + 20  # means far from 0: only a float32 difference is exact
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x)
        z = F.conv2d(x, head.weight()).float()
    for u, cell in zip(found, (4, 2), strict=True):
        assert u.dtype == torch.float32
        want = -F.max_pool2d(-z, cell) - F.avg_pool2d(z, cell) + head.unity.bias
        torch.testing.assert_close(u, want[:, 0], rtol=1e-5, atol=1e-4)  # of float32 sums of values of 100


def test_compiled_and_exported():
    head, x = made(), double(2, 6, 8, 12)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), head(x), **close)
        torch.testing.assert_close(torch.export.export(head, (x,)).module()(x), head(x), **close)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnityHead(0), "`in_channels` must be a whole number >= 1, got 0"),
        (lambda: UnityHead(8, 0), "`levels` must be a whole number >= 1, got 0"),
        (lambda: UnityHead(8, channels=0), "`channels` must be a whole number >= 1, got 0"),
        (lambda: UnityHead(8)(torch.rand(1, 6, 8, 8)), r"`x` must have 8 channels, got shape \(1, 6, 8, 8\)"),
        (
            lambda: UnityHead(8)(torch.rand(1, 8, 8, 12)),
            r"sides divisible by 8, .* 4 levels .* got shape \(1, 8, 8, 12\)",
        ),
        (lambda: UnityHead(8)(torch.rand(1, 8, 0, 8)), "at least one channel and one pixel"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
