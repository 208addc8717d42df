"""Folders of images with masks of the same name, and folders of classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from hggraph.data.folder import ClassFolder, FolderDataset
from hggraph.data.image import ImageError
from hggraph.data.layout import files_in, pair, read_list
from hggraph.data.mask_reader import DatasetError

CLASSES = ["road", "car"]


def save(path: Path, pixels=None, size=(4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(np.zeros((height, width, 3), np.uint8) if pixels is None else np.asarray(pixels)).save(path)


def mask(path: Path, number=0, size=(4, 3)) -> None:
    save(path, np.full((size[1], size[0]), number, np.uint8))


def test_two_folders_with_folders_in_them(tmp_path):
    for split in ("train", "val"):
        for number, name in enumerate(["a", "town/b", "town/c.d"]):
            save(tmp_path / split / "images" / f"{name}.{['jpg', 'PNG', 'tif'][number]}")
            mask(tmp_path / split / "masks" / f"{name}.png", number % 2)
    (tmp_path / "train/images/notes.txt").write_text("not an image")
    save(tmp_path / "train/images/.cache/x.png")
    dataset = FolderDataset(tmp_path, "train", classes=CLASSES)
    dataset.check(labels=True)
    assert dataset.names == ["a", "town/b", "town/c.d"]
    assert [int(sample["mask"][0, 0]) for sample in dataset] == [0, 1, 0]


def test_folders_of_other_names_and_ends(tmp_path):
    save(tmp_path / "rgb/val/1_sat.jpg")
    mask(tmp_path / "labels/val/1_mask.png", 1)
    mask(tmp_path / "labels/val/1_instances.png", 9)  # of another kind: not looked at
    options = {"images": "rgb/val", "masks": "labels/val", "image_end": "_sat", "mask_end": "_mask"}
    dataset = FolderDataset(tmp_path, classes=CLASSES, **options)
    dataset.check(labels=True)
    assert dataset.names == ["1"] and dataset[0]["mask"].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("image", "label", "options"),
    [
        ("a.jpg", "a.png", {}),
        ("a.png", "a_mask.png", {"mask_end": "_mask"}),
        ("a_sat.png", "a_mask.png", {"image_end": "_sat", "mask_end": "_mask"}),
        ("a_im.jpg", "a.png", {"image_end": "_im"}),
    ],
)
def test_one_folder(tmp_path, image, label, options):
    save(tmp_path / image)
    mask(tmp_path / label, 1)
    dataset = FolderDataset(tmp_path, images=".", masks=".", classes=CLASSES, **options)
    dataset.check(labels=True)
    assert dataset.pairs == [(tmp_path / image, tmp_path / label)] and dataset.names == ["a"]


def test_missing_and_extra(tmp_path):
    save(tmp_path / "images/a.jpg")
    save(tmp_path / "images/b.jpg")
    mask(tmp_path / "masks/b.png")
    mask(tmp_path / "masks/c.png")
    dataset = FolderDataset(tmp_path, classes=CLASSES)
    with pytest.raises(
        DatasetError, match=r"has 2 problems:\n.*c.png: a mask without.*\n.*masks/a.png: missing, the m"
    ):
        dataset.check(complete=True)
    with pytest.raises(ImageError, match=r"masks/a\.png"):
        dataset[0]


def test_two_files_of_one_name(tmp_path):
    save(tmp_path / "images/a.jpg")
    save(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png")
    with pytest.raises(DatasetError, match=r"a\.png and a\.jpg have one name; which is meant\? Remove one"):
        FolderDataset(tmp_path, classes=CLASSES)


def test_another_layout(tmp_path):
    save(tmp_path / "pictures/a.jpg")
    with pytest.raises(DatasetError) as error:
        FolderDataset(tmp_path, classes=CLASSES, mask_end="_m")
    assert "Expected in it:\n  images/NAME.jpg (or .png, " in str(error.value)
    assert "masks/NAME_m.png\nFound:\n  pictures/\n  pictures/a.jpg" in str(error.value)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DatasetError, match="has another layout"):
        FolderDataset(tmp_path, classes=CLASSES)


def test_what_masks_are(tmp_path):
    palette = [(0, 0, 0), (255, 0, 0)]
    colours = np.zeros((3, 4, 3), np.uint8)
    colours[1:, 2:] = palette[1]
    expected = (colours[..., 0] > 0).astype(int)
    for kind, pixels in [("labels", expected * 7), ("colors", colours), ("brightness", expected * 200)]:
        save(tmp_path / kind / "images/a.jpg")
        save(tmp_path / kind / "masks/a.png", pixels.astype(np.uint8))
        table = {0: 0, 7: 1} if kind == "labels" else None
        dataset = FolderDataset(
            tmp_path / kind, classes=CLASSES, masks_are=kind, palette=[list(c) for c in palette], labels=table
        )
        dataset.check(labels=True)
        assert np.array_equal(dataset[0]["mask"], expected) and dataset.palette == tuple(palette)


def test_options_that_do_not_fit(tmp_path):
    save(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match="`labels` is for masks_are=\"labels\", got 'colors'"):
        FolderDataset(tmp_path, classes=CLASSES, masks_are="colors", labels={0: 0})
    with pytest.raises(ValueError, match=r"`masks_are` must be .*, got 'brightness' for 3 classes"):
        FolderDataset(tmp_path, classes=[*CLASSES, "sky"], masks_are="brightness")
    with pytest.raises(ValueError, match=r"`masks_are` must be .*, got 'indices'"):
        FolderDataset(tmp_path, classes=CLASSES, masks_are="indices")
    with pytest.raises(ValueError, match="another colour for each class"):
        FolderDataset(tmp_path, classes=CLASSES, masks_are="colors", palette=[(0, 0, 0)] * 2)


def test_a_palette_image_gives_its_indices(tmp_path):
    save(tmp_path / "images/a.jpg")
    image = Image.fromarray(np.eye(3, 4, dtype=np.uint8))
    image.putpalette([9, 9, 9, 200, 0, 0])
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks/a.png")
    assert FolderDataset(tmp_path, classes=CLASSES)[0]["mask"].tolist() == np.eye(3, 4, dtype=int).tolist()


@pytest.fixture
def photos(tmp_path):
    for split, name, red in [("train", "cat/1", 10), ("train", "dog/deep/2", 20), ("val", "dog/3", 30)]:
        save(tmp_path / split / f"{name}.png", np.full((3, 4, 3), red, np.uint8))
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    return tmp_path


def test_class_folder(photos):
    train, val = ClassFolder(photos, "train"), ClassFolder(photos, "val")
    train.check(labels=True)
    assert train.classes == val.classes == ("cat", "dog")
    assert [(sample["name"], sample["label"]) for sample in train] == [("cat/1.png", 0), ("dog/deep/2.png", 1)]
    sample = val[0]
    assert (sample["name"], sample["label"]) == ("dog/3.png", 1)  # numbered as in train, where cat comes first
    assert type(sample["image"]) is tv_tensors.Image and sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, 3, 4) and (sample["image"] == 30).all()
    assert ClassFolder(photos / "val").classes == ("dog",)
    val.transform = lambda sample: sample["label"]
    assert val[0] == 1 and repr(val) == "ClassFolder(1 images, 2 classes)"


def test_class_folder_that_is_none(photos):
    save(photos / "val/cow/4.png")
    with pytest.raises(DatasetError, match=r"val has classes that .*train has not: cow"):
        ClassFolder(photos, "val")
    with pytest.raises(DatasetError, match=r"has another layout(.|\n)*CLASS/NAME.jpg"):
        ClassFolder(photos, "test")
    (photos / "empty/cat").mkdir(parents=True)
    with pytest.raises(DatasetError, match="has another layout"):
        ClassFolder(photos / "empty")
    (photos / "train/cat/1.png").write_bytes(b"words")
    dataset = ClassFolder(photos, "train")
    for labels in (False, True):
        with pytest.raises(DatasetError, match=r"has 1 problem:\n.*cat/1\.png: expected PNG"):
            dataset.check(labels)
    with pytest.raises(ImageError, match=r"cat/1\.png"):
        dataset[0]


def test_files_in(tmp_path):
    for name in ["b.png", "a.JPG", "c.txt", ".d.png", "in/e.png", ".in/f.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in files_in(tmp_path)] == ["a.JPG", "b.png"]
    assert [path.name for path in files_in(tmp_path, deep=True)] == ["a.JPG", "b.png", "e.png"]
    assert [path.name for path in files_in(tmp_path, [".txt"])] == ["c.txt"]
    assert files_in(tmp_path / "none") == []


def test_pair_and_read_list(tmp_path):
    images = {"a": Path("a.jpg"), "b": Path("b.jpg")}
    pairs, extra = pair(images, {"b": Path("b.png"), "c": Path("c.png")}, lambda name: Path(f"{name}.tif"))
    assert pairs == [(Path("a.jpg"), Path("a.tif")), (Path("b.jpg"), Path("b.png"))] and extra == [Path("c.png")]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two  \r\n")
    assert read_list(tmp_path / "list.txt") == ["one", "two"]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"list\.txt: expected a list of names"):
        read_list(tmp_path / "list.txt")
