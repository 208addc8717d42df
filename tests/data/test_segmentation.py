"""Pairs of images and masks are read as samples; every problem is found, named and counted."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from hggraph.data.image import ImageError
from hggraph.data.mask_reader import BrightnessReader, ColorReader, DatasetError, LabelReader, raise_problems
from hggraph.data.segmentation import SegmentationDataset

CLASSES = ["road", "car", "sky"]


def write(folder: Path, name: str, *, size=(6, 4), labels=None, mask_size=None) -> tuple[Path, Path]:
    """Write an image and a mask; return their paths."""
    rng = np.random.default_rng(len(name))
    image, mask = folder / f"{name}.jpg", folder / f"{name}.png"
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(image, quality=95)
    width, height = mask_size or size
    values = np.full((height, width), 0 if labels is None else labels, dtype=np.uint8)
    Image.fromarray(values).save(mask)
    return image, mask


@pytest.fixture
def dataset(tmp_path):
    return SegmentationDataset([write(tmp_path, "a", labels=1), write(tmp_path, "bb", labels=255)], CLASSES)


def test_sample(dataset, tmp_path):
    sample = dataset[0]
    assert list(sample) == ["image", "mask", "name"] and sample["name"] == "a"
    assert type(sample["image"]) is tv_tensors.Image and type(sample["mask"]) is tv_tensors.Mask
    assert sample["image"].dtype == sample["mask"].dtype == torch.uint8
    expected = np.array(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert np.array_equal(sample["image"].permute(1, 2, 0), expected)
    assert sample["mask"].shape == (4, 6) and (sample["mask"] == 1).all()
    assert (dataset[1]["mask"] == dataset.ignore_index).all()
    assert dataset[-1]["name"] == "bb"
    assert [sample["name"] for sample in dataset] == ["a", "bb"]  # IndexError ends it
    assert repr(dataset) == "SegmentationDataset(2 images, 3 classes)"


def test_transform_gets_the_sample_and_may_be_set_later(dataset):
    from torchvision.transforms import v2

    dataset.transform = v2.RandomHorizontalFlip(p=1.0)
    flipped = dataset[0]
    assert torch.equal(flipped["image"], dataset.raw(0)["image"].flip(-1)) and flipped["name"] == "a"


def test_a_worker_gets_a_copy(dataset):
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0]["image"], dataset[0]["image"])


def test_an_image_without_a_mask(tmp_path):
    image, _ = write(tmp_path, "a")
    dataset = SegmentationDataset([(image, None)], CLASSES)
    dataset.check(labels=True)
    assert list(dataset[0]) == ["image", "name"]
    assert len(dataset.plot(0).axes) == 1


def test_an_image_turned_by_its_camera(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    masks = {"upright": (6, 4), "stored": (4, 6), "neither": (5, 5)}  # heights and widths
    for name, shape in masks.items():
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    pairs = [(tmp_path / "photo.png", tmp_path / f"{name}.png") for name in masks]
    dataset = SegmentationDataset(pairs, CLASSES, names=list(masks))
    assert np.array_equal(dataset[0]["image"].permute(1, 2, 0), np.rot90(pixels, -1))
    assert np.array_equal(dataset[1]["image"].permute(1, 2, 0), pixels)
    with pytest.raises(DatasetError, match=r"neither\.png: expected a mask .*, 4 x 6 pixels .*, got 5 x 5"):
        dataset[2]
    for labels in (False, True):
        with pytest.raises(DatasetError, match=r"has 1 problem:\n.*neither\.png"):
            dataset.check(labels)


def test_check_names_each_problem_and_counts_them(tmp_path):
    good = write(tmp_path, "good")
    bad_label = write(tmp_path, "label", labels=3)
    bad_size = write(tmp_path, "size", mask_size=(5, 4))
    no_mask, no_image = write(tmp_path, "no_mask"), write(tmp_path, "no_image")
    no_mask[1].unlink()
    no_image[0].unlink()
    broken = write(tmp_path, "broken")
    broken[0].write_bytes(broken[0].read_bytes()[:-20])
    pairs = [good, bad_label, bad_size, no_mask, no_image, broken]
    dataset = SegmentationDataset(pairs, CLASSES, extra=[tmp_path / "lost.png"], published=7)

    def problems(**options):
        with pytest.raises(DatasetError) as error:
            dataset.check(**options)
        return str(error.value).splitlines()

    by_header = problems()
    assert by_header[0] == "SegmentationDataset(6 images, 3 classes) has 3 problems:"
    assert [re.search(r"(\w+)\.(png|jpg):", line).group(1) for line in by_header[1:]] == [
        "size",
        "no_mask",
        "no_image",
    ]
    assert by_header[2].endswith("no_mask.png: missing, the mask")
    assert by_header[3].endswith("no_image.jpg: missing, the image")
    whole = problems(labels=True)
    assert whole[0].endswith("has 5 problems:")
    assert "label.png: 24 pixels labelled outside the classes: 3; expected 0 to 2, 255" in whole[1]
    assert "broken.jpg: expected a whole image" in whole[-1]
    assert problems(sizes=False)[0].endswith("has 2 problems:")
    complete = problems(sizes=False, complete=True)
    assert complete[1] == "  expected 7 images, as published, got 6"
    assert complete[2].endswith("lost.png: a mask without an image")


def test_check_shows_the_first_ten_of_many():
    with pytest.raises(DatasetError) as error:
        raise_problems("Here", [f"problem {number}" for number in range(1234)])
    lines = str(error.value).splitlines()
    assert lines[0] == "Here has 1,234 problems:" and lines[1:11] == [f"  problem {i}" for i in range(10)]
    assert lines[11:] == ["  ... and 1,224 more"]
    raise_problems("Here", [])


def test_an_item_names_the_file_that_is_damaged(tmp_path):
    image, mask = write(tmp_path, "a")
    dataset = SegmentationDataset([(image, mask)], CLASSES)
    mask.write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.png: expected an image, got an empty file"):
        dataset[0]
    mask.unlink()
    with pytest.raises(ImageError, match=r"a\.png: .* does not exist"):
        dataset[0]


def test_what_makes_no_data_set(tmp_path):
    pair = write(tmp_path, "a")
    with pytest.raises(DatasetError, match="expected images, got none"):
        SegmentationDataset([], CLASSES)
    with pytest.raises(DatasetError, match="got 2 for 3 and 1 for 1"):
        SegmentationDataset([pair], CLASSES, palette=[(0, 0, 0), (1, 1, 1)])
    with pytest.raises(DatasetError, match="got 3 for 3 and 2 for 1"):
        SegmentationDataset([pair], CLASSES, names=["a", "b"])
    with pytest.raises(DatasetError, match="one image of each name, got several of a"):
        SegmentationDataset([pair, pair], CLASSES)


def read(reader, pixels, name="mask.png"):
    """Write pixels and read them as a mask."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)
        return reader(path)


