"""An open raster as a network takes it: windows of normalised pixels, and which of them have data."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hggraph.data.image import ImageError

__all__ = ["Bounds", "RasterSource", "open_raster", "quiet_gdal"]

Bounds = tuple[float, float, float, float]

CACHE = 256 << 20  # bytes of GDAL's cache; of itself it takes a share of the machine's memory


@contextmanager
def quiet_gdal() -> Iterator[None]:
    """Bound GDAL's cache, and let what is harmless or noticed elsewhere pass without a word."""
    try:
        import rasterio
    except ImportError as error:
        raise ImportError('Rasters need rasterio, which is not installed: pip install "hggraph[raster]"') from error
    hooks = sys.excepthook, sys.unraisablehook
    # rasterio cannot log what GDAL quotes of a damaged file if that is no text, and would print so
    sys.excepthook = lambda *error: None if error[0] is UnicodeDecodeError else hooks[0](*error)
    sys.unraisablehook = lambda found: None if found.exc_type is UnicodeDecodeError else hooks[1](found)
    try:
        # damaged JPEG is an error, as in other formats
        with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_ERROR_ON_LIBJPEG_WARNING=True):
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks


def open_raster(path: str | Path) -> Any:
    """Open a file with GDAL, or raise an `ImageError`."""
    import rasterio

    try:
        file = rasterio.open(path)
        _ = file.colorinterp  # raises what GDAL has only noted while opening
        return file
    except Exception as error:  # of GDAL, of a coordinate system, of text that is none: many, and some are private
        raise ImageError(f"{path}: expected a raster that GDAL reads, got none ({error}); check the name.") from error


