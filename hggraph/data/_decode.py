"""From image files to pixels: checked before they are decoded; what goes wrong becomes an `ImageError`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from hggraph.data._image_error import ImageError, image_error
from hggraph.data._tiff import Tags, read_numbers, read_photo, read_tags, unit

__all__ = ["FORMATS", "MAX_PIXELS", "check_lossless", "decode_numbers", "decode_photo", "header_size"]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; as a tensor 2 GB
_ORIENTATION = 0x0112
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_GREY, _GREY_ALPHA = 0, 4  # kinds of PNG


def decode_photo(
    path: Path, mode: Literal["RGB", "L"], max_pixels: int, *, upright: bool = True
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return colours over white ``(H, W, 3)``, or brightness over black ``(H, W)``: bytes, or floats in [0, 1]."""
    with _errors(path):
        tags = _tags(path, max_pixels)
        if tags is not None and not tags.plain:
            return _turned(_flat(*read_photo(path, tags), mode), tags.orientation)
        with _opened(path, max_pixels, tags) as image:
            if image.format == "PNG" and _png(path)[0] == 16:
                flat: NDArray[Any] = _flat(*_wide_photo(path, image, max_pixels), mode)
            elif image.mode.startswith("I;16") or image.mode == "F":
                grey = unit(path, np.array(image), 1 if image.mode == "F" else 65535)
                flat = _flat(grey, None, mode)
            else:
                over = _over(path, image, "white" if mode == "RGB" else "black")
                over = over.convert("RGB") if over.mode == "LAB" else over  # Pillow knows no other way
                flat = np.array(over.convert(mode))
            return _turned(flat, _orientation(image)) if upright else flat


def decode_numbers(path: Path, max_pixels: int) -> NDArray[Any]:
    """Return the numbers that are stored, upright: ``(H, W)``, of several channels ``(H, W, C)``.

    Raises:
        ImageError: beside what is wrong with files, for those whose compression changes numbers.
    """
    with _errors(path):
        tags = _tags(path, max_pixels)
        if tags is not None:
            return _turned(read_numbers(path, tags), tags.orientation)
        with _opened(path, max_pixels) as image:
            _check_lossless(path, image)
            numbers = _png_numbers(path, image, max_pixels) if image.format == "PNG" else np.array(image)
            if image.format == "WEBP" and numbers.shape[2:] == (4,) and not numbers[..., 3].all():
                got = "transparent parts, where WebP does not keep numbers"
                raise image_error(path, "labels, stored as they are", got, "store labels as PNG")
            return _turned(numbers, _orientation(image))


