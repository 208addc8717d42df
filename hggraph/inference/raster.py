"""Prediction of rasters larger than memory: read, predicted and written in windows, georeference kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hggraph._check import check_positive
from hggraph._files import write_atomically
from hggraph.data.image import ImageError
from hggraph.inference._raster_source import Bounds, RasterSource, quiet_gdal
from hggraph.inference.outputs import Color, check_palette
from hggraph.inference.predictor import Predictor, to_labels
from hggraph.inference.windows import blend, cut
from hggraph.models._network import SegmentationNetwork

__all__ = ["RasterPrediction", "predict_raster"]

TILE = 256  # side of the tiles of the files written


class RasterPrediction(NamedTuple):
    """What `predict_raster` has written."""

    labels: Path
    probabilities: Path | None
    size: tuple[int, int]
    seconds: float


def predict_raster(
    predictor: Predictor,
    path: str | Path,
    out: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    window: int = 1024,
    overlap: int | float = 0.125,
    margin: int | None = None,
    bands: Sequence[int] | None = None,
    full_scale: float | None = None,
    nodata: float | None = None,
    bounds: Bounds | None = None,
    palette: Sequence[Color] | None = None,
    probabilities: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RasterPrediction:
    """Predict the classes of a raster of any size into a GeoTIFF of the same georeference.

    Windows are read, predicted and blended one after the other; the result is that of a `Predictor` with the same
    windows on the whole array (at one scale; at several, each window is resized, not the raster).

    Args:
        predictor: Its scales, flip and batch size hold for each window; the windows are those given here, not its own.
        path: Any raster that GDAL reads: GeoTIFF, VRT, JPEG 2000, ...
        out: The GeoTIFF to write, ending in .tif or .tiff: labels, one band, tiled and compressed; uint8, or uint16 for
            more than 255 classes. Pixels without data get its nodata value, 255 or 65535.
        mean: Of each band, or one number for all: the network gets ``((stored * scale + offset) / full_scale - mean) /
            std``, where scale and offset are the band's own in the file, 1 and 0 in most. None: the predictor's
            preprocessing, without its size rule: rasters are read at their own size.
        std: Likewise.
        window: Side of the windows, in pixels.
        overlap: Least overlap of neighbours: pixels if it is an int, a fraction of the window if it is a float.
        margin: Pixels at windows' inner edges that do not count; None: a quarter of the overlap.
        bands: The bands that the network takes, counted from 1; one may stand several times. None: all but an alpha
            band. An alpha band that is not among them is a mask.
        full_scale: The number that is 1, after scale and offset; None: the largest of a band's integer type (255,
            65535), and 1 for floats and for bands with a scale or an offset.
        nodata: The stored number for no data, in place of the file's own; NaN: no number. Masks hold beside it.
        bounds: Part to predict, ``(left, bottom, right, top)`` in the raster's coordinates (columns and rows if it has
            no transform); the smallest rectangle of pixels around it is taken, as if it were the whole raster. None:
            all.
        palette: Colours of the classes, red, green, blue from 0 to 255, written as the file's colour table; None: the
            predictor's, if it has any.
        probabilities: Write them too, as ``NAME_probabilities.tif`` beside `out`: a float32 band per class, NaN for
            no data.
        progress: Called with the number of pixels done and of all pixels.

    Returns:
        The paths, the size (height, width) and the seconds taken.

    Raises:
        ImageError: if `path` is no raster, or is damaged, or has bands that cannot be used.
        ValueError: if an option is out of range, or `bounds` lie outside the raster.
        ImportError: if rasterio is not installed; the text says how to get it.
        OSError: if the results cannot be written. They take their names only when complete and read back; before that,
            and on any error, a file that was there stays.

    Note:
        A band has no data where it is its number for no data, NaN or infinite, or where the file's mask or alpha band
        says so: the network gets its mean there. A pixel has no data where none of the bands has; windows of such
        pixels alone are skipped. Integers beyond 2^53 are rounded. Main memory: a few windows, at most 512 MB of rows
        not yet finished, and 256 MB of GDAL's cache, whatever the raster's size.

    Example:
        >>> import rasterio, tempfile
        >>> predictor = Predictor(torch.nn.Conv2d(3, 4, 3, padding=1))
        >>> place = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 5e5, 0, -2, 5e6)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image, labels = f"{folder}/image.tif", f"{folder}/labels.tif"
        ...     with rasterio.open(image, "w", width=90, height=70, count=3, dtype="uint8", **place) as file:
        ...         file.write(np.zeros((3, 70, 90), np.uint8))
        ...     result = predict_raster(predictor, image, labels, mean=[0.5], std=[0.25], window=64, overlap=16)
        ...     with rasterio.open(labels) as file:
        ...         result.size, file.crs.to_string(), file.bounds.left
        ((70, 90), 'EPSG:32633', 500000.0)
    """
    start = time.perf_counter()
    out = Path(out)
    beside = out.with_name(f"{out.stem}_probabilities{out.suffix}") if probabilities else None
    check_positive("window", window)
    mean, std = _statistics(predictor, mean, std)
    palette = palette if palette is not None else predictor.palette or None
    with quiet_gdal(), RasterSource(path, bands, mean, std, full_scale, nodata, bounds) as source:
        _check_output(source.files(), out, beside)
        model, found = predictor.model, len(source.bands)
        if isinstance(model, SegmentationNetwork) and model.in_channels != found:
            raise ImageError(
                f"{path}: expected {model.in_channels} bands for {type(model).__name__}, got {found}; "
                f"choose with `bands`, where a band may stand several times."
            )
        rows, columns = (cut(side, window, overlap, margin) for side in source.size)
        sides = (rows.weights.shape[1], columns.weights.shape[1])
        known: list[int] = []

        def predict(places: Sequence[tuple[int, int]]) -> Tensor:
            """Return probabilities, and whether there are data, of windows; of those without data zeros."""
            read = [source.read(top, left, *sides) for top, left in places]
            run = [i for i, (_, valid) in enumerate(read) if valid.any() or not known]
            found = predictor.whole(torch.stack([read[i][0] for i in run])) if run else torch.empty(0)
            known[:] = known or [found.shape[1]]
            values, parts = torch.empty(len(places), known[0] + 1, *sides), iter(found)
            for i, (value, (_, valid)) in enumerate(zip(values, read, strict=True)):
                value[:-1] = next(parts) if i in run else 0
                value[-1] = valid
            return values

        def write(*temporary: Path) -> None:
            align = TILE if beside else 1  # else a tile of many bands would be compressed again and again
            blocks = blend(rows, columns, predict, batch_size=predictor.batch_size, align=align)
            _write(source, blocks, temporary, palette, progress)

        if beside is None:
            write_atomically(out, write)
        else:
            write_atomically(out, lambda first: write_atomically(beside, lambda second: write(first, second)))
        return RasterPrediction(out, beside, source.size, time.perf_counter() - start)


def _statistics(
    predictor: Predictor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and deviation of the bands, as given or as the network was evaluated with."""
    if predictor.task != "segmentation":
        raise ValueError(f"Rasters are for segmentation networks; this one is for {predictor.task}.")
    if mean is not None and std is not None:
        return mean, std
    if (mean is None) != (std is None) or predictor.preprocessing is None:
        raise ValueError("`mean` and `std` must be given together: the network does not say how images are prepared.")
    return predictor.preprocessing.mean, predictor.preprocessing.std


