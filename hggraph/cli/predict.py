"""``hggraph predict``: a trained network on images, folders of them, and rasters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hggraph._files import unique_names
from hggraph._screen import harmless, one_line, screen
from hggraph.cli._device import device_of

if TYPE_CHECKING:
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
    batch_size: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Images of one size, or windows, in the network at once."),
    ] = 4,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu or cuda; the best without.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import and run what a folder of your own names that hggraph does not know.")
    ] = False,
) -> None:
    """Predict photos and rasters with a trained network, as it was evaluated.

    Writes labels/NAME.png in the classes' colours and overlay/NAME.png into --out, where classes that are black stay
    unpainted; with a detector or a classifier overlay/NAME.png and, for all images, predictions.json in COCO's format.
    An image that cannot be used is reported and skipped, and the exit code is 1. Rasters are read and written in
    windows: of any size, in constant memory, with their georeference, as NAME.tif.
    """
    from hggraph.inference import Predictor, load_trained, predict_folder

    special = {"bands": bands or None, "full_scale": full_scale, "nodata": nodata, "bounds": bounds}
    rasters, others = _sort(images, [name for name, value in special.items() if value is not None])
    if rasters and (regions or overlay):
        raise typer.BadParameter(
            f"--{'regions' if regions else 'overlay'} is for images: of a raster, here {rasters[0]}, only labels and "
            f"probabilities are written. Leave it out, or predict the images by themselves."
        )
    if overlap is not None and window is None and not rasters:
        raise typer.BadParameter("--overlap is of windows, and images are taken whole: give --window too.")
    results = _name_results(rasters, others, out, probabilities)
    place = device_of(device)
    predictor = Predictor(
        load_trained(model, trust=trust),
        window=window,
        overlap=0.5 if overlap is None else overlap,
        scales=tuple(scale or (1.0,)),
        flip=flip,
        batch_size=batch_size,
        device=place,
    )
    options = special | {
        "window": window or 1024,
        "overlap": 0.125 if overlap is None else overlap,
        "probabilities": probabilities,
    }
    console = screen(stderr=True)
    failed = sum(
        not _predict_raster(predictor, path, result, options, console)
        for path, result in zip(rasters, results, strict=True)
    )
    if others:
        done = predict_folder(
            predictor,
            others,
            out,
            probabilities=probabilities,
            overlay=overlay is not False,
            regions=regions,
            console=console,
        )
        failed += len(done.failed)
        console.print(f"{len(done.done)} images, {done.images_per_second:.2f} a second: {out}")
    if failed:
        raise typer.Exit(1)


def _sort(paths: Sequence[Path], given: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Sort what is named into rasters and images; refuse options for rasters, `given`, where there is none."""
    from hggraph.inference.sorting import sort_inputs

    rasters, images = sort_inputs(paths, rasters=bool(given))
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
        task = bar.add_task(escape(harmless(path.name)), total=None)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            written = predict_raster(
                predictor,
                path,
                out,
                **options,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
            text = one_line(error)
            console.print(f"error: {text if str(path) in text else f'{path}: {text}'}", style="red")
            if isinstance(error, (OSError, ImportError)):  # rasters that cannot be read are a ValueError
                raise typer.Exit(1) from error
            return False
    line = f"{written.size[1]} x {written.size[0]} pixels in {written.seconds:.0f} s: {written.labels}"
    console.print(line)
    return True
