"""ADE20K, PASCAL-Context, COCO-Stuff and NYU-Depth-v2 are read from the published folders, labels and lists."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hggraph.data.mask_reader import DatasetError
from hggraph.data.palettes import PASCAL_CONTEXT
from hggraph.data.scenes import ADE20K, CocoStuff, CocoStuff10k, MatReader, NYUDepthV2, PascalContext

NEVER_ANNOTATED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # of COCO's labels 1 to 91


def photo(path: Path, size=(8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path)


def mask(path: Path, labels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels)).save(path)


def lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


@pytest.fixture
def ade(tmp_path):
    labels = (np.arange(48).reshape(6, 8) * 7 % 151).astype(np.uint8)
    for part, name in [("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")]:
        photo(tmp_path / "ADEChallengeData2016/images" / part / f"{name}.jpg")
        mask(tmp_path / "ADEChallengeData2016/annotations" / part / f"{name}.png", labels)
    photo(tmp_path / "release_test/testing/ADE_test_00000001.jpg")
    return tmp_path, labels


def test_ade20k(ade):
    root, labels = ade
    for inside, split, name in [
        (root, "train", "ADE_train_00000001"),
        (root / "ADEChallengeData2016", "val", "ADE_val_00000001"),
    ]:
        dataset = ADE20K(inside, split)
        dataset.check(labels=True)
        assert dataset.names == [name] and len(dataset.classes) == 150
        expected = np.where(labels == 0, 255, labels.astype(int) - 1)
        assert (expected == 255).any() and np.array_equal(dataset[0]["mask"], expected)
    test = ADE20K(root, "test")
    test.check(labels=True)
    assert list(test[0]) == ["image", "name"] and test.published == 3352


def test_ade20k_in_another_layout(ade):
    root, _ = ade
    mask(root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png", np.full((6, 8), 151, np.uint8))
    with pytest.raises(DatasetError, match="48 pixels labelled outside the classes: 151; expected 0 to 150, 255"):
        ADE20K(root, "train").check(labels=True)
    with pytest.raises(DatasetError, match="expected a split of train, val, test, got 'training'"):
        ADE20K(root, "training")
    with pytest.raises(DatasetError, match=r"ADE20K: .* has another layout(.|\n)*release_test/"):
        ADE20K(root / "release_test", "train")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("inside", [".", "VOC2010", "VOCdevkit/VOC2010"])
def test_pascal_context_converted(tmp_path, background, inside):
    base = tmp_path / inside
    for split, name in [("train", "2008_000002"), ("val", "2008_000003")]:
        lines(base / f"ImageSets/SegmentationContext/{split}.txt", name)
        photo(base / f"JPEGImages/{name}.jpg", (10, 6))
        mask(base / f"SegmentationClassContext/{name}.png", np.arange(60, dtype=np.uint8).reshape(6, 10))
    dataset = PascalContext(tmp_path, "val", background=background)
    dataset.check(labels=True)
    assert dataset.names == ["2008_000003"] and len(dataset.classes) == (60 if background else 59)
    assert dataset.classes[:2] == (("background", "aeroplane") if background else ("aeroplane", "bag"))
    got = dataset[0]["mask"].flatten().tolist()
    assert got == (list(range(60)) if background else [255, *range(59)])


@pytest.mark.parametrize("background", [False, True])
def test_pascal_context_as_published(tmp_path, background):
    scipy = pytest.importorskip("scipy.io", reason="reads MATLAB files")
    labels = np.array([[427, 454, 2], [459, 1, 23]], dtype=np.uint16)  # tvmonitor, window, aeroplane; two of no class
    lines(tmp_path / "ImageSets/Main/train.txt", "2008_000002")
    photo(tmp_path / "JPEGImages/2008_000002.jpg", (3, 2))
    (tmp_path / "trainval").mkdir()
    scipy.savemat(tmp_path / "trainval/2008_000002.mat", {"LabelMap": labels})
    dataset = PascalContext(tmp_path, "train", background=background)
    dataset.check()
    dataset.check(labels=True)
    got = dataset[0]["mask"].tolist()
    named = [[dataset.classes[number] if number != 255 else "" for number in row] for row in got]
    other = "background" if background else ""
    assert named == [["tvmonitor", "window", "aeroplane"], [other, other, "bicycle"]]
    assert list(PASCAL_CONTEXT)[got[0][0] + (not background)] == 427  # the rank among the labels


def test_pascal_context_that_is_not_whole(tmp_path):
    lines(tmp_path / "ImageSets/SegmentationContext/train.txt", "2008_000002", "", "2008_000007 ")
    photo(tmp_path / "JPEGImages/2008_000002.jpg")
    mask(tmp_path / "SegmentationClassContext/2008_000002.png", np.zeros((6, 8), np.uint8))
    dataset = PascalContext(tmp_path)
    assert dataset.names == ["2008_000002", "2008_000007"]
    with pytest.raises(
        DatasetError, match=r"has 2 problems:\n.*07\.jpg: missing, the image\n.*07\.png: missing, the m"
    ):
        dataset.check()
    lines(tmp_path / "ImageSets/SegmentationContext/train.txt", "")
    with pytest.raises(DatasetError, match=r"train\.txt: expected a list of names, one in a line, got an empty file"):
        PascalContext(tmp_path)
    with pytest.raises(DatasetError, match=r"has another layout(.|\n)*SegmentationClassContext/2008_000002.png"):
        PascalContext(tmp_path / "JPEGImages")


def coco_numbers():
    """Return the class of each of COCO-Stuff's labels 0 to 182."""
    classes, number = {0: 255}, 0
    for label in range(1, 183):
        if label not in NEVER_ANNOTATED:
            classes[label] = number
            number += 1
    assert number == 171
    return classes


