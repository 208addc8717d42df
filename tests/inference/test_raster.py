"""Rasters in windows equal whole arrays; georeference and what was there before survive."""

import numpy as np
import pytest
import rasterio
import torch
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from torch import nn

from hggraph.inference import _raster_source, windows
from hggraph.inference.predictor import Predictor
from hggraph.inference.raster import predict_raster
from tests.inference.rasters import PLACE, STATISTICS, network, normalised, pixels, read, write

# rasters without a georeference are written and read here on purpose
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.mark.parametrize(
    ("size", "window", "overlap"),
    [
        ((90, 130), 32, 12),
        ((70, 50), 48, 0),
        ((33, 700), 32, 8),
        ((300, 20), 64, 0.5),
        ((7, 9), 64, 16),
        ((1, 1), 8, 2),
    ],
)
@pytest.mark.parametrize("limit", [windows.LIMIT, 40_000])
def test_equals_the_sliding_window_of_the_array(tmp_path, monkeypatch, size, window, overlap, limit):
    monkeypatch.setattr(windows.blend, "__kwdefaults__", {**windows.blend.__kwdefaults__, "limit": limit})
    array = pixels(*size)
    source, out = write(tmp_path / "image.tif", array), tmp_path / "labels.tif"
    predictor = Predictor(network(), flip=True, batch_size=3)
    seen = []
    result = predict_raster(
        predictor,
        source,
        out,
        **STATISTICS,
        window=window,
        overlap=overlap,
        probabilities=True,
        progress=lambda done, total: seen.append((done, total)),
    )
    whole = Predictor(predictor.model, window=window, overlap=overlap, flip=True)
    expected = whole(normalised(array, 255, **STATISTICS)[None])[0]
    found, _ = read(result.probabilities)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)
    labels, profile = read(out)
    assert profile["dtype"] == "uint8" and result.labels == out and result.size == size
    best = expected.topk(2, 0).values
    clear = (best[0] - best[1] > 1e-5).numpy()
    assert (labels[0] == expected.argmax(0).numpy())[clear].all()
    assert seen[-1] == (size[0] * size[1],) * 2 and seen == sorted(set(seen))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tif", "labels.tif", "labels_probabilities.tif"]


def test_scales_hold_for_each_window(tmp_path):
    array = pixels(40, 40)
    predictor = Predictor(network(), scales=(0.5, 1.0), flip=True, window=7)  # of its own windows nothing is seen
    result = predict_raster(
        predictor, write(tmp_path / "a.tif", array), tmp_path / "b.tif", **STATISTICS, window=64, probabilities=True
    )
    expected = predictor.whole(normalised(array, 255, **STATISTICS)[None])[0]
    np.testing.assert_allclose(read(result.probabilities)[0], expected.numpy(), rtol=0, atol=1e-6)


def test_tiles_are_compressed_once(tmp_path, monkeypatch):
    """Not again and again, leaving gaps in the file, when a row of tiles of all classes is more than GDAL caches."""
    source, sizes = write(tmp_path / "a.tif", pixels(300, 700)), []
    for cache in (1 << 20, 64 << 20):
        monkeypatch.setattr(_raster_source, "CACHE", cache)
        result = predict_raster(
            Predictor(network(classes=8)), source, tmp_path / "b.tif", **STATISTICS, window=200, probabilities=True
        )
        sizes.append(result.probabilities.stat().st_size)
    assert sizes[0] == sizes[1]


ROTATED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(2, -3)


SOUTH_UP = Affine(2, 0, 5e5, 0, 2, 5e6)


@pytest.mark.parametrize("transform", [PLACE["transform"], ROTATED, SOUTH_UP, Affine(1e-4, 0, 13.1, 0, -2e-4, 52.5)])
@pytest.mark.parametrize("crs", ["EPSG:32633", None])
def test_georeference_survives(tmp_path, transform, crs):
    source = write(tmp_path / "image.tif", pixels(40, 60), crs=crs, transform=transform)
    out = tmp_path / "labels.tif"
    predict_raster(Predictor(network()), source, out, **STATISTICS, window=32, overlap=8)
    with rasterio.open(source) as before, rasterio.open(out) as after:
        assert after.crs == before.crs
        assert after.transform.almost_equals(transform, 1e-9)
        assert after.shape == before.shape
        assert after.profile["tiled"] and after.profile["compress"] == "deflate"


@pytest.mark.parametrize("transform", [PLACE["transform"], ROTATED, SOUTH_UP, Affine.identity()])
def test_part_of_a_raster(tmp_path, transform):
    array = pixels(60, 80)
    source, out = write(tmp_path / "image.tif", array, transform=transform), tmp_path / "labels.tif"
    corners = [transform @ (x, y) for x, y in [(10, 20), (45, 20), (10, 50), (45, 50)]]
    x, y = zip(*corners, strict=True)
    bounds = (min(x), min(y), max(x), max(y))
    result = predict_raster(
        Predictor(network()), source, out, **STATISTICS, window=32, overlap=8, bounds=bounds, probabilities=True
    )
    with rasterio.open(out) as file:
        left, top = (round(value) for value in ~transform @ (file.transform @ (0, 0)))
        height, width = file.shape
        assert file.transform.almost_equals(transform @ Affine.translation(left, top), 1e-6)
    if transform is ROTATED:
        assert left <= 10 and top <= 20 and left + width >= 45 and top + height >= 50
    else:
        assert (left, top, height, width) == (10, 20, 30, 35)
    part = normalised(array[:, top : top + height, left : left + width], 255, **STATISTICS)
    expected = Predictor(network(), window=32, overlap=8)(part[None])[0]
    np.testing.assert_allclose(read(result.probabilities)[0], expected.numpy(), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match=r"`bounds` must overlap the raster's \(left, bottom, right, top\)"):
        predict_raster(Predictor(network()), source, out, **STATISTICS, bounds=(1e9, 1e9, 2e9, 2e9))


