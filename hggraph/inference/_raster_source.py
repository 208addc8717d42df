"""An open raster as a network takes it: windows of normalised pixels, and which of them have data."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hggraph.data.image import ImageError

__all__ = ["Bounds", "RasterSource"]

Bounds = tuple[float, float, float, float]


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
        import rasterio
        from rasterio.enums import ColorInterp, MaskFlags

        self.path, self.nodata = path, nodata
        try:
            self.file = rasterio.open(path)
        except rasterio.RasterioIOError as error:
            raise ImageError(
                f"{path}: expected a raster that GDAL reads, got none ({error}); check the name."
            ) from error
        try:
            kinds = zip(self.file.indexes, self.file.colorinterp, strict=True)
            self.bands = [band for band, kind in kinds if kind != ColorInterp.alpha] if bands is None else list(bands)
            if not self.bands or not set(self.bands) <= set(self.file.indexes):
                raise ImageError(f"{path}: expected bands from 1 to {self.file.count}, got {self.bands or 'none'}.")
            types = [np.dtype(self.file.dtypes[band - 1]) for band in self.bands]
            if any(kind.kind not in "uif" for kind in types):
                raise ImageError(f"{path}: expected bands of real numbers, got {', '.join(map(str, types))}.")
            self.floating = any(kind.kind == "f" for kind in types)
            self.masked = any(MaskFlags.all_valid not in self.file.mask_flag_enums[band - 1] for band in self.bands)
            scale = [_scale(kind) if full_scale is None else full_scale for kind in types]
            unit = torch.tensor(scale, dtype=torch.float64)
            self.mean = (_per_band("mean", mean, len(types)) * unit).float()[:, None, None]
            self.std = (_per_band("std", std, len(types)) * unit).float()[:, None, None]
            if not (self.std > 0).all():
                raise ValueError(f"`std` and `full_scale` must be positive, got {std} and {scale}.")
            self.top, self.left, *size = _part(self.file, bounds)
            self.size = (size[0], size[1])
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> RasterSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return a window's normalised pixels ``(C, height, width)``, and which have data ``(height, width)``."""
        from rasterio import RasterioIOError
        from rasterio.windows import Window

        window = Window(self.left + left, self.top + top, width, height)
        try:
            x = torch.from_numpy(self.file.read(self.bands, window=window, out_dtype="float32"))
            valid = x.isfinite().all(0) if self.floating else torch.ones(height, width, dtype=torch.bool)
            if self.nodata is not None:
                valid &= torch.ne(x, self.nodata).any(0)
            elif self.masked:
                valid &= torch.from_numpy(self.file.read_masks(self.bands, window=window) != 0).any(0)
        except RasterioIOError as error:
            raise ImageError(
                f"{self.path}: expected a whole raster, got one that cannot be read at rows {window.row_off} to "
                f"{window.row_off + height}, columns {window.col_off} to {window.col_off + width} "
                f"({error.__cause__ or error}); fetch or export it again."
            ) from error
        x.sub_(self.mean).div_(self.std)
        return x if valid.all() else x.masked_fill_(~valid, 0), valid

    def georeference(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what places the part on the Earth: options to create a file with, and attributes to set on it."""
        from rasterio.control import GroundControlPoint
        from rasterio.transform import Affine

        points, crs = self.file.gcps
        later: dict[str, Any] = {}
        if self.file.rpcs is not None:
            rpcs = copy.copy(self.file.rpcs)
            rpcs.line_off -= self.top
            rpcs.samp_off -= self.left
            later["rpcs"] = rpcs
        if points:
            moved = [
                GroundControlPoint(p.row - self.top, p.col - self.left, p.x, p.y, p.z, p.id, p.info) for p in points
            ]
            return {}, {**later, "gcps": (moved, crs)}
        a, b, _, d, e, _, *_ = self.file.transform
        x, y = _apply(self.file.transform, (self.left, self.top))
        return {"crs": self.file.crs, "transform": Affine(a, b, x, d, e, y)}, later


def _scale(kind: np.dtype[Any]) -> float:
    return 1.0 if kind.kind == "f" else float(np.iinfo(kind).max)


def _per_band(name: str, values: Sequence[float], bands: int) -> Tensor:
    found = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if len(found) not in (1, bands) or not found.isfinite().all():
        raise ValueError(f"`{name}` must be one number or one for each of {bands} bands, got {list(values)}.")
    return found.expand(bands)


def _part(file: Any, bounds: Bounds | None) -> tuple[int, int, int, int]:
    """Return top, left, height and width, in pixels, of what lies between bounds."""
    if bounds is None:
        return 0, 0, file.height, file.width
    left, bottom, right, top = bounds
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
