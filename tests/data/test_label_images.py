"""Pixels, labels and brightness of image files of every kind, and sizes from headers alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hggraph.data.image import ImageError, image_size, load_brightness, load_image, load_labels, load_pixels

LABELS = np.array([[0, 1, 2], [3, 200, 255]], dtype=np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return save(tmp_path / "photo.png", pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_pixels_are_those_of_load_image(mode, photo, tmp_path):
    path = tmp_path / "other.tif"
    Image.open(photo).convert(mode).save(path)
    pixels = load_pixels(path)
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert torch.equal(pixels / 255, load_image(path))


def test_pixels_of_sixteen_bits_are_rounded(tmp_path):
    values = np.array([[0, 128, 129, 65535]], dtype=np.uint16)  # 128 / 257 is under a half, 129 / 257 over it
    assert load_pixels(save(tmp_path / "a.png", values)).tolist() == [[[0, 0, 1, 255]]] * 3
    floats = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert load_pixels(save(tmp_path / "a.tif", floats))[0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_size(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    path = save(tmp_path / name, pixels, exif=exif)
    with Image.open(path) as image:  # Pillow turns TIFF files itself
        stored, upright = np.array(image), np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(load_pixels(path).permute(1, 2, 0), upright)
    assert np.array_equal(load_pixels(path, upright=False).permute(1, 2, 0), stored)
    assert image_size(path) == upright.shape[:2]
    assert image_size(path, upright=False) == stored.shape[:2] == (upright.shape[:2] if name == "a.tif" else (12, 20))


def test_size_does_not_decode(photo, tmp_path):
    whole = photo.read_bytes()
    photo.write_bytes(whole[:60])  # the header, and no pixels
    assert image_size(photo) == (12, 20)
    with pytest.raises(ImageError, match="expected a whole image"):
        load_pixels(photo)
    for content, text in [(b"", "empty file"), (b"words", "another format")]:
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ImageError, match=text):
            image_size(tmp_path / "bad.png")
    with pytest.raises(ImageError, match="does not exist"):
        image_size(tmp_path / "none.png")


def test_labels_of_grey_and_palette_images(tmp_path):
    assert np.array_equal(load_labels(save(tmp_path / "grey.png", LABELS)), LABELS)
    palette = Image.fromarray(LABELS)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())  # indices are read, not these
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "transparent.png", transparency=0)
    for name in ("palette.png", "transparent.png"):
        assert np.array_equal(load_labels(tmp_path / name), LABELS)
    few = Image.fromarray(LABELS % 4)
    few.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    few.save(tmp_path / "two_bits.png", bits=2)
    assert np.array_equal(load_labels(tmp_path / "two_bits.png"), LABELS % 4)


def test_labels_of_channels_that_agree(tmp_path):
    same = np.stack([LABELS] * 3, axis=-1)
    alpha = np.dstack([same, np.full_like(LABELS, 9)])
    for pixels in (same, alpha, np.dstack([LABELS, LABELS])):
        assert np.array_equal(load_labels(save(tmp_path / "a.png", pixels)), LABELS)
    assert load_labels(save(tmp_path / "b.png", LABELS > 1)).tolist() == [[0, 0, 1], [1, 1, 1]]


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=9))
def test_labels_of_sixteen_bits(numbers):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.png", "a.tif"):
            path = save(Path(folder, name), np.array([numbers], dtype=np.uint16))
            assert load_labels(path).tolist() == [numbers]


def test_labels_of_large_and_floating_point_numbers(tmp_path):
    numbers = np.array([[0, 70_000, 5]], dtype=np.int32)
    assert load_labels(save(tmp_path / "a.tif", numbers)).tolist() == numbers.tolist()
    assert load_labels(save(tmp_path / "b.tif", numbers.astype(np.float32))).tolist() == numbers.tolist()
    for wrong, text in [(np.float32(0.5), "not whole"), (np.float32("nan"), "not whole"), (np.int32(-1), "got -1")]:
        with pytest.raises(ImageError, match=text):
            load_labels(save(tmp_path / "c.tif", np.full((2, 2), wrong)))


def test_labels_that_cannot_be_meant(tmp_path):
    colours = np.zeros((2, 2, 3), dtype=np.uint8)
    colours[1, 1] = 128, 64, 0
    with pytest.raises(ImageError, match=r"a\.png: expected labels, .*, got colours, for example \[128, 64, 0\]"):
        load_labels(save(tmp_path / "a.png", colours))
    yellow = np.dstack([LABELS, LABELS, np.zeros_like(LABELS)])  # two channels agree
    with pytest.raises(ImageError, match=r"got colours, for example \[1, 1, 0\]"):
        load_labels(save(tmp_path / "a.png", yellow))
    with pytest.raises(ImageError, match="a JPEG, which changes numbers; store labels as PNG"):
        load_labels(save(tmp_path / "a.jpg", LABELS))


def test_turned_labels_follow_their_own_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", LABELS, exif=exif)
    assert np.array_equal(load_labels(path), np.rot90(LABELS, -1))


def test_brightness(tmp_path):
    def brightness(name, pixels):
        return (load_brightness(save(tmp_path / name, pixels)) * 255).tolist()

    assert brightness("a.png", LABELS) == LABELS.tolist()
    assert brightness("b.png", LABELS > 1) == (255 * (LABELS > 1)).tolist()
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    palette.putpalette([255, 255, 255, 0, 0, 0])
    palette.save(tmp_path / "c.png")
    assert load_brightness(tmp_path / "c.png").tolist() == [[1, 0]]  # colours, not indices
    assert brightness("d.png", np.array([[0, 257, 65535]], dtype=np.uint16)) == [[0, 1, 255]]
    transparent = np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]], dtype=np.uint8)
    assert brightness("e.png", transparent) == [[0, 255]]
    assert brightness("f.jpg", np.full((8, 8), 200, dtype=np.uint8))[4][4] == 200
