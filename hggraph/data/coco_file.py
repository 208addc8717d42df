"""Annotation files in COCO's format, each field checked: what is wrong is told by file and annotation."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hggraph.data.image import MAX_PIXELS
from hggraph.data.mask_reader import DatasetError, raise_problems

__all__ = ["CocoFile", "CocoObject", "draw_outline", "import_masks"]

Rules = Mapping[str, tuple[Callable[[Any], bool], str]]  # field -> whether a value is right, and what is expected

_FAR = 1e6  # pixels; farther from an image lies no box


class CocoObject(NamedTuple):
    """An object of an image, as annotated."""

    label: int  # from 1, the rank of its category
    box: list[float]  # x, y, width, height in pixels
    area: float
    crowd: bool
    outline: Any  # polygons or run lengths, as in the file


class CocoFile:
    """The images, categories and objects of an annotation file.

    Args:
        path: The file.
        outlines: Whether each object has to have an outline, which is checked too.

    Raises:
        DatasetError: if the file cannot be read, or an image or a category is not as COCO's format has it. What is
            wrong with annotations is told by `wrong`, `problems` and `stray`, and raised by `objects`.
    """

    def __init__(self, path: Path, outlines: bool) -> None:
        content = _read(path)
        self.path, self.outlines = path, outlines
        self.images: list[dict[str, Any]] = sorted(content["images"], key=lambda image: image["id"])
        self.categories: list[dict[str, Any]] = sorted(content["categories"], key=lambda category: category["id"])
        if not self.images:
            raise DatasetError(f"{path}: expected images, got none.")
        self._labels = {category["id"]: label for label, category in enumerate(self.categories, start=1)}
        self._entries: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        self._times = Counter(image["id"] for image in self.images)
        self.problems: list[str] = []  # annotations that may belong to any image
        self.stray: list[str] = []  # annotations of images that the file does not have
        for entry in content["annotations"]:
            number = entry.get("image_id")
            if not _is_id(number):
                self.problems.append(f"{self._name(entry)}: expected `image_id`, a whole number, got {number!r}")
            elif number not in self._entries:
                self.stray.append(f"{self._name(entry)}: image {number} is not in the file")
            else:
                self._entries[number].append(entry)

    def objects(self, index: int) -> list[CocoObject]:
        """Return the objects of an image, by its place in `images`.

        Raises:
            DatasetError: if one is not as COCO's format has it; the text names the file and the annotation.
        """
        image = self.images[index]
        raise_problems(f"image {image['id']} ({image['file_name']})", [*self.problems, *self.wrong(index)])
        return [
            CocoObject(
                self._labels[entry["category_id"]],
                entry["bbox"],
                entry.get("area", entry["bbox"][2] * entry["bbox"][3]),
                bool(entry.get("iscrowd", 0)),
                entry.get("segmentation"),
            )
            for entry in self._entries[image["id"]]
        ]

    def wrong(self, index: int) -> list[str]:
        """Return what is wrong with the annotations of an image, by its place in `images`."""
        image = self.images[index]
        count, size = self._times[image["id"]], (image["height"], image["width"])
        problems = [f"{self.path}: image {image['id']} comes {count} times"] if count > 1 else []
        for entry in self._entries[image["id"]]:
            problems += [f"{self._name(entry)}: {each}" for each in self._unfit(entry, size)]
        return problems

    def _name(self, entry: dict[str, Any]) -> str:
        return f"{self.path}: annotation {entry.get('id')}"

    def _unfit(self, entry: dict[str, Any], size: tuple[int, int]) -> list[str]:
        """Return what is wrong with an annotation of an image of (height, width)."""
        problems = _unlike(entry, _ANNOTATION, optional=("id", "area", "iscrowd"))
        if _is_id(entry.get("category_id")) and entry["category_id"] not in self._labels:
            problems.append(f"category {entry['category_id']} is not in the file")
        if _is_box(entry.get("bbox")):
            x, y, width, height = entry["bbox"]
            if width > 0 < height and not (x < size[1] and y < size[0] and x + width > 0 < y + height):
                problems.append(f"expected `bbox` in the image, {size[1]} x {size[0]} pixels, got {entry['bbox']}")
        if self.outlines:
            wrong = _wrong_outline(entry.get("segmentation"), size)
            problems += [f"expected an outline (segmentation){wrong}"] if wrong else []
        return problems


def draw_outline(outline: Any, size: tuple[int, int]) -> Tensor:
    """Return an outline that was checked, polygons or run lengths, as a mask ``(H, W)`` of 0 and 1, uint8."""
    if isinstance(outline, dict):  # the runs go down the columns
        runs = _run_lengths(outline["counts"])
        bits = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs)
        return torch.from_numpy(bits.reshape(size[1], size[0]).T.copy())
    polygons = [each for each in outline if len(each) >= 6]  # fewer than 3 corners have no area
    if not polygons:
        return torch.zeros(size, dtype=torch.uint8)
    coco = import_masks()
    with warnings.catch_warnings():  # pycocotools 2.0.11 hands over arrays as NumPy 1 did
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.from_numpy(coco.decode(coco.merge(coco.frPyObjects(polygons, *size))).copy())


def import_masks() -> Any:
    """Return pycocotools' module of masks."""
    try:
        from pycocotools import mask  # type: ignore[import-untyped]  # no types
    except ImportError as error:
        raise ImportError("Masks of COCO need pycocotools, which is not installed: pip install pycocotools") from error
    return mask


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: expected annotations in JSON, got a file that cannot be read ({error})."
        ) from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise DatasetError(f"{path}: expected annotations in COCO's format, got no list of objects {key!r}.")
    problems = []
    for key, what, rules in (("images", "image", _IMAGE), ("categories", "category", _CATEGORY)):
        for entry in content[key]:
            problems += [f"{what} {entry.get('id')!r}: {each}" for each in _unlike(entry, rules)]
    twice = [n for n, count in Counter(str(each.get("id")) for each in content["categories"]).items() if count > 1]
    problems += [f"category {number} comes several times" for number in twice]
    raise_problems(str(path), problems)
    return content


