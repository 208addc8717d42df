"""Folders of images of your own: with masks of the same name, or with a folder for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from hggraph.data.image import SUFFIXES, ImageError, image_size, load_pixels
from hggraph.data.layout import by_name, class_names, files_in, layout_error, pair
from hggraph.data.mask_reader import (
    BrightnessReader,
    ColorReader,
    LabelReader,
    MaskReader,
    raise_problems,
)
from hggraph.data.palettes import Color, voc_colors
from hggraph.data.segmentation import SegmentationDataset, Transform

__all__ = ["ClassFolder", "FolderDataset"]


class FolderDataset(SegmentationDataset):
    """Images and masks of your own: a mask belongs to the image of the same name.

    With the defaults::

        root/split/images/any/name.jpg
        root/split/masks/any/name.png

    Args:
        root: The folder.
        split: A folder in it, or None for `root` itself.
        classes: Names of the classes from 0.
        images: Folder of the images, in ``root/split``; folders inside it count, their names are part of an image's.
        masks: Folder of the masks, laid out as that of the images; ``"."`` for both means one folder for both.
        image_end: What the names of images end in that those of masks do not, before the suffix: ``"_sat"``.
        mask_end: The same of the masks: ``"_mask"``.
        labels: Number in a mask -> class, or 255 for pixels that do not count; by default the numbers are the classes,
            and 255 does not count.
        masks_are: ``"labels"``: numbers; ``"colors"``: the colours of `palette`, where others are an error;
            ``"brightness"``: two classes, of which the second is where the mask is brighter than half.
        palette: A colour for each class; those of PASCAL VOC by default.
        transform: Takes a sample and returns another.

    Of one folder, without `image_end` and `mask_end`, the PNG files are the masks and the others the images.

    Raises:
        DatasetError: if a folder is missing or has no images, or two files have one name.
        ValueError: if `labels` is given for masks that are no labels.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder, mode in (("images", "RGB"), ("masks", "L")):
        ...         Path(root, folder).mkdir()
        ...         Image.new(mode, (4, 3)).save(f"{root}/{folder}/a.png")
        ...     FolderDataset(root, classes=["road", "car"])
        FolderDataset(1 images, 2 classes)
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        classes: Sequence[str],
        images: str = "images",
        masks: str = "masks",
        image_end: str = "",
        mask_end: str = "",
        labels: Mapping[int, int] | None = None,
        masks_are: Literal["labels", "colors", "brightness"] = "labels",
        palette: Sequence[Color] | None = None,
        transform: Transform | None = None,
    ) -> None:
        base = Path(root) / (split or "")
        image_folder, mask_folder = base / images, base / masks
        together = image_folder.resolve() == mask_folder.resolve()
        layout = f"{images}/NAME{image_end}.jpg (or {', '.join(SUFFIXES)})\n{masks}/NAME{mask_end}.png"
        if not (image_folder.is_dir() and mask_folder.is_dir()):
            raise layout_error(type(self).__name__, base, layout)
        found, other = files_in(image_folder, deep=True), files_in(mask_folder, deep=True)
        if together and image_end == mask_end:
            found, other = [[path for path in found if (path.suffix.lower() == ".png") == png] for png in (False, True)]
        elif together and mask_end:
            found = [path for path in found if not path.stem.endswith(mask_end)]
        named = by_name(found, image_folder, image_end)
        if not named:
            raise layout_error(type(self).__name__, base, layout)
        pairs, extra = pair(
            named,
            by_name([path for path in other if not together or path not in found], mask_folder, mask_end),
            lambda name: mask_folder / f"{name}{mask_end}.png",
        )
        super().__init__(
            pairs,
            classes,
            _reader(masks_are, labels, len(classes), palette),
            palette=palette,
            transform=transform,
            names=list(named),
            extra=extra,
        )