@given(
    st.dictionaries(st.integers(0, 600), st.sampled_from([0, 1, 7, 254, 255]), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_label_table_is_a_look_up(table, random):
    labels = np.array([[random.choice(list(table)) for _ in range(5)] for _ in range(3)], dtype=np.uint16)
    classes = read(LabelReader(table), labels)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[table[label] for label in row] for row in labels.tolist()]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_without_a_class(dtype):
    labels = np.array([[0, 1, 2, 9], [10, 11, 12, 13], [200, 201, 0, 0]], dtype=dtype)
    with pytest.raises(DatasetError, match="8 pixels labelled outside the classes: 2, 9, 10, 11, 12 and 3 more; "):
        read(LabelReader({0: 0, 1: 1, 255: 255}), labels)
    large = labels.astype(np.uint16) * 300
    with pytest.raises(DatasetError, match="outside the classes: 300, 600"):
        read(LabelReader({0: 0}), large)


def test_colours_are_a_look_up():
    table = {(128, 0, 0): 1, (0, 0, 0): 255, (0, 64, 192): 0, (255, 255, 255): 2}
    colors = list(table)
    picks = np.random.default_rng(0).integers(0, 4, (5, 7))
    pixels = np.array(colors, dtype=np.uint8)[picks]
    expected = np.array(list(table.values()))[picks]
    assert np.array_equal(read(ColorReader(table), pixels), expected)
    palette = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert np.array_equal(read(ColorReader(table), np.array(palette.convert("RGB"))), expected)


def test_colours_of_no_class():
    pixels = np.zeros((10, 10, 3), dtype=np.uint8)
    pixels[3, 4] = 1, 2, 3
    table = {(0, 0, 0): 0}
    with pytest.raises(DatasetError, match=r"1 pixels in colours of no class: \(1, 2, 3\); expected the 1 colours"):
        read(ColorReader(table), pixels)
    tolerated = read(ColorReader(table, tolerance=0.01), pixels)
    assert tolerated[3, 4] == 255 and (tolerated == 0).sum() == 99
    pixels[0, 0] = 255, 255, 255
    with pytest.raises(DatasetError, match="2 pixels in colours of no class"):
        read(ColorReader(table, tolerance=0.01), pixels)


def test_brightness_is_cut_in_the_middle():
    grey = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    assert read(BrightnessReader(), grey).tolist() == [[0, 0, 1, 1]]
    assert read(BrightnessReader(), grey == 255).tolist() == [[0, 0, 0, 1]]
    assert read(BrightnessReader(), np.stack([grey] * 3, axis=-1)).tolist() == [[0, 0, 1, 1]]
    assert read(BrightnessReader(), np.zeros((2, 2), dtype=np.uint8)).tolist() == [[0, 0], [0, 0]]
    assert read(BrightnessReader(), (grey * 257.0).astype(np.uint16)).tolist() == [[0, 0, 1, 1]]
    numbers, dark = np.array([[0, 1, 3]], dtype=np.uint8), Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    dark.putpalette([0, 0, 0, 0, 128, 0])
    for mask in (numbers, numbers.astype(np.uint16), dark, np.array([[0, 127]], dtype=np.uint8)):
        with pytest.raises(DatasetError, match=r"got nothing brighter than .* which would all count as black"):
            read(BrightnessReader(), mask)
    assert read(BrightnessReader(faintest=1 / 12), np.array([[0, 127]], dtype=np.uint8)).tolist() == [[0, 0]]


def test_colours_that_compression_changes(tmp_path):
    for name in ("a.jpg", "a.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(ImageError, match="which changes numbers; store labels as PNG"):
            ColorReader({(0, 0, 0): 0})(tmp_path / name)


def test_plot_shows_image_mask_and_both(tmp_path):
    labels = np.zeros((4, 6), dtype=np.uint8)
    labels[1:, 2:] = 1
    labels[0, 0] = 255
    image, mask = write(tmp_path, "a", labels=labels)
    dataset = SegmentationDataset([(image, mask)], CLASSES, palette=[(10, 20, 30), (200, 100, 50), (1, 1, 1)])
    figure = dataset.plot(0)
    shown = {axes.get_title(loc="left"): np.asarray(axes.images[0].get_array()) for axes in figure.axes}
    assert list(shown) == ["a", "mask", "both"]
    photo = np.array(Image.open(image))
    assert np.array_equal(shown["a"], photo)
    expected = np.array([(10, 20, 30), (200, 100, 50)])[np.where(labels == 1, 1, 0)]
    expected[0, 0] = 0
    assert np.array_equal(shown["mask"], expected)
    assert np.array_equal(shown["both"][0, 0], photo[0, 0])  # what does not count stays as it is
    assert abs(shown["both"][2, 3] - (0.45 * photo[2, 3] + 0.55 * expected[2, 3])).max() <= 0.5 + 1e-6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["road", "car"]


def test_plot_without_matplotlib(dataset, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hggraph\[viz\]"'):
        dataset.plot(0)
