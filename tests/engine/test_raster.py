"""Rasters in windows equal whole arrays; georeference and what was there before survive; memory does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from torch import nn

from hggraph.data.image import ImageError
from hggraph.engine import raster, windows
from hggraph.engine.predictor import Predictor
from hggraph.engine.raster import predict_raster
from hggraph.models._network import SegmentationNetwork

PLACE = {"crs": "EPSG:32633", "transform": Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0)}
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}

# rasters without a georeference are written and read here on purpose
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def network(bands=3, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(bands, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, classes, 3, padding=1))


class OneByOne(SegmentationNetwork):
    """The smallest network of the project's kind."""

    def predict(self, x, attention):
        return {"out": x[:, : self.num_classes]}, []


def write(path, array, **options):
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype}
    with rasterio.open(path, "w", **{**profile, **PLACE, **options}) as file:
        file.write(array)
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.profile


def pixels(height, width, bands=3, dtype="uint8", seed=0):
    top = np.iinfo(dtype).max if np.dtype(dtype).kind != "f" else 1
    values = np.random.default_rng(seed).random((bands, height, width))
    return (values * top).astype(dtype)


def normalised(array, full_scale, mean, std):
    x = torch.from_numpy(array.astype(np.float32)) / full_scale
    return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


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
        monkeypatch.setattr(raster, "CACHE", cache)
        result = predict_raster(
            Predictor(network(classes=8)), source, tmp_path / "b.tif", **STATISTICS, window=200, probabilities=True
        )
        sizes.append(result.probabilities.stat().st_size)
    assert sizes[0] == sizes[1]


ROTATED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(2, -3)


@pytest.mark.parametrize("transform", [PLACE["transform"], ROTATED, Affine(1e-4, 0, 13.1, 0, -2e-4, 52.5)])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", None])
def test_georeference_survives(tmp_path, transform, crs):
    source = write(tmp_path / "image.tif", pixels(40, 60), crs=crs, transform=transform)
    out = tmp_path / "labels.tif"
    predict_raster(Predictor(network()), source, out, **STATISTICS, window=32, overlap=8)
    with rasterio.open(source) as before, rasterio.open(out) as after:
        assert after.crs == before.crs
        assert after.transform.almost_equals(transform, 1e-9)
        assert after.shape == before.shape
        assert after.profile["tiled"] and after.profile["compress"] == "deflate"


@pytest.mark.parametrize("transform", [PLACE["transform"], ROTATED, Affine.identity()])
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


@pytest.mark.parametrize(
    ("bands", "dtype", "full_scale"),
    [
        (1, "uint8", 255),
        (4, "uint8", 255),
        (4, "uint16", 65535),
        (2, "int16", 32767),
        (3, "float32", 1),
        (2, "float64", 1),
    ],
)
def test_types_and_numbers_of_bands(tmp_path, bands, dtype, full_scale):
    array = pixels(30, 40, bands, dtype)
    mean, std = [0.1 * (i + 1) for i in range(bands)], [0.2 + 0.1 * i for i in range(bands)]
    source = write(tmp_path / "a.tif", array, photometric="minisblack")
    net = network(bands)
    result = predict_raster(
        Predictor(net), source, tmp_path / "b.tif", mean=mean, std=std, window=24, overlap=8, probabilities=True
    )
    x = normalised(array, full_scale, mean, std)
    expected = Predictor(net, window=24, overlap=8)(x[None])[0]
    np.testing.assert_allclose(read(result.probabilities)[0], expected.numpy(), rtol=0, atol=3e-6)


def test_full_scale_bands_and_one_number_for_all(tmp_path):
    array = pixels(20, 20, 4, "uint16") // 32  # eleven bits
    source = write(tmp_path / "a.tif", array, photometric="minisblack")
    net = network(3)
    result = predict_raster(
        Predictor(net),
        source,
        tmp_path / "b.tif",
        mean=[0.5],
        std=[0.25],
        bands=[4, 1, 2],
        full_scale=2047,
        probabilities=True,
    )
    expected = Predictor(net)(normalised(array[[3, 0, 1]], 2047, [0.5], [0.25])[None])[0]
    np.testing.assert_allclose(read(result.probabilities)[0], expected.numpy(), rtol=0, atol=1e-6)


