"""Files of what was predicted: label pictures, probability maps, overlays; each written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hggraph._files import write_atomically
from hggraph.data.palettes import Color, voc_colors

__all__ = [
    "Color",
    "border_picture",
    "check_palette",
    "class_colors",
    "labels_picture",
    "overlay_picture",
    "probabilities_writer",
    "save_labels",
    "save_overlay",
    "save_probabilities",
]

BORDER = (255, 255, 0)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def class_colors(num_classes: int) -> list[Color]:
    """Return colours that tell classes apart, class 0 black: those of the PASCAL VOC label pictures.

    Args:
        num_classes: Classes; the first 256 colours differ, then they begin again.

    Returns:
        Red, green, blue of each class, from 0 to 255.

    Example:
        >>> class_colors(4)
        [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    """
    colors = voc_colors(256)
    return [colors[label % 256] for label in range(num_classes)]


def check_palette(palette: Sequence[Color], num_classes: int) -> list[Color]:
    """Return a palette as triples of integers.

    Raises:
        ValueError: if it has fewer colours than there are classes, or one is not red, green, blue from 0 to 255.
    """
    colors = [tuple(int(value) for value in color) for color in palette]
    for i, color in enumerate(colors):
        if len(color) != 3 or not all(0 <= value <= 255 for value in color):
            raise ValueError(f"`palette` must hold red, green and blue from 0 to 255, got {palette[i]} for class {i}.")
    if len(colors) < num_classes:
        raise ValueError(f"`palette` must have a colour for each of {num_classes} classes, got {len(colors)}.")
    return [(color[0], color[1], color[2]) for color in colors]


def save_labels(
    labels: Tensor, path: str | Path, palette: Sequence[Color] | None = None, *, num_classes: int | None = None
) -> None:
    """Write labels as a PNG picture: its pixels are the labels, its palette their colours.

    Args:
        labels: Whole numbers, shape ``(H, W)``, from 0 to 255, or to 65535 for more than 256 classes.
        path: The file to write, ending in .png.
        palette: Red, green, blue of each class; None: `class_colors`. Other labels, such as 255 for ignored pixels, are
            white.
        num_classes: Classes there are. With more than 256 the picture has 16 bits and no palette, whatever labels it
            holds. None: as many as the picture needs.

    Raises:
        ValueError: if a label is out of range, the palette is too short, or `path` ends otherwise.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_labels(torch.eye(2, dtype=torch.int64), f"{folder}/labels.png", [(0, 0, 0), (255, 0, 0)])
        ...     with Image.open(f"{folder}/labels.png") as picture:
        ...         np.array(picture).tolist(), picture.getpalette()[:6]
        ([[1, 0], [0, 1]], [0, 0, 0, 255, 0, 0])
    """
    picture = labels_picture(labels, palette, num_classes=num_classes)
    write_atomically(_ending(path, ".png"), lambda temporary: picture.save(temporary))


def labels_picture(
    labels: Tensor, palette: Sequence[Color] | None = None, *, num_classes: int | None = None
) -> Image.Image:
    """Return the picture that `save_labels` writes; see there."""
    values = _whole_numbers(labels, 65535)
    wide = values.max(initial=0) > 255 if num_classes is None else num_classes > 256
    if wide:
        return Image.fromarray(values.astype(np.uint16))
    if values.max(initial=0) > 255:
        raise ValueError(f"`labels` of {num_classes} classes must be from 0 to 255, got {values.max()}.")
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(_table(palette, num_classes or 0, 256).tobytes())
    return picture


def save_probabilities(probabilities: Tensor, path: str | Path) -> None:
    """Write probabilities of one image.

    Args:
        probabilities: Shape ``(K, H, W)``, in [0, 1].
        path: The file to write. ``.npz``: all classes as one array of that shape under ``"probabilities"``, in half
            precision (errors of at most 0.0003), compressed; read it with ``numpy.load(path)["probabilities"]``.
            ``.png``: one class alone, 16 bits per pixel, black for 0 and white for 1 (errors of at most 0.00001).

    Raises:
        ValueError: if the shape does not fit, a value is no probability, or `path` ends otherwise.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_probabilities(torch.full((2, 1, 1), 0.5), f"{folder}/one.npz")
        ...     np.load(f"{folder}/one.npz")["probabilities"].tolist()
        [[[0.5]], [[0.5]]]
    """
    path = _ending(path, ".npz", ".png")
    write_atomically(path, probabilities_writer(probabilities, path.suffix.lower()))


def probabilities_writer(probabilities: Tensor, suffix: str) -> Callable[[Path], object]:
    """Return what writes the file that `save_probabilities` writes; see there."""
    if probabilities.dim() != 3 or not probabilities.is_floating_point():
        raise ValueError(
            f"`probabilities` must be floating point of shape (K, H, W), got {probabilities.dtype} of shape "
            f"{tuple(probabilities.shape)}."
        )
    values: NDArray[np.float32] = probabilities.detach().float().cpu().numpy()
    if not ((values >= 0) & (values <= 1 + 1e-5)).all():  # NaN compares False; sums of weights round up
        raise ValueError("`probabilities` must be from 0 to 1, got others: give them after the softmax or sigmoid.")
    if suffix == ".npz":
        half = values.astype(np.float16)
        return lambda path: np.savez_compressed(path, probabilities=half)
    if len(values) != 1:
        raise ValueError(f"A .png file holds one class, got {len(values)}: write an .npz file, or one class each.")
    picture = Image.fromarray((values[0].clip(0, 1) * 65535).round().astype(np.uint16))
    return picture.save


def save_overlay(
    image: Tensor,
    labels: Tensor,
    path: str | Path,
    palette: Sequence[Color] | None = None,
    *,
    opacity: float = 0.5,
    hidden: Collection[int] = (255,),
) -> None:
    """Write a photo with its labels' colours laid over it, and lines in the colours where labels meet.

    Black is no paint: classes whose colour is ``(0, 0, 0)``, the background of most palettes, show the photo as it is.

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        labels: Whole numbers from 0, shape ``(H, W)``.
        path: The file to write; its suffix chooses the format (.png, .jpg, .webp, ...).
        palette: Red, green, blue of each class; None: `class_colors`.
        opacity: Of the colours, from 0 to 1.
        hidden: Further labels that are not painted.

    Raises:
        ValueError: if shapes disagree, a value is out of range, or the format is unknown.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_overlay(torch.rand(3, 8, 8), torch.ones(8, 8).long(), f"{folder}/overlay.png")
        ...     [path.name for path in Path(folder).iterdir()]
        ['overlay.png']
    """
    path = _ending(path, *PICTURES)
    picture = overlay_picture(image, labels, palette, opacity=opacity, hidden=hidden)
    write_atomically(path, lambda temporary: picture.save(temporary, quality=92))


def overlay_picture(
    image: Tensor,
    labels: Tensor,
    palette: Sequence[Color] | None = None,
    *,
    opacity: float = 0.5,
    hidden: Collection[int] = (255,),
) -> Image.Image:
    """Return the picture that `save_overlay` writes; see there. The photo may also be of bytes."""
    if image.dim() != 3 or image.shape[0] not in (1, 3) or tuple(image.shape[1:]) != tuple(labels.shape):
        raise ValueError(
            f"`image` must have shape (3, H, W) or (1, H, W) with labels (H, W), got {tuple(image.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be from 0 to 1, got {opacity!r}.")
    values = _whole_numbers(labels, 65535)
    table = _table(palette, 0, max(256, int(values.max(initial=0)) + 1))
    photo = _photo(image)
    border = np.zeros(values.shape, dtype=bool)
    down, across = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    weight = np.where(border, (1 + opacity) / 2, opacity).astype(np.float32)
    weight[np.isin(values, list(hidden)) | ~table[values].any(-1)] = 0
    mixed = photo + (table[values] - photo) * weight[..., None]
    return Image.fromarray(mixed.round().astype(np.uint8))


def border_picture(image: Tensor, labels: Tensor) -> Image.Image:
    """Return a photo ``(3, H, W)`` with the borders of regions ``(H, W)`` in yellow."""
    photo, values = _photo(image).round().astype(np.uint8), labels.cpu().numpy()
    photo[:, 1:][values[:, 1:] != values[:, :-1]] = BORDER
    photo[1:][values[1:] != values[:-1]] = BORDER
    return Image.fromarray(photo)


def _photo(image: Tensor) -> NDArray[np.float32]:
    """Return colours from 0 to 255, ``(H, W, 3)``."""
    colors = image.detach().float() if image.dtype == torch.uint8 else image.detach().float().clamp(0, 1).mul(255)
    return np.array(colors.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())


def _table(palette: Sequence[Color] | None, num_classes: int, length: int) -> NDArray[np.uint8]:
    """Return a colour table ``(length, 3)``; what has no colour is white."""
    colors = class_colors(length) if palette is None else check_palette(palette, num_classes)[:length]
    table = np.full((length, 3), 255, dtype=np.uint8)
    table[: len(colors)] = np.array(colors, dtype=np.uint8).reshape(-1, 3)
    if palette is None and num_classes <= 255:
        table[255] = 255  # ignored pixels
    return table


def _whole_numbers(labels: Tensor, most: int) -> NDArray[np.int64]:
    if labels.dim() != 2 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"`labels` must be whole numbers (H, W), got {labels.dtype} of shape {tuple(labels.shape)}.")
    if 0 in labels.shape:
        raise ValueError(f"`labels` must have at least one pixel, got shape {tuple(labels.shape)}.")
    values: NDArray[np.int64] = labels.detach().cpu().numpy().astype(np.int64)
    if values.min() < 0 or values.max() > most:
        raise ValueError(f"`labels` must be from 0 to {most}, got values from {values.min()} to {values.max()}.")
    return values


def _ending(path: str | Path, *suffixes: str) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"`path` must end in {' or '.join(suffixes)}, got {str(path)!r}.")
    return path
