"""Data sets of images with a class for every pixel: pairs of files, read the same way whatever their layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from hggraph.data.image import ImageError, image_size, load_pixels
from hggraph.data.mask_reader import IGNORE, DatasetError, LabelReader, MaskReader, raise_problems, some_of
from hggraph.data.palettes import Color, colorize, voc_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["SegmentationDataset", "Transform", "figure_of"]

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Images with masks, from pairs of files.

    Args:
        pairs: Path of each image and of its mask, or None for an image without one. Files are opened when an item is
            asked for: `check` looks at all of them before.
        classes: Names of the classes from 0.
        read_mask: Reads a mask; by default its numbers are the classes, and 255 does not count.
        palette: A colour for each class; those of PASCAL VOC by default.
        transform: Takes a sample and returns another, for example one of torchvision's ``transforms.v2``.
        names: A name for each image, unique; by default the file's stem.
        extra: Masks that were found without an image, as in some published copies; ``check(complete=True)`` tells them.
        published: Number of images that were published.

    An item is a dict: ``"image"``, a ``tv_tensors.Image`` of bytes ``(3, H, W)``; ``"mask"``, a ``tv_tensors.Mask`` of
    bytes ``(H, W)`` with 255 where no class counts, missing where there is no mask; and ``"name"``. A photo that the
    camera turned (EXIF) is turned upright, unless only the photo as it is stored has the mask's size.

    Raises:
        DatasetError: if there are no images, names or colours are not as many as what they name, or a name comes twice.
            An item raises it, or `ImageError`, naming the file: for a mask of another size, numbers or colours of no
            class, and files that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (4, 3), "red").save(f"{folder}/a.jpg")
        ...     Image.new("L", (4, 3), 1).save(f"{folder}/a.png")
        ...     dataset = SegmentationDataset([(Path(folder, "a.jpg"), Path(folder, "a.png"))], ["road", "car"])
        ...     dataset.check(labels=True)
        ...     sample = dataset[0]
        >>> sample["image"].shape, sample["mask"].unique().tolist(), sample["name"]
        (torch.Size([3, 3, 4]), [1], 'a')
    """

    ignore_index = IGNORE

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        classes: Sequence[str],
        read_mask: MaskReader | None = None,
        *,
        palette: Sequence[Color] | None = None,
        transform: Transform | None = None,
        names: Sequence[str] | None = None,
        extra: Iterable[Path] = (),
        published: int | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.classes = tuple(classes)
        colors = voc_colors(len(self.classes)) if palette is None else palette
        self.palette: tuple[Color, ...] = tuple((red, green, blue) for red, green, blue in colors)
        identity = {**{number: number for number in range(len(self.classes))}, IGNORE: IGNORE}
        self.read_mask = LabelReader(identity) if read_mask is None else read_mask
        self.transform = transform
        self.names = [image.stem for image, _ in self.pairs] if names is None else list(names)
        self.extra = tuple(extra)
        self.published = published
        here = type(self).__name__
        if not self.pairs:
            raise DatasetError(f"{here}: expected images, got none.")
        if len(self.palette) != len(self.classes) or len(self.names) != len(self.pairs):
            raise DatasetError(
                f"{here}: expected a colour for each class and a name for each image, got {len(self.palette)} for "
                f"{len(self.classes)} and {len(self.names)} for {len(self.pairs)}."
            )
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise DatasetError(f"{here}: expected one image of each name, got several of {some_of(twice)}.")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.raw(index)
        return sample if self.transform is None else self.transform(sample)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {len(self.classes)} classes)"

    def raw(self, index: int) -> dict[str, Any]:
        """Return an item without the transform."""
        from torchvision import tv_tensors

        path, mask_path = self.pairs[index]
        image = load_pixels(path)
        if mask_path is None:
            return {"image": tv_tensors.Image(image), "name": self.names[index]}
        mask = torch.from_numpy(self.read_mask(mask_path))
        if image.shape[1:] != mask.shape and image.shape[:0:-1] == mask.shape:
            image = load_pixels(path, upright=False)
        if image.shape[1:] != mask.shape:
            raise DatasetError(_other_size(mask_path, tuple(mask.shape), path, tuple(image.shape[1:])))
        return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(mask), "name": self.names[index]}

    def check(self, labels: bool = False, *, sizes: bool = True, complete: bool = False) -> None:
        """Look at every file and raise one error that says all that is wrong.

        Args:
            labels: Decode every image and mask too: finds damaged files and labels outside the classes.
            sizes: Compare the sizes in the headers; False looks at names alone, for a quick look at large sets.
            complete: Expect as many images as were published, and no mask without an image.

        Raises:
            DatasetError: if an image or a mask is missing, a mask has another size, or a label is none of the classes;
                the text names the first 10 problems and says how many there are.
        """
        problems = []
        if complete:
            problems = [f"{path}: a mask without an image" for path in self.extra]
            if self.published not in (None, len(self)):
                problems.insert(0, f"expected {self.published:,} images, as published, got {len(self):,}")
        for index, (image, mask) in enumerate(self.pairs):
            missing = [path for path in (image, mask) if path is not None and not path.is_file()]
            problems += [f"{path}: missing, the {'image' if path is image else 'mask'}" for path in missing]
            if missing:
                continue
            try:
                if labels:
                    self.raw(index)
                elif sizes:
                    self._check_sizes(image, mask)
            except (ImageError, DatasetError) as error:
                problems.append(str(error).rstrip("."))
        raise_problems(repr(self), problems)

    def plot(self, index: int) -> Figure:
        """Draw an item, without the transform: the image, its mask in the classes' colours, and both.

        Raises:
            ImportError: if matplotlib is not installed; the text says how to get it.

        Note:
            Save it with `hggraph.viz.save_figure`. Pixels that do not count are black, in the overlay left as they are.
        """
        sample = self.raw(index)
        image, mask = (sample[key].as_subclass(torch.Tensor) if key in sample else None for key in ("image", "mask"))
        assert image is not None
        pictures = {sample["name"]: image}
        present: list[int] = []
        if mask is not None:
            colors = colorize(mask, self.palette)
            half = (image.float() * 0.45 + colors.float() * 0.55).round().to(torch.uint8)
            pictures |= {"mask": colors, "both": torch.where(mask == IGNORE, image, half)}
            present = [number for number in mask.unique().tolist() if number < len(self.classes)]
        return figure_of(pictures, [(self.classes[number], self.palette[number]) for number in present])

    def _check_sizes(self, image: Path, mask: Path | None) -> None:
        size = image_size(image)
        if mask is None:
            return
        mask_size = self.read_mask.size(mask)
        if mask_size not in (size, image_size(image, upright=False)):
            raise DatasetError(_other_size(mask, mask_size, image, size))