def test_alpha_is_a_mask_and_no_band(tmp_path):
    array = pixels(40, 50, 4)
    array[3] = 255
    array[3, :, 30:] = 0
    source = write(tmp_path / "a.tif", array, photometric="rgb", alpha="yes")
    with rasterio.open(source) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    out = tmp_path / "b.tif"
    predict_raster(Predictor(network()), source, out, **STATISTICS)
    labels, profile = read(out)
    assert profile["nodata"] == 255
    assert (labels[0, :, 30:] == 255).all() and (labels[0, :, :30] < 4).all()


@pytest.mark.parametrize("how", ["file", "argument", "nan"])
def test_pixels_without_data(tmp_path, how):
    """They are the mean for the network, their windows are skipped, and the result says that they are none."""
    array = pixels(100, 120, dtype="float32")
    empty = np.zeros((100, 120), dtype=bool)
    empty[:, 60:] = True
    empty[10:14, 5:9] = True
    value = np.nan if how == "nan" else -9999.0
    array[:, empty] = value
    array[0, 50, 10] = -9999.0  # in one band alone it is a number
    source = write(tmp_path / "a.tif", array, nodata=-9999.0 if how == "file" else None)
    seen = []
    net = network()
    net.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    result = predict_raster(
        Predictor(net),
        source,
        tmp_path / "b.tif",
        **STATISTICS,
        window=20,
        overlap=4,
        nodata=-9999.0 if how == "argument" else None,
        probabilities=True,
    )
    columns = windows.cut(120, 20, 4).starts
    rows = windows.cut(100, 20, 4).starts
    assert len(seen) == len(rows) * sum(start < 60 for start in columns)
    assert all(x.isfinite().all() and (x.abs().amax(1) < 1e6).all() for x in seen)
    labels, profile = read(result.labels)
    assert profile["nodata"] == 255
    assert ((labels[0] == 255) == empty).all()
    probabilities, profile = read(result.probabilities)
    assert np.isnan(profile["nodata"]) and (np.isnan(probabilities) == empty).all()
    x = normalised(array, 1, **STATISTICS).masked_fill(torch.from_numpy(empty), 0)
    expected = Predictor(net, window=20, overlap=4)(x[None])[0]
    np.testing.assert_allclose(probabilities[:, ~empty], expected.numpy()[:, ~empty], rtol=0, atol=3e-6)


def test_no_data_at_all(tmp_path):
    source = write(tmp_path / "a.tif", np.zeros((3, 50, 50), np.uint8), nodata=0)
    result = predict_raster(
        Predictor(network()), source, tmp_path / "b.tif", **STATISTICS, window=16, overlap=4, probabilities=True
    )
    assert (read(result.labels)[0] == 255).all() and np.isnan(read(result.probabilities)[0]).all()


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


def test_many_classes(tmp_path):
    class Counter(nn.Module):
        def forward(self, x):
            return torch.arange(300.0).view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])

    result = predict_raster(
        Predictor(Counter()), write(tmp_path / "a.tif", pixels(9, 9)), tmp_path / "b.tif", **STATISTICS
    )
    labels, profile = read(result.labels)
    assert profile["dtype"] == "uint16" and profile["nodata"] == 65535 and (labels == 299).all()


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_files_that_are_no_rasters(tmp_path):
    out = tmp_path / "labels.tif"
    out.write_bytes(b"yesterday's")
    (tmp_path / "text.tif").write_text("not a raster")
    (tmp_path / "empty.tif").touch()
    for name in ("text.tif", "empty.tif", "none.tif", "."):
        with pytest.raises(ImageError, match=r"expected a raster that GDAL reads, got none .*check the name"):
            predict_raster(Predictor(network()), tmp_path / name, out, **STATISTICS)
    assert out.read_bytes() == b"yesterday's" and not leftovers(tmp_path)


