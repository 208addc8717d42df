"""Street scenes: Cityscapes and CamVid, as published."""

from __future__ import annotations

from pathlib import Path

from hggraph.data.layout import by_name, check_split, files_in, layout_error, pair
from hggraph.data.mask_reader import IGNORE, ColorReader, DatasetError, LabelReader
from hggraph.data.palettes import CAMVID, CAMVID_PARTS, CITYSCAPES_LABELS
from hggraph.data.segmentation import SegmentationDataset, Transform

__all__ = ["CamVid", "Cityscapes", "camvid_split", "training_ids"]


class Cityscapes(SegmentationDataset):
    """Cityscapes (Cordts et al., CVPR 2016): 2048 x 1024 pixels, 19 classes, fine or coarse masks.

    Masks are read from the published ``*_labelIds.png`` files and get the training ids 0 to 18, which are the rank of a
    class among those evaluated; the other labels do not count (255). No converted files are needed.

    Args:
        root: The folder with ``leftImg8bit`` and ``gtFine`` or ``gtCoarse``.
        split: ``"train"`` (2975 images), ``"val"`` (500) or, fine alone, ``"test"`` (1525, without masks);
            coarse also ``"train_extra"`` (19998).
        coarse: Take the coarse masks.
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.

    Example:
        >>> try:
        ...     Cityscapes("no such folder")
        ... except DatasetError as error:
        ...     print(str(error).splitlines()[0])
        Cityscapes: no such folder has another layout.
    """

    LAYOUT = """
leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
{kind}/SPLIT/CITY/CITY_000000_000019_{kind}_labelIds.png
"""
    PUBLISHED = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}  # noqa: RUF012 (a constant)

    def __init__(
        self, root: str | Path, split: str = "train", *, coarse: bool = False, transform: Transform | None = None
    ) -> None:
        check_split("Cityscapes", split, ["train", "train_extra", "val"] if coarse else ["train", "val", "test"])
        kind = "gtCoarse" if coarse else "gtFine"
        image_folder, mask_folder = Path(root, "leftImg8bit", split), Path(root, kind, split)
        images = by_name(files_in(image_folder, [".png"], deep=True), image_folder, "_leftImg8bit")
        end = f"_{kind}_labelIds"
        masks = {} if split == "test" else by_name(files_in(mask_folder, [".png"], deep=True), mask_folder, end)
        if not images or not (masks or split == "test"):
            raise layout_error("Cityscapes", Path(root), self.LAYOUT.format(kind=kind).replace("SPLIT", split))
        pairs, extra = pair(images, masks, lambda name: mask_folder / f"{name}{end}.png")
        super().__init__(
            [(image, None) for image, _ in pairs] if split == "test" else pairs,
            [name for name, _ in CITYSCAPES_LABELS.values()],
            LabelReader(training_ids()),
            palette=[color for _, color in CITYSCAPES_LABELS.values()],
            transform=transform,
            names=[Path(name).name for name in images],
            extra=extra,
            published=self.PUBLISHED[split],
        )


class CamVid(SegmentationDataset):
    """CamVid (Brostow et al., 2009) in the 11 classes of SegNet: its 480 x 360 copy, or the 960 x 720 original.

    Which of the two lies there is seen from the folders. Of the original the colours of the 32 classes are mapped to
    the 11 (`hggraph.data.palettes.CAMVID_PARTS`); black, and up to 1 % of pixels in a colour of no class, do not count.
    It is split as SegNet's copy is, by sequence.

    Args:
        root: The folder with ``train`` and ``trainannot`` (the copy) or ``701_StillsRaw_full`` (the original).
        split: ``"train"`` (367 images), ``"val"`` (101) or ``"test"`` (233).
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.
    """

    LAYOUT = """
SPLIT/0001TP_006690.png       SegNet's copy: 480 x 360, images of any suffix,
SPLITannot/0001TP_006690.png  labels 0 to 10; 11 is void
or
701_StillsRaw_full/0001TP_006690.png      the original: 960 x 720,
LabeledApproved_full/0001TP_006690_L.png  labels in colours
"""
    PUBLISHED = {"train": 367, "val": 101, "test": 233}  # noqa: RUF012 (a constant)

    def __init__(self, root: str | Path, split: str = "train", *, transform: Transform | None = None) -> None:
        check_split("CamVid", split, list(self.PUBLISHED))
        root = Path(root)
        full = (root / "701_StillsRaw_full").is_dir()
        image_folder = root / ("701_StillsRaw_full" if full else split)
        mask_folder = root / ("LabeledApproved_full" if full else f"{split}annot")
        end = "_L" if full else ""
        images = by_name(files_in(image_folder), image_folder)
        masks = by_name(files_in(mask_folder, [".png"]), mask_folder, end)
        if full:
            images, masks = (
                {name: files[name] for name in files if camvid_split(name) == split} for files in (images, masks)
            )
        if not images or not masks:
            raise layout_error("CamVid", root, self.LAYOUT.replace("SPLIT", split))
        pairs, extra = pair(images, masks, lambda name: mask_folder / f"{name}{end}.png")
        number = {name: index for index, name in enumerate(CAMVID)}
        colors = {color: number.get(name, IGNORE) for name, parts in CAMVID_PARTS.items() for color in parts.values()}
        labels = {**{label: label for label in range(len(CAMVID))}, len(CAMVID): IGNORE, IGNORE: IGNORE}
        super().__init__(
            pairs,
            list(CAMVID),
            ColorReader(colors, tolerance=0.01) if full else LabelReader(labels),
            palette=list(CAMVID.values()),
            transform=transform,
            extra=extra,
            published=self.PUBLISHED[split],
        )


def training_ids() -> dict[int, int]:
    """Return Cityscapes' label ids -> training ids 0 to 18, or 255."""
    ranks = {label: rank for rank, label in enumerate(CITYSCAPES_LABELS)}
    return {**{label: ranks.get(label, IGNORE) for label in range(34)}, IGNORE: IGNORE}


def camvid_split(name: str) -> str:
    """Return the split of a frame of CamVid, from its name, as SegNet's lists have it.

    Raises:
        DatasetError: if it is of none of the four sequences.

    Example:
        >>> [camvid_split(name) for name in ("0001TP_008520", "0001TP_008550", "0016E5_07959", "0016E5_08460")]
        ['train', 'test', 'val', 'train']
    """
    sequence, _, frame = name.partition("_")
    digits = frame.removeprefix("f")
    if sequence not in ("0001TP", "0006R0", "0016E5", "Seq05VD") or not digits.isdigit():
        raise DatasetError(f"CamVid: expected a name such as 0001TP_006690, got {name}.")
    if sequence == "0001TP":
        return "train" if int(digits) <= 8520 else "test"
    if sequence == "0016E5":
        return "val" if 7959 <= int(digits) <= 8159 else "train"
    return "train" if sequence == "0006R0" else "test"
