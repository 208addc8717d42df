"""Which files are rasters and which are images."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hggraph.data.image import MAX_PIXELS, SUFFIXES, ImageError
from hggraph.inference._raster_source import open_raster, quiet_gdal

__all__ = ["is_raster", "sort_inputs"]

_ALWAYS = (".vrt", ".jp2")


def sort_inputs(paths: Iterable[str | Path], *, rasters: bool = False) -> tuple[list[Path], list[Path]]:
    """Find the files that are meant by files and folders, and sort them into rasters and images.

    Args:
        paths: Files, taken as they are, and folders, of which the files with the suffix of an image, .vrt or .jp2 are
            taken, sorted by name. Neither folders inside nor hidden files are looked at.
        rasters: Take every file as a raster if GDAL reads any of them: an option for rasters was given.

    Returns:
        The rasters (see `is_raster`) and the images, each file once, in the order of `paths`.

    Raises:
        ImageError: if a path does not exist, or a folder has no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ["b.jpg", "a.vrt", "a.vrt.ovr"]:
        ...         Path(folder, name).touch()
        ...     found = sort_inputs([folder])
        ...     [[path.name for path in part] for part in found]
        [['a.vrt'], ['b.jpg']]
    """
    suffixes = (*SUFFIXES, *_ALWAYS)
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            named = (file for file in path.iterdir() if file.suffix.lower() in suffixes and file.name[0] != ".")
            inside = sorted(file for file in named if file.is_file())
        if not inside or not path.exists():
            got = "a folder without" if path.is_dir() else "a path that does not exist"
            raise ImageError(f"{path}: expected images or rasters ({' '.join(suffixes)}), got {got}; check the name.")
        for file in inside:
            files.setdefault(file.resolve(), file)
    found = list(files.values())
    if rasters:
        return (found, []) if any(map(_is_readable, found)) else ([], found)
    sorted_out = {file: is_raster(file) for file in found}
    return [file for file in found if sorted_out[file]], [file for file in found if not sorted_out[file]]


def is_raster(path: str | Path) -> bool:
    """Say whether a file is a raster, to be predicted in windows into a GeoTIFF, or an image.

    Rasters are .vrt and .jp2; images with a georeference (in a TIFF or a world file beside it: coordinate system,
    transform, control points or polynomials); and TIFFs that are no photo: other than one or three bands beside an
    alpha band, other than unsigned bytes, with a number for no data, a mask, a scale or an offset, or with more pixels
    than images may have.

    Args:
        path: The file; where GDAL cannot read it, or rasterio is not installed, only .vrt and .jp2 are rasters.

    Example:
        >>> is_raster("map.vrt"), is_raster("photo.jpg")
        (True, False)
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _ALWAYS:
        return True
    tiff = suffix in (".tif", ".tiff")
    if not (tiff or _has_world_file(path)) or importlib.util.find_spec("rasterio") is None:
        return False
    with quiet_gdal():
        try:
            with open_raster(path) as file:
                return _is_placed(file) or (tiff and not _is_photo(file))
        except ImageError:
            return False


def _is_placed(file: Any) -> bool:
    """Say whether an open file has a georeference."""
    placed = file.crs is not None or not file.transform.is_identity
    return placed or bool(file.gcps[0]) or file.rpcs is not None


def _is_photo(file: Any) -> bool:
    """Say whether an open file is as the file of a photo is."""
    from rasterio.enums import ColorInterp, MaskFlags

    alpha = file.colorinterp.count(ColorInterp.alpha)
    masks = (MaskFlags.all_valid, MaskFlags.alpha)
    return (
        alpha <= 1
        and file.count - alpha in (1, 3)
        and set(file.dtypes) == {"uint8"}
        and all(any(mask in flags for mask in masks) for flags in file.mask_flag_enums)
        and set(file.scales) == {1}
        and set(file.offsets) == {0}
        and file.width * file.height <= MAX_PIXELS
    )


def _has_world_file(path: Path) -> bool:
    suffix = path.suffix
    names = (f"{suffix[:2]}{suffix[-1:]}w", f"{suffix}w", ".wld")  # .jgw, .jpgw
    return len(suffix) > 1 and any(path.with_suffix(name).exists() for name in names)


def _is_readable(path: Path) -> bool:
    with quiet_gdal():
        try:
            open_raster(path).close()
        except ImageError:
            return False
    return True
