"""Roads in satellite images: DeepGlobe."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hggraph.data.layout import by_name, check_split, files_in, layout_error, pair, read_list
from hggraph.data.mask_reader import BrightnessReader, DatasetError
from hggraph.data.palettes import BINARY_COLORS
from hggraph.data.segmentation import SegmentationDataset, Transform

__all__ = ["DeepGlobeRoads", "hold_out"]


class DeepGlobeRoads(SegmentationDataset):
    """DeepGlobe road extraction (Demir et al., CVPRW 2018): 1024 x 1024 pixels of 0.5 m, road or not.

    Only the 6226 images of ``train`` were published with masks. Papers hold 1530 of them out for evaluation, by lists
    that are mostly not given. Here ``"val"`` is held out by the names alone (`hold_out`), the same everywhere and
    always, or by a list of your own. A mask is road where it is brighter than half, as its readme asks.

    Args:
        root: The folder with ``train``.
        split: ``"train"`` (4696 images), ``"val"`` (1530), ``"trainval"`` (both), or, without masks,
            ``"unlabelled-valid"`` (1243) and ``"unlabelled-test"`` (1101), the challenge's own.
        held_out: A text file with the ids of ``"val"``, one in a line (``104`` or ``104_sat.jpg``); by default 1530 of
            6226, of fewer images as large a share.
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, the folder has another layout, or `held_out` names an image that is not
            there or leaves a split empty.
    """

    LAYOUT = """
train/104_sat.jpg   satellite image
train/104_mask.png  roads, white on black
valid/22_sat.jpg    without masks; not needed
test/9_sat.jpg      without masks; not needed
"""
    PUBLISHED = {  # noqa: RUF012 (a constant)
        "train": 4696,
        "val": 1530,
        "trainval": 6226,
        "unlabelled-valid": 1243,
        "unlabelled-test": 1101,
    }

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        held_out: str | Path | None = None,
        transform: Transform | None = None,
    ) -> None:
        check_split("DeepGlobeRoads", split, list(self.PUBLISHED))
        labelled = not split.startswith("unlabelled-")
        folder = Path(root, "train" if labelled else split.removeprefix("unlabelled-"))
        images, masks = (by_name(files_in(folder), folder, end) for end in ("_sat", "_mask"))
        if not images or (labelled and not masks):
            raise layout_error("DeepGlobeRoads", Path(root), self.LAYOUT)
        published = self.PUBLISHED[split] if held_out is None or split == "trainval" or not labelled else None
        if split in ("train", "val"):
            chosen = hold_out(list(images)) if held_out is None else _listed(Path(held_out), images)
            images = {name: path for name, path in images.items() if (name in chosen) == (split == "val")}
            masks = {name: path for name, path in masks.items() if (name in chosen) == (split == "val")}
        if not images:
            raise DatasetError(f"DeepGlobeRoads: {root} has too few images for a split {split!r}.")
        pairs, extra = pair(images, masks, lambda name: folder / f"{name}_mask.png")
        super().__init__(
            pairs if labelled else [(image, None) for image in images.values()],
            ["background", "road"],
            BrightnessReader(),
            palette=BINARY_COLORS,
            transform=transform,
            names=list(images),
            extra=extra,
            published=published,
        )


def hold_out(names: Sequence[str], *, share: float = 1530 / 6226) -> set[str]:
    """Return a share of names, by their SHA-256 alone: the same whatever their order and the machine.

    Args:
        names: Any names, each once.
        share: From 0 to 1.

    Returns:
        ``round(share * len(names))`` of them, those with the lowest hashes.

    Example:
        >>> sorted(hold_out(["a", "b", "c", "d"], share=0.5)) == sorted(hold_out(["d", "c", "b", "a"], share=0.5))
        True
    """
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ordered[: round(share * len(ordered))])


def _listed(path: Path, images: dict[str, Path]) -> set[str]:
    listed = {Path(line.split()[0]).stem.removesuffix("_sat") for line in read_list(path)}
    missing = sorted(listed - set(images))
    if missing:
        raise DatasetError(f"{path}: {len(missing)} images are not there: {', '.join(missing[:10])}.")
    return listed
