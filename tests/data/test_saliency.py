"""The saliency data sets are read from the folders in which they were published, or as collections rename them."""

import numpy as np
import pytest
from PIL import Image

from hggraph.data.mask_reader import DatasetError
from hggraph.data.saliency import DUTS, ECSSD, HKUIS, SOD, DUTOmron, PascalS

PUBLISHED = [
    (ECSSD, "images", "ground_truth_mask", ".jpg", 1000),
    (PascalS, "datasets/imgs/pascal", "datasets/masks/pascal", ".jpg", 850),
    (DUTOmron, "DUT-OMRON-image", "pixelwiseGT-new-PNG", ".jpg", 5168),
    (DUTOmron, "DUT-OMRON-image/DUT-OMRON-image", "DUT-OMRON-gt-pixelwise.zip/pixelwiseGT-new-PNG", ".jpg", 5168),
    (HKUIS, "imgs", "gt", ".png", 4447),
    (SOD, "images", "masks", ".jpg", 300),
    (ECSSD, "Image", "Mask", ".jpg", 1000),
    (HKUIS, "Imgs", "GT", ".jpg", 4447),
]


def write(root, images, masks, suffix=".jpg", names=("1", "2")):
    mask = np.array([[0, 127, 128, 255]] * 3, dtype=np.uint8)
    for folder in (images, masks):
        (root / folder).mkdir(parents=True)
    for name in names:
        Image.new("RGB", (4, 3), "gray").save(root / images / f"{name}{suffix}")
        Image.fromarray(mask).save(root / masks / f"{name}.png")


@pytest.mark.parametrize(("kind", "images", "masks", "suffix", "count"), PUBLISHED)
def test_published_folders(kind, images, masks, suffix, count, tmp_path):
    write(tmp_path, images, masks, suffix)
    dataset = kind(tmp_path)
    dataset.check(labels=True)
    assert dataset.names == ["1", "2"] and dataset.published == count
    assert dataset.classes == ("background", "salient object") and dataset.palette == ((0, 0, 0), (255, 255, 255))
    assert dataset[1]["mask"].tolist() == [[0, 0, 1, 1]] * 3


def test_duts(tmp_path):
    write(tmp_path, "DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask", names=["n01440764_10"])
    write(tmp_path, "DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask", names=["sun_a", "sun_b"])
    train, test = DUTS(tmp_path, "train"), DUTS(tmp_path, "test")
    train.check(labels=True)
    assert train.names == ["n01440764_10"] and test.names == ["sun_a", "sun_b"]
    assert (train.published, test.published) == (10553, 5019)
    assert DUTS(tmp_path / "DUTS-TE", "test").names == test.names
    with pytest.raises(DatasetError, match="DUTS: expected a split of train, test, got 'val'"):
        DUTS(tmp_path, "val")


def test_black_and_white_masks_of_one_bit(tmp_path):
    write(tmp_path, "images", "ground_truth_mask")
    Image.fromarray(np.array([[False, True, True, True]] * 3)).save(tmp_path / "ground_truth_mask/1.png")
    assert ECSSD(tmp_path)[0]["mask"].tolist() == [[0, 1, 1, 1]] * 3


def test_what_is_wrong_is_told(tmp_path):
    write(tmp_path, "imgs", "gt", ".png")
    (tmp_path / "gt/2.png").unlink()
    Image.new("L", (4, 3)).save(tmp_path / "gt/3.png")
    Image.new("L", (4, 4)).save(tmp_path / "gt/1.png")
    with pytest.raises(DatasetError, match="has 4 problems") as error:
        HKUIS(tmp_path).check(complete=True)
    text = str(error.value)
    assert "3.png: a mask without an image" in text and "2.png: missing, the mask" in text
    assert "1.png: expected a mask of its image's size, 4 x 3 pixels (1.png), got 4 x 4" in text
    with pytest.raises(DatasetError, match="HKU-IS: expected a split of test, got 'train'"):
        HKUIS(tmp_path, "train")
    with pytest.raises(DatasetError) as error:
        PascalS(tmp_path)
    text = str(error.value)
    assert (
        text.startswith("PASCAL-S: ") and "  datasets/imgs/pascal/NAME.jpg (or .png)\n  datasets/masks/pascal/" in text
    )
    assert "or images/ and masks/, Image/ and Mask/" in text and text.endswith("imgs/\n  imgs/1.png\n  imgs/2.png")