class ClassFolder(Dataset[dict[str, Any]]):
    """Images with one class each, in a folder for each class, as ImageNet lies; over torchvision's ``ImageFolder``.

    ::

        root/split/class/any/name.jpg

    Args:
        root: The folder.
        split: A folder in it, or None for `root` itself.
        transform: Takes a sample and returns another.

    The classes are the folders of ``root/train`` where there is one, so that every split numbers them the same, else
    those of the split; in alphabetical order. An item is a dict: ``"image"``, a ``tv_tensors.Image`` of bytes
    ``(3, H, W)``; ``"label"``, the number of its class; and ``"name"``, its path in the split.

    Raises:
        DatasetError: if there are no folders or images, or the split has a class that ``root/train`` lacks.
            An item raises `ImageError` for a file that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "train", "cat").mkdir(parents=True)
        ...     Image.new("RGB", (4, 3)).save(f"{root}/train/cat/a.png")
        ...     dataset = ClassFolder(root, "train")
        ...     dataset.classes, dataset[0]["image"].shape, dataset[0]["label"], dataset[0]["name"]
        (('cat',), torch.Size([3, 3, 4]), 0, 'cat/a.png')
    """

    LAYOUT = "CLASS/NAME.jpg"

    def __init__(self, root: str | Path, split: str | None = None, *, transform: Transform | None = None) -> None:
        from torchvision.datasets import ImageFolder

        base = Path(root) / (split or "")
        self.classes, here = class_names(type(self).__name__, Path(root), split, self.LAYOUT)
        try:
            found = ImageFolder(base, loader=load_pixels, is_valid_file=_is_image, allow_empty=True)
        except FileNotFoundError as error:
            raise layout_error(type(self).__name__, base, self.LAYOUT) from error
        number = {name: self.classes.index(name) for name in here}  # hidden folders are no classes
        samples = [(Path(path), found.classes[label]) for path, label in found.samples]
        self.items = [(path, number[name]) for path, name in samples if name in number]
        if not self.items:
            raise layout_error(type(self).__name__, base, self.LAYOUT)
        self.names = [path.relative_to(base).as_posix() for path, _ in self.items]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from torchvision import tv_tensors

        path, label = self.items[index]
        sample = {"image": tv_tensors.Image(load_pixels(path)), "label": label, "name": self.names[index]}
        return sample if self.transform is None else self.transform(sample)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {len(self.classes)} classes)"

    def check(self, labels: bool = False, *, sizes: bool = True) -> None:
        """Look at the header of every file, or decode it, and raise one error that says all that is wrong.

        Args:
            labels: Decode the images.
            sizes: Look at the headers; False looks at names alone, for a quick look at large sets.

        Raises:
            DatasetError: if an image cannot be read; the text names the first 10 and says how many there are.
        """
        problems = []
        for path, _ in self.items if sizes or labels else ():
            try:
                load_pixels(path) if labels else image_size(path)
            except ImageError as error:
                problems.append(str(error).rstrip("."))
        raise_problems(repr(self), problems)


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES and not Path(path).name.startswith(".")


def _reader(
    masks_are: str, labels: Mapping[int, int] | None, num_classes: int, palette: Sequence[Color] | None
) -> MaskReader | None:
    if masks_are == "labels":
        return None if labels is None else LabelReader(labels)
    if labels is not None:
        raise ValueError(f'`labels` is for masks_are="labels", got {masks_are!r}.')
    if masks_are == "colors":
        colors = voc_colors(num_classes) if palette is None else palette
        table = {(red, green, blue): number for number, (red, green, blue) in enumerate(colors)}
        if len(table) < num_classes:
            raise ValueError('`palette` must have another colour for each class where masks_are="colors".')
        return ColorReader(table)
    if masks_are == "brightness" and num_classes == 2:
        return BrightnessReader()
    raise ValueError(
        f'`masks_are` must be "labels", "colors", or, for two classes, "brightness", got {masks_are!r} for '
        f"{num_classes} classes."
    )
