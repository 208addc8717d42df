"""``hggraph predict``: a trained network on images, folders of them, and rasters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from hggraph._files import unique_names

if TYPE_CHECKING:
    from hggraph.engine.trained import Trained
    from hggraph.inference.predictor import Predictor

__all__ = ["predict"]


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|FOLDER|RASTER",
            exists=True,
            help="Images, rasters and folders of them. Rasters are .vrt, .jp2, what has a georeference, and TIFFs of "
            "other bands than a photo's; any file that GDAL reads if an option for rasters is given.",
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
    overlay: Annotated[
        bool | None, typer.Option(help="Write the labels over the photo too, as images have it without the option.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write probabilities too.")] = False,
    regions: Annotated[bool, typer.Option("--regions", help="Write the network's region graphs too.")] = False,
    bands: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="A raster's bands for the network, in order: --bands 4 --bands 3."),
    ] = None,
    full_scale: Annotated[
        float | None, typer.Option(metavar="X", help="A raster's number that is 1: 10000 for reflectances.")
    ] = None,
    nodata: Annotated[
        float | None, typer.Option(metavar="X", help="A raster's number for no data, in place of the file's.")
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
    memory, with their georeference, as NAME.tif.
    """
    try:
        from hggraph.inference.folder import predict_folder
        from hggraph.inference.predictor import Predictor
    except ImportError as error:
        raise typer.BadParameter(
            f'Prediction needs Lightning ({error}): pip install "hggraph[train,models]"'
        ) from error
    special = {"bands": bands or None, "full_scale": full_scale, "nodata": nodata, "bounds": bounds}
    given = [name for name, value in special.items() if value is not None]
    rasters, others = _sort(images, given)
    if rasters and (regions or overlay):
        raise typer.BadParameter(
            f"--{'regions' if regions else 'overlay'} is for images: of a raster, here {rasters[0]}, only labels and "
            f"probabilities are written. Leave it out, or predict the images by themselves."
        )
    if overlap is not None and window is None and not rasters:
        raise typer.BadParameter("--overlap is of windows, and images are taken whole: give --window too.")
    results = _name_results(rasters, others, out, probabilities)
    trained = _load(model)
    where = device or _best_device()
    try:
        predictor = Predictor(
            trained.net,
            window=window,
            overlap=0.5 if overlap is None else overlap,
            scales=tuple(scale or (1.0,)),
            flip=flip,
            device=where,
        )
    except (ValueError, RuntimeError, AssertionError) as error:  # the latter of devices that are not there
        raise typer.BadParameter(" ".join(str(error).split())) from error
    console = Console(stderr=True, soft_wrap=True)
    options = special | {
        "window": window or 1024,
        "overlap": 0.125 if overlap is None else overlap,
        "probabilities": probabilities,
    }
    failed = sum(
        not _predict_raster(predictor, trained, path, result, options, console)
        for path, result in zip(rasters, results, strict=True)
    )
    if others:
        try:
            done = predict_folder(
                predictor,
                others,
                out,
                mean=trained.mean,
                std=trained.std,
                palette=trained.palette or None,
                probabilities=probabilities,
                overlay=overlay is not False,
                regions=regions,
                console=console,
            )
        except (ValueError, TypeError, OSError) as error:
            raise typer.BadParameter(str(error)) from error
        failed += len(done.failed)
        console.print(Text(f"{len(done.done)} images, {done.images_per_second:.2f} a second: {out}"))
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


def _sort(paths: Sequence[Path], given: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Sort what is named into rasters and images; refuse options for rasters, `given`, where there is none."""
    from hggraph.inference.sorting import sort_inputs

    try:
        rasters, images = sort_inputs(paths, rasters=bool(given))
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    if given and not rasters:
        option = given[0].replace("_", "-")
        raise typer.BadParameter(f"--{option} is for rasters, and GDAL reads none of what is given, first {images[0]}.")
    return rasters, images


def _name_results(rasters: Sequence[Path], images: Sequence[Path], out: Path, probabilities: bool) -> list[Path]:
    """Return the GeoTIFF of each raster; refuse names that stand for two files."""
    results = [out / f"{name}.tif" for name in unique_names(rasters)]
    written = [*results, *(path.with_stem(f"{path.stem}_probabilities") for path in results if probabilities)]
    taken = {path.resolve() for path in (*rasters, *images)}
    for path in written:
        if path.resolve() in taken:
            raise typer.BadParameter(f"{path} would be written over another file; choose another --out or name.")
        taken.add(path.resolve())
    return results


def _predict_raster(
    predictor: Predictor,
    trained: Trained,
    path: Path,
    out: Path,
    options: dict[str, Any],
    console: Console,
) -> bool:
    """Predict a raster with a progress bar; report a failure and return False, or stop if others would fail alike."""
    from hggraph.inference.raster import predict_raster

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(path.name), total=None)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
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
        except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            console.print(Text(f"error: {text if str(path) in text else f'{path}: {text}'}"), style="red")
            if isinstance(error, (OSError, ImportError)):  # rasters that cannot be read are a ValueError
                raise typer.Exit(1) from error
            return False
    line = f"{written.size[1]} x {written.size[0]} pixels in {written.seconds:.0f} s: {written.labels}"
    console.print(Text(line))
    return True
