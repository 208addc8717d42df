"""Image files to tensors: checked before they are decoded, with errors that say what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageError",
    "list_images",
    "load_attention",
    "load_image",
    "sample_photo",
]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; as a tensor 2 GB
_MISSING = "a path that does not exist"
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class ImageError(ValueError):
    """An image file cannot be used; the text names it and says what to do."""


def load_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image file as RGB.

    PNG, JPEG, TIFF, BMP and WEBP of every kind that Pillow decodes: palette, greyscale (the same
    value in the three channels), CMYK, 16 bits per channel, floating-point TIFF in [0, 1]. The
    rotation that a camera notes (EXIF) is applied, transparent parts are laid over white, and of an
    animation the first frame counts.

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
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (640, 480), (255, 0, 0)).save(f"{folder}/red.png")
        ...     image = load_image(f"{folder}/red.png")
        >>> image.shape, image[:, 0, 0]
        (torch.Size([3, 480, 640]), tensor([1., 0., 0.]))
    """
    with _decoded(Path(path), max_pixels) as image:
        if image.mode in (*_SIXTEEN_BITS, "F"):
            return _grey_of_numbers(image, Path(path)).expand(3, -1, -1).contiguous()
        flat = _over(image, "white") if image.has_transparency_data else image
        pixels = np.array(flat.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div_(255).contiguous()


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
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (3, 2), 51).save(f"{folder}/map.png")
        ...     load_attention(f"{folder}/map.png", (2, 3))
        tensor([[0.2000, 0.2000, 0.2000],
                [0.2000, 0.2000, 0.2000]])
    """
    with _decoded(Path(path), max_pixels) as image:
        if (image.height, image.width) != tuple(size):
            expected = f"a map of the image's size, {size[1]} x {size[0]} pixels"
            got = f"{image.width} x {image.height}"
            raise _error(path, expected, got, "resize the map to the image")
        if image.mode in (*_SIXTEEN_BITS, "F"):
            return _grey_of_numbers(image, Path(path))
        flat = _over(image, "black") if image.has_transparency_data else image
        pixels = np.array(flat.convert("L"))
    return torch.from_numpy(pixels).to(torch.float32).div_(255)


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
                raise _error(path, expected, "a folder without", todo)
        elif path.exists():
            inside = [path]
        else:
            raise _error(path, "an image or a folder", _MISSING, "check the name")
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


@contextmanager
def _decoded(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open, check and decode; what goes wrong, inside the block too, becomes an `ImageError`."""
    if not path.is_file():
        raise _error(path, "an image", "a folder" if path.is_dir() else _MISSING, "check the name")
    if path.stat().st_size == 0:
        raise _error(path, "an image", "an empty file (0 bytes)", "fetch or export it again")
    try:
        # Pillow warns of large sizes (checked here), odd metadata and palettes: all dealt with.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, image.size, max_pixels)
                image.load()
                yield _upright(image)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        expected = f"at most {min(max_pixels, MAX_PIXELS):,} pixels"
        got = f"a file that declares more ({error})"
        raise _error(path, expected, got, "if that is true, cut it into windows") from error
    except UnidentifiedImageError as error:
        expected = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} (the content, not the suffix)"
        got = "another format or a broken header"
        raise _error(path, expected, got, "convert or fetch it again") from error
    except Exception as error:  # OSError, SyntaxError, struct.error, ValueError, ...: Pillow's many
        got = f"one that cannot be decoded ({error or type(error).__name__})"
        raise _error(path, "a whole image", got, "fetch or export it again") from error


def _error(path: str | Path, expected: str, got: str, todo: str) -> ImageError:
    return ImageError(f"{path}: expected {expected}, got {got}; {todo}.")


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise _error(path, "at least one pixel", f"{width} x {height}", "export it again")
    if width * height > max_pixels:
        got = f"a file that declares {width} x {height} = {width * height:,}"
        todo = "raise `max_pixels` or use a smaller image"
        raise _error(path, f"at most {max_pixels:,} pixels", got, todo)


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF data say; damaged EXIF data say nothing."""
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _over(image: Image.Image, background: str) -> Image.Image:
    """Lay a partly transparent image over a colour."""
    ground = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(ground, image.convert("RGBA"))


def _grey_of_numbers(image: Image.Image, path: Path) -> Tensor:
    """Return 16-bit integers over 65535, other numbers as they are: ``(H, W)`` in [0, 1]."""
    pixels = np.array(image)
    top = 1.0 if image.mode == "F" else 65535.0
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= top):  # NaN compares False
        expected, got = f"numbers from 0 to {top:g}", f"{low:g} to {high:g}"
        raise _error(path, expected, got, "scale them to that range")
    return torch.from_numpy((pixels / top).astype(np.float32))


def _looks_like_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
