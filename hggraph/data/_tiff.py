"""TIFF files whose numbers count: what their tags say, and the stored numbers, read with rasterio."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from hggraph.data._image_error import image_error

__all__ = ["Tags", "read_numbers", "read_photo", "read_tags", "unit"]

UNSIGNED, SIGNED, FLOATING = 1, 2, 3  # sample formats
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, _PALETTE, MASK = range(5)  # photometric interpretations
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOSSLESS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)  # none, CCITT, LZW, deflate, PackBits, LZMA, Zstandard
_KINDS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOATING: "floating-point"}


class Tags(NamedTuple):
    """What the first picture of a file declares."""

    size: tuple[int, int]  # width, height, as stored
    bits: tuple[int, ...]  # of each sample of a pixel
    kinds: set[int]  # sample formats
    photometric: int
    compression: int
    extra: tuple[int, ...]  # of the samples beyond the colours: 1 and 2 are alpha, 1 multiplied into the colours
    orientation: int

    @property
    def plain(self) -> bool:
        """Whether Pillow reads the colours as they are meant: bytes or less, or one sample of known range, 0 black."""
        if self.kinds == {UNSIGNED} and max(self.bits) <= 8:
            return True
        of_range = (self.bits, self.kinds) in (((16,), {UNSIGNED}), ((32,), {FLOATING}))
        return of_range and self.photometric == BLACK_IS_ZERO

    def check_lossless(self, path: Path) -> None:
        """Raise an `ImageError` for a compression that changes numbers, or may."""
        if self.compression not in _LOSSLESS:
            name = TiffImagePlugin.COMPRESSION_INFO.get(self.compression, str(self.compression))
            got = f"a TIFF of the compression {name}, which changes numbers"
            raise image_error(path, "labels, stored as they are", got, "store labels as PNG, or compress by deflate")

    def __str__(self) -> str:
        samples = f"{len(self.bits)} samples" if len(self.bits) > 1 else "one sample"
        kinds = ", ".join(_KINDS.get(kind, "complex or unknown") for kind in sorted(self.kinds))
        bits = " and ".join(str(bits) for bits in sorted(set(self.bits)))
        return f"a TIFF of {samples} of {bits} bits, {kinds}, photometric interpretation {self.photometric}"


def read_tags(path: Path) -> Tags | None:
    """Return what the first picture of a TIFF file declares, None of another format."""
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] not in _STARTS:
            return None
        if b"+" in start[2:4]:
            start += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
    samples = int(tags.get(277, 1))
    bits = tuple(tags.get(258, (1,)))
    return Tags(
        (int(tags.get(256, 0)), int(tags.get(257, 0))),
        bits * samples if len(bits) == 1 else bits,
        {UNSIGNED if kind == 4 else kind for kind in tags.get(339, (UNSIGNED,))},  # 4: not said
        int(tags.get(262, BLACK_IS_ZERO)),
        int(tags.get(259, 1)),
        tuple(tags.get(338, ())),
        int(tags.get(274, 1)),
    )


def read_numbers(path: Path, tags: Tags) -> NDArray[Any]:
    """Return the numbers as they are stored, ``(H, W)``, of several samples ``(H, W, C)``, not yet turned upright.

    Raises:
        ImageError: if they were changed by compression or are none that stand alone, or rasterio is not installed.
    """
    tags.check_lossless(path)
    if len(tags.bits) > 4 or tags.photometric > MASK or not tags.kinds <= set(_KINDS):
        raise image_error(path, "labels, one number per pixel", str(tags), "convert it to 8-bit or 16-bit grey")
    return _read(path, tags)


def read_photo(path: Path, tags: Tags) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return colours in [0, 1], ``(H, W)`` or ``(H, W, 3)``, and alpha ``(H, W)``; not yet turned upright.

    Raises:
        ImageError: if it is not known what the numbers mean, or rasterio is not installed.
    """
    colors = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3}.get(tags.photometric, 0)
    alpha = len(tags.bits) == colors + 1 and tags.extra[:1] in ((1,), (2,))
    known = tags.kinds == {FLOATING} or (tags.kinds == {UNSIGNED} and max(tags.bits) <= 16)
    if not known or len(tags.bits) != colors + alpha or len(set(tags.bits)) > 1:
        expected = "grey or RGB as unsigned numbers of up to 16 bits or as floating-point numbers from 0 to 1"
        raise image_error(path, expected, str(tags), "convert it")
    values = unit(path, _read(path, tags), 1 if tags.kinds == {FLOATING} else 2 ** tags.bits[0] - 1)
    opaque = values[..., -1] if alpha else None
    if alpha:
        values = values[..., 0] if colors == 1 else values[..., :3]
    if tags.photometric == WHITE_IS_ZERO:
        values = 1 - values
    if opaque is not None and tags.extra[0] == 1:  # colours come multiplied by alpha
        values = np.minimum(values / np.maximum(opaque if colors == 1 else opaque[..., None], 1e-6), 1)
    return values, opaque


def unit(path: Path, numbers: NDArray[Any], top: int) -> NDArray[np.float32]:
    """Return numbers over the largest that their format allows; raise an `ImageError` for those outside, and NaN."""
    low, high = float(numbers.min()), float(numbers.max())
    if not (low >= 0 and high <= top):  # NaN compares False
        raise image_error(path, f"numbers from 0 to {top}", f"{low:g} to {high:g}", "scale them to that range")
    return (numbers / top).astype(np.float32)


def _read(path: Path, tags: Tags) -> NDArray[Any]:
    try:
        import rasterio
    except ImportError as error:
        todo = 'pip install "hggraph[raster]", or convert the file to PNG'
        raise image_error(path, "rasterio, which reads the numbers of TIFF", "none installed", todo) from error
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": False}  # the file alone counts
    with rasterio.Env(**options), rasterio.open(path, driver="GTiff") as file:
        if (file.width, file.height, file.count) != (*tags.size, len(tags.bits)):
            raise image_error(path, "a whole image", "a header that contradicts itself", "export it again")
        numbers: NDArray[Any] = file.read()
    return numbers[0] if len(numbers) == 1 else numbers.transpose(1, 2, 0)
