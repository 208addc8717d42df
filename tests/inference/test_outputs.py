"""Files of predictions: what is read back is what was given, and nothing is left behind or lost on an error."""

import numpy as np
import pytest
import torch
from PIL import Image

from hggraph.inference.outputs import check_palette, class_colors, save_labels, save_overlay, save_probabilities

PALETTE = [(0, 0, 0), (250, 10, 20), (0, 200, 0), (30, 40, 255)]


def opened(path):
    with Image.open(path) as picture:
        picture.load()
        return picture


def test_colors_are_those_of_pascal_voc():
    """The table that comes with the data set begins like this; all 256 differ."""
    colors = class_colors(257)
    assert colors[:9] == [
        *[(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)],
        *[(128, 128, 128), (64, 0, 0)],
    ]
    assert colors[20] == (0, 64, 128) and colors[255] == (224, 224, 192)
    assert len(set(colors[:256])) == 256 and colors[256] == colors[0]
    assert class_colors(0) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (40, 30)])
def test_labels_are_the_pixels(tmp_path, size):
    labels = torch.randint(0, 4, size)
    labels[0, 0] = 255
    save_labels(labels, tmp_path / "labels.png", PALETTE, num_classes=4)
    picture = opened(tmp_path / "labels.png")
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture), labels.numpy())
    expected = np.array([*PALETTE, *[(255, 255, 255)] * 252], dtype=np.uint8)[labels.numpy()]
    assert np.array_equal(np.array(picture.convert("RGB")), expected)


