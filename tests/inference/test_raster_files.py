"""Rasters that cannot be read, results that cannot be written, and memory that does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from torch import nn

from hggraph.data.image import ImageError
from hggraph.inference.predictor import Predictor
from hggraph.inference.raster import predict_raster
from tests.inference.rasters import STATISTICS, OneByOne, network, pixels, write

# rasters without a georeference are written and read here on purpose
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_files_that_are_no_rasters(tmp_path, capfd):
    out = tmp_path / "labels.tif"
    out.write_bytes(b"yesterday's")
    (tmp_path / "text.tif").write_text("not a raster")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "no text.vrt").write_bytes(b"<VRTDataset \xbe>")  # which GDAL quotes, and rasterio cannot log
    for name in ("text.tif", "empty.tif", "none.tif", ".", "no text.vrt", "\udce9.tif"):
        with pytest.raises(ImageError, match=r"expected a raster that GDAL reads, got none .*check the name"):
            predict_raster(Predictor(network()), tmp_path / name, out, **STATISTICS)
    assert out.read_bytes() == b"yesterday's" and not leftovers(tmp_path)
    assert capfd.readouterr() == ("", "")


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


def test_damaged_jpeg_is_noticed(tmp_path):
    """GDAL warns of it alone, unless it is told to."""
    source = write(tmp_path / "a.jpg", pixels(200, 200), driver="JPEG")
    damaged = bytearray(source.read_bytes())
    damaged[len(damaged) // 2 :: 97] = bytes(len(damaged[len(damaged) // 2 :: 97]))
    source.write_bytes(damaged)
    with pytest.raises(ImageError, match=r"a\.jpg: expected a whole raster, got one that cannot be read at rows 0 to"):
        predict_raster(Predictor(network()), source, tmp_path / "b.tif", **STATISTICS)


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
        (
            {"mean": [0.5, 0.5]},
            ValueError,
            r"`mean` must be one number or one for each of 3 bands, got \[0.5, 0.5\]; choose with",
        ),
        ({"mean": []}, ValueError, r"`mean` must be one number or one for each of 3 bands, got \[\]"),
        ({"mean": [float("nan")]}, ValueError, r"`mean` must be finite numbers, got \[nan\]"),
        ({"std": [float("inf")]}, ValueError, r"`std` must be finite numbers, got \[inf\]"),
        ({"std": [0.5, 0.0, 0.5]}, ValueError, r"`std` must be positive, got \[0.5, 0.0, 0.5\]"),
        ({"full_scale": 0.0}, ValueError, r"`full_scale` must be a positive number, got 0\.0"),
        ({"full_scale": float("nan")}, ValueError, "`full_scale` must be a positive number, got nan"),
        ({"nodata": -9999.0}, ValueError, "`nodata` must be a whole number from 0 to 255 for a band of uint8"),
        ({"nodata": 0.5}, ValueError, r"`nodata` must be a whole number .* got 0\.5"),
        ({"bounds": (4, 3, 2, 5)}, ValueError, r"`bounds` must be .* with left < right and bottom < top, got \(4,"),
        ({"bounds": (0, float("nan"), 2, 5)}, ValueError, r"`bounds` must be \(left, bottom, right, top\)"),
        ({"bounds": (500_040, 4_999_980, 500_060, 5e6)}, ValueError, "`bounds` must overlap the raster's"),  # touch
        ({"bands": [1, 2, 4]}, ImageError, r"expected bands from 1 to 3, got \[1, 2, 4\]"),
        ({"bands": [0]}, ImageError, r"expected bands from 1 to 3, got \[0\]"),
        ({"bands": [True, 2.0]}, ImageError, r"expected bands from 1 to 3, got \[True, 2\.0\]"),
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
    flat = write(tmp_path / "flat.tif", pixels(20, 20), transform=rasterio.Affine(1, 1, 0, 1, 1, 0))
    with pytest.raises(ImageError, match="`bounds` need a transform that can be inverted, got"):
        predict_raster(predictor, flat, out, **STATISTICS, bounds=(0, 0, 5, 5))
    assert not out.exists() and not leftovers(tmp_path)


def test_a_result_is_not_written_over_what_a_virtual_raster_reads(tmp_path):
    source = write(tmp_path / "tile.tif", pixels(20, 20))
    virtual_raster(tmp_path / "a.vrt", 20, 20)
    (tmp_path / "b.vrt").write_text((tmp_path / "a.vrt").read_text().replace("tile.tif", "a.vrt"))
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"would be written over the raster .*tile\.tif"):
        predict_raster(Predictor(network()), tmp_path / "b.vrt", source, **STATISTICS)
    source.rename(tmp_path / "moved.tif")
    with pytest.raises(ImageError, match=r"b\.vrt: .* cannot be read at rows 0 to 20, .*tile\.tif"):
        predict_raster(Predictor(network()), tmp_path / "b.vrt", tmp_path / "out.tif", **STATISTICS)
    assert (tmp_path / "moved.tif").read_bytes() == before and not (tmp_path / "out.tif").exists()


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
from hggraph.inference.predictor import Predictor
from hggraph.inference.raster import predict_raster
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
