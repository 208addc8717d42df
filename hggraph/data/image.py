"""Image files to tensors and arrays: checked before they are decoded, with errors that say what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = [
    "FORMATS",
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
        pixels = _rgb(image)
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div_(255).contiguous()


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
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (640, 480), (255, 0, 9)).save(f"{folder}/red.png")
        ...     load_pixels(f"{folder}/red.png")[:, 0, 0]
        tensor([255,   0,   9], dtype=torch.uint8)
    """
    with _decoded(Path(path), max_pixels, upright=upright) as image:
        if image.mode in (*_SIXTEEN_BITS, "F"):
            grey = _grey_of_numbers(image, Path(path)).mul_(255).round_().to(torch.uint8)
            return grey.expand(3, -1, -1).contiguous()
        pixels = _rgb(image)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load_labels(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.integer]:
    """Read a label image: one whole number per pixel.

    Of a palette image the numbers are read, not the colours; 16- and 32-bit files keep their numbers; black and white
    is 0 and 1; RGB files are read where the three channels agree; transparency is passed over.

    Args:
        path: The file, of the formats of `load_image` but JPEG, which changes numbers.
        max_pixels: As in `load_image`.

    Returns:
        The labels, at least 0, shape ``(H, W)``, uint8, uint16 or int32.

    Raises:
        ImageError: as `load_image`; also for JPEG, colours, 16-bit colours, and numbers negative or not whole.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.array([[0, 7, 300]], dtype=np.uint16)).save(f"{folder}/labels.png")
        ...     load_labels(f"{folder}/labels.png").tolist()
        [[0, 7, 300]]
    """
    expected = "labels, one number per pixel"
    with _decoded(Path(path), max_pixels) as image:
        if image.format == "JPEG":
            raise _error(path, expected, "a JPEG, which changes numbers", "store labels as PNG")
        if image.format == "PNG" and _has_wide_channels(Path(path)):
            raise _error(path, expected, "several channels of 16 bits", "store one channel")
        if image.mode == "1":
            return np.array(image, dtype=np.uint8)
        numbers = np.array(image)
        if image.mode in ("L", "P", "LA", "PA"):
            return numbers if numbers.ndim == 2 else numbers[..., 0].copy()
        if image.mode in ("RGB", "RGBA"):
            red, green, blue = (numbers[..., channel] for channel in range(3))
            if np.array_equal(red, green) and np.array_equal(red, blue):
                return red.copy()
            example = numbers[(red != green) | (red != blue)][0, :3].tolist()
            raise _error(path, expected, f"colours, for example {example}", "convert it, or read it by its colours")
    if numbers.ndim != 2 or (numbers.dtype.kind == "f" and not (numbers == np.floor(numbers)).all()):
        raise _error(path, expected, f"mode {image.mode}, not whole numbers", "convert it to 8-bit or 16-bit grey")
    if numbers.size and numbers.min() < 0:
        raise _error(path, expected, f"{numbers.min()}", "use labels from 0")
    return numbers if numbers.dtype == np.uint16 else numbers.astype(np.int32)


def load_brightness(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read how bright each pixel is: 0 black, 255 white, colours by their luma, transparent parts black.

    Args:
        path: The file, of the formats of `load_image`.
        max_pixels: As in `load_image`.

    Returns:
        Brightness, shape ``(H, W)``, uint8; 16-bit and floating-point files are rounded.

    Raises:
        ImageError: as `load_image`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("1", (2, 1), 1).save(f"{folder}/mask.png")
        ...     load_brightness(f"{folder}/mask.png").tolist()
        [[255, 255]]
    """
    with _decoded(Path(path), max_pixels) as image:
        if image.mode in (*_SIXTEEN_BITS, "F"):
            return _grey_of_numbers(image, Path(path)).mul_(255).round_().to(torch.uint8).numpy()
        flat = _over(image, "black") if image.has_transparency_data else image
        return np.array(flat.convert("L"))


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
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (640, 480)).save(f"{folder}/black.png")
        ...     image_size(f"{folder}/black.png")
        (480, 640)
    """
    with _opened(Path(path), max_pixels) as image:
        with suppress(Exception):  # damaged EXIF data say nothing; PNG's own getexif would decode the file
            if upright and image.format != "TIFF" and Image.Image.getexif(image).get(0x0112) in (5, 6, 7, 8):
                return image.width, image.height  # of TIFF Pillow has turned the size already
        return image.height, image.width


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
def _decoded(path: Path, max_pixels: int, *, upright: bool = True) -> Iterator[Image.Image]:
    """Open, check and decode; what goes wrong, inside the block too, becomes an `ImageError`."""
    with _opened(path, max_pixels) as image:
        image.load()
        turned = _upright(image) if upright else image
        turned.format = image.format
        yield turned


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open and check, without decoding; what goes wrong, inside the block too, becomes an `ImageError`."""
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
                yield image
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


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels ``(H, W, 3)``, transparent parts over white."""
    flat = _over(image, "white") if image.has_transparency_data else image
    return np.array(flat.convert("RGB"))


def _has_wide_channels(path: Path) -> bool:
    """Say whether a PNG file has several channels of 16 bits, which Pillow reads as 8."""
    with path.open("rb") as file:
        depth, kind = file.read(26)[24:]
    return depth == 16 and kind != 0


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