def test_default_palette(tmp_path):
    labels = torch.arange(256).view(16, 16)
    save_labels(labels, tmp_path / "a.png")
    colors = np.array(opened(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    assert [tuple(color) for color in colors[:255].tolist()] == class_colors(255)
    assert colors[255].tolist() == [255, 255, 255]  # ignored
    save_labels(labels, tmp_path / "b.png", num_classes=256)  # here it is a class
    assert np.array(opened(tmp_path / "b.png").convert("RGB"))[-1, -1].tolist() == [224, 224, 192]


def test_many_classes_have_sixteen_bits(tmp_path):
    labels = torch.tensor([[0, 300], [65535, 7]])
    save_labels(labels, tmp_path / "a.png")
    picture = opened(tmp_path / "a.png")
    assert picture.mode == "I;16" and np.array_equal(np.array(picture), labels.numpy())
    # by the number of classes, not by what an image happens to show
    save_labels(torch.zeros(2, 2, dtype=torch.uint8), tmp_path / "b.png", num_classes=257)
    assert opened(tmp_path / "b.png").mode == "I;16"
    save_labels(torch.zeros(2, 2, dtype=torch.uint8), tmp_path / "b.png", num_classes=256)
    assert opened(tmp_path / "b.png").mode == "P"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_kinds_of_labels(tmp_path, dtype):
    labels = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype).t()  # not contiguous
    save_labels(labels, tmp_path / "a.png")
    assert np.array_equal(np.array(opened(tmp_path / "a.png")), labels.numpy())


@pytest.mark.parametrize(
    ("labels", "options", "text"),
    [
        (torch.zeros(2, 2), {}, r"must be whole numbers \(H, W\), got torch.float32"),
        (torch.zeros(1, 2, 2, dtype=torch.long), {}, r"must be whole numbers \(H, W\), got .* of shape \(1, 2, 2\)"),
        (torch.zeros(0, 2, dtype=torch.long), {}, r"at least one pixel, got shape \(0, 2\)"),
        (torch.full((1, 1), -1), {}, "must be from 0 to 65535, got values from -1 to -1"),
        (torch.full((1, 1), 65536), {}, "must be from 0 to 65535, got values from 65536"),
        (torch.full((1, 1), 256), {"num_classes": 5}, "of 5 classes must be from 0 to 255, got 256"),
        (torch.zeros(1, 1).long(), {"num_classes": 5, "palette": PALETTE}, "a colour for each of 5 classes, got 4"),
        (torch.zeros(1, 1).long(), {"palette": [(0, 0)]}, r"must hold red, green and blue .*got \(0, 0\) for class 0"),
        (torch.zeros(1, 1).long(), {"palette": [(0, 0, 256)]}, "from 0 to 255"),
        (torch.zeros(1, 1).long(), {"path": "a.jpg"}, r"`path` must end in \.png, got 'a\.jpg'"),
    ],
)
def test_labels_that_cannot_be_written(tmp_path, labels, options, text):
    with pytest.raises(ValueError, match=text):
        save_labels(labels, options.pop("path", tmp_path / "a.png"), **options)
    assert not list(tmp_path.iterdir())


def test_palettes_of_numpy():
    assert check_palette(np.array(PALETTE, dtype=np.uint8), 4) == PALETTE


def test_probability_maps(tmp_path):
    found = torch.rand(5, 9, 7).softmax(0)
    save_probabilities(found, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file.files == ["probabilities"] and file["probabilities"].dtype == np.float16
        np.testing.assert_allclose(file["probabilities"], found, rtol=0, atol=3e-4)
    one = torch.rand(1, 9, 7)
    one[0, 0, :2] = torch.tensor([0, 1 + 1e-7])  # blended windows round up
    save_probabilities(one, tmp_path / "a.png")
    picture = opened(tmp_path / "a.png")
    assert picture.mode == "I;16"
    values = np.array(picture).astype(np.float64) / 65535
    np.testing.assert_allclose(values, one[0].numpy(), rtol=0, atol=1e-5)
    assert values[0, 0] == 0 and values[0, 1] == 1


@pytest.mark.parametrize(
    ("found", "name", "text"),
    [
        (torch.rand(2, 3, 3), "a.png", r"A \.png file holds one class, got 2: write an \.npz file"),
        (torch.rand(3, 3), "a.npz", r"must be floating point of shape \(K, H, W\), got .*\(3, 3\)"),
        (torch.zeros(1, 3, 3).long(), "a.npz", "must be floating point"),
        (torch.full((1, 1, 1), 1.1), "a.npz", "must be from 0 to 1"),
        (torch.full((1, 1, 1), -0.1), "a.png", "must be from 0 to 1"),
        (torch.full((1, 1, 1), float("nan")), "a.npz", "must be from 0 to 1"),
        (torch.rand(1, 3, 3), "a.tif", r"`path` must end in \.npz or \.png"),
    ],
)
def test_probabilities_that_cannot_be_written(tmp_path, found, name, text):
    with pytest.raises(ValueError, match=text):
        save_probabilities(found, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lying", [False, True])
def test_overlay_is_the_mixture(tmp_path, lying):
    """Inside, opacity times the colour; where labels meet, half of the photo that was left; hidden ones unpainted.

    The second palette gives label 0, the background, a colour; in the first it is black, which is no paint.
    """
    image = torch.rand(3, 6, 12)
    labels = torch.zeros(6, 12, dtype=torch.long)
    labels[:, 4:8], labels[:, 8:] = 1, 255

    def overlay(palette=PALETTE, **options):
        given = (image.transpose(1, 2), labels.t()) if lying else (image, labels)
        save_overlay(*given, tmp_path / "a.png", palette, opacity=0.4, **options)
        found = np.array(opened(tmp_path / "a.png")).astype(float)
        return found.transpose(1, 0, 2) if lying else found

    photo = image.permute(1, 2, 0).numpy() * 255
    for palette in (PALETTE, [(0, 0, 9), *PALETTE[1:]]):
        found = overlay(palette)
        for column in range(12):
            color = np.array(palette[min(labels[0, column].item(), 1)])
            weight = 0 if column >= 8 or not color.any() else 0.7 if column in (3, 4, 7) else 0.4
            expected = (1 - weight) * photo[:, column] + weight * color
            np.testing.assert_allclose(found[:, column], expected, rtol=0, atol=0.51)
    np.testing.assert_allclose(overlay(hidden=(0, 1, 255)), photo, rtol=0, atol=0.51)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".bmp", ".tif"])
def test_formats_of_overlays(tmp_path, suffix):
    grey = torch.rand(1, 33, 20)
    save_overlay(grey, torch.zeros(33, 20).long(), tmp_path / f"a{suffix}", opacity=0)
    picture = opened(tmp_path / f"a{suffix}")
    assert picture.size == (20, 33) and picture.mode == "RGB"
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_overlays_of_one_pixel_and_many_classes(tmp_path):
    save_overlay(torch.ones(3, 1, 1), torch.full((1, 1), 300), tmp_path / "a.png", opacity=1)
    assert np.array(opened(tmp_path / "a.png")).tolist() == [[list(class_colors(301)[300])]]


def test_overlays_that_cannot_be_written(tmp_path):
    labels, image = torch.zeros(3, 4).long(), torch.rand(3, 3, 4)
    cases = [
        ((image[:2], labels, tmp_path / "a.png"), {}, r"`image` must have shape \(3, H, W\) or \(1, H, W\)"),
        ((image, labels.t(), tmp_path / "a.png"), {}, "with labels"),
        ((image, labels, tmp_path / "a.png"), {"opacity": 1.5}, "`opacity` must be from 0 to 1, got 1.5"),
        ((image, labels, tmp_path / "a.gif"), {}, "`path` must end in"),
    ]
    for arguments, options, text in cases:
        with pytest.raises(ValueError, match=text):
            save_overlay(*arguments, **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    labels, path = torch.zeros(3, 4).long(), tmp_path / "a.png"
    save_labels(labels, path)
    before = path.read_bytes()

    def full(self, file, **options):
        file.write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for write in (
        lambda: save_labels(labels + 1, path),
        lambda: save_overlay(torch.rand(3, 3, 4), labels, path),
        lambda: save_probabilities(torch.rand(1, 3, 4), path),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(OSError):
        save_probabilities(torch.rand(2, 3, 4), tmp_path / "none" / "a.npz")