def test_coco_stuff(tmp_path):
    classes = coco_numbers()
    labels = np.array([label for label in classes if label], dtype=np.uint8).reshape(9, 19)
    stored = labels - 1
    stored[0, 0] = 255
    for split, name in [("train2017", "000000000009"), ("val2017", "000000000139")]:
        photo(tmp_path / "images" / split / f"{name}.jpg", (19, 9))
        mask(tmp_path / "annotations" / split / f"{name}.png", stored)
        mask(tmp_path / "annotations" / split / f"{name}_labelTrainIds.png", stored)  # a converter's: not looked at
    dataset = CocoStuff(tmp_path, "val")
    dataset.check(labels=True)
    assert dataset.names == ["000000000139"] and len(dataset.classes) == 171
    expected = np.vectorize(classes.get)(labels)
    expected[0, 0] = 255
    assert np.array_equal(dataset[0]["mask"], expected)
    assert dataset.classes[80] == "banner" and dataset.classes[170] == "wood"
    mask(tmp_path / "annotations/val2017/000000000139.png", np.full((9, 19), 11, np.uint8))  # street sign
    with pytest.raises(DatasetError, match="171 pixels labelled outside the classes: 11; expected 0 to 10, 12 to 24"):
        dataset.check(labels=True)
    with pytest.raises(DatasetError, match=r"CocoStuff: .* has another layout"):
        CocoStuff(tmp_path / "images")


def test_coco_stuff_10k(tmp_path):
    scipy = pytest.importorskip("scipy.io", reason="reads MATLAB files")
    classes = coco_numbers()
    labels = np.array(list(classes), dtype=np.uint8).reshape(4, 43)
    (tmp_path / "annotations").mkdir()
    names = {"train": "COCO_train2014_000000000077", "test": "COCO_train2014_000000000110"}
    for split, name in names.items():
        lines(tmp_path / f"imageLists/{split}.txt", name)
        photo(tmp_path / f"images/{name}.jpg", (43, 4))
        scipy.savemat(
            tmp_path / f"annotations/{name}.mat", {"S": labels, "names": np.zeros(2), "captions": np.zeros(5)}
        )
    lines(tmp_path / "imageLists/all.txt", *names.values())
    dataset = CocoStuff10k(tmp_path, "test")
    dataset.check(labels=True)
    assert dataset.names == [names["test"]] and len(CocoStuff10k(tmp_path, "all")) == 2
    assert np.array_equal(dataset[0]["mask"], np.vectorize(classes.get)(labels))
    assert dataset.classes == CocoStuff10k(tmp_path).classes
    with pytest.raises(DatasetError, match=r"CocoStuff10k: .* has another layout"):
        CocoStuff10k(tmp_path / "images")


def test_matlab_files_that_are_none(tmp_path):
    scipy = pytest.importorskip("scipy.io", reason="reads MATLAB files")
    reader = MatReader("S", {0: 255, 1: 0})
    path = tmp_path / "a.mat"
    for content, text in [
        ({"T": np.zeros((2, 2))}, "expected an array 'S' in the file, got none"),
        ({"S": np.zeros((2, 2))}, r"expected whole numbers of shape \(H, W\) in 'S', got float64"),
        ({"S": np.full((2, 2), -1, np.int16)}, "expected whole numbers"),
        ({"S": np.full((2, 2), 2, np.uint8)}, "4 pixels labelled outside the classes: 2"),
    ]:
        scipy.savemat(path, content)
        with pytest.raises(DatasetError, match=rf"a\.mat: .*{text}|a\.mat: {text}"):
            reader(path)
    for content in (b"", b"words that are no numbers at all", path.read_bytes()[:150]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"a\.mat: expected a"):
            reader(path)
    scipy.savemat(path, {"S": np.zeros((2, 3), np.uint8)})
    assert reader.size(path) == (2, 3)


@pytest.mark.parametrize("layout", ["listed", "split"])
def test_nyu_depth_v2(tmp_path, layout):
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8) % 41
    for split, name in [("train", "0003"), ("test", "0001")]:
        if layout == "listed":
            lines(tmp_path / f"{split}.txt", f"RGB/{name}.jpg Label/{name}.png" if split == "train" else name)
            photo(tmp_path / f"RGB/{name}.jpg")
            mask(tmp_path / f"Label/{name}.png", labels)
        else:
            photo(tmp_path / split / "rgb" / f"{name}.png")
            mask(tmp_path / split / "labels_40" / f"{name}.png", labels)
    for split, name in [("train", "0003"), ("test", "0001")]:
        dataset = NYUDepthV2(tmp_path, split)
        dataset.check(labels=True)
        assert dataset.names == [name] and len(dataset.classes) == 40
        assert np.array_equal(dataset[0]["mask"], np.where(labels == 0, 255, labels.astype(int) - 1))
    if layout == "listed":
        lines(tmp_path / "train.txt", "0003", "0777")
        with pytest.raises(DatasetError, match=r"0777\.jpg: missing, the image\n.*0777\.png: missing, the mask"):
            NYUDepthV2(tmp_path, "train").check()
    with pytest.raises(DatasetError, match=r"NYUDepthV2: .* has another layout(.|\n)*train/labels_40/0003.png"):
        NYUDepthV2(tmp_path / "none")
