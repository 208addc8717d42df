"""``hggraph predict``: a trained network on images, folders of them, and rasters."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hggraph._files import unique_names

if TYPE_CHECKING:
    from hggraph.engine.trained import Trained
    from hggraph.inference.predictor import Predictor

__all__ = ["predict"]

_RASTERS = (".tif", ".tiff", ".vrt", ".jp2")


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|FOLDER|RASTER",
            exists=True,
            help="Images and folders of them; .tif, .vrt and .jp2 with a georeference become GeoTIFFs.",
            show_default=False,
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(metavar="RUN", help="Folder of a run of `hggraph fit`, or what `hggraph publish` wrote."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Folder for the results.")],
    window: Annotated[
        int | None, typer.Option(metavar="N", min=16, help="Side of overlapping windows; whole images without.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(metavar="F", min=0, max=0.9, help="Overlap of windows: 0.5, of rasters 0.125, without."),
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option(metavar="S", help="Average over sizes: --scale 0.75 --scale 1 --scale 1.25.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")] = False,
    overlay: Annotated[bool, typer.Option(help="Write the labels over the photo too.")] = True,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write probabilities too.")] = False,
    regions: Annotated[bool, typer.Option("--regions", help="Write the network's region graphs too.")] = False,
    bands: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="A raster's bands for the network, in order: --bands 4 --bands 3."),
    ] = None,
    full_scale: Annotated[
        float | None, typer.Option(metavar="X", help="A raster's number that is 1, such as 10000 for reflectances.")
    ] = None,
    nodata: Annotated[
        float | None, typer.Option(metavar="X", help="A raster's number for no data, if the file does not say it.")
    ] = None,
    bounds: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(metavar="LEFT BOTTOM RIGHT TOP", help="Part of a raster, in its coordinates."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu or cuda; the best without.")] = None,
) -> None:
    """Predict the class of every pixel with a trained network.

    Writes labels/NAME.png in the classes' colours and overlay/NAME.png into --out. An image that cannot be used is
    reported and skipped, and the exit code is 1. Rasters are read and written in windows: of any size, in constant
    memory, with their georeference.
    """
    try:
        from hggraph.inference.folder import predict_folder
        from hggraph.inference.predictor import Predictor
    except ImportError as error:
        raise typer.BadParameter(
            f'Prediction needs Lightning ({error}): pip install "hggraph[train,models]"'
        ) from error
    trained = _load(model)
    where = device or _best_device()
    predictor = Predictor(
        trained.net,
        window=window,
        overlap=0.5 if overlap is None else overlap,
        scales=tuple(scale or (1.0,)),
        flip=flip,
        device=where,
    )
    console = Console(stderr=True)
    rasters = [path for path in images if _is_raster(path)]
    options = {
        "window": window or 1024,
        "overlap": 0.125 if overlap is None else overlap,
        "bands": bands or None,
        "full_scale": full_scale,
        "nodata": nodata,
        "bounds": bounds,
        "probabilities": probabilities,
    }
    names = unique_names(rasters)
    failed = sum(
        not _predict_raster(predictor, trained, path, out / f"{name}.tif", options, console)
        for path, name in zip(rasters, names, strict=True)
    )
    others = [path for path in images if path not in rasters]
    if others:
        done = predict_folder(
            predictor,
            others,
            out,
            mean=trained.mean,
            std=trained.std,
            palette=trained.palette or None,
            probabilities=probabilities,
            overlay=overlay,
            regions=regions,
            console=console,
        )
        failed += len(done.failed)
        console.print(f"{len(done.done)} images, {done.images_per_second:.2f} a second: {out}")
    if failed:
        raise typer.Exit(1)


def _load(model: str) -> Trained:
    from hggraph.engine.trained import load_trained

    try:
        return load_trained(model)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"--model: {error}") from error


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_raster(path: Path) -> bool:
    """Say whether a file has a georeference."""
    if path.suffix.lower() not in _RASTERS or importlib.util.find_spec("rasterio") is None:
        return False
    import warnings

    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files without a georeference: they are images
        try:
            with rasterio.open(path) as source:
                return source.crs is not None or not source.transform.is_identity
        except rasterio.errors.RasterioIOError:
            return False


def _predict_raster(
    predictor: Predictor,
    trained: Trained,
    path: Path,
    out: Path,
    options: dict[str, Any],
    console: Console,
) -> bool:
    """Predict a raster with a progress bar; report a failure and return False."""
    from hggraph.inference.raster import predict_raster

    out.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(path.name, total=None)
        try:
            written = predict_raster(
                predictor,
                path,
                out,
                mean=trained.mean,
                std=trained.std,
                palette=trained.palette or None,
                **options,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except (ValueError, OSError) as error:
            console.print(f"{path}: {error}")
            return False
    console.print(f"{written.size[1]} x {written.size[0]} pixels in {written.seconds:.0f} s: {written.labels}")
    return True
