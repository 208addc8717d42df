"""Which mask belongs to which image, in every data set of pairs: two files of one name, and masks without an image."""

from pathlib import Path

import pytest

from hggraph.data.bsds import BSDS500
from hggraph.data.folder import FolderDataset
from hggraph.data.mask_reader import DatasetError
from hggraph.data.roads import DeepGlobeRoads
from hggraph.data.saliency import DUTS, ECSSD, HKUIS, SOD, DUTOmron, PascalS
from hggraph.data.scenes import ADE20K, CocoStuff, NYUDepthV2
from hggraph.data.street import CamVid, Cityscapes

# data set: how it is made, an image, its mask, whether other suffixes of masks are looked at
SETS = [
    (lambda root: FolderDataset(root, classes=["a", "b"]), "images/a.jpg", "masks/a.png", True),
    (lambda root: FolderDataset(root, classes=["a", "b"]), "images/in/a.jpg", "masks/in/a.png", True),
    (lambda root: DUTS(root, "test"), "DUTS-TE/DUTS-TE-Image/a.jpg", "DUTS-TE/DUTS-TE-Mask/a.png", True),
    (ECSSD, "images/a.jpg", "ground_truth_mask/a.png", True),
    (PascalS, "datasets/imgs/pascal/a.jpg", "datasets/masks/pascal/a.png", True),
    (DUTOmron, "DUT-OMRON-image/a.jpg", "pixelwiseGT-new-PNG/a.png", True),
    (HKUIS, "imgs/a.png", "gt/a.png", True),
    (SOD, "images/a.jpg", "masks/a.png", True),
    (ADE20K, "images/training/a.jpg", "annotations/training/a.png", False),
    (CocoStuff, "images/train2017/1.jpg", "annotations/train2017/1.png", False),
    (NYUDepthV2, "train/rgb/1.jpg", "train/labels_40/1.png", False),
    (CamVid, "train/a.png", "trainannot/a.png", False),
    (lambda root: CamVid(root, "train"), "701_StillsRaw_full/0006R0_f1.png", "LabeledApproved_full/0006R0_f1_L.png", False),
    (Cityscapes, "leftImg8bit/train/a/a_1_leftImg8bit.png", "gtFine/train/a/a_1_gtFine_labelIds.png", False),
    (lambda root: DeepGlobeRoads(root, "trainval"), "train/1_sat.jpg", "train/1_mask.png", True),
    (BSDS500, "images/train/1.jpg", "groundTruth/train/1.mat", False),
    (lambda root: BSDS500(root, "all"), "images/1.jpg", "segmentation/1.npz", False),
]  # fmt: skip


@pytest.mark.parametrize(("make", "image", "mask", "any_suffix"), SETS)
def test_pairs(make, image, mask, any_suffix, tmp_path):
    image, mask = Path(tmp_path, image), Path(tmp_path, mask)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert make(tmp_path).pairs == [(image, mask)]
    spare = mask.with_name(mask.name.replace("1", "3") if "1" in mask.name else mask.name.replace("a", "b", 1))
    spare.touch()
    make(tmp_path).check(sizes=False)  # published copies have masks without an image
    with pytest.raises(DatasetError, match=rf"{spare.name}: a mask without an image"):
        make(tmp_path).check(sizes=False, complete=True)
    for path in [image] * (make is not Cityscapes) + [mask] * any_suffix:  # those of Cityscapes are PNG alone
        twin = path.with_suffix(".tif")
        twin.touch()
        with pytest.raises(DatasetError, match=rf"{path.stem}.* and {path.stem}.* have one name; which is meant"):
            make(tmp_path)
        twin.unlink()
