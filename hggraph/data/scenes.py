"""Scenes: ADE20K, PASCAL-Context, COCO-Stuff and NYU-Depth-v2, as published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hggraph.data.layout import by_name, check_split, files_in, layout_error, pair, read_list
from hggraph.data.mask_reader import IGNORE, DatasetError, LabelReader
from hggraph.data.palettes import ADE20K as ADE20K_CLASSES
from hggraph.data.palettes import ADE20K_COLORS, COCO_STUFF_LABELS, NYU_40, NYU_40_COLORS, PASCAL_CONTEXT, voc_colors
from hggraph.data.segmentation import SegmentationDataset, Transform

__all__ = ["ADE20K", "CocoStuff", "CocoStuff10k", "MatReader", "NYUDepthV2", "PascalContext", "load_mat"]


class MatReader(LabelReader):
    """Reads masks from MATLAB files, with scipy.

    Args:
        variable: Name of the array of labels in the file.
        table: Label -> class, or 255 for pixels that do not count. A label without an entry is an error.
    """

    def __init__(self, variable: str, table: Mapping[int, int]) -> None:
        super().__init__(table)
        self.variable = variable

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return the classes of the array."""
        return self.classes(self._labels(path), path)

    def size(self, path: Path) -> tuple[int, int]:
        """Return height and width; the file is read for it."""
        height, width = self._labels(path).shape
        return height, width

    def _labels(self, path: Path) -> NDArray[np.integer]:
        labels = load_mat(path, self.variable)
        if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
            got = f"{labels.dtype} of shape {labels.shape}"
            raise DatasetError(f"{path}: expected whole numbers of shape (H, W) in {self.variable!r}, got {got}.")
        return labels


def load_mat(path: Path, variable: str) -> NDArray[Any]:
    """Return an array of a MATLAB file.

    Raises:
        DatasetError: if the file cannot be read or has no array of this name; the text names it.
        ImportError: without scipy.
    """
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]  # scipy ships no types
    except ImportError as error:
        raise ImportError("MATLAB files need scipy, which is not installed: pip install scipy") from error
    try:
        found: NDArray[Any] = loadmat(path, variable_names=[variable])[variable]
    except KeyError as error:
        raise DatasetError(f"{path}: expected an array {variable!r} in the file, got none.") from error
    except Exception as error:  # scipy's many: ValueError, TypeError, struct.error, OSError, NotImplementedError
        raise DatasetError(f"{path}: expected a MATLAB file, got one that cannot be read ({error}).") from error
    return found


class ADE20K(SegmentationDataset):
    """ADE20K's scene parsing benchmark (Zhou et al., CVPR 2017): 150 classes; label 0, other, does not count (255).

    Args:
        root: The folder ``ADEChallengeData2016``, or that in which it lies.
        split: ``"train"`` (20210 images), ``"val"`` (2000), or ``"test"`` (3352, without masks, from
            ``release_test``).
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.
    """

    LAYOUT = """
ADEChallengeData2016/images/training/ADE_train_00000001.jpg
ADEChallengeData2016/annotations/training/ADE_train_00000001.png
ADEChallengeData2016/images/validation/ADE_val_00000001.jpg
ADEChallengeData2016/annotations/validation/ADE_val_00000001.png
release_test/testing/ADE_test_00000001.jpg  for the split test alone
"""
    PUBLISHED = {"train": 20210, "val": 2000, "test": 3352}  # noqa: RUF012 (a constant)

    def __init__(self, root: str | Path, split: str = "train", *, transform: Transform | None = None) -> None:
        check_split("ADE20K", split, list(self.PUBLISHED))
        if split == "test":
            folder, mask_folder = _inside(Path(root), ["release_test"]) / "testing", None
        else:
            base = _inside(Path(root), ["ADEChallengeData2016"])
            part = "training" if split == "train" else "validation"
            folder, mask_folder = base / "images" / part, base / "annotations" / part
        images = by_name(files_in(folder), folder)
        masks = {} if mask_folder is None else by_name(files_in(mask_folder, [".png"]), mask_folder)
        if not images or (mask_folder is not None and not masks):
            raise layout_error("ADE20K", Path(root), self.LAYOUT)
        pairs, extra = _pairs(images, masks, mask_folder)
        super().__init__(
            pairs,
            ADE20K_CLASSES,
            LabelReader(_from_one(len(ADE20K_CLASSES))),
            palette=ADE20K_COLORS,
            transform=transform,
            extra=extra,
            published=self.PUBLISHED[split],
        )