class RasterSource:
    """The part of an open raster that is predicted; the arguments are those of `predict_raster`."""

    def __init__(
        self,
        path: str | Path,
        bands: Sequence[int] | None,
        mean: Sequence[float],
        std: Sequence[float],
        full_scale: float | None,
        nodata: float | None,
        bounds: Bounds | None,
    ) -> None:
        self.path, self.file = path, open_raster(path)
        try:
            types = self._choose(bands)
            self.nodata = self._per_band(self._empty_numbers(types, nodata))
            self.center, self.spread = self._normalisation(types, mean, std, full_scale)
            self.top, self.left, *size = _part(self.file, bounds)
            self.size = (size[0], size[1])
        except BaseException:
            self.file.close()
            raise

    def _choose(self, bands: Sequence[int] | None) -> list[np.dtype[Any]]:
        """Choose the bands, and what masks them; return the bands' types."""
        from rasterio.enums import ColorInterp, MaskFlags

        file, kinds = self.file, self.file.colorinterp
        alpha = [band for band, kind in zip(file.indexes, kinds, strict=True) if kind == ColorInterp.alpha]
        self.bands = [band for band in file.indexes if band not in alpha] if bands is None else list(bands)
        numbers = (isinstance(band, int | np.integer) and not isinstance(band, bool) for band in self.bands)
        if not self.bands or not all(numbers) or not set(self.bands) <= set(file.indexes):
            raise ImageError(f"{self.path}: expected bands from 1 to {file.count}, got {self.bands or 'none'}.")
        names = [file.dtypes[band - 1] for band in self.bands]
        if any(name.startswith("complex") for name in names):
            raise ImageError(f"{self.path}: expected bands of real numbers, got {', '.join(names)}.")
        types = [np.dtype(name) for name in names]
        self.type = np.result_type(*types, np.float32)  # holds each number of up to 53 bits
        # an alpha band that is chosen is a band like others, and no mask
        self.alpha = [] if set(alpha) & set(self.bands) else alpha
        # nodata numbers are compared here: GDAL looks at one kind of mask alone
        known = ([MaskFlags.all_valid], [MaskFlags.nodata])
        flags = file.mask_flag_enums
        self.masked = [
            i
            for i, band in enumerate(self.bands)
            if flags[band - 1] not in known and MaskFlags.alpha not in flags[band - 1]
        ]
        return types

    def _empty_numbers(self, types: Sequence[np.dtype[Any]], nodata: float | None) -> list[float]:
        """Return the number for no data of each band, NaN for none."""
        if nodata is None:
            found = [self.file.nodatavals[band - 1] for band in self.bands]
            return [math.nan if value is None else float(value) for value in found]
        for kind in types:
            if kind.kind != "f" and not math.isnan(nodata):
                limits = np.iinfo(kind)
                if nodata != np.floor(nodata) or not limits.min <= nodata <= limits.max:
                    raise ValueError(
                        f"`nodata` must be a whole number from {limits.min} to {limits.max} for a band of {kind}, or "
                        f"NaN for none, got {nodata:g}."
                    )
        return [float(nodata)] * len(types)

    def _normalisation(
        self,
        types: Sequence[np.dtype[Any]],
        mean: Sequence[float],
        std: Sequence[float],
        full_scale: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what is taken from the stored numbers of each band, and what they are then divided by."""
        if full_scale is not None and not 0 < full_scale < math.inf:
            raise ValueError(f"`full_scale` must be a positive number, got {full_scale}.")
        center, spread = (_one_or_each(*pair, len(types)) for pair in (("mean", mean), ("std", std)))
        if not min(spread) > 0:
            raise ValueError(f"`std` must be positive, got {std}.")
        pairs = []
        for band, kind, middle, width in zip(self.bands, types, center, spread, strict=True):
            scale, offset = self.file.scales[band - 1], self.file.offsets[band - 1]
            if scale == 0 or not math.isfinite(scale) or not math.isfinite(offset):
                raise ImageError(
                    f"{self.path}: expected a scale and an offset of band {band} that are numbers, the scale not 0, "
                    f"got {scale:g} and {offset:g}; correct the file."
                )
            stored = kind.kind != "f" and (scale, offset) == (1, 0)
            unit = full_scale or (float(np.iinfo(kind).max) if stored else 1.0)
            pairs.append(((middle * unit - offset) / scale, width * unit / scale))
        first, second = zip(*pairs, strict=True)
        return self._per_band(first), self._per_band(second)

    def _per_band(self, values: Sequence[float]) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float64).astype(self.type))[:, None, None]

    def __enter__(self) -> RasterSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def files(self) -> set[Path]:
        """Return the files that are read, those that virtual rasters are made of too."""
        found: set[Path] = set()
        left = {Path(name) for name in self.file.files}
        while left:
            found |= left
            virtual = [path for path in left if path.suffix.lower() == ".vrt" and path.is_file()]
            left = set()
            for path in virtual:
                with open_raster(path) as file:
                    left |= {Path(name) for name in file.files} - found
        return found

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return a window's normalised pixels ``(C, height, width)``, and which have data ``(height, width)``."""
        from rasterio import RasterioIOError
        from rasterio.windows import Window

        window = Window(self.left + left, self.top + top, width, height)
        try:
            x = torch.from_numpy(self.file.read(self.bands, window=window, out_dtype=self.type))
            known = ~_equal(x, self.nodata)
            if self.masked:
                masks = self.file.read_masks([self.bands[i] for i in self.masked], window=window)
                known[self.masked] &= torch.from_numpy(masks != 0)
            if self.alpha:
                known &= torch.from_numpy((self.file.read(self.alpha, window=window) != 0).all(0))
        except RasterioIOError as error:
            raise ImageError(
                f"{self.path}: expected a whole raster, got one that cannot be read at rows {window.row_off} to "
                f"{window.row_off + height}, columns {window.col_off} to {window.col_off + width} "
                f"({error.__cause__ or error}); fetch or export it again."
            ) from error
        x = x.sub_(self.center).div_(self.spread).float()
        known &= x.isfinite()
        return x.masked_fill_(~known, 0), known.any(0)

    def georeference(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what places the part on the Earth: options to create a file with, and attributes to set on it."""
        from rasterio.control import GroundControlPoint
        from rasterio.crs import CRS
        from rasterio.transform import Affine

        points, crs = self.file.gcps
        later: dict[str, Any] = {}
        if self.file.rpcs is not None:
            rpcs = copy.copy(self.file.rpcs)
            rpcs.line_off -= self.top
            rpcs.samp_off -= self.left
            later["rpcs"] = rpcs
        if points and self.file.transform.is_identity:
            moved = [
                GroundControlPoint(p.row - self.top, p.col - self.left, p.x, p.y, p.z, p.id, p.info) for p in points
            ]
            return {}, {**later, "gcps": (moved, crs or CRS())}
        a, b, _, d, e, _, *_ = self.file.transform
        x, y = _apply(self.file.transform, (self.left, self.top))
        return {"crs": self.file.crs, "transform": Affine(a, b, x, d, e, y)}, later


def _equal(x: Tensor, values: Tensor) -> Tensor:
    """Compare with numbers for no data as GDAL does: up to rounding, and -3.4e38 is the lowest float32; NaN is none."""
    limits = torch.finfo(x.dtype)
    values = values.clamp(limits.min, limits.max)
    return (x - values).abs() <= 2 * limits.eps * (x + values).abs()


def _one_or_each(name: str, values: Sequence[float], bands: int) -> list[float]:
    found = [float(value) for value in np.ravel(values)]
    if len(found) not in (1, bands):
        raise ValueError(
            f"`{name}` must be one number or one for each of {bands} bands, got {found}; choose with `bands`, where a "
            f"band may stand several times."
        )
    if not all(map(math.isfinite, found)):
        raise ValueError(f"`{name}` must be finite numbers, got {found}.")
    return found * (bands // len(found))


def _part(file: Any, bounds: Bounds | None) -> tuple[int, int, int, int]:
    """Return top, left, height and width, in pixels, of what lies between bounds."""
    if bounds is None:
        return 0, 0, file.height, file.width
    left, bottom, right, top = bounds
    if not (all(map(math.isfinite, bounds)) and left < right and bottom < top):
        raise ValueError(
            f"`bounds` must be (left, bottom, right, top) with left < right and bottom < top, got {tuple(bounds)}."
        )
    if file.transform.is_degenerate:
        raise ImageError(f"{file.name}: `bounds` need a transform that can be inverted, got {file.transform[:6]}.")
    inverse = ~file.transform
    corners = [_apply(inverse, (x, y)) for x in (left, right) for y in (bottom, top)]
    first, last = [], []
    for ends, length in zip(zip(*corners, strict=True), (file.width, file.height), strict=True):
        # rounding errors of coordinates are no reason for one more pixel
        first.append(max(0, math.floor(min(ends) + 1e-6)))
        last.append(min(length, math.ceil(max(ends) - 1e-6)))
    if not all(a < b for a, b in zip(first, last, strict=True)):
        corners = [_apply(file.transform, (x, y)) for x in (0, file.width) for y in (0, file.height)]
        (low, high), (down, up) = ((min(values), max(values)) for values in zip(*corners, strict=True))
        raise ValueError(
            f"`bounds` must overlap the raster's (left, bottom, right, top), ({low:g}, {down:g}, {high:g}, {up:g}), "
            f"got {tuple(bounds)}."
        )
    return first[1], first[0], last[1] - first[1], last[0] - first[0]


def _apply(transform: Any, point: tuple[float, float]) -> tuple[float, float]:
    """Return where an affine transform maps (x, y)."""
    a, b, c, d, e, f, *_ = transform
    x, y = point
    return a * x + b * y + c, d * x + e * y + f