def check_lossless(path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Raise an `ImageError` for a file whose compression changes numbers and colours."""
    with _errors(path):
        tags = _tags(path, max_pixels)
        if tags is not None:
            tags.check_lossless(path)
            return
        with _opened(path, max_pixels) as image:
            _check_lossless(path, image)


def header_size(path: Path, max_pixels: int, *, upright: bool) -> tuple[int, int]:
    """Return height and width from the header alone."""
    with _errors(path):
        tags = _tags(path, max_pixels)
        if tags is not None:  # always turned, as Pillow does
            width, height = tags.size
            return (width, height) if tags.orientation in (5, 6, 7, 8) else (height, width)
        with _opened(path, max_pixels) as image:
            turned = upright and _orientation(image) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside the block into an `ImageError`."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "a path that does not exist"
        raise image_error(path, "an image", got, "check the name")
    if path.stat().st_size == 0:
        raise image_error(path, "an image", "an empty file (0 bytes)", "fetch or export it again")
    try:
        # Pillow warns of large sizes (checked here), odd metadata and palettes: all dealt with; rasterio of no map.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, ValueError, ...: Pillow's and rasterio's many
        got = f"one that cannot be decoded ({error or type(error).__name__})"
        raise image_error(path, "a whole image", got, "fetch or export it again") from error


def _tags(path: Path, max_pixels: int) -> Tags | None:
    """Return what a TIFF declares, once its size is checked."""
    tags = read_tags(path)
    if tags is not None:
        _check_size(path, tags.size, max_pixels)
    return tags


@contextmanager
def _opened(path: Path, max_pixels: int, tags: Tags | None = None) -> Iterator[ImageFile.ImageFile]:
    """Open with Pillow and check, without decoding."""
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        expected, got = f"at most {min(max_pixels, MAX_PIXELS):,} pixels", f"a file that declares more ({error})"
        raise image_error(path, expected, got, "if that is true, cut it into windows") from error
    except UnidentifiedImageError as error:
        expected = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} (the content, not the suffix)"
        got = "another format or a broken header" if tags is None else f"{tags}, which Pillow does not read"
        raise image_error(path, expected, got, "convert or fetch it again") from error
    with image:
        _check_size(path, image.size, max_pixels)
        yield image


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise image_error(path, "at least one pixel", f"{width} x {height}", "export it again")
    if width * height > max_pixels:
        got = f"a file that declares {width} x {height} = {width * height:,}"
        todo = "raise `max_pixels` or use a smaller image"
        raise image_error(path, f"at most {max_pixels:,} pixels", got, todo)


def _orientation(image: Image.Image) -> int:
    """Return how the camera turned the image (EXIF), 1 for not; damaged data say nothing; TIFF Pillow turns itself."""
    with suppress(Exception):
        if image.format != "TIFF":
            return int(Image.Image.getexif(image).get(_ORIENTATION, 1))  # PNG's own would decode the file
    return 1


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return pixels ``(H, W, ...)`` upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _check_lossless(path: Path, image: Image.Image) -> None:
    if image.format not in ("PNG", "BMP") and not (image.format == "WEBP" and _is_lossless_webp(path)):
        name = {"MPO": "JPEG of several pictures", "WEBP": "lossy WebP"}.get(str(image.format), image.format)
        raise image_error(path, "labels, stored as they are", f"a {name}, which changes numbers", "store labels as PNG")


def _is_lossless_webp(path: Path) -> bool:
    """Say whether the first picture is stored without loss: the chunk that holds it is named so."""
    data, at = path.read_bytes(), 12
    while (kind := data[at : at + 4]) not in (b"VP8 ", b"VP8L", b""):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + (16 if kind == b"ANMF" else size + size % 2)  # a frame of an animation holds chunks
    return kind == b"VP8L"


def _png(path: Path) -> tuple[int, int]:
    """Return the bits of a channel and the kind of a PNG file."""
    with path.open("rb") as file:
        depth, kind = file.read(26)[24:]
    return depth, kind


def _png_numbers(path: Path, image: ImageFile.ImageFile, max_pixels: int) -> NDArray[Any]:
    """Return the numbers of a PNG file, where Pillow has scaled few bits up, or cut 16 bits down to 8."""
    depth, kind = _png(path)
    if depth < 8 and kind == _GREY:
        return np.array(image.convert("L")) // np.uint8(255 // (2**depth - 1))
    if depth < 16 or kind == _GREY:
        return np.array(image)
    if kind == _GREY_ALPHA:  # its four bytes, in the place of Pillow's four of 8 bits
        image.tile = [part._replace(args="RGBA") for part in image.tile]
        return np.array(image).view(">u2").astype(np.uint16)
    with _opened(path, max_pixels) as again:  # taken for little-endian, the low bytes stand where Pillow looks
        again.tile = [part._replace(args=f"{again.mode};16L") for part in again.tile]
        return (np.array(image).astype(np.uint16) << 8) | np.array(again)


def _wide_photo(
    path: Path, image: ImageFile.ImageFile, max_pixels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the colours of a PNG of 16 bits, and alpha."""
    clear = image.info.get("transparency")
    numbers = _png_numbers(path, image, max_pixels)
    values = unit(path, numbers, 65535)
    if numbers.ndim == 3 and numbers.shape[2] in (2, 4):
        return (values[..., 0] if numbers.shape[2] == 2 else values[..., :3]), values[..., -1]
    if clear is None:
        return values, None
    opaque = numbers != clear if numbers.ndim == 2 else (numbers != np.array(clear)).any(-1)
    return values, opaque.astype(np.float32)


def _over(path: Path, image: Image.Image, background: str) -> Image.Image:
    """Lay an image of bytes, if it is partly transparent, over a colour."""
    if not image.has_transparency_data:
        return image
    clear = image.info.get("transparency")
    if image.format == "PNG" and image.mode in ("1", "L") and clear is not None:
        image = image.convert("L")
        image.info["transparency"] = clear * (255 // (2 ** _png(path)[0] - 1))  # Pillow scales the pixels alone
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))


def _flat(
    values: NDArray[np.float32], alpha: NDArray[np.float32] | None, mode: Literal["RGB", "L"]
) -> NDArray[np.float32]:
    """Return colours over white ``(H, W, 3)``, or their brightness over black ``(H, W)``."""
    if mode == "L":
        grey = values if values.ndim == 2 else values @ _LUMA
        return grey if alpha is None else grey * alpha
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=-1)
    return values if alpha is None else values * alpha[..., None] + (1 - alpha[..., None])
