"""Image files to tensors and arrays: checked before they are decoded, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hggraph.data._decode import MAX_PIXELS, decode_numbers, decode_photo, header_size
from hggraph.data._image_error import ImageError, image_error

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageError",
    "image_size",
    "list_images",
    "load_attention",
    "load_brightness",
    "load_image",
    "load_labels",
    "load_pixels",
    "sample_photo",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_MAX_LABEL = 2**31 - 1


def load_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image file as RGB.

    PNG, JPEG, TIFF, BMP and WEBP of every kind that Pillow decodes: palette, greyscale (the same
    value in the three channels), CMYK, 1 to 16 bits per channel, floating-point TIFF in [0, 1]; other
    TIFF (RGB of more than 8 bits, 12 bits, planar) with rasterio. White is what the format says,
    which in some TIFF is 0. The rotation that a camera notes (EXIF) is applied, transparent parts are
    laid over white, and of an animation or of several pictures the first counts.

    Args:
        path: The file.
        max_pixels: Largest number of pixels that the file's header may declare; looked at before
            anything is decoded. Pillow's own limit, 178,956,970, holds beside it: cut larger
            rasters into windows.

    Returns:
        Colours in [0, 1], shape ``(3, H, W)``, float32, contiguous.

    Raises:
        ImageError: if the file is missing, empty, truncated, of another format (whatever its suffix
            says), declares no pixels or too many, or holds numbers that are no colours.

    Note:
        Memory: about 16 bytes per pixel while decoding, 12 after. Deterministic.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (640, 480), (255, 0, 0)).save(f"{folder}/red.png")
        ...     image = load_image(f"{folder}/red.png")
        >>> image.shape, image[:, 0, 0]
        (torch.Size([3, 480, 640]), tensor([1., 0., 0.]))
    """
    return _as_floats(decode_photo(Path(path), "RGB", max_pixels)).permute(2, 0, 1).contiguous()


def load_pixels(path: str | Path, *, upright: bool = True, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image file as RGB bytes: what `load_image` reads, in a quarter of the memory.

    Args:
        path: The file, of the formats of `load_image`.
        upright: Turn the image as the camera notes (EXIF); False leaves it as it is stored (TIFF is always turned).
        max_pixels: As in `load_image`.

    Returns:
        Colours from 0 to 255, shape ``(3, H, W)``, uint8, contiguous; 16-bit and floating-point files are rounded.

    Raises:
        ImageError: as `load_image`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (640, 480), (255, 0, 9)).save(f"{folder}/red.png")
        ...     load_pixels(f"{folder}/red.png")[:, 0, 0]
        tensor([255,   0,   9], dtype=torch.uint8)
    """
    pixels = decode_photo(Path(path), "RGB", max_pixels, upright=upright)
    pixels = pixels if pixels.dtype == np.uint8 else (pixels * 255).round().astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load_labels(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.integer]:
    """Read a label image: one whole number per pixel.

    The numbers are those stored: of a palette the indices, of 1, 2 and 4 bits 0 to 15, of TIFF in which white is 0
    the same, and of 16 and 32 bits all. RGB files are read where the three channels agree; transparency is passed over.

    Args:
        path: A file of PNG, BMP, lossless WEBP, or, with rasterio, TIFF whose compression changes no numbers.
        max_pixels: As in `load_image`.

    Returns:
        The labels, from 0 to 2,147,483,647, shape ``(H, W)``, uint8, uint16 or int32.

    Raises:
        ImageError: as `load_image`; also for JPEG and other lossy files, colours, numbers outside or not whole, and
            TIFF without rasterio.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.array([[0, 7, 300]], dtype=np.uint16)).save(f"{folder}/labels.png")
        ...     load_labels(f"{folder}/labels.png").tolist()
        [[0, 7, 300]]
    """
    expected = "labels, one number per pixel"
    numbers = decode_numbers(Path(path), max_pixels)
    if numbers.ndim == 3:
        channels = numbers[..., :3] if numbers.shape[2] > 2 else numbers[..., :1]  # without alpha
        other = (channels != channels[..., :1]).any(-1)
        if other.any():
            got = f"colours, for example {channels[other][0].tolist()}"
            raise image_error(path, expected, got, "convert it, or read it by its colours")
        numbers = channels[..., 0].copy()
    if numbers.dtype in (np.bool_, np.uint8, np.uint16) or not numbers.size:
        return numbers.astype(np.uint8) if numbers.dtype == np.bool_ else numbers
    if numbers.dtype.kind == "f" and not (numbers == np.floor(numbers)).all():
        raise image_error(path, expected, "numbers that are not whole", "convert it to 8-bit or 16-bit grey")
    wrong = numbers[(numbers < 0) | (numbers > _MAX_LABEL)]
    if wrong.size:
        raise image_error(path, expected, f"{wrong[0]}", f"use labels from 0 to {_MAX_LABEL}")
    return numbers.astype(np.int32)


def load_brightness(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read how bright each pixel is: 0 black, 1 white, colours by their luma, transparent parts black.

    Args:
        path: The file, of the formats of `load_image`.
        max_pixels: As in `load_image`.

    Returns:
        Brightness in [0, 1], shape ``(H, W)``, float32.

    Raises:
        ImageError: as `load_image`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("1", (2, 1), 1).save(f"{folder}/mask.png")
        ...     load_brightness(f"{folder}/mask.png")
        tensor([[1., 1.]])
    """
    return _as_floats(decode_photo(Path(path), "L", max_pixels))