def _write(
    source: RasterSource,
    blocks: Iterator[tuple[int, int, Tensor]],
    paths: Sequence[Path],
    palette: Sequence[Color] | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write labels, and with two paths probabilities, and make sure that the files hold them."""
    from rasterio.windows import Window

    for path in paths:
        path.touch()  # a folder that cannot be written to is noticed before anything is predicted
    height, width = source.size
    done, sums = 0, [0, 0]
    with ExitStack() as stack:
        files: list[Any] = []
        empty = 0
        for top, left, block in blocks:
            found, valid = block[:-1], block[-1] > 0.5
            if not files:
                kind, empty = _label_type(len(found))
                layers = [(1, kind, empty), (len(found), "float32", math.nan)]
                files = [
                    stack.enter_context(_create(path, source, *layer))
                    for path, layer in zip(paths, layers, strict=False)
                ]
                if palette is not None:
                    colors = check_palette(palette, max(len(found), 2))[:empty]
                    table = {label: (*color, 255) for label, color in enumerate(colors)}
                    files[0].write_colormap(1, table | {empty: (0, 0, 0, 0)})
            labels = to_labels(found[None]).masked_fill_(~valid, empty).numpy().astype(kind)
            arrays = [labels]
            if len(paths) > 1:
                # weights sum to 1 up to rounding
                arrays.append(found.clamp_(max=1).masked_fill_(~valid, math.nan).numpy())
            for i, (file, array) in enumerate(zip(files, arrays, strict=False)):
                file.write(array, window=Window(left, top, block.shape[2], block.shape[1]))
                sums[i] += _sum(array)
            done += labels.size
            if progress is not None:
                progress(done, height * width)
    for path, total in zip(paths, sums, strict=False):
        _check_written(path, total)


def _label_type(classes: int) -> tuple[str, int]:
    """Return the type of labels, and which of its numbers stands for no data."""
    for kind in ("uint8", "uint16"):
        empty = int(np.iinfo(kind).max)
        if classes <= empty:
            return kind, empty
    raise ValueError(f"Labels of at most 65535 classes can be written, got {classes}.")


def _create(path: Path, source: RasterSource, count: int, kind: str, nodata: float) -> Any:
    """Open a GeoTIFF of the size and place of what is predicted."""
    import rasterio

    place, later = source.georeference()
    file = rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=source.size[0],
        width=source.size[1],
        count=count,
        dtype=kind,
        nodata=nodata,
        tiled=True,
        blockxsize=TILE,
        blockysize=TILE,
        compress="deflate",
        predictor=3 if kind == "float32" else 1,
        interleave="band",
        bigtiff="if_safer",
        **place,
    )
    for name, value in later.items():
        setattr(file, name, value)
    return file


def _check_written(path: Path, total: int) -> None:
    """Raise unless a file can be read and holds what was written: GDAL closes files on a full disk without a word."""
    import rasterio
    from rasterio.windows import Window

    try:
        with rasterio.open(path) as file:
            for band in file.indexes:
                for row in range(0, file.height, TILE):
                    rows = Window(0, row, file.width, min(TILE, file.height - row))
                    total -= _sum(file.read(band, window=rows))
    except rasterio.RasterioIOError as error:
        raise OSError(
            f"The result could not be written whole: is the disk full? ({error.__cause__ or error})"
        ) from error
    if total:
        raise OSError("The result could not be written whole: read back, it is another. Is the disk full?")


def _sum(array: NDArray[Any]) -> int:
    """Return the sum of an array's bytes: a check sum that does not depend on the order of blocks."""
    return int(np.ascontiguousarray(array).view(np.uint8).sum(dtype=np.uint64))


def _check_output(sources: Iterable[Path], out: Path, beside: Path | None) -> None:
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"`out` must end in .tif or .tiff, got {str(out)!r}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} for the result; make it first.")
    for source in sources:
        for result in (out, beside):
            if result is not None and result.resolve() == source.resolve():
                raise ValueError(f"The result would be written over the raster {source}; choose another `out`.")
