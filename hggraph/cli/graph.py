"""``hggraph graph``: images to region graphs and figures."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import networkx as nx
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch_geometric.data import Data

from hggraph._files import NO_ROOM, write_together
from hggraph._screen import harmless, one_line, screen
from hggraph.cli.inputs import Job, plan_jobs
from hggraph.cluster import SoftSLIC, region_graph
from hggraph.data import load_attention, load_image, sample_photo, save_graph
from hggraph.data.image import MAX_PIXELS
from hggraph.graph import to_networkx
from hggraph.viz import region_figure, save_figure

__all__ = ["make_graphs"]

DEFAULT_REGIONS = 300


class Format(StrEnum):
    """File formats of a PyG graph."""

    pt = "pt"
    safetensors = "safetensors"


def make_graphs(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE|FOLDER",
            help="Images (PNG, JPEG, TIFF, BMP, WEBP) and folders of them. Without any, a sample "
            "photo that comes with scikit-learn is used.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            file_okay=False,
            help="Folder for the results, made if missing.",
        ),
    ],
    regions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Regions per image, the nodes of its graph. Without this and --downsample: "
            f"{DEFAULT_REGIONS}, or one per 64 pixels in images too small for that.",
            show_default=False,
        ),
    ] = None,
    downsample: Annotated[
        float | None,
        typer.Option(metavar="D", min=1, help="Pixels per region, instead of --regions.", show_default=False),
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(
            metavar="MAP",
            exists=True,
            help="Greyscale image of the photo's size: more regions where it is bright. It holds "
            "for every image; a folder has one map per image, of the same name up to the suffix.",
            show_default=False,
        ),
    ] = None,
    trained: Annotated[
        Path | None,
        typer.Option(
            "--clusterer",
            metavar="RUN",
            exists=True,
            file_okay=False,
            help="Folder of a run of `hggraph fit` that has trained regions: cluster by what it has learned.",
            show_default=False,
        ),
    ] = None,
    graph_format: Annotated[Format, typer.Option("--format", help="File format of the PyG graph.")] = Format.pt,
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Draw a figure of each image's regions.")] = True,
    max_pixels: Annotated[
        int,
        typer.Option(metavar="P", min=1, max=MAX_PIXELS, help="Refuse images that declare more pixels."),
    ] = MAX_PIXELS,
) -> None:
    """Turn images into graphs: regions are nodes, and edges say in which direction they touch.

    For each image NAME.jpg three files are written: NAME.pt, the graph for PyTorch Geometric (read
    it with hggraph.data.load_graph); NAME.graphml, the same graph for networkx, Gephi and others;
    and NAME.png, a figure of what happened. Files of these names are replaced. Images of the same
    name from different folders are written as FOLDER_NAME.

    The files of one image are written together: all or none. An image that cannot be used is
    reported and skipped, and the exit code is 1; a full or read-only disk ends the run at once.
    The same image always gives the same graph.
    """
    if regions is not None and downsample is not None:
        raise typer.BadParameter("give --regions or --downsample, not both.")
    _check_installed(figure, graph_format, sample=not images)
    endings = [f".{graph_format.value}", ".graphml", *([".png"] if figure else [])]
    jobs = plan_jobs(images or [], out, endings, attention)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--out cannot be made: {error}") from error

    @functools.cache
    def clusterer(num_regions: int | None) -> SoftSLIC:
        if trained is not None:
            return _load(trained, num_regions, downsample)
        return SoftSLIC(
            64 if downsample is None else downsample,
            num_regions=num_regions,
            feature_scale="photo",
        ).eval()

    def convert(job: Job) -> tuple[Data, tuple[int, int]]:
        image = sample_photo() if job.image is None else load_image(job.image, max_pixels=max_pixels)
        size = (image.shape[1], image.shape[2])
        focus = None if job.attention is None else load_attention(job.attention, size)
        num_regions = regions
        if regions is None and downsample is None:
            num_regions = min(DEFAULT_REGIONS, max(1, size[0] * size[1] // 64))
        elif regions is not None and regions > size[0] * size[1]:
            raise ValueError(
                f"expected at least {regions:,} pixels for as many regions, got an image of "
                f"{size[1]} x {size[0]}; lower --regions."
            )
        data = _write(job.name, image, focus, clusterer(num_regions), out, endings)
        return data, size

    failed = _run(jobs, convert, out, endings)
    if failed:
        raise typer.Exit(1)


def _load(run: Path, num_regions: int | None, downsample: float | None) -> SoftSLIC:
    """Load a trained clusterer, or leave with what is wrong with its folder."""
    from hggraph.inference import load_clusterer

    try:
        return load_clusterer(run, num_regions=num_regions, downsample=None if num_regions else downsample)
    except (ValueError, OSError, RuntimeError) as error:
        raise typer.BadParameter(f"--clusterer cannot be used: {error}") from error


def _write(
    name: str,
    image: Tensor,
    attention: Tensor | None,
    clusterer: SoftSLIC,
    out: Path,
    endings: list[str],
) -> Data:
    """Make the graph of an image and write its files."""
    x = image[None]
    with torch.inference_mode():
        assignment = clusterer(x, None if attention is None else attention[None])
        data = region_graph(x, assignment)[0]
        graph = to_networkx(data)
        graph.graph.update(name=harmless(name), height=image.shape[1], width=image.shape[2])
        files: list[Callable[[Path], object]] = [
            functools.partial(save_graph, data),
            functools.partial(nx.write_graphml, graph),
        ]
        if ".png" in endings:
            drawn = region_figure(image, clusterer, assignment=assignment, attention=attention)
            files.append(functools.partial(save_figure, drawn))
    write_together({out / f"{name}{ending}": write for ending, write in zip(endings, files, strict=True)})
    return data


def _run(
    jobs: list[Job],
    convert: Callable[[Job], tuple[Data, tuple[int, int]]],
    out: Path,
    endings: list[str],
) -> int:
    """Convert one after the other, report, and return how many failed."""
    console, errors = screen(), screen(stderr=True)
    table = Table("image", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ["size", "regions", "edges", "seconds"]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("written as")
    failed = 0
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("images", total=len(jobs))
        for job in jobs:
            start = time.perf_counter()
            try:
                data, (height, width) = convert(job)
            # what one image or one file can do wrong; a mistake in the program is not hidden
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                failed += 1
                stop = _meets_all(error, out)
                ending = "; stopped here, as every other image would meet it too" if stop else ""
                errors.print(f"error: {_said(job, error)}{ending}", style="red")
                table.add_row(harmless(job.label), Text("failed", style="red"))
                if stop:
                    failed += len(jobs) - table.row_count
                    break
            else:
                cells = [f"{width} x {height}", f"{data.num_nodes:,}", f"{data.num_edges:,}"]
                seconds = f"{time.perf_counter() - start:.2f}"
                table.add_row(harmless(job.label), *cells, seconds, harmless(f"{job.name}.*"))
            bar.advance(task)
    console.print(table)
    done = len(jobs) - failed
    text = f"{done} graph{'' if done == 1 else 's'} in {out} ({', '.join(endings)})"
    text += f", {failed} image{'' if failed == 1 else 's'} failed" if failed else ""
    console.print(text)
    return failed


def _said(job: Job, error: Exception) -> str:
    text = one_line(error)
    path = harmless(str(job.image or job.label))
    return text if path in text or harmless(str(job.attention)) in text else f"{path}: {text}"


def _meets_all(error: Exception, out: Path) -> bool:
    """Say whether the next image's results will meet this error too: no room, or no right to write."""
    if not isinstance(error, OSError):
        return False
    return error.errno in NO_ROOM or (error.errno == errno.EACCES and not os.access(out, os.W_OK | os.X_OK))


def _check_installed(figure: bool, graph_format: Format, *, sample: bool) -> None:
    """Say what is missing before the work, not after."""
    needs = [
        (
            figure,
            "matplotlib",
            'figures need matplotlib: pip install "hggraph[viz]", or --no-figure',
        ),
        (sample, "sklearn", 'the sample photo needs scikit-learn: pip install "hggraph[sklearn]"'),
        (graph_format is Format.safetensors, "safetensors", "pip install safetensors"),
    ]
    for needed, module, todo in needs:
        if needed and importlib.util.find_spec(module) is None:
            raise typer.BadParameter(f"{module} is not installed; {todo}.")
