"""Object detection: COCO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hggraph.data.coco_file import CocoFile, CocoObject, draw_outline, import_masks
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
        DatasetError: if the files lie otherwise, or images or categories are not as COCO's format has them. An item
            raises it, or `ImageError`, naming the file, for annotations that are not as the format has them, an image
            of another size than annotated, and one that cannot be read.
        ImportError: with `masks`, if pycocotools is not installed.

    Example:
        >>> import json, tempfile
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
        self.content = CocoFile(self.file, masks)
        self.images = self.content.images
        self.classes = tuple(category["name"] for category in self.content.categories)
        self.category_ids = [category["id"] for category in self.content.categories]  # of label 1, 2, ...
        self.masks, self.crowds, self.transform = masks, crowds, transform
        if masks:
            import_masks()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from torchvision import tv_tensors

        entry = self.images[index]
        image, size = self._image(index), (entry["height"], entry["width"])
        objects = [each for each in self.content.objects(index) if self.crowds or not each.crowd]
        boxes = _corners(objects, size)
        kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        objects = [each for each, keep in zip(objects, kept.tolist(), strict=True) if keep]
        sample: dict[str, Any] = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=size),  # type: ignore[call-overload]
            "labels": torch.tensor([each.label for each in objects], dtype=torch.int64),
            "iscrowd": torch.tensor([each.crowd for each in objects], dtype=torch.bool),
            "area": torch.tensor([each.area for each in objects], dtype=torch.float32),
            "image_id": entry["id"],
            "name": Path(entry["file_name"]).stem,
        }
        if self.masks:
            outlines = [draw_outline(each.outline, size) for each in objects]
            stacked = torch.stack(outlines) if outlines else torch.zeros(0, *size, dtype=torch.uint8)
            sample["masks"] = tv_tensors.Mask(stacked)
        return sample if self.transform is None else self.transform(sample)

    def _image(self, index: int) -> Tensor:
        """Return an image, turned as it was annotated."""
        entry = self.images[index]
        path, size = self.folder / entry["file_name"], (entry["height"], entry["width"])
        image = load_pixels(path)
        if tuple(image.shape[1:]) != size and tuple(image.shape[:0:-1]) == size:
            image = load_pixels(path, upright=False)
        if tuple(image.shape[1:]) != size:
            raise DatasetError(_other_size(path, size, tuple(image.shape[1:])))
        return image

    def __repr__(self) -> str:
        return f"CocoDetection({len(self)} images, {len(self.classes)} classes)"

    def check(self, labels: bool = False, *, sizes: bool = True) -> None:
        """Look at every image and annotation and raise one error that says all that is wrong.

        Args:
            labels: Decode the images too.
            sizes: Look at the headers; False looks at names alone, for a quick look at large sets.

        Raises:
            DatasetError: if an image is missing, cannot be read or has another size than annotated, or an annotation
                belongs to no image or has a field that is not as COCO's format has it; the text names the first 10
                problems and says how many there are.
        """
        problems = [*self.content.problems, *self.content.stray]
        for index, entry in enumerate(self.images):
            path, size = self.folder / entry["file_name"], (entry["height"], entry["width"])
            problems += self.content.wrong(index)
            try:
                if labels:
                    self._image(index)
                elif sizes:
                    if size not in (found := image_size(path), image_size(path, upright=False)):
                        raise DatasetError(_other_size(path, size, found))
                elif not path.is_file():
                    raise DatasetError(f"{path}: missing, the image.")
            except (ImageError, DatasetError) as error:
                problems.append(str(error).rstrip("."))
        raise_problems(repr(self), list(dict.fromkeys(problems)))


def _corners(objects: Sequence[CocoObject], size: tuple[int, int]) -> Tensor:
    """Return boxes as corners (x, y, x, y), clipped to an image of (height, width)."""
    corners = torch.tensor([each.box for each in objects], dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    limit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    return torch.minimum(corners.clamp(min=0), limit)


def _other_size(path: Path, expected: tuple[int, int], found: tuple[int, ...]) -> str:
    return f"{path}: expected {expected[1]} x {expected[0]} pixels, as annotated, got {found[1]} x {found[0]}."
