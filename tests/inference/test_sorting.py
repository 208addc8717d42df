"""Which files are rasters: by what GDAL says of them, wherever they stand."""

import importlib.util

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint

from hggraph.data.image import ImageError
from hggraph.inference import sorting
from hggraph.inference.sorting import is_raster, sort_inputs
from tests.inference.rasters import pixels, write

# rasters without a georeference are written here on purpose
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NOWHERE = {"crs": None, "transform": None}


def change(path, **attributes):
    with rasterio.open(path, "r+") as file:
        for name, value in attributes.items():
            setattr(file, name, value)


@pytest.mark.parametrize(
    ("array", "options", "attributes", "expected"),
    [
        (pixels(6, 8), {}, {}, False),
        (pixels(6, 8, 1), {}, {}, False),
        (pixels(6, 8, 4), {"photometric": "rgb", "alpha": "yes"}, {}, False),
        (pixels(6, 8, 2), {"alpha": "yes"}, {}, False),
        (pixels(6, 8), {"photometric": "ycbcr", "compress": "jpeg"}, {}, False),
        (pixels(6, 8, 4), {"photometric": "minisblack"}, {}, True),
        (pixels(6, 8, 2), {}, {}, True),
        (pixels(6, 8, 13), {}, {}, True),
        (pixels(6, 8, 1, "uint16"), {}, {}, True),
        (pixels(6, 8, 3, "float32"), {}, {}, True),
        (pixels(6, 8, 1, "int8"), {}, {}, True),
        (pixels(6, 8), {"nodata": 0}, {}, True),
        (pixels(6, 8), {"crs": "EPSG:4326"}, {}, True),
        (pixels(6, 8), {"transform": rasterio.Affine(1, 0, 0, 0, -1, 0)}, {}, True),
        (pixels(6, 8), {}, {"scales": (0.1, 1, 1)}, True),
        (pixels(6, 8), {}, {"offsets": (0, 0, 5)}, True),
        (pixels(6, 8), {}, {"gcps": ([GroundControlPoint(0, 0, 5, 5)], rasterio.CRS.from_epsg(4326))}, True),
    ],
)
def test_tiffs(tmp_path, array, options, attributes, expected):
    path = write(tmp_path / "a.TIF", array, **{**NOWHERE, **options})
    change(path, **attributes)
    assert is_raster(path) is expected


def test_masks_world_files_and_sizes(tmp_path, monkeypatch):
    for inside in (True, False):
        path = write(tmp_path / f"{inside}.tif", pixels(6, 8), **NOWHERE)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
            file.write_mask(np.zeros((6, 8), np.uint8))
        assert is_raster(path)
    photo = write(tmp_path / "b.tif", pixels(6, 8), **NOWHERE)
    Image.new("RGB", (8, 6)).save(tmp_path / "c.jpg")
    assert not is_raster(photo) and not is_raster(tmp_path / "c.jpg")
    for name in ("b.tfw", "c.jgw"):
        (tmp_path / name).write_text("2\n0\n0\n-2\n500001\n4999999\n")
    assert is_raster(photo) and is_raster(tmp_path / "c.jpg")
    (tmp_path / "b.tfw").unlink()
    monkeypatch.setattr(sorting, "MAX_PIXELS", 47)
    assert is_raster(photo)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for name in ("a.tif", "a.vrt", "a.jp2", "a.png"):
        (tmp_path / name).write_text("damaged")
    assert [is_raster(tmp_path / name) for name in ("a.tif", "a.vrt", "a.jp2", "a.png")] == [False, True, True, False]
    source = write(tmp_path / "b.tif", pixels(6, 8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # rasterio is not installed
    assert not is_raster(source)


def test_folders_hold_both(tmp_path):
    """Sidecars are no inputs; a file counts once."""
    raster = write(tmp_path / "b.tif", pixels(6, 8))
    for name in ("b.tfw", "b.tif.aux.xml", "b.tif.ovr", "b.tif.msk", ".b.tif", "c.vrt", "notes.txt"):
        (tmp_path / name).touch()
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    photo = write(tmp_path / "d.tif", pixels(6, 8), **NOWHERE)
    expected = [[raster, tmp_path / "c.vrt"], [tmp_path / "a.png", photo]]
    assert list(sort_inputs([tmp_path, raster])) == expected
    assert list(sort_inputs([photo, tmp_path])) == [expected[0], [photo, tmp_path / "a.png"]]
    every = [tmp_path / "a.png", raster, tmp_path / "c.vrt", photo]
    assert sort_inputs([tmp_path], rasters=True) == (every, [])
    (tmp_path / "e.png").write_text("damaged")
    assert sort_inputs([tmp_path / "e.png"], rasters=True) == ([], [tmp_path / "e.png"])


def test_nothing_to_sort(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path, text in [(tmp_path, "got a folder without"), (tmp_path / "none.tif", "got a path that does not exist")]:
        with pytest.raises(ImageError, match=rf"expected images or rasters \(.*\.vrt \.jp2\), {text}; check the name"):
            sort_inputs([path])
