"""What of a raster's bands reaches the network: stored numbers scaled and normalised, and only where there are data."""

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp
from torch import nn

from hggraph.data.image import ImageError
from hggraph.inference import windows
from hggraph.inference.predictor import Predictor
from hggraph.inference.raster import predict_raster
from tests.inference.rasters import STATISTICS, network, normalised, pixels, read, write

# rasters without a georeference are written and read here on purpose
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class Spy(nn.Module):
    """Two classes of equal scores; keeps what it gets."""

    def forward(self, x):
        self.seen = x[0].numpy().copy()
        return torch.zeros(len(x), 2, *x.shape[2:])


def seen(path, **options):
    """Return what the network gets of a raster as large as a window, and which pixels the result has data of."""
    spy, out = Spy(), path.with_name("labels.tif")
    predict_raster(Predictor(spy), path, out, **{"mean": [0.0], "std": [1.0], **options})
    return spy.seen, read(out)[0][0] != 255


LOWEST = np.finfo(np.float32).min
NUMBER, NAN = -9999.0, np.nan


def virtual(path, kind, *nodata):
    """Write a virtual raster of a.tif with a number for no data of each band."""
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{band}"><NoDataValue>{value}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for band, value in enumerate(nodata, 1)
    )
    path.write_text(f'<VRTDataset rasterXSize="8" rasterYSize="6">{bands}</VRTDataset>')
    return path


@pytest.mark.parametrize(
    ("dtype", "stored", "in_file", "given"),
    [
        ("float32", NUMBER, NUMBER, None),
        ("float32", NUMBER, None, NUMBER),
        ("float32", NAN, NAN, None),
        ("float32", NAN, None, None),
        ("float32", np.inf, None, None),
        ("float32", LOWEST, -3.4e38, None),
        ("float32", LOWEST, None, -3.4e38),
        ("float32", LOWEST, float(LOWEST), None),
        ("float32", 0.1, None, 0.1),  # which float32 rounds
        ("float64", 1e300, None, None),  # the network's float32 cannot hold it
        ("float64", -1e9, -1e9, None),
        ("uint8", 255, 255, None),
        ("uint8", 0, 255, 0),
        ("int8", -128, -128, None),
        ("int16", -32768, -32768, None),
        ("uint16", 65535, None, 65535),
        ("int32", -(2**31) + 1, -(2**31) + 1, None),
        ("uint32", 2**32 - 1, 2**32 - 1, None),
        ("int64", -9999, -9999, None),
    ],
)
def test_no_number_for_no_data_reaches_the_network(tmp_path, dtype, stored, in_file, given):
    """In one band it is the band's mean, 0 after normalisation; in all bands the pixel has no data."""
    array = np.full((3, 6, 8), 7, dtype)
    if stored < 0 and np.dtype(dtype).kind == "i":
        array[1, 4, 4] = stored + 1  # its neighbour is a number
    array[0, 2, 3] = array[:, 5, 7] = stored
    empty = np.zeros(array.shape, bool)
    empty[0, 2, 3] = empty[:, 5, 7] = True
    source = write(tmp_path / "a.tif", array, nodata=in_file)
    x, known = seen(source, nodata=given, mean=[2.0], std=[4.0], full_scale=1)
    np.testing.assert_allclose(x, np.where(empty, 0, (array.astype(np.float64) - 2) / 4), rtol=1e-7)
    assert (known == ~empty.all(0)).all() and (~known).sum() == 1


def test_each_band_has_its_own_number_for_no_data(tmp_path):
    array = pixels(6, 8, 2, "float32")
    array[:, 0, 0], array[:, 1, 1], array[0, 2, 2], array[1, 2, 2] = -1, -2, -1, -2
    write(tmp_path / "a.tif", array)
    x, known = seen(virtual(tmp_path / "b.vrt", "Float32", -1, -2))
    empty = np.stack([array[0] == -1, array[1] == -2])
    assert np.array_equal(x, np.where(empty, 0, array)) and empty.sum() == 4
    assert np.argwhere(~known).tolist() == [[2, 2]]
    x, _ = seen(tmp_path / "b.vrt", nodata=NAN)  # no number stands for no data
    assert np.array_equal(x, array)


