"""Object detection: COCO."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hggraph.data.image import ImageError, image_size, load_pixels
from hggraph.data.layout import layout_error
from hggraph.data.mask_reader import DatasetError, raise_problems
from hggraph.data.segmentation import Transform

__all__ = ["CocoDetection"]


class CocoDetection(Dataset[dict[str, Any]]):
    """COCO (Lin et al., ECCV 2014), or any set in its format: boxes, classes and outlines of objects.

    Args:
        root: The folder with ``annotations`` and the folders of images.
        split: ``"train"`` or ``"val"``, or another for which there is an ``instances_{split}{year}.json``.
        year: Of the images; ``""`` for none, where the files are named ``instances_train.json`` and ``train``.
        masks: Give a mask for each object, with pycocotools.
        crowds: Keep the boxes around crowds, which evaluation passes over and training should not see.
        transform: Takes a sample and returns another.

    An item is a dict: ``"image"``, a ``tv_tensors.Image`` of bytes ``(3, H, W)``; ``"boxes"``, a
    ``tv_tensors.BoundingBoxes`` ``(N, 4)`` of float32, the corners x, y, x, y in pixels; ``"labels"`` ``(N,)``, from 1,
    as torchvision's detectors have 0 for the background: the class is ``classes[label - 1]``; ``"iscrowd"`` ``(N,)``,
    bool; ``"area"`` ``(N,)`` of the outlines, in pixels; with `masks` a ``tv_tensors.Mask`` ``(N, H, W)`` of 0 and 1;
    ``"image_id"``; and ``"name"``. An image without objects has N = 0. Boxes are clipped to the image; those without
    area are left out.

    Raises:
        DatasetError: if the files lie otherwise, or the annotations are none. An item raises it, or `ImageError`,
            naming the file, for an image of another size than annotated and one that cannot be read.
        ImportError: with `masks`, if pycocotools is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder in ("annotations", "val2017"):
        ...         Path(root, folder).mkdir()
        ...     Image.new("RGB", (8, 6)).save(f"{root}/val2017/1.jpg")
        ...     images = [{"id": 1, "file_name": "1.jpg", "height": 6, "width": 8}]
        ...     objects = [{"id": 1, "image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 3], "area": 9, "iscrowd": 0}]
        ...     content = {"images": images, "annotations": objects, "categories": [{"id": 18, "name": "dog"}]}
        ...     _ = Path(root, "annotations/instances_val2017.json").write_text(json.dumps(content))
        ...     dataset = CocoDetection(root, "val")
        ...     dataset.classes, dataset[0]["boxes"].tolist(), dataset[0]["labels"].tolist()
        (('dog',), [[1.0, 2.0, 4.0, 5.0]], [1])
    """

    LAYOUT = "annotations/instances_{part}.json\n{part}/000000000139.jpg"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        year: int | str = 2017,
        masks: bool = False,
        crowds: bool = False,
        transform: Transform | None = None,
    ) -> None:
        part = f"{split}{year}"
        self.file = Path(root, "annotations", f"instances_{part}.json")
        self.folder = Path(root, part)
        if not (self.file.is_file() and self.folder.is_dir()):
            raise layout_error("CocoDetection", Path(root), self.LAYOUT.format(part=part))
        content = _read(self.file)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = tuple(category["name"] for category in categories)
        self.category_ids = [category["id"] for category in categories]  # of label 1, 2, ...
        self.images = sorted(content["images"], key=lambda image: image["id"])
        self.masks, self.crowds, self.transform = masks, crowds, transform
        if not self.images:
            raise DatasetError(f"{self.file}: expected images, got none.")
        if masks:
            _coco_masks()
        self._labels = {number: label for label, number in enumerate(self.category_ids, start=1)}
        self._objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        self._problems = [
            f"{self.file}: image {number} comes {count} times"
            for number, count in Counter(image["id"] for image in self.images).items()
            if count > 1
        ]
        for entry in content["annotations"]:
            self._sort_in(entry)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from torchvision import tv_tensors

        entry = self.images[index]
        path, size = self.folder / entry["file_name"], (entry["height"], entry["width"])
        image = load_pixels(path)
        if tuple(image.shape[1:]) != size and tuple(image.shape[:0:-1]) == size:
            image = load_pixels(path, upright=False)
        if tuple(image.shape[1:]) != size:
            raise DatasetError(_other_size(path, size, tuple(image.shape[1:])))
        objects = [each for each in self._objects[entry["id"]] if self.crowds or not each.get("iscrowd", 0)]
        boxes = _corners([each["bbox"] for each in objects], size)
        kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        objects = [each for each, keep in zip(objects, kept.tolist(), strict=True) if keep]
        sample: dict[str, Any] = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=size),  # type: ignore[call-overload]
            "labels": torch.tensor([self._labels[each["category_id"]] for each in objects], dtype=torch.int64),
            "iscrowd": torch.tensor([bool(each.get("iscrowd", 0)) for each in objects], dtype=torch.bool),
            "area": torch.tensor([_area(each) for each in objects], dtype=torch.float32),
            "image_id": entry["id"],
            "name": Path(entry["file_name"]).stem,
        }
        if self.masks:
            outlines = [_mask(each["segmentation"], size) for each in objects]
            stacked = torch.stack(outlines) if outlines else torch.zeros(0, *size, dtype=torch.uint8)
            sample["masks"] = tv_tensors.Mask(stacked)
        return sample if self.transform is None else self.transform(sample)

    def __repr__(self) -> str:
        return f"CocoDetection({len(self)} images, {len(self.classes)} classes)"

    def check(self, labels: bool = False, *, sizes: bool = True) -> None:
        """Look at every image and annotation and raise one error that says all that is wrong.

        Args:
            labels: Decode the images, and with `masks` the outlines, too.
            sizes: Look at the headers; False looks at names alone, for a quick look at large sets.

        Raises:
            DatasetError: if an image is missing, cannot be read or has another size than annotated, or an annotation
                belongs to no image, has no class or no box; the text names the first 10 problems and says how many
                there are.
        """
        problems = list(self._problems)
        for index, entry in enumerate(self.images):
            path, size = self.folder / entry["file_name"], (entry["height"], entry["width"])
            try:
                if labels:
                    self[index]
                elif not sizes:
                    if not path.is_file():
                        raise DatasetError(f"{path}: missing, the image.")
                elif size not in (found := image_size(path), image_size(path, upright=False)):
                    raise DatasetError(_other_size(path, size, found))
            except (ImageError, DatasetError) as error:
                problems.append(str(error).rstrip("."))
        raise_problems(repr(self), problems)

    def _sort_in(self, entry: dict[str, Any]) -> None:
        """Put an annotation to its image, or note what is wrong with it."""
        where = f"{self.file}: annotation {entry.get('id')}"
        box = entry.get("bbox")
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
        if entry.get("image_id") not in self._objects:
            self._problems.append(f"{where}: image {entry.get('image_id')} is not in the file")
        elif entry.get("category_id") not in self._labels:
            self._problems.append(f"{where}: category {entry.get('category_id')} is not in the file")
        elif not numbers:
            self._problems.append(f"{where}: expected a box of four numbers, got {box!r}")
        elif self.masks and "segmentation" not in entry:
            self._problems.append(f"{where}: expected an outline (segmentation), got none")
        else:
            self._objects[entry["image_id"]].append(entry)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected annotations in JSON, got a file that cannot be read ({error})."
        ) from error
    keys = {"images": ("id", "file_name", "height", "width"), "annotations": (), "categories": ("id", "name")}
    for key, needed in keys.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise DatasetError(f"{path}: expected annotations in COCO's format, got no list of objects {key!r}.")
        lacking = [each for each in entries if not all(name in each for name in needed)]
        if lacking:
            raise DatasetError(f"{path}: expected {', '.join(needed)} in each of {key!r}, got {lacking[0]}.")
    for name in (Path(image["file_name"]) for image in content["images"]):
        if name.is_absolute() or ".." in name.parts:
            raise DatasetError(f"{path}: expected images inside their folder, got {name}.")
    return content


def _corners(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """Return boxes (x, y, width, height) as corners (x, y, x, y), clipped to an image of (height, width)."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    limit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    return torch.minimum(corners.clamp(min=0), limit)


def _area(entry: dict[str, Any]) -> float:
    box: list[float] = entry["bbox"]
    return float(entry.get("area", box[2] * box[3]))


def _coco_masks() -> Any:
    try:
        from pycocotools import mask  # type: ignore[import-untyped]  # no types
    except ImportError as error:
        raise ImportError("Masks of COCO need pycocotools, which is not installed: pip install pycocotools") from error
    return mask


def _mask(outline: Any, size: tuple[int, int]) -> Tensor:
    """Return an outline, polygons or run lengths, as a mask ``(H, W)`` of 0 and 1."""
    coco = _coco_masks()
    if isinstance(outline, list):  # polygons, of which the mask is the union; fewer than 3 corners are none
        polygons = [each for each in outline if len(each) >= 6]
        if not polygons:
            return torch.zeros(size, dtype=torch.uint8)
        runs = coco.merge(coco.frPyObjects(polygons, *size))
    elif isinstance(outline["counts"], list):
        runs = coco.frPyObjects(outline, *size)
    else:
        runs = outline
    with warnings.catch_warnings():  # pycocotools 2.0.11 hands over arrays as NumPy 1 did
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.from_numpy(coco.decode(runs).copy())


def _other_size(path: Path, expected: tuple[int, int], found: tuple[int, ...]) -> str:
    return f"{path}: expected {expected[1]} x {expected[0]} pixels, as annotated, got {found[1]} x {found[0]}."
