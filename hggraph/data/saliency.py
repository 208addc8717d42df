"""Salient objects: DUTS, ECSSD, PASCAL-S, DUT-OMRON, HKU-IS and SOD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hggraph.data.layout import by_name, check_split, files_in, layout_error, pair
from hggraph.data.mask_reader import BrightnessReader
from hggraph.data.palettes import BINARY_COLORS
from hggraph.data.segmentation import SegmentationDataset, Transform

__all__ = ["DUTS", "ECSSD", "HKUIS", "SOD", "DUTOmron", "PascalS", "SaliencyDataset"]

# How collections of these sets name the folders of images and masks, tried after the published names.
_OTHERS = (("images", "masks"), ("Image", "Mask"), ("Imgs", "GT"), ("image", "mask"))


class SaliencyDataset(SegmentationDataset):
    """Images and masks of salient objects, white on black: class 1 where a mask is brighter than half.

    Args:
        name: Of the data set, for errors.
        root: Its folder.
        folders: Folders of images and of masks, tried one after the other, and after them ``images`` and ``masks``,
            ``Image`` and ``Mask``, ``Imgs`` and ``GT``, as collections of these sets have them.
        published: Number of images.
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if none of the folders is there; the text shows those expected and those found.
    """

    READ_MASK = BrightnessReader()

    def __init__(
        self,
        name: str,
        root: str | Path,
        folders: Sequence[tuple[str, str]],
        published: int,
        transform: Transform | None = None,
    ) -> None:
        root = Path(root)
        tried = [*folders, *_OTHERS]
        there = [(root / image, root / mask) for image, mask in tried]
        images, masks = next((both for both in there if both[0].is_dir() and both[1].is_dir()), there[0])
        found = by_name(files_in(images), images)
        if not found or not masks.is_dir():
            published_names = "\n".join(f"{image}/NAME.jpg (or .png)\n{mask}/NAME.png" for image, mask in folders)
            others = ", ".join(f"{image}/ and {mask}/" for image, mask in _OTHERS)
            raise layout_error(name, root, f"{published_names}\nor {others}")
        pairs, extra = pair(found, by_name(files_in(masks), masks), lambda stem: masks / f"{stem}.png")
        super().__init__(
            pairs,
            ["background", "salient object"],
            self.READ_MASK,
            palette=BINARY_COLORS,
            transform=transform,
            extra=extra,
            published=published,
        )


class DUTS(SaliencyDataset):
    """DUTS (Wang et al., CVPR 2017): 10553 images to train on, 5019 to test.

    Args:
        root: The folder with ``DUTS-TR`` and ``DUTS-TE``.
        split: ``"train"`` or ``"test"``.
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.
    """

    def __init__(self, root: str | Path, split: str = "train", *, transform: Transform | None = None) -> None:
        check_split("DUTS", split, ["train", "test"])
        part = "DUTS-TR" if split == "train" else "DUTS-TE"
        folders = [(f"{part}/{part}-Image", f"{part}/{part}-Mask"), (f"{part}-Image", f"{part}-Mask")]
        super().__init__("DUTS", root, folders, 10553 if split == "train" else 5019, transform)


class _TestSet(SaliencyDataset):
    """A data set with one split, which is evaluated on."""

    NAME: str
    FOLDERS: tuple[tuple[str, str], ...]
    PUBLISHED: int

    def __init__(self, root: str | Path, split: str = "test", *, transform: Transform | None = None) -> None:
        check_split(self.NAME, split, ["test"])
        super().__init__(self.NAME, root, self.FOLDERS, self.PUBLISHED, transform)


class ECSSD(_TestSet):
    """ECSSD (Shi et al., TPAMI 2016): 1000 images, in ``images`` and ``ground_truth_mask``."""

    NAME, FOLDERS, PUBLISHED = "ECSSD", (("images", "ground_truth_mask"),), 1000


class PascalS(_TestSet):
    """PASCAL-S (Li et al., CVPR 2014): 850 images, in ``datasets/imgs/pascal`` and ``datasets/masks/pascal``.

    Its masks say how many people chose an object; it counts where at least half did, as in most papers.
    """

    NAME, PUBLISHED = "PASCAL-S", 850
    READ_MASK = BrightnessReader(faintest=1 / 12)  # an object that one of twelve people chose
    FOLDERS = (("datasets/imgs/pascal", "datasets/masks/pascal"), ("imgs/pascal", "masks/pascal"))


class DUTOmron(_TestSet):
    """DUT-OMRON (Yang et al., CVPR 2013): 5168 images, in ``DUT-OMRON-image`` and ``pixelwiseGT-new-PNG``."""

    NAME, PUBLISHED = "DUT-OMRON", 5168
    FOLDERS = (
        ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        ("DUT-OMRON-image/DUT-OMRON-image", "DUT-OMRON-gt-pixelwise.zip/pixelwiseGT-new-PNG"),
    )


class HKUIS(_TestSet):
    """HKU-IS (Li and Yu, CVPR 2015): 4447 images, in ``imgs`` and ``gt``, all of which papers test on."""

    NAME, FOLDERS, PUBLISHED = "HKU-IS", (("imgs", "gt"),), 4447


class SOD(_TestSet):
    """SOD (Movahedi and Elder, 2010): 300 images, as pairs of image and mask in ``images`` and ``masks``.

    It was published as the outlines that each of seven people drew; papers use masks made from those.
    """

    NAME, FOLDERS, PUBLISHED = "SOD", (("images", "masks"),), 300
