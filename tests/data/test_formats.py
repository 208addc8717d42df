"""Photos mean what their format says, and labels are the stored integers: depths, photometrics and transparency."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hggraph.data import ImageError, load_attention, load_image, load_labels, load_pixels
from hggraph.data.image import image_size

W = 4  # pixels of each file: one row


def packed(numbers, bits, order=">"):
    """Return whole numbers as the formats store them: bits from the highest on, or bytes in the order."""
    if bits >= 8:
        return np.array(numbers).astype(f"{order}{'i' if min(numbers) < 0 else 'u'}{bits // 8}").tobytes()
    stream = "".join(f"{number:0{bits}b}" for number in numbers)
    return int(stream.ljust(-(-len(stream) // 8) * 8, "0"), 2).to_bytes(-(-len(stream) // 8), "big")


def png(bits, kind, numbers, *chunks):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", W, 1, bits, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks)]
    body = zlib.compress(b"\0" + packed(numbers, bits))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", body), chunk(b"IEND", b"")])


def clear(*numbers):
    """Return the chunk that says which grey or colour is transparent."""
    return b"tRNS", struct.pack(f">{len(numbers)}H", *numbers)


def tiff(bits, photometric, data, *, samples=1, kind=1, order="<", big=False, more=()):
    """Return a TIFF file of one row; `more` are tags (number, value) beside those that each file has."""
    if not isinstance(data, bytes):
        data = packed(data, bits, order)
    tags = {
        256: W,
        257: 1,
        258: [bits] * samples,
        259: 1,
        262: photometric,
        277: samples,
        278: 1,
        339: [kind] * samples,
    }
    start = 16 if big else 8
    tags |= {273: start, 279: len(data), 339: [kind] * samples, **dict(more)}
    word, size = ("Q", 8) if big else ("I", 4)
    entries, beyond = b"", b""
    after = start + len(data) + (8 if big else 2) + len(tags) * (4 + 2 * size) + size
    for number in sorted(tags):
        values = tags[number] if isinstance(tags[number], list) else [tags[number]]
        code, type_ = ("I", 4) if number in (273, 279) else ("H", 3)
        raw = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(raw) > size:
            beyond, raw = beyond + raw, struct.pack(order + word, after + len(beyond))
        entries += struct.pack(f"{order}HH{word}", number, type_, len(values)) + raw.ljust(size, b"\0")
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    name, version = (b"II" if order == "<" else b"MM"), struct.pack(order + "H", 43 if big else 42)
    start_of_tags = struct.pack(order + word, start + len(data))
    middle = struct.pack(order + "HH", 8, 0) if big else b""
    return name + version + middle + start_of_tags + data + count + entries + bytes(size) + beyond


def saved(kind, image=None, **options):
    out = io.BytesIO()
    (Image.new("L", (W, 1), 3) if image is None else image).save(out, kind, **options)
    return out.getvalue()


UNKNOWN = "lossy: any colours"
GREY4, GREY16, RGB16 = [0, 1, 5, 15], [0, 1, 1000, 65535], [0, 0, 0, 1, 2, 3, 65535, 0, 0, 7, 7, 7]
SAME16 = [n for n in GREY16 for _ in range(3)]
LUMA = np.array([0.299, 0.587, 0.114])
PALETTE = b"PLTE", bytes([0, 0, 0, 128, 0, 0, 0, 255, 0, 9, 9, 9])
WHITE, BLACK = [1, 1, 1], [0, 0, 0]


def greys(*values):
    return [[value] * 3 for value in values]


def colours(numbers, top):
    return (np.array(numbers).reshape(W, 3) / top).tolist()


# name: (file, labels or why not, colours over white or why not, colours over black where other)
FILES = {
    "png 1": (png(1, 0, [0, 1, 1, 0]), [0, 1, 1, 0], greys(0, 1, 1, 0), None),
    "png 2": (png(2, 0, [0, 1, 2, 3]), [0, 1, 2, 3], greys(0, 1 / 3, 2 / 3, 1), None),
    "png 4": (png(4, 0, GREY4), GREY4, greys(0, 1 / 15, 1 / 3, 1), None),
    "png 8": (png(8, 0, [0, 1, 5, 255]), [0, 1, 5, 255], greys(0, 1 / 255, 5 / 255, 1), None),
    "png 16": (png(16, 0, GREY16), GREY16, greys(0, 1 / 65535, 1000 / 65535, 1), None),
    "png 16 rgb": (png(16, 2, RGB16), "colours, for example", colours(RGB16, 65535), None),
    "png 16 rgb, equal": (png(16, 2, SAME16), GREY16, greys(0, 1 / 65535, 1000 / 65535, 1), None),
    "png palette": (png(2, 3, [0, 1, 2, 3], PALETTE), [0, 1, 2, 3], [BLACK, [128 / 255, 0, 0], [0, 1, 0], [9 / 255] * 3], None),
    "png 1, clear": (png(1, 0, [0, 1, 1, 0], clear(0)), [0, 1, 1, 0], greys(1, 1, 1, 1), greys(0, 1, 1, 0)),
    "png 2, clear": (png(2, 0, [0, 1, 2, 3], clear(3)), [0, 1, 2, 3], greys(0, 1 / 3, 2 / 3, 1), greys(0, 1 / 3, 2 / 3, 0)),
    "png 4, clear": (png(4, 0, GREY4, clear(5)), GREY4, greys(0, 1 / 15, 1, 1), greys(0, 1 / 15, 0, 1)),
    "png 8, clear": (png(8, 0, [0, 1, 5, 255], clear(5)), [0, 1, 5, 255], greys(0, 1 / 255, 1, 1), greys(0, 1 / 255, 0, 1)),
    "png 16, clear": (
        png(16, 0, GREY16, clear(1000)), GREY16, greys(0, 1 / 65535, 1, 1), greys(0, 1 / 65535, 0, 1)
    ),
    "png 8 rgb, clear": (
        png(8, 2, [0, 0, 0, 1, 2, 3, 1, 2, 4, 255, 0, 0], clear(1, 2, 3)), "colours",
        [BLACK, WHITE, [1 / 255, 2 / 255, 4 / 255], [1, 0, 0]], [BLACK, BLACK, [1 / 255, 2 / 255, 4 / 255], [1, 0, 0]],
    ),
    "png 16 rgb, clear": (  # the colour beside it has the same high bytes
        png(16, 2, [0, 0, 0, 1, 2, 3, 1, 2, 4, 65535, 0, 0], clear(1, 2, 3)), "colours",
        [BLACK, WHITE, [1 / 65535, 2 / 65535, 4 / 65535], [1, 0, 0]], [BLACK, BLACK, [1 / 65535, 2 / 65535, 4 / 65535], [1, 0, 0]],
    ),
    "png palette, clear": (
        png(2, 3, [0, 1, 2, 3], PALETTE, (b"tRNS", b"\xff\0")), [0, 1, 2, 3],
        [BLACK, WHITE, [0, 1, 0], [9 / 255] * 3], [BLACK, BLACK, [0, 1, 0], [9 / 255] * 3],
    ),
    "png 8 grey and alpha": (
        png(8, 4, [0, 255, 10, 51, 10, 0, 255, 255]), [0, 10, 10, 255], greys(0, (10 * 0.2 + 255 * 0.8) / 255, 1, 1), greys(0, 2 / 255, 0, 1)
    ),
    "png 16 grey and alpha": (
        png(16, 4, [0, 65535, 1000, 13107, 1000, 0, 65535, 65535]), [0, 1000, 1000, 65535],
        greys(0, 200 / 65535 + 0.8, 1, 1), greys(0, 200 / 65535, 0, 1),
    ),
    "png 16 rgb and alpha": (
        png(16, 6, [0, 0, 0, 65535, 500, 1000, 1500, 13107, 9, 9, 9, 0, 65535, 0, 0, 65535]), "colours",
        [BLACK, [100 / 65535 + 0.8, 200 / 65535 + 0.8, 300 / 65535 + 0.8], WHITE, [1, 0, 0]],
        [BLACK, [100 / 65535, 200 / 65535, 300 / 65535], BLACK, [1, 0, 0]],
    ),
    "tiff 1": (tiff(1, 1, [0, 1, 1, 0]), [0, 1, 1, 0], greys(0, 1, 1, 0), None),
    "tiff 1, white 0": (tiff(1, 0, [0, 1, 1, 0]), [0, 1, 1, 0], greys(1, 0, 0, 1), None),
    "tiff 2": (tiff(2, 1, [0, 1, 2, 3]), [0, 1, 2, 3], greys(0, 1 / 3, 2 / 3, 1), None),
    "tiff 2, white 0": (tiff(2, 0, [0, 1, 2, 3]), [0, 1, 2, 3], greys(1, 2 / 3, 1 / 3, 0), None),
    "tiff 4": (tiff(4, 1, GREY4), GREY4, greys(0, 1 / 15, 1 / 3, 1), None),
    "tiff 4, white 0": (tiff(4, 0, GREY4), GREY4, greys(1, 14 / 15, 2 / 3, 0), None),
    "tiff 8, white 0": (tiff(8, 0, [0, 1, 51, 255]), [0, 1, 51, 255], greys(1, 254 / 255, 0.8, 0), None),
    "tiff 8, big-endian": (tiff(8, 1, [0, 1, 51, 255], order=">"), [0, 1, 51, 255], greys(0, 1 / 255, 0.2, 1), None),
    "tiff 8, big": (tiff(8, 1, [0, 1, 51, 255], big=True), [0, 1, 51, 255], greys(0, 1 / 255, 0.2, 1), None),
    "tiff 8, palette": (
        tiff(8, 3, [0, 1, 1, 0], more={320: [0, 65535, *[0] * 254, *[0] * 512]}.items()), [0, 1, 1, 0], [BLACK, [1, 0, 0], [1, 0, 0], BLACK], None
    ),
    "tiff 12": (tiff(12, 1, b"\0\0\x01\x03\xe8\xff"[:3] + b"\x3e\x8f\xff"), [0, 1, 1000, 4095], greys(0, 1 / 4095, 1000 / 4095, 1), None),
    "tiff 16": (tiff(16, 1, GREY16), GREY16, greys(0, 1 / 65535, 1000 / 65535, 1), None),
    "tiff 16, big-endian": (tiff(16, 1, GREY16, order=">"), GREY16, greys(0, 1 / 65535, 1000 / 65535, 1), None),
    "tiff 16, white 0": (tiff(16, 0, GREY16), GREY16, greys(1, 1 - 1 / 65535, 1 - 1000 / 65535, 0), None),
    "tiff 16, white 0, big-endian": (tiff(16, 0, GREY16, order=">"), GREY16, greys(1, 1 - 1 / 65535, 1 - 1000 / 65535, 0), None),
    "tiff 16 rgb": (tiff(16, 2, RGB16, samples=3), "colours", colours(RGB16, 65535), None),
    "tiff 16 rgb, equal": (tiff(16, 2, SAME16, samples=3), GREY16, greys(0, 1 / 65535, 1000 / 65535, 1), None),
    "tiff 16 rgb and alpha": (
        tiff(16, 2, [0, 0, 0, 65535, 500, 1000, 1500, 13107, 9, 9, 9, 0, 65535, 0, 0, 65535], samples=4, more=[(338, 2)]), "colours",
        [BLACK, [100 / 65535 + 0.8, 200 / 65535 + 0.8, 300 / 65535 + 0.8], WHITE, [1, 0, 0]],
        [BLACK, [100 / 65535, 200 / 65535, 300 / 65535], BLACK, [1, 0, 0]],
    ),
    "tiff 16 grey, multiplied by alpha": (
        tiff(16, 1, [0, 65535, 200, 13107, 0, 0, 65535, 65535], samples=2, more=[(338, 1)]), [0, 200, 0, 65535],
        greys(0, 200 / 65535 + 0.8, 1, 1), greys(0, 200 / 65535, 0, 1),
    ),
    "tiff 16 rgb and more": (tiff(16, 2, [0] * 16, samples=4, more=[(338, 0)]), [0] * 4, "a TIFF of 4 samples of 16 bits", None),
    "tiff signed 8": (tiff(8, 1, [0, 1, 2, 127], kind=2), [0, 1, 2, 127], "one sample of 8 bits, signed", None),
    "tiff signed 8, negative": (tiff(8, 1, [0, 1, -1, 3], kind=2), "got -1; use labels from 0", "signed", None),
    "tiff signed 16": (tiff(16, 1, [0, 1, 300, 3], kind=2), [0, 1, 300, 3], "16 bits, signed", None),
    "tiff signed 16, negative": (tiff(16, 1, [0, 1, -300, 3], kind=2), "got -300", "16 bits, signed", None),
    "tiff signed 32": (tiff(32, 1, [0, 1, -9, 3], kind=2), "got -9", "32 bits, signed", None),
    "tiff 32": (tiff(32, 1, [0, 1, 70_000, 3]), [0, 1, 70_000, 3], "32 bits, unsigned", None),
    "tiff 32, too large": (tiff(32, 1, [0, 1, 3_000_000_000, 3]), "got 3000000000", "32 bits, unsigned", None),
    "tiff 64": (tiff(64, 1, [0, 1, 70_000, 3]), [0, 1, 70_000, 3], "64 bits, unsigned", None),
    "tiff float 16": (tiff(16, 1, np.array([0, 1, 0, 1], "<f2").tobytes(), kind=3), [0, 1, 0, 1], greys(0, 1, 0, 1), None),
    "tiff float 32": (tiff(32, 1, np.array([0, 1, 7, 3], "<f4").tobytes(), kind=3), [0, 1, 7, 3], "from 0 to 1, got 0 to 7", None),
    "tiff float 32, white 0": (tiff(32, 0, np.array([0, 1, 0.25, 1], "<f4").tobytes(), kind=3), "not whole", greys(1, 0, 0.75, 0), None),
    "tiff float 64": (tiff(64, 1, np.array([0, 0.5, 1, 1], "<f8").tobytes(), kind=3), "not whole", greys(0, 0.5, 1, 1), None),
    "tiff float, infinite": (tiff(32, 1, np.array([0, np.inf, 1, 1], "<f4").tobytes(), kind=3), "got inf", "got 0 to inf", None),
    "tiff complex": (tiff(64, 1, bytes(32), kind=6), "64 bits, complex", "64 bits, complex", None),
    "jpeg": (saved("JPEG"), "a JPEG, which changes numbers", greys(*[3 / 255] * 4), None),
    "jpeg of two pictures": (
        saved("MPO", save_all=True, append_images=[Image.new("L", (W, 1), 200)]), "a JPEG of several pictures", greys(*[3 / 255] * 4), None
    ),
    "tiff by jpeg": (saved("TIFF", compression="jpeg"), "compression jpeg, which changes numbers", greys(*[3 / 255] * 4), None),
    "tiff by lzw": (saved("TIFF", compression="tiff_lzw"), [3] * 4, greys(*[3 / 255] * 4), None),
    "tiff of two pictures": (saved("TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]), [3] * 4, greys(*[3 / 255] * 4), None),
    "webp": (saved("WEBP", quality=100), "a lossy WebP, which changes numbers", UNKNOWN, None),
    "webp with metadata": (saved("WEBP", exif=b"Exif\0\0VP8L"), "a lossy WebP", UNKNOWN, None),
    "webp, lossless": (saved("WEBP", lossless=True), [3] * 4, greys(*[3 / 255] * 4), None),
    "webp, lossless, animated": (
        saved("WEBP", lossless=True, save_all=True, append_images=[Image.new("L", (W, 1), 200)]), [3] * 4, greys(*[3 / 255] * 4), None
    ),
    "webp, lossless, clear": (
        saved("WEBP", Image.new("RGBA", (W, 1), (3, 3, 3, 0)), lossless=True), "transparent parts", greys(1, 1, 1, 1), greys(0, 0, 0, 0)
    ),
    "bmp": (saved("BMP"), [3] * 4, greys(*[3 / 255] * 4), None),
}  # fmt: skip


@pytest.fixture(params=FILES)
def file(request, tmp_path):
    """Write a file of the table; return its path and what is expected of it."""
    if "tiff" in request.param:
        pytest.importorskip("rasterio", reason="reads the numbers of TIFF")
    content, labels, photo, dark = FILES[request.param]
    (tmp_path / "a.file").write_bytes(content)
    return tmp_path / "a.file", labels, photo, dark


def test_labels_are_the_stored_numbers(file):
    path, labels, _, _ = file
    if isinstance(labels, str):
        with pytest.raises(ImageError, match=rf"a\.file: expected labels.*{labels}"):
            load_labels(path)
    else:
        found = load_labels(path)
        assert found.tolist() == [labels] and found.dtype in (np.uint8, np.uint16, np.int32)


def test_photos_mean_what_their_format_says(file):
    path, _, photo, dark = file
    assert image_size(path) == (1, W)
    if photo == UNKNOWN:
        return
    if isinstance(photo, str):
        for load in (load_image, load_pixels, lambda path: load_attention(path, (1, W))):
            with pytest.raises(ImageError, match=rf"a\.file: expected .*{photo}"):
                load(path)
        return
    expected = np.array(photo)
    image = load_image(path)
    assert image.shape == (3, 1, W) and image.dtype == torch.float32
    np.testing.assert_allclose(image[:, 0].T, expected, atol=1e-6)
    np.testing.assert_allclose(load_pixels(path)[:, 0].T, expected * 255, atol=0.501)
    grey = np.array(photo if dark is None else dark) @ LUMA
    np.testing.assert_allclose(load_attention(path, (1, W))[0], grey, atol=0.51 / 255)


def test_planes_and_orientation(tmp_path):
    pytest.importorskip("rasterio", reason="reads the numbers of TIFF")
    tifffile = pytest.importorskip("tifffile", reason="writes planes")
    planes = np.arange(18, dtype=np.uint16).reshape(3, 2, 3) * 3000
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(load_image(tmp_path / "a.tif"), planes / 65535, atol=1e-6)
    numbers = np.arange(6, dtype=np.int16).reshape(2, 3)
    upright = (numbers, numbers[:, ::-1], numbers[::-1, ::-1], numbers[::-1], numbers.T, np.rot90(numbers, -1),
               numbers[::-1, ::-1].T, np.rot90(numbers))  # fmt: skip
    for orientation, expected in enumerate(upright, start=1):
        tifffile.imwrite(tmp_path / "b.tif", numbers, extratags=[(274, "H", 1, orientation, True)])
        assert np.array_equal(load_labels(tmp_path / "b.tif"), expected)
        assert image_size(tmp_path / "b.tif") == expected.shape


def test_lab(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(8, 8, [0, 0, 0, 255, 0, 0, 0, 0, 0, 255, 0, 0], samples=3))
    image, attention = load_image(tmp_path / "a.tif"), load_attention(tmp_path / "a.tif", (1, W))
    torch.testing.assert_close(image, torch.tensor([0.0, 1, 0, 1]).expand(3, 1, -1), atol=0.02, rtol=0)
    torch.testing.assert_close(attention, image.mean(0), atol=0.02, rtol=0)


def test_numbers_are_checked_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(16, 1, [0, 1, 2, 3], kind=2))
    with pytest.raises(ImageError, match=r"at most 3 pixels, got a file that declares 4 x 1 = 4"):
        load_labels(path, max_pixels=3)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(struct.pack("<HHII", 273, 4, 1, 8), struct.pack("<HHII", 273, 4, 1, 9999)))
    pytest.importorskip("rasterio", reason="reads the numbers of TIFF")
    with pytest.raises(ImageError, match="expected a whole image"):
        load_labels(path)
    path.write_bytes(tiff(16, 1, [0, 1, 2, 3], more=[(258, [16] * 3)]))  # of one sample
    with pytest.raises(ImageError, match="a header that contradicts itself"):
        load_labels(path)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    path.write_bytes(whole)
    with pytest.raises(ImageError, match=r"expected rasterio, .*, got none installed; pip install"):
        load_labels(path)


def test_a_kind_that_is_not_read_is_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(4, 6, bytes(8), samples=3))
    with pytest.raises(ImageError, match=r"got a TIFF of 3 samples of 4 bits, .* 6, which Pillow does not read"):
        load_image(tmp_path / "a.tif")
