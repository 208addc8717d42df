"""BSDS500: photos that several people each cut into segments, the standard benchmark of regions and borders."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hggraph.data.image import load_pixels
from hggraph.data.layout import by_name, check_split, files_in, layout_error, pair
from hggraph.data.mask_reader import IGNORE, DatasetError, MaskReader
from hggraph.data.scenes import load_mat
from hggraph.data.segmentation import SegmentationDataset, Transform, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BSDS500", "SegmentReader"]


class SegmentReader(MaskReader):
    """Reads what several people drew: MATLAB files as published (with scipy), or arrays of numpy.

    The numbers of a map are its segments, from 0; a pixel that belongs to none has 255, and no segment has that number:
    after 254 comes 256.

    Args:
        draw: Of the annotators draw one each time, by torch's global generator. False takes the first.
    """

    def __init__(self, draw: bool = False) -> None:
        self.draw = draw

    def __call__(self, path: Path) -> NDArray[np.int32]:
        """Return the segments of one annotator, shape ``(H, W)``."""
        maps = self.all(path)
        return maps[int(torch.randint(len(maps), ())) if self.draw else 0]

    def all(self, path: Path) -> NDArray[np.int32]:
        """Return the segments of all annotators, shape ``(A, H, W)``.

        Raises:
            DatasetError: if the file cannot be read or holds something else; the text names it.
        """
        numbers = np.asarray(_read_cells(path) if path.suffix.lower() == ".mat" else _read_npz(path))
        whole = numbers.ndim == 3 and len(numbers) and numbers.dtype.kind in "iu"
        if not whole or numbers.min(initial=0) < 0 or numbers.max(initial=0) >= 2**31:
            got = f"{numbers.dtype} of shape {numbers.shape}"
            raise DatasetError(f"{path}: expected whole numbers of shape (annotators, H, W), got {got}.")
        number = numbers.astype(np.int32) - 1  # in the files from 1
        number[number >= IGNORE] += 1
        number[number < 0] = IGNORE
        return number

    def size(self, path: Path) -> tuple[int, int]:
        """Return height and width; the file is read for it."""
        _, height, width = self.all(path).shape
        return height, width


class BSDS500(SegmentationDataset):
    """BSDS500 (Arbelaez, Maire, Fowlkes, Malik, TPAMI 2011): 500 photos of 481 x 321, each cut by four to nine people.

    The numbers of a mask are **segments, not classes**: they mean nothing beyond their image, where regions are
    measured against them or trained to keep them apart. So `classes` and `palette` are empty. An item's ``"mask"``,
    int32 ``(H, W)``, is that of one annotator; 255 is no segment and does not count, as everywhere. `segments` gives
    those of all, whose number differs from image to image.

    Args:
        root: The folder with ``images`` and ``groundTruth`` as published (``BSR/BSDS500/data``, or one in which that
            lies); or one with ``images`` and ``segmentation`` without folders for the splits.
        split: ``"train"`` (200 images), ``"val"`` (100) or ``"test"`` (200). Without folders for them: ``"val"``, every
            second image from the first on, by name; ``"train"``, the others; or ``"all"``.
        draw: Draw an annotator each time an item is taken, by torch's global generator; False takes the first. None:
            where the split is ``"train"``.
        transform: Takes a sample and returns another.

    Raises:
        DatasetError: if there is no such split, or the folder has another layout; the text shows both.

    Example:
        >>> try:
        ...     BSDS500("no such folder")
        ... except DatasetError as error:
        ...     print(str(error).splitlines()[0])
        BSDS500: no such folder has another layout.
    """

    LAYOUT = """
images/SPLIT/100075.jpg       as published,
groundTruth/SPLIT/100075.mat  a cell for each annotator
or
images/100075.jpg             without splits,
segmentation/100075.npz       an array `segmentation` (annotators, H, W), numbers from 1
"""
    PUBLISHED = {"train": 200, "val": 100, "test": 200}  # noqa: RUF012 (a constant)
    read_mask: SegmentReader

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        draw: bool | None = None,
        transform: Transform | None = None,
    ) -> None:
        root = Path(root)
        within = ("data", "BSDS500/data", "BSR/BSDS500/data")
        base = next((root / name for name in within if (root / name / "groundTruth").is_dir()), root)
        flat = (base / "segmentation").is_dir()
        check_split("BSDS500", split, ["train", "val", "all"] if flat else list(self.PUBLISHED))
        part, end = ("", ".npz") if flat else (split, ".mat")
        mask_folder = base / ("segmentation" if flat else "groundTruth") / part
        image_folder = base / "images" / part
        images = by_name(files_in(image_folder), image_folder)
        masks = by_name(files_in(mask_folder, [end]), mask_folder)
        if not images or not masks:
            raise layout_error("BSDS500", root, self.LAYOUT.replace("SPLIT", split))
        pairs, extra = pair(images, masks, lambda name: mask_folder / f"{name}{end}")
        if flat and split != "all":
            pairs = pairs[split == "train" :: 2]
        super().__init__(
            pairs,
            (),
            SegmentReader(split == "train" if draw is None else draw),
            transform=transform,
            extra=extra,
            published=None if flat else self.PUBLISHED[split],
        )
        self.split = split

    def __repr__(self) -> str:
        return f"BSDS500({self.split}: {len(self)} images)"

    def segments(self, index: int) -> Tensor:
        """Return the segments of all annotators of an image, without the transform, int32 ``(A, H, W)``."""
        path = self.pairs[index][1]
        assert path is not None
        return torch.from_numpy(self.read_mask.all(path))

    def plot(self, index: int) -> Figure:
        """Draw an image, and for each annotator its segments in their mean colours.

        Raises:
            ImportError: if matplotlib is not installed; the text says how to get it.
        """
        image = load_pixels(self.pairs[index][0])
        pictures = {self.names[index]: image}
        for number, segments in enumerate(self.segments(index), start=1):
            pictures[f"annotator {number}"] = _mean_colors(image, segments)
        return figure_of(pictures, [])


def _read_cells(path: Path) -> list[Any]:
    """Return the annotators' maps of a published file: cells of structures with a field ``Segmentation``."""
    cells = load_mat(path, "groundTruth")
    try:
        maps = [cell["Segmentation"].item() for cell in cells.flat]
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: expected cells with a field 'Segmentation' in 'groundTruth', got none.") from error
    shapes = {np.shape(one) for one in maps}
    if len(shapes) > 1:
        raise DatasetError(f"{path}: expected segmentations of one size, got {sorted(shapes)}.")
    return maps


def _read_npz(path: Path) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found: NDArray[Any] = file["segmentation"]
    except KeyError as error:
        raise DatasetError(f"{path}: expected an array 'segmentation' in the file, got none.") from error
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: expected a file of numpy, got one that cannot be read ({error}).") from error
    return found


def _mean_colors(image: Tensor, segments: Tensor) -> Tensor:
    """Return bytes ``(3, H, W)``: each pixel in the mean colour of its segment."""
    number = segments.flatten().long()
    count = torch.bincount(number).clamp(min=1)
    sums = torch.stack([torch.bincount(number, color) for color in image.flatten(1).double()])
    return (sums / count).round().to(torch.uint8)[:, number].view(image.shape)