def _other_size(mask: Path, size: tuple[int, ...], image: Path, image_size: tuple[int, ...]) -> str:
    return (
        f"{mask}: expected a mask of its image's size, {image_size[1]} x {image_size[0]} pixels ({image.name}), got "
        f"{size[1]} x {size[0]}."
    )


def figure_of(pictures: Mapping[str, torch.Tensor], legend: Sequence[tuple[str, Color]]) -> Figure:
    """Draw pictures ``(3, H, W)`` of bytes side by side, over a legend."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError('Figures need matplotlib, which is not installed: pip install "hggraph[viz]"') from error
    _, height, width = next(iter(pictures.values())).shape
    step = -(-max(height, width) // 1000)  # a panel shows no more pixels
    rows = -(-len(legend) // 8)
    down = min(max(4.4 * height / width, 1.0), 9.0)
    figure = Figure(figsize=(4.4 * len(pictures), down + 0.5 + 0.25 * rows), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (title, picture) in zip(panels, pictures.items(), strict=True):
        axes.imshow(picture[:, ::step, ::step].permute(1, 2, 0).numpy())
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_axis_off()
    patches = [Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="#888888") for _, (r, g, b) in legend]
    if legend:
        names = [name for name, _ in legend]
        figure.legend(patches, names, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    return figure