class PascalContext(SegmentationDataset):
    """PASCAL-Context (Mottaghi et al., CVPR 2014) on the images of VOC 2010: 59 classes, or 60 with the background.

    Read are the published annotations of 459 labels (``trainval/*.mat``, with scipy), or the PNG files that the usual
    converters make of them, whichever lies there. The classes are in the order of the published labels, which is the
    alphabet's and that of the PNG files; lists that begin with the 20 classes of VOC number them otherwise.

    Args:
        root: The folder ``VOC2010``, or one in which it or ``VOCdevkit/VOC2010`` lies.
        split: ``"train"`` (4998 images) or ``"val"`` (5105).
        background: Count the background as class 0, of 60; else it does not count (255), and there are 59.
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.
    """

    LAYOUT = """
VOC2010/JPEGImages/2008_000002.jpg
VOC2010/ImageSets/Main/train.txt, val.txt                 and
VOC2010/trainval/2008_000002.mat                          labels of 459 classes, as published
or
VOC2010/ImageSets/SegmentationContext/train.txt, val.txt  and
VOC2010/SegmentationClassContext/2008_000002.png          labels 0 to 59, converted
"""
    PUBLISHED = {"train": 4998, "val": 5105}  # noqa: RUF012 (a constant)

    def __init__(
        self, root: str | Path, split: str = "train", *, background: bool = False, transform: Transform | None = None
    ) -> None:
        check_split("PascalContext", split, list(self.PUBLISHED))
        base = _inside(Path(root), ["VOC2010", "VOCdevkit/VOC2010"])
        converted = (base / "SegmentationClassContext").is_dir()
        mask_folder = base / ("SegmentationClassContext" if converted else "trainval")
        end = ".png" if converted else ".mat"
        names_file = base / "ImageSets" / ("SegmentationContext" if converted else "Main") / f"{split}.txt"
        if not (mask_folder.is_dir() and (base / "JPEGImages").is_dir() and names_file.is_file()):
            raise layout_error("PascalContext", Path(root), self.LAYOUT)
        names = [Path(line.split()[0]).stem for line in read_list(names_file)]
        skipped = 0 if background else 1
        number = {rank: IGNORE if rank < skipped else rank - skipped for rank in range(len(PASCAL_CONTEXT))}
        if converted:
            read_mask = LabelReader({**number, IGNORE: IGNORE})
        else:  # of the 459 labels those that are none of the 59 are background
            ranks = {**dict.fromkeys(range(460), 0), **{label: rank for rank, label in enumerate(PASCAL_CONTEXT)}}
            read_mask = MatReader("LabelMap", {label: number[rank] for label, rank in ranks.items()})
        super().__init__(
            [(base / "JPEGImages" / f"{name}.jpg", mask_folder / f"{name}{end}") for name in names],
            list(PASCAL_CONTEXT.values())[skipped:],
            read_mask,
            palette=voc_colors(len(PASCAL_CONTEXT))[skipped:],
            transform=transform,
            published=self.PUBLISHED[split],
        )


class CocoStuff(SegmentationDataset):
    """COCO-Stuff (Caesar et al., CVPR 2018) on the images of COCO 2017: 80 things and 91 stuffs, 171 classes.

    Masks are the published maps of stuff and things, whose numbers are the label less 1; 255, unlabelled, does not
    count. The 11 labels that were never annotated are left out. No converted files are needed.

    Args:
        root: The folder with ``images`` and ``annotations``.
        split: ``"train"`` (118287 images) or ``"val"`` (5000).
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.
    """

    LAYOUT = """
images/train2017/000000000009.jpg
annotations/train2017/000000000009.png  of stuffthingmaps_trainval2017.zip
images/val2017/000000000139.jpg
annotations/val2017/000000000139.png
"""
    PUBLISHED = {"train": 118287, "val": 5000}  # noqa: RUF012 (a constant)

    def __init__(self, root: str | Path, split: str = "train", *, transform: Transform | None = None) -> None:
        check_split("CocoStuff", split, list(self.PUBLISHED))
        folder, mask_folder = Path(root, "images", f"{split}2017"), Path(root, "annotations", f"{split}2017")
        images = by_name(files_in(folder), folder)
        masks = by_name(files_in(mask_folder, [".png"]), mask_folder)
        masks = {name: path for name, path in masks.items() if name.isdigit()}  # none converted
        if not images or not masks:
            raise layout_error("CocoStuff", Path(root), self.LAYOUT)
        pairs, extra = _pairs(images, masks, mask_folder)
        table = {label - 1: number for number, label in enumerate(COCO_STUFF_LABELS)}
        super().__init__(
            pairs,
            list(COCO_STUFF_LABELS.values()),
            LabelReader({**table, IGNORE: IGNORE}),
            palette=voc_colors(len(table) + 1)[1:],
            transform=transform,
            extra=extra,
            published=self.PUBLISHED[split],
        )