def test_damaged_raster_keeps_the_old_result(tmp_path):
    source = write(tmp_path / "a.tif", pixels(300, 300), tiled=True, blockxsize=64, blockysize=64)
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size // 2)
    out = tmp_path / "labels.tif"
    out.write_bytes(b"yesterday's")
    (tmp_path / "labels_probabilities.tif").write_bytes(b"and its")
    with pytest.raises(
        ImageError, match=r"a\.tif: expected a whole raster, got one that cannot be read at rows \d+ to"
    ):
        predict_raster(Predictor(network()), source, out, **STATISTICS, window=64, overlap=16, probabilities=True)
    assert out.read_bytes() == b"yesterday's" and not leftovers(tmp_path)
    assert (tmp_path / "labels_probabilities.tif").read_bytes() == b"and its"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_interrupted_run_keeps_the_old_result(tmp_path, error):
    source, out = write(tmp_path / "a.tif", pixels(100, 100)), tmp_path / "labels.tif"
    out.write_bytes(b"yesterday's")

    def stop(done, total):
        if done > total / 2:
            raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        predict_raster(Predictor(network()), source, out, **STATISTICS, window=32, overlap=8, progress=stop)
    assert out.read_bytes() == b"yesterday's" and not leftovers(tmp_path)


def test_bad_arguments(tmp_path):
    source, out = write(tmp_path / "a.tif", pixels(20, 20)), tmp_path / "b.tif"
    predictor = Predictor(network())
    cases = [
        ({"out": tmp_path / "b.png"}, ValueError, r"`out` must end in \.tif or \.tiff"),
        ({"out": source}, ValueError, "would be written over the raster"),
        ({"out": tmp_path / "none" / "b.tif"}, FileNotFoundError, "There is no folder .*none for the result"),
        ({"mean": [0.5, 0.5]}, ValueError, r"`mean` must be one number or one for each of 3 bands, got \[0.5, 0.5\]"),
        ({"std": [0.0]}, ValueError, "`std` and `full_scale` must be positive"),
        ({"mean": [float("nan")]}, ValueError, "`mean` must be"),
        ({"bands": [1, 2, 4]}, ImageError, r"expected bands from 1 to 3, got \[1, 2, 4\]"),
        ({"bands": []}, ImageError, "expected bands from 1 to 3, got none"),
        ({"window": 0}, ValueError, "`window` must be a whole number >= 1"),
        (
            {"window": 64, "overlap": 64},
            ValueError,
            "`overlap` must be a whole number of pixels below the window of 64",
        ),
    ]
    for options, error, text in cases:
        with pytest.raises(error, match=text):
            predict_raster(predictor, **{"path": source, "out": out, **STATISTICS, **options})
    with pytest.raises(ImageError, match="expected 4 bands for OneByOne, got 3; choose with `bands`"):
        predict_raster(Predictor(OneByOne(4, 2)), source, out, **STATISTICS)
    complex_numbers = write(tmp_path / "c.tif", np.zeros((1, 5, 5), np.complex64))
    with pytest.raises(ImageError, match="expected bands of real numbers, got complex64"):
        predict_raster(Predictor(network()), complex_numbers, out, **STATISTICS)
    assert not out.exists() and not leftovers(tmp_path)


def test_folder_that_cannot_be_written_to(tmp_path):
    """It is noticed before anything is predicted; so even for root, for whom every folder can be written to."""
    source, calls = write(tmp_path / "a.tif", pixels(20, 20)), []
    net = network()
    net.register_forward_hook(lambda *_: calls.append(1))
    folder = Path("/proc/self")
    if not folder.is_dir():
        pytest.skip("needs a folder in which nobody can make a file")
    with pytest.raises(OSError, match="/proc/self"):
        predict_raster(Predictor(net), source, folder / "labels.tif", **STATISTICS)
    assert not calls


