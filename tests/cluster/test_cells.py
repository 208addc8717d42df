"""Clusterers that are controls, by loops."""

import numpy as np
import pytest
import torch

from hggraph.cluster import Cells, Superpixels, Voronoi


@pytest.mark.parametrize(("size", "side"), [((4, 6), 2), ((5, 7), 3), ((1, 1), 2), ((3, 3), 1)])
def test_cells(size, side):
    x = torch.randn(2, 3, *size, requires_grad=True)
    layer = Cells(side)
    out = layer(x)
    rows, columns = (-(-length // side) for length in size)
    assert out.grid == (rows, columns) and out.num_regions == rows * columns and out.is_hard
    labels = [[(i // side) * columns + j // side for j in range(size[1])] for i in range(size[0])]
    assert out.labels.tolist() == [labels] * 2
    torch.testing.assert_close(
        out.pool(x), torch.nn.functional.avg_pool2d(x, side, ceil_mode=True).flatten(2).mT, atol=1e-6, rtol=1e-5
    )
    assert layer.downsample == side**2 and layer.num_regions is None and "side=" in repr(layer)


@pytest.mark.parametrize(("size", "regions"), [((9, 8), 7), ((1, 30), 5), ((4, 4), 16), ((6, 5), 1)])
@pytest.mark.parametrize("training", [True, False])
def test_voronoi(size, regions, training):
    """Each pixel belongs to the nearest seed, of equally near ones the first; every region has pixels."""
    out = Voronoi(num_regions=regions).train(training)(torch.randn(2, 3, *size))
    assert out.num_regions == regions and out.is_hard and out.grid is None and (out.area > 0).all()
    for labels, seeds in zip(out.labels.tolist(), out.seeds.tolist(), strict=True):
        assert len(set(seeds)) == regions
        for y in range(size[0]):
            for x in range(size[1]):
                gaps = [(y - seed // size[1]) ** 2 + (x - seed % size[1]) ** 2 for seed in seeds]
                assert labels[y][x] == gaps.index(min(gaps))


def test_voronoi_is_drawn_anew_in_training_only():
    x, layer = torch.randn(2, 3, 12, 12), Voronoi(4)
    first = layer(x)
    assert first.num_regions == 36 and layer.downsample == 4 and layer.num_regions is None
    assert not torch.equal(first.seeds, layer(x).seeds) and not torch.equal(first.seeds[0], first.seeds[1])
    layer.eval()
    assert torch.equal(layer(x).seeds, layer(x).seeds) and torch.equal(layer(x).seeds[:1], layer(x[1:]).seeds)


def test_superpixels():
    """Any labels, numbered anew in their order; missing ones are empty regions; no gradient."""
    seen = []

    def stripes(image, regions):
        seen.append((image.shape, image.dtype, regions))
        return (np.arange(image.shape[1]) // 2 * 5 + 1)[None].repeat(image.shape[0], 0)

    x = torch.randn(2, 3, 4, 6, requires_grad=True)
    out = Superpixels(stripes, 4)(x)
    assert seen == [((4, 6, 3), np.float32, 6)] * 2
    assert out.labels[1].tolist() == [[0, 0, 1, 1, 2, 2]] * 4
    assert out.area.tolist() == [[8, 8, 8, 0, 0, 0]] * 2
    assert out.pool(x)[:, 3:].abs().sum() == 0 and out.seeds is None and out.grid is None
    assert not out.weight.requires_grad
    Superpixels(stripes, num_regions=3)(x.double().permute(0, 1, 3, 2))
    assert seen[-1] == ((6, 4, 3), np.float64, 3)
    assert Superpixels(stripes)(x.bfloat16()).num_regions == 6
    values = []
    Superpixels(lambda image, n: values.append(image) or stripes(image, n))(x)
    assert np.array_equal(values[1][2, 5], x[1, :, 2, 5].detach().numpy())


def test_superpixels_of_scikit_image():
    segmentation = pytest.importorskip("skimage.segmentation")
    layer = Superpixels(lambda image, n: segmentation.slic(image, n, channel_axis=-1), num_regions=40)
    x = torch.rand(1, 3, 30, 30)
    labels = segmentation.slic(x[0].permute(1, 2, 0).numpy(), 40, channel_axis=-1)  # from 1
    assert torch.equal(layer(x).labels[0], torch.from_numpy(labels - 1))


@pytest.mark.parametrize("layer", [Cells(), Voronoi(), Superpixels(lambda image, n: np.zeros((4, 4), int))])
def test_attention_is_refused(layer):
    with pytest.raises(ValueError, match="cannot follow `attention`"):
        layer(torch.randn(1, 3, 4, 4), torch.rand(1, 4, 4))
    with pytest.raises(ValueError, match="`x` must have shape"):
        layer(torch.randn(3, 4, 4))
    assert layer(torch.randn(0, 3, 4, 4)).batch_size == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Cells(0), ValueError, "`side` must be a whole number >= 1"),
        (lambda: Voronoi(0.5), ValueError, "`downsample` must be at least 1"),
        (lambda: Voronoi(num_regions=0), ValueError, "`num_regions` must be a whole number >= 1"),
        (lambda: Voronoi(num_regions=17)(torch.rand(1, 3, 4, 4)), ValueError, "at most the number of pixels"),
        (lambda: labelled(np.arange(16).reshape(4, 4)), ValueError, "at most the 4 labels asked for, got 16"),
        (lambda: labelled(np.zeros((4, 4))), TypeError, "must return integers, got float64"),
        (lambda: labelled(np.zeros((4, 5), int)), ValueError, r"labels of 4 x 4 pixels, got shape \(4, 5\)"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def labelled(labels):
    return Superpixels(lambda image, n: labels)(torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("layer", [Cells(2), Voronoi(4).eval()])
def test_compiles(layer):
    torch._dynamo.reset()
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(lambda x: layer(x).pool(x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x).pool(x))