def _unlike(entry: dict[str, Any], rules: Rules, optional: tuple[str, ...] = ()) -> list[str]:
    """Return how an entry differs from the rules; fields that are optional may be missing, but not null."""
    problems = []
    for name, (is_right, expected) in rules.items():
        if name not in entry and name not in optional:
            problems.append(f"expected `{name}`, {expected}, got none")
        elif name in entry and not is_right(entry[name]):
            problems.append(f"expected `{name}`, {expected}, got {entry[name]!r:.60}")
    return problems


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN is not


def _is_id(value: Any) -> bool:
    return _is_whole(value, 0, 2**63 - 1)


def _is_box(value: Any) -> bool:
    """Say whether a value is x, y, width and height."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(_is_number(side, low, _FAR) for side, low in zip(value, (-_FAR, -_FAR, 0, 0), strict=True))


def _is_file_name(value: Any) -> bool:
    """Say whether a value names a file inside its folder."""
    if not isinstance(value, str) or not value.isprintable() or not Path(value).name:
        return False
    return not Path(value).is_absolute() and ".." not in Path(value).parts


_IMAGE: Rules = {
    "id": (_is_id, "a whole number"),
    "file_name": (_is_file_name, "a file inside the folder of images"),
    "height": (lambda value: _is_whole(value, 1, MAX_PIXELS), "pixels, a whole number from 1"),
    "width": (lambda value: _is_whole(value, 1, MAX_PIXELS), "pixels, a whole number from 1"),
}
_CATEGORY: Rules = {
    "id": (_is_id, "a whole number"),
    "name": (lambda value: isinstance(value, str) and value != "", "a text"),
}
_ANNOTATION: Rules = {
    "id": (_is_id, "a whole number"),
    "category_id": (_is_id, "a whole number"),
    "bbox": (_is_box, "a box of four numbers (x, y, width, height)"),
    "area": (lambda value: _is_number(value, 0, _FAR**2), "pixels, a number from 0"),
    "iscrowd": (lambda value: value in (0, 1), "0 or 1"),
}


def _wrong_outline(outline: Any, size: tuple[int, int]) -> str:
    """Return what is wrong with an outline in an image of (height, width): the end of a text, empty if nothing."""
    height, width = size
    if isinstance(outline, dict):
        if outline.get("size") != [height, width]:
            return f" of the image's size, {[height, width]}, got run lengths of size {outline.get('size')!r:.60}"
        runs = _run_lengths(outline.get("counts"))
        if min(runs, default=-1) < 0 or sum(runs) != height * width:
            return f", run lengths that add up to {height} x {width} pixels, got {outline.get('counts')!r:.60}"
        return ""
    if not isinstance(outline, list) or not outline:
        return f", polygons or run lengths, got {outline!r:.60}"
    for polygon in outline:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return f" of polygons x, y, x, y, ..., got {polygon!r:.60}"
        for side, values in ((width, polygon[::2]), (height, polygon[1::2])):
            margin = max(1, side / 10)  # some draw a little over the border
            if not all(_is_number(value, -margin, side + margin) for value in values):
                return f" in the image, {width} x {height} pixels, got the polygon {polygon!r:.60}"
    return ""


def _run_lengths(counts: Any) -> list[int]:
    """Return run lengths, of a list or of COCO's text; [-1] if they are none."""
    if isinstance(counts, list):
        return counts if all(_is_whole(run, 0, MAX_PIXELS) for run in counts) else [-1]
    if not isinstance(counts, str):
        return [-1]
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("utf-8"):  # 6 bits a character: 5 of the number, the lowest first, and whether more come
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            return [-1]
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # from the third on, less the last but one
            value = shift = 0
    return [-1] if shift else runs