def test_bounds_on_pixel_edges_take_no_more_pixels(tmp_path):
    """Coordinates are rounded: of this raster's, edge 3 comes out below 3 and edge 7 above 7."""
    odd = Affine(1.1, 0, 13.1, 0, -1.1, 52.5)
    assert (~odd).a * (13.1 + 1.1 * 3) + (~odd).c < 3 and (~odd).a * (13.1 + 1.1 * 7) + (~odd).c > 7
    source, out = write(tmp_path / "a.tif", pixels(10, 10), transform=odd), tmp_path / "b.tif"
    bounds = (13.1 + 1.1 * 3, 52.5 - 1.1 * 9, 13.1 + 1.1 * 7, 52.5 - 1.1)
    predict_raster(Predictor(network()), source, out, **STATISTICS, bounds=bounds)
    with rasterio.open(out) as file:
        assert file.shape == (8, 4) and file.transform.almost_equals(Affine(1.1, 0, 16.4, 0, -1.1, 51.4), 1e-9)


def test_control_points_and_polynomials_survive(tmp_path):
    points = [GroundControlPoint(row, col, 13 + col / 100, 52 - row / 100) for row, col in [(0, 0), (0, 50), (40, 0)]]
    array = pixels(40, 50)
    source = write(tmp_path / "a.tif", array, crs=None, transform=None)
    coefficients = {
        name: [1.0] * 20 for name in ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff")
    }
    offsets = {"height_off": 1.0, "lat_off": 52.0, "long_off": 13.0, "line_off": 20.0, "samp_off": 25.0}
    scales = {"height_scale": 1.0, "lat_scale": 1.0, "long_scale": 1.0, "line_scale": 20.0, "samp_scale": 25.0}
    with rasterio.open(source, "r+") as file:
        file.gcps = (points, rasterio.CRS.from_epsg(4326))
        file.rpcs = RPC(**coefficients, **offsets, **scales, err_bias=None, err_rand=None)
    out = tmp_path / "b.tif"
    predict_raster(Predictor(network()), source, out, **STATISTICS, bounds=(5, 10, 50, 40))
    with rasterio.open(out) as file:
        found, crs = file.gcps
        assert crs.to_epsg() == 4326 and file.shape == (30, 45)
        assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row - 10, p.col - 5, p.x, p.y) for p in points]
        assert (file.rpcs.line_off, file.rpcs.samp_off, file.rpcs.lat_off) == (10, 20, 52)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


@pytest.mark.parametrize("transform", ["", "<GeoTransform>5, 2, 0, 9, 0, -2</GeoTransform>"])
def test_control_points_without_a_coordinate_system(tmp_path, transform):
    """They survive; a transform beside them counts more, as in GDAL's own tools."""
    write(tmp_path / "a.tif", pixels(4, 5, 1))
    points = "".join(f'<GCP Pixel="{x}" Line="{y}" X="1{x}" Y="5{y}"/>' for x, y in [(0, 0), (5, 0), (0, 4)])
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="5" rasterYSize="4">{transform}<GCPList>{points}</GCPList>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    predict_raster(Predictor(network(1)), tmp_path / "a.vrt", tmp_path / "b.tif", mean=[0.5], std=[0.25])
    with rasterio.open(tmp_path / "b.tif") as file:
        found = [(p.col, p.row, p.x, p.y) for p in file.gcps[0]]
        assert found == ([] if transform else [(0, 0, 10, 50), (5, 0, 15, 50), (0, 4, 10, 54)])
        assert file.transform == (Affine(2, 0, 5, 0, -2, 9) if transform else Affine.identity())


def test_palette_and_one_class(tmp_path):
    source, out = write(tmp_path / "a.tif", pixels(30, 30)), tmp_path / "b.tif"
    palette = [(10, 20, 30), (200, 100, 0)]
    result = predict_raster(
        Predictor(network(classes=1)), source, out, **STATISTICS, palette=palette, probabilities=True
    )
    with rasterio.open(out) as file:
        table = file.colormap(1)
        labels = file.read(1)
    assert table[0] == (10, 20, 30, 255) and table[1] == (200, 100, 0, 255)
    probabilities, _ = read(result.probabilities)
    assert probabilities.shape == (1, 30, 30) and (labels == (probabilities[0] >= 0.5)).all()
    with pytest.raises(ValueError, match="`palette` must have a colour for each of 4 classes, got 2"):
        predict_raster(Predictor(network()), source, out, **STATISTICS, palette=palette)


@pytest.mark.parametrize(
    ("classes", "kind", "empty"), [(255, "uint8", 255), (256, "uint16", 65535), (300, "uint16", 65535)]
)
def test_many_classes(tmp_path, classes, kind, empty):
    """No label is the number for no data, and each has its colour."""

    class Counter(nn.Module):
        def forward(self, x):
            return torch.arange(float(classes)).view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])

    source, palette = write(tmp_path / "a.tif", pixels(9, 9)), [(i % 256, i // 256, 7) for i in range(classes)]
    result = predict_raster(Predictor(Counter()), source, tmp_path / "b.tif", **STATISTICS, palette=palette)
    with rasterio.open(result.labels) as file:
        table = file.colormap(1)
        assert file.dtypes == (kind,) and file.nodata == empty and (file.read(1) == classes - 1).all()
    assert [table[label][:3] for label in range(classes)] == palette and table[empty] == (0, 0, 0, 0)