class CocoStuff10k(SegmentationDataset):
    """COCO-Stuff 10k, version 1.1 (Caesar et al.): 10,000 images of COCO 2014 in the same 171 classes, with scipy.

    Args:
        root: The folder with ``images``, ``annotations`` and ``imageLists``.
        split: ``"train"`` (9000 images), ``"test"`` (1000) or ``"all"``.
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.
    """

    LAYOUT = """
images/COCO_train2014_000000000077.jpg
annotations/COCO_train2014_000000000077.mat
imageLists/train.txt, test.txt, all.txt
"""
    PUBLISHED = {"train": 9000, "test": 1000, "all": 10000}  # noqa: RUF012 (a constant)

    def __init__(self, root: str | Path, split: str = "train", *, transform: Transform | None = None) -> None:
        check_split("CocoStuff10k", split, list(self.PUBLISHED))
        root = Path(root)
        names_file = root / "imageLists" / f"{split}.txt"
        if not (names_file.is_file() and (root / "images").is_dir() and (root / "annotations").is_dir()):
            raise layout_error("CocoStuff10k", root, self.LAYOUT)
        table = {label: number for number, label in enumerate(COCO_STUFF_LABELS)}
        super().__init__(
            [(root / "images" / f"{name}.jpg", root / "annotations" / f"{name}.mat") for name in read_list(names_file)],
            list(COCO_STUFF_LABELS.values()),
            MatReader("S", {**table, 0: IGNORE}),
            palette=voc_colors(len(table) + 1)[1:],
            transform=transform,
            published=self.PUBLISHED[split],
        )


class NYUDepthV2(SegmentationDataset):
    """NYU-Depth-v2 (Silberman et al., ECCV 2012): the colour images, in the 40 classes of Gupta et al. (CVPR 2013).

    It was published as one MATLAB file. Read are the two layouts of image files into which RGB-D toolkits convert it;
    labels 1 to 40 are the classes, 0 does not count (255).

    Args:
        root: The folder.
        split: ``"train"`` (795 images) or ``"test"`` (654).
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.
    """

    LAYOUT = """
train.txt, test.txt         names, one in a line
RGB/0.jpg, Label/0.png
or
SPLIT/rgb/0003.png
SPLIT/labels_40/0003.png
"""
    PUBLISHED = {"train": 795, "test": 654}  # noqa: RUF012 (a constant)

    def __init__(self, root: str | Path, split: str = "train", *, transform: Transform | None = None) -> None:
        check_split("NYUDepthV2", split, list(self.PUBLISHED))
        root = Path(root)
        listed = (root / "RGB").is_dir() and (root / f"{split}.txt").is_file()
        folder = root / "RGB" if listed else root / split / "rgb"
        mask_folder = root / "Label" if listed else root / split / "labels_40"
        images = by_name(files_in(folder), folder)
        masks = by_name(files_in(mask_folder, [".png"]), mask_folder)
        if not images or not masks:
            raise layout_error("NYUDepthV2", root, self.LAYOUT.replace("SPLIT", split))
        if listed:
            names = [Path(line.split()[0]).stem for line in read_list(root / f"{split}.txt")]
            images = {name: images.get(name, folder / f"{name}.jpg") for name in names}
            masks = {name: masks[name] for name in names if name in masks}
        pairs, extra = _pairs(images, masks, mask_folder)
        super().__init__(
            pairs,
            NYU_40,
            LabelReader(_from_one(len(NYU_40))),
            palette=NYU_40_COLORS,
            transform=transform,
            extra=extra,
            published=self.PUBLISHED[split],
        )


def _from_one(num_classes: int) -> dict[int, int]:
    """Return labels from 1 -> classes from 0; 0 and 255 do not count."""
    return {0: IGNORE, IGNORE: IGNORE, **{number + 1: number for number in range(num_classes)}}


def _inside(root: Path, names: list[str]) -> Path:
    """Return the first of the folders in `root` that is there, or `root` itself."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def _pairs(
    images: Mapping[str, Path], masks: Mapping[str, Path], mask_folder: Path | None
) -> tuple[list[tuple[Path, Path | None]], list[Path]]:
    if mask_folder is None:
        return [(image, None) for image in images.values()], []
    return pair(images, masks, lambda name: mask_folder / f"{name}.png")
