"""Image files of every kind become colours in [0, 1]; bad ones an error that says what to do."""

import builtins
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hggraph.data import ImageError, list_images, load_attention, load_image, sample_photo


@pytest.fixture
def photo() -> Image.Image:
    """Return 20 x 12 pixels, each of another colour."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """Return a PNG file that declares a size and holds `pixels`, compressed."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff", "a.bmp", "a.PNG", "a.webp", "a.jpg"])
def test_formats(name, photo, tmp_path):
    lossless = {"lossless": True} if name.endswith("webp") else {}
    photo.save(tmp_path / name, **lossless)
    image = load_image(tmp_path / name)
    assert image.shape == (3, 12, 20) and image.dtype == torch.float32 and image.is_contiguous()
    expected = Image.open(tmp_path / name) if name.endswith("jpg") else photo
    assert torch.equal(image, as_tensor(expected))


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("1", "a.png"), ("P", "a.png"), ("CMYK", "a.tif"), ("YCbCr", "a.tif")],
)
def test_modes_without_alpha(mode, name, photo, tmp_path):
    other = photo.convert(mode)
    other.save(tmp_path / name)
    assert torch.equal(load_image(tmp_path / name), as_tensor(other))


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    image = load_image(tmp_path / "red.jpg")
    torch.testing.assert_close(image[:, 4, 4], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_precision(name, tmp_path):
    values = np.array([[0, 1, 65535], [256, 257, 32768]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    expected = torch.from_numpy(values.astype(np.float32)) / 65535
    assert torch.equal(load_image(tmp_path / name), expected.expand(3, -1, -1))
    assert torch.equal(load_attention(tmp_path / name, (2, 3)), expected)


def test_floating_point_tiff(tmp_path):
    values = np.array([[0, 0.25, 1]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert torch.equal(load_image(tmp_path / "a.tif")[0], torch.from_numpy(values))
    for wrong in [np.nan, np.inf, 255.0, -0.5]:
        Image.fromarray(np.full((1, 2), wrong, dtype=np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(ImageError, match=r"b\.tif: expected numbers from 0 to 1, got"):
            load_image(tmp_path / "b.tif")


def test_alpha_is_laid_over_white_and_attention_over_black(tmp_path):
    Image.new("RGBA", (1, 1), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").flatten().tolist() == pytest.approx([0.8] * 3)
    Image.new("LA", (1, 1), (255, 51)).save(tmp_path / "b.png")
    assert load_attention(tmp_path / "b.png", (1, 1)).item() == pytest.approx(0.2)


def test_opaque_alpha_changes_nothing(photo, tmp_path):
    with_alpha = photo.convert("RGBA")
    with_alpha.save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png"), as_tensor(photo))


def test_transparent_palette_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))  # Pillow warns of such bytes
    assert load_image(tmp_path / "a.png")[:, 0].T.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_rotation(orientation, name, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as opened:
        expected = ImageOps.exif_transpose(opened)
        assert expected.size == ((20, 12) if orientation < 5 else (12, 20))
        assert torch.equal(load_image(tmp_path / name), as_tensor(expected))


def test_damaged_exif_is_passed_over(photo, tmp_path):
    photo.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x99" * 30)
    assert load_image(tmp_path / "a.jpg").shape == (3, 12, 20)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_first_frame_of_an_animation(name, tmp_path):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    red.save(tmp_path / name, save_all=True, append_images=[blue])
    torch.testing.assert_close(load_image(tmp_path / name)[:, 4, 4], torch.tensor([1.0, 0, 0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"])
def test_truncated_file(name, photo, tmp_path):
    photo.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in [1, 10, len(whole) // 2, len(whole) - 30]:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ImageError, match=rf"{name}: expected .*, got .*; .* again\.$"):
            load_image(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"These are words, not pixels.", "expected PNG, .*, got another format"),
        (
            b"GIF89a\1\0\1\0\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
            "another format",
        ),
        (b"", "got an empty file"),
        (png(0, 5), "got 0 x 5|another format"),
        (
            png(60_000, 60_000),
            "at most 178,956,970 pixels, got a file that declares more .*3600000000",
        ),
        (png(12_000, 12_000), "expected a whole image"),  # over the size at which Pillow warns
    ],
)
def test_bad_content(content, text, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"photo\.png: .*" + text):
        load_image(path)
    with pytest.raises(ImageError, match=r"photo\.png: .*" + text):
        load_attention(path, (4, 4))


def test_damaged_bytes_never_raise_anything_else(photo, tmp_path):
    random = np.random.default_rng(1)
    for name in ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"]:
        photo.save(tmp_path / name)
        whole = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[random.integers(0, len(damaged), 5)] = random.integers(0, 256, 5)
            (tmp_path / name).write_bytes(damaged.tobytes())
            try:
                image = load_image(tmp_path / name, max_pixels=10_000)
            except ImageError as error:
                assert str(error).startswith(str(tmp_path / name))
            else:
                assert image.min() >= 0 and image.max() <= 1


def test_max_pixels_counts_before_decoding(photo, tmp_path):
    path = tmp_path / "a.png"
    photo.save(path)
    assert load_image(path, max_pixels=240).shape == (3, 12, 20)
    with pytest.raises(ImageError, match=r"at most 239 pixels, got .* 20 x 12 = 240; raise"):
        load_image(path, max_pixels=239)
    path.write_bytes(png(1000, 1000))  # nothing to decode
    with pytest.raises(ImageError, match="1,000,000"):
        load_image(path, max_pixels=999_999)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("path", [".", "missing.png"])
def test_no_file(path, tmp_path):
    with pytest.raises(ImageError, match="expected an image, got a"):
        load_image(tmp_path / path)


def test_attention_size(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    attention = load_attention(tmp_path / "a.png", (12, 20))
    assert attention.shape == (12, 20) and attention.dtype == torch.float32
    grey = torch.from_numpy(np.array(photo.convert("L"))) / 255
    assert torch.equal(attention, grey)
    with pytest.raises(ImageError, match=r"size, 12 x 20 pixels, got 20 x 12; resize"):
        load_attention(tmp_path / "a.png", (20, 12))


def test_list_images(tmp_path):
    for name in ["b.JPG", "a.png", "c.txt", ".hidden.png", "inner/d.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    a, b, c = tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "c.txt"
    assert list_images([tmp_path]) == [a, b]
    assert list_images([c, str(tmp_path), a, tmp_path / "inner" / ".." / "a.png"]) == [c, a, b]
    assert list_images([]) == []
    with pytest.raises(ImageError, match="does not exist"):
        list_images([a, tmp_path / "missing.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="got a folder without"):
        list_images([tmp_path / "empty"])


def test_sample_photos():
    pytest.importorskip("sklearn", reason="needs the extra `sklearn`")
    china, flower = sample_photo(), sample_photo("flower")
    assert china.shape == flower.shape == (3, 427, 640)
    assert not torch.equal(china, flower)
    assert china.min() >= 0 and 0.9 < china.max() <= 1
    with pytest.raises(ValueError, match="`name` must be"):
        sample_photo("../china")


def test_sample_photo_without_scikit_learn(monkeypatch):
    true_import = builtins.__import__

    def no_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(ImportError, match=r'pip install "hggraph\[sklearn\]"'):
        sample_photo()


def test_folder_given_as_text(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png")).shape == (3, 12, 20)
    assert list_images([str(tmp_path)]) == [Path(tmp_path, "a.png")]