def image_size(path: str | Path, *, upright: bool = True, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return an image's height and width, from its header alone.

    Args:
        path: The file, of the formats of `load_image`.
        upright: Height and width after turning the image as the camera notes (EXIF), or as it is stored.
        max_pixels: As in `load_image`.

    Raises:
        ImageError: if the file is missing or empty, of another format, or declares no pixels or too many.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (640, 480)).save(f"{folder}/black.png")
        ...     image_size(f"{folder}/black.png")
        (480, 640)
    """
    return header_size(Path(path), max_pixels, upright=upright)


def load_attention(path: str | Path, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an attention map: black 0, white 1, colours by their brightness, transparent parts 0.

    Args:
        path: The file, of the formats of `load_image`.
        size: Height and width of the image that it belongs to, in pixels.
        max_pixels: As in `load_image`.

    Returns:
        Attention in [0, 1], shape ``(H, W)``, float32.

    Raises:
        ImageError: if the file cannot be read, or is not of `size`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (3, 2), 51).save(f"{folder}/map.png")
        ...     load_attention(f"{folder}/map.png", (2, 3))
        tensor([[0.2000, 0.2000, 0.2000],
                [0.2000, 0.2000, 0.2000]])
    """
    brightness = load_brightness(path, max_pixels=max_pixels)
    if brightness.shape != tuple(size):
        expected, (height, width) = f"a map of the image's size, {size[1]} x {size[0]} pixels", brightness.shape
        raise image_error(path, expected, f"{width} x {height}", "resize the map to the image")
    return brightness


def list_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the image files that are meant by files and folders.

    Args:
        paths: Files, taken as they are, and folders, of which the files with an image suffix are
            taken, sorted by name. Neither folders inside nor hidden files are looked at.

    Returns:
        The files in the order of `paths`, each once.

    Raises:
        ImageError: if a path does not exist, or a folder has no image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ["b.jpg", "a.PNG", "notes.txt"]:
        ...         Path(folder, name).touch()
        ...     [path.name for path in list_images([folder])]
        ['a.PNG', 'b.jpg']
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if _looks_like_image(entry))
            if not inside:
                expected, todo = f"images ({' '.join(SUFFIXES)})", "name the folders inside it too"
                raise image_error(path, expected, "a folder without", todo)
        elif path.exists():
            inside = [path]
        else:
            raise image_error(path, "an image or a folder", "a path that does not exist", "check the name")
        for entry in inside:
            found.setdefault(entry.resolve(), entry)
    return list(found.values())


def sample_photo(name: str = "china") -> Tensor:
    """Return one of the two photos that come with scikit-learn.

    Args:
        name: ``"china"`` (a temple) or ``"flower"`` (a dahlia).

    Returns:
        Colours in [0, 1], shape ``(3, 427, 640)``, float32.

    Raises:
        ValueError: if there is no photo of that name.
        ImportError: if scikit-learn is not installed; the text says how to get it.

    Example:
        >>> sample_photo("flower").shape
        torch.Size([3, 427, 640])
    """
    if name not in ("china", "flower"):
        raise ValueError(f'`name` must be "china" or "flower", got {name!r}.')
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            'The sample photos come with scikit-learn, which is not installed: pip install "hggraph[sklearn]"'
        ) from error
    pixels = np.array(load_sample_image(f"{name}.jpg"))
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div_(255).contiguous()


def _as_floats(pixels: NDArray[Any]) -> Tensor:
    """Return pixels in [0, 1], float32."""
    tensor = torch.from_numpy(pixels)
    return tensor.to(torch.float32).div_(255) if tensor.dtype == torch.uint8 else tensor


def _looks_like_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
