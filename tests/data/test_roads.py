"""DeepGlobe's roads: the published folders, masks cut at half, and a split that depends on names alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hggraph.data.mask_reader import DatasetError
from hggraph.data.orientation import WithOrientation
from hggraph.data.roads import DeepGlobeRoads, hold_out


@pytest.fixture
def deepglobe(tmp_path):
    """Write 12 labelled tiles and, as published, tiles without masks in valid and test."""
    mask = np.array([[0, 127, 128, 255]] * 4, dtype=np.uint8)
    for folder, numbers in [("train", range(100, 112)), ("valid", [22]), ("test", [9, 10])]:
        (tmp_path / folder).mkdir()
        for number in numbers:
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / folder / f"{number}_sat.jpg")
            if folder == "train":  # published in three channels
                Image.fromarray(np.stack([mask] * 3, axis=-1)).save(tmp_path / folder / f"{number}_mask.png")
    (tmp_path / "metadata.csv").write_text("image_id,split\n")
    return tmp_path


def test_masks(deepglobe):
    dataset = DeepGlobeRoads(deepglobe, "trainval")
    dataset.check(labels=True)
    assert len(dataset) == 12 and dataset.names[0] == "100" and dataset.classes == ("background", "road")
    assert dataset[3]["mask"].tolist() == [[0, 0, 1, 1]] * 4
    assert dataset.published == 6226


def test_split(deepglobe):
    names = {split: set(DeepGlobeRoads(deepglobe, split).names) for split in ("train", "val", "trainval")}
    assert names["train"] | names["val"] == names["trainval"] and not names["train"] & names["val"]
    assert len(names["val"]) == 3 == round(12 * 1530 / 6226)
    for split in ("train", "val"):
        DeepGlobeRoads(deepglobe, split).check()


def test_without_masks(deepglobe):
    for split, names in [("unlabelled-valid", ["22"]), ("unlabelled-test", ["10", "9"])]:
        dataset = DeepGlobeRoads(deepglobe, split)
        dataset.check(labels=True)
        assert dataset.names == names and "mask" not in dataset[0]


def test_a_list_of_your_own(deepglobe, tmp_path):
    held_out = tmp_path / "val.txt"
    held_out.write_text("104_sat.jpg\n101\n\n110_sat\n")
    assert DeepGlobeRoads(deepglobe, "val", held_out=held_out).names == ["101", "104", "110"]
    assert len(DeepGlobeRoads(deepglobe, "train", held_out=held_out)) == 9
    held_out.write_text("104\n7777\n")
    with pytest.raises(DatasetError, match=r"val\.txt: 1 images are not there: 7777"):
        DeepGlobeRoads(deepglobe, "val", held_out=held_out)
    with pytest.raises(DatasetError, match=r"none\.txt: expected a list of names"):
        DeepGlobeRoads(deepglobe, "val", held_out=tmp_path / "none.txt")


def test_missing_and_extra(deepglobe):
    (deepglobe / "train/104_mask.png").unlink()
    (deepglobe / "train/105_sat.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"has 3 problems:\n.*\n.*105_mask.png: a mask .*\n.*104_mask.png: missing, the m"
    ):
        DeepGlobeRoads(deepglobe, "trainval").check(complete=True)


def test_another_layout(deepglobe, tmp_path):
    with pytest.raises(
        DatasetError, match="expected a split of train, val, trainval, unlabelled-valid, unlabelled-test"
    ):
        DeepGlobeRoads(deepglobe, "valid")
    with pytest.raises(DatasetError, match=r"has another layout.\nExpected in it:\n  train/104_sat.jpg"):
        DeepGlobeRoads(deepglobe / "train")
    (tmp_path / "one/train").mkdir(parents=True)
    for name in ("1_sat.jpg", "1_mask.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "one/train" / name)
    with pytest.raises(DatasetError, match="too few images for a split 'val'"):
        DeepGlobeRoads(tmp_path / "one", "val")


@settings(max_examples=30)
@given(st.lists(st.text(max_size=5), unique=True, max_size=40), st.randoms(use_true_random=False))
def test_hold_out_depends_on_the_names_alone(names, random):
    held = hold_out(names, share=0.25)
    assert held <= set(names) and len(held) == round(0.25 * len(names))
    shuffled = random.sample(names, len(names))
    assert hold_out(shuffled, share=0.25) == held


def test_hold_out_takes_as_many_as_papers_do():
    names = [str(number) for number in range(6226)]
    assert len(hold_out(names)) == 1530
    assert sorted(hold_out(["104", "991", "22", "9"], share=0.5)) == ["9", "991"]  # for ever: sha256sum says so


def test_orientation_names_the_sample():
    pytest.importorskip("skimage", reason="thins roads")
    with pytest.raises(DatasetError, match="104: expected a mask, from which orientations are made, got none"):
        WithOrientation()({"name": "104"})
    with pytest.raises(
        DatasetError, match=r"104: `mask` must have the labels 0, 1 \(road\) and 255 .* alone, got \[0, 7\]"
    ):
        WithOrientation()({"name": "104", "mask": torch.tensor([[0, 7]])})