@pytest.mark.parametrize("how", ["inside the file", "beside it", "alpha", "alpha, bands named", "alpha of 16 bits"])
@pytest.mark.parametrize("nodata", [None, 9])
def test_masks_and_numbers_for_no_data_hold_together(tmp_path, how, nodata):
    """GDAL looks at one of them alone."""
    array = pixels(6, 8, 3, "uint16" if "16" in how else "uint8")
    array[array == 9] = 10
    array[1, 3, 3] = 9
    mask = np.full((6, 8), 255, np.uint8)
    mask[0, :4] = 0
    source, options = tmp_path / "a.tif", {}
    if "alpha" in how:
        alpha = np.where(mask, np.iinfo(array.dtype).max, 0)[None].astype(array.dtype)
        alpha[0, 1, 1] = 1  # almost transparent: data
        write(source, np.concatenate([array, alpha]), photometric="rgb", alpha="yes", nodata=nodata)
        options = {"bands": [3, 1, 2]} if "named" in how else {}
    else:
        write(source, array, nodata=nodata)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=how == "inside the file"), rasterio.open(source, "r+") as file:
            file.write_mask(mask)
        assert source.with_name("a.tif.msk").exists() == (how == "beside it")
    x, known = seen(source, full_scale=1, **options)
    empty = np.repeat(mask[None] == 0, 3, 0)
    empty[1, 3, 3] = nodata is not None
    order = [band - 1 for band in options.get("bands", [1, 2, 3])]
    assert np.array_equal(x, np.where(empty, 0, array)[order])
    assert np.array_equal(known, mask != 0)


def test_an_alpha_band_that_is_named_is_a_band(tmp_path):
    """Four bands of bytes are often near infrared, taken for alpha."""
    array = pixels(6, 8, 4)
    array[3, :3] = 0
    x, known = seen(write(tmp_path / "a.tif", array), bands=[4, 1, 1], full_scale=1)
    assert np.array_equal(x, array[[3, 0, 0]]) and known.all()


@pytest.mark.parametrize(("dtype", "full_scale"), [("uint16", None), ("int16", 2.0), ("float32", None)])
def test_scale_and_offset_of_bands(tmp_path, dtype, full_scale):
    """``stored * scale + offset`` over `full_scale`, which is 1 of itself; numbers for no data are stored ones."""
    array = np.arange(3 * 6 * 8).reshape(3, 6, 8).astype(dtype)
    scales, offsets = (0.01, -0.5, 1.0), (0.0, 3.0, -90.0)
    source = write(tmp_path / "a.tif", array, nodata=7)
    with rasterio.open(source, "r+") as file:
        file.scales, file.offsets = scales, offsets
    mean, std = [0.1, 2.0, 10.0], [0.5, 1.0, 20.0]
    x, _ = seen(source, mean=mean, std=std, full_scale=full_scale)
    column = np.array([scales, offsets, mean, std])[..., None, None]
    expected = ((array * column[0] + column[1]) / (full_scale or 1) - column[2]) / column[3]
    np.testing.assert_allclose(x, np.where(array == 7, 0, expected), rtol=0, atol=2e-5)
    with rasterio.open(source, "r+") as file:
        file.scales = (1.0, 0.0, 1.0)
    with pytest.raises(ImageError, match=r"a\.tif: expected a scale and an offset of band 2 .* got 0 and 3"):
        seen(source)


def test_bands_that_share_no_type(tmp_path):
    """Complex numbers are refused; integers of 32 bits beside bytes keep theirs, each over its own largest."""
    array = np.array([[[2**31 - 1]], [[2**24 + 1]]], np.int32)
    x, _ = seen(write(tmp_path / "a.tif", array, nodata=2**24))
    np.testing.assert_allclose(x[:, 0, 0], [1, (2**24 + 1) / (2**31 - 1)], rtol=1e-6)
    for kind in ("complex64", "complex_int16"):
        with rasterio.open(tmp_path / "c.tif", "w", driver="GTiff", count=1, height=5, width=5, dtype=kind):
            pass
        with pytest.raises(ImageError, match=f"expected bands of real numbers, got {kind}"):
            seen(tmp_path / "c.tif")


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
    array[0, 50, 10] = value  # in one band alone: the others count
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
    x = normalised(array, 1, **STATISTICS).masked_fill(torch.from_numpy(array == value), 0).nan_to_num(0)
    expected = Predictor(net, window=20, overlap=4)(x[None])[0]
    np.testing.assert_allclose(probabilities[:, ~empty], expected.numpy()[:, ~empty], rtol=0, atol=3e-6)


def test_no_data_at_all(tmp_path):
    source = write(tmp_path / "a.tif", np.zeros((3, 50, 50), np.uint8), nodata=0)
    result = predict_raster(
        Predictor(network()), source, tmp_path / "b.tif", **STATISTICS, window=16, overlap=4, probabilities=True
    )
    assert (read(result.labels)[0] == 255).all() and np.isnan(read(result.probabilities)[0]).all()
