"""Cityscapes and CamVid are read from the published folders, with the published splits and labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hggraph.data.mask_reader import DatasetError
from hggraph.data.palettes import CAMVID, CAMVID_PARTS
from hggraph.data.street import CamVid, Cityscapes, camvid_split, training_ids

# Cityscapes: id -> train id, as its scripts list them; all others of 0 to 33 are 255.
TRAIN_IDS = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12},
    **{26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}


def image(path: Path, pixels=None, size=(8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8) if pixels is None else pixels).save(path)


@pytest.fixture
def cityscapes(tmp_path):
    """Write the folders of leftImg8bit, gtFine and gtCoarse with all the files that they hold."""
    frames = {
        "train": ["aachen_000000_000019", "aachen_000001_000019", "zurich_000000_000019"],
        "val": ["frankfurt_000001_055172"],
        "test": ["berlin_000000_000019"],
        "train_extra": ["augsburg_000000_000000"],
    }
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8) % 34
    for split, names in frames.items():
        for name in names:
            city = name.split("_")[0]
            image(tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            kinds = {"train": ["gtFine", "gtCoarse"], "val": ["gtFine", "gtCoarse"]}.get(
                split, ["gtFine" if split == "test" else "gtCoarse"]
            )
            for kind in kinds:
                folder = tmp_path / kind / split / city
                image(folder / f"{name}_{kind}_labelIds.png", labels)
                image(folder / f"{name}_{kind}_instanceIds.png", labels.astype(np.uint16) * 1000)
                image(folder / f"{name}_{kind}_color.png")
                (folder / f"{name}_{kind}_polygons.json").write_text("{}")
    return tmp_path


def test_training_ids():
    table = training_ids()
    assert {label: number for label, number in table.items() if number != 255} == TRAIN_IDS
    assert set(range(34)) <= set(table) and table[255] == 255


@pytest.mark.parametrize("coarse", [False, True])
def test_cityscapes(cityscapes, coarse):
    dataset = Cityscapes(cityscapes, "train", coarse=coarse)
    dataset.check(labels=True)
    assert dataset.names == ["aachen_000000_000019", "aachen_000001_000019", "zurich_000000_000019"]
    assert len(dataset.classes) == 19 and dataset.classes[:2] == ("road", "sidewalk")
    expected = [TRAIN_IDS.get(pixel % 34, 255) for pixel in range(48)]
    assert dataset[2]["mask"].flatten().tolist() == expected
    kind = "gtCoarse" if coarse else "gtFine"
    assert all(f"_{kind}_labelIds.png" in path.name for _, path in dataset.pairs)
    assert Cityscapes(cityscapes, "val", coarse=coarse).names == ["frankfurt_000001_055172"]
    assert dataset.published == 2975


def test_cityscapes_splits(cityscapes):
    extra = Cityscapes(cityscapes, "train_extra", coarse=True)
    extra.check(labels=True)
    assert extra.names == ["augsburg_000000_000000"]
    test = Cityscapes(cityscapes, "test")
    test.check(labels=True)
    assert list(test[0]) == ["image", "name"]
    for split, coarse, splits in [
        ("train_extra", False, "train, val, test"),
        ("test", True, "train, train_extra, val"),
    ]:
        with pytest.raises(DatasetError, match=f"expected a split of {splits}, got '{split}'"):
            Cityscapes(cityscapes, split, coarse=coarse)


def test_cityscapes_that_is_not_whole(cityscapes):
    (cityscapes / "gtFine/train/zurich/zurich_000000_000019_gtFine_labelIds.png").unlink()
    (cityscapes / "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png").unlink()
    dataset = Cityscapes(cityscapes, "train")
    with pytest.raises(DatasetError, match="has 1 problem:") as error:
        dataset.check()
    assert str(error.value).endswith("zurich/zurich_000000_000019_gtFine_labelIds.png: missing, the mask")
    with pytest.raises(DatasetError, match="expected 2,975 images, as published, got 2") as error:
        dataset.check(complete=True)
    lost = str(error.value).splitlines()[2]
    assert lost.endswith("aachen_000001_000019_gtFine_labelIds.png: a mask without an image")


def test_cityscapes_in_another_layout(cityscapes):
    (cityscapes / "leftImg8bit").rename(cityscapes / "images")
    with pytest.raises(DatasetError) as error:
        Cityscapes(cityscapes, "val")
    text = str(error.value)
    assert text.startswith(
        f"Cityscapes: {cityscapes} has another layout.\nExpected in it:\n  leftImg8bit/val/CITY/CITY_"
    )
    assert "gtFine/val/CITY/CITY_000000_000019_gtFine_labelIds.png" in text
    found = text.partition("Found:\n")[2]
    assert "  images/\n  images/test/" in found and "gtFine/" in found


def test_camvid_split_is_that_of_the_lists():
    trained = [f"0001TP_{frame:06d}" for frame in range(6690, 8521, 30)]
    tested = [f"0001TP_{frame:06d}" for frame in range(8550, 10381, 30)]
    validated = [f"0016E5_{frame:05d}" for frame in range(7959, 8160, 2)]
    for split, names, count in [("train", trained, 62), ("test", tested, 62), ("val", validated, 101)]:
        assert len(names) == count and {camvid_split(name) for name in names} == {split}
    others = {"0006R0_f00930": "train", "0016E5_00390": "train", "0016E5_08640": "train", "Seq05VD_f05100": "test"}
    assert {name: camvid_split(name) for name in others} == others
    for wrong in ("0001TP", "0002XX_000001", "0001TP_f8x"):
        with pytest.raises(DatasetError, match=f"expected a name such as 0001TP_006690, got {wrong}"):
            camvid_split(wrong)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_camvid_in_segnets_copy(tmp_path, suffix):
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8) % 12
    for split, name in [("train", "0001TP_006690"), ("val", "0016E5_07959"), ("test", "Seq05VD_f00000")]:
        image(tmp_path / split / f"{name}{suffix}")
        image(tmp_path / f"{split}annot" / f"{name}.png", labels)
        dataset = CamVid(tmp_path, split)
        dataset.check(labels=True)
        assert dataset.names == [name] and dataset.classes == tuple(CAMVID)
        expected = np.where(labels == 11, 255, labels)
        assert np.array_equal(dataset[0]["mask"], expected)
    assert dataset.published == 233


def test_camvid_label_outside_the_classes(tmp_path):
    image(tmp_path / "train/0001TP_006690.png")
    image(tmp_path / "trainannot/0001TP_006690.png", np.full((6, 8), 12, dtype=np.uint8))
    dataset = CamVid(tmp_path)
    dataset.check()
    with pytest.raises(DatasetError, match="48 pixels labelled outside the classes: 12; expected 0 to 11, 255"):
        dataset.check(labels=True)


@pytest.fixture
def full(tmp_path):
    """Write the full-size folders: a mask in all of the 32 colours."""
    colors = [color for parts in CAMVID_PARTS.values() for color in parts.values()]
    pixels = np.array(colors * 2, dtype=np.uint8)[:64].reshape(8, 8, 3)
    for name in ["0001TP_006690", "0001TP_009030", "0006R0_f00930", "0016E5_08001", "0016E5_08640", "Seq05VD_f00000"]:
        image(tmp_path / "701_StillsRaw_full" / f"{name}.png", size=(8, 8))
        image(tmp_path / "LabeledApproved_full" / f"{name}_L.png", pixels)
    return tmp_path


def test_camvid_in_full_size(full):
    expected = [number if name else 255 for number, name, count in numbered() for _ in range(count)] * 2
    names = {}
    for split in ("train", "val", "test"):
        dataset = CamVid(full, split)
        dataset.check(labels=True)
        names[split] = dataset.names
        assert dataset[0]["mask"].flatten().tolist() == expected
    assert names == {
        "train": ["0001TP_006690", "0006R0_f00930", "0016E5_08640"],
        "val": ["0016E5_08001"],
        "test": ["0001TP_009030", "Seq05VD_f00000"],
    }


def numbered():
    """Return (class, its name or "", how many of the 32 classes it is made of)."""
    made_of = {"sky": 1, "building": 5, "pole": 2, "road": 3, "pavement": 3, "tree": 2}
    made_of |= {"sign": 3, "fence": 1, "car": 5, "pedestrian": 4, "bicyclist": 2, "": 1}
    return [(number, name, count) for number, (name, count) in enumerate(made_of.items())]


def test_camvid_in_full_size_with_missing_and_stray_files(full):
    (full / "LabeledApproved_full/0006R0_f00930_L.png").unlink()
    (full / "701_StillsRaw_full/0016E5_08640.png").unlink()
    with pytest.raises(DatasetError, match="has 3 problems") as error:
        CamVid(full, "train").check(complete=True)
    assert "0016E5_08640_L.png: a mask without an image" in str(error.value)
    assert "0006R0_f00930_L.png: missing, the mask" in str(error.value)
    CamVid(full, "val").check()  # the files of other splits are no problem of this one
    image(full / "LabeledApproved_full/0016E5_08001_L.png", np.full((8, 8, 3), 7, dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"64 pixels in colours of no class: \(7, 7, 7\)"):
        CamVid(full, "val").check(labels=True)


def test_camvid_in_another_layout(tmp_path):
    for root, found in [(tmp_path / "none", "nothing: the folder does not exist"), (tmp_path, "an empty folder")]:
        with pytest.raises(DatasetError) as error:
            CamVid(root, "val")
        text = str(error.value)
        assert "valannot/0001TP_006690.png" in text and "LabeledApproved_full/0001TP_006690_L.png" in text
        assert text.endswith(f"Found:\n  {found}")
    with pytest.raises(DatasetError, match="expected a split of train, val, test, got 'valid'"):
        CamVid(tmp_path, "valid")