def test_full_disk(tmp_path):
    """GDAL closes a file on a full disk without a word; the result is read back before it takes its name."""
    resource = pytest.importorskip("resource")
    source, out = write(tmp_path / "a.tif", pixels(300, 300)), tmp_path / "labels.tif"
    out.write_bytes(b"yesterday's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may grow beyond: as if the disk were full
    try:
        with pytest.raises(OSError, match="The result could not be written whole: is the disk full"):
            predict_raster(Predictor(nn.Conv2d(3, 16, 1)), source, out, mean=[0.5], std=[0.01], window=128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"yesterday's" and not leftovers(tmp_path)


MEMORY = """
import json, resource, sys, time, warnings
from pathlib import Path
import torch
from torch import nn
from hggraph.engine.predictor import Predictor
from hggraph.engine.raster import predict_raster
folder, window, overlap, classes, threads = Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.set_num_threads(threads)
net = nn.Conv2d(3, classes, 3, padding=1)
peaks, seconds = [], []
for name in ("small", "large"):
    start = time.perf_counter()
    predict_raster(Predictor(net), folder / f"{name}.vrt", folder / f"{name}.tif", mean=[0.5], std=[0.25],
                   window=window, overlap=overlap)
    seconds.append(time.perf_counter() - start)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps([peaks, seconds]))
"""


def virtual_raster(path, side, tile):
    """Write a virtual raster that repeats a tile of random pixels."""
    source = path.with_name("tile.tif")
    if not source.exists():
        write(source, pixels(tile, tile), tiled=True, blockxsize=256, blockysize=256)
    bands = []
    for band, color in enumerate(("Red", "Green", "Blue"), 1):
        sources = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">tile.tif</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="{tile}" ySize="{tile}"/>'
            f'<DstRect xOff="{x}" yOff="{y}" xSize="{tile}" ySize="{tile}"/></SimpleSource>'
            for y in range(0, side, tile)
            for x in range(0, side, tile)
        )
        bands.append(
            f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{color}</ColorInterp>{sources}</VRTRasterBand>'
        )
    path.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000, 2, 0, 5000000, 0, -2</GeoTransform>{''.join(bands)}</VRTDataset>"
    )


def peaks_and_seconds(folder, *arguments):
    run = [sys.executable, "-c", MEMORY, folder, *map(str, arguments)]
    env = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"}
    out = subprocess.run(run, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=env).stdout
    return json.loads(out)


def test_memory_does_not_grow_with_the_raster(tmp_path):
    """16 times the pixels: the peak grows by what GDAL caches and a few rows, not by 256 MB of probabilities."""
    virtual_raster(tmp_path / "small.vrt", 1000, 1000)
    virtual_raster(tmp_path / "large.vrt", 4000, 1000)
    peaks, _ = peaks_and_seconds(tmp_path, 512, 64, 4, 1)
    assert peaks[1] - peaks[0] < 100
    with rasterio.open(tmp_path / "large.tif") as file:
        assert file.shape == (4000, 4000) and file.crs.to_epsg() == 32633
        # the same tile gives the same labels, but where it meets its neighbours
        assert (
            file.read(1, window=((10, 990), (10, 990))) == file.read(1, window=((3010, 3990), (2010, 2990)))
        ).mean() > 0.99


@pytest.mark.slow
def test_twenty_thousand_pixels_square_in_constant_memory(tmp_path):
    """400 million pixels, 19 classes: a peak below 3 GB, where the probabilities alone would take 30 GB."""
    virtual_raster(tmp_path / "small.vrt", 4000, 1000)
    virtual_raster(tmp_path / "large.vrt", 20_000, 1000)
    peaks, seconds = peaks_and_seconds(tmp_path, 1024, 128, 19, 1)
    print(f"peak {peaks[0]:.0f} MB at 4000 x 4000, {peaks[1]:.0f} MB at 20000 x 20000 in {seconds[1]:.0f} s")
    assert peaks[1] < 3000 and peaks[1] - peaks[0] < 1000
    with rasterio.open(tmp_path / "large.tif") as file:
        assert file.shape == (20_000, 20_000)
