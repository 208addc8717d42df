"""``hggraph bench``: every operator against its peers, on this machine."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.table import Table

from hggraph._screen import screen
from hggraph.cli._device import device_of

if TYPE_CHECKING:
    from hggraph.benchmarks._measure import Report
    from hggraph.benchmarks._setting import Setting

__all__ = ["CASES", "run_benchmarks"]

# name of a case, which hggraph.benchmarks.bench_<name> measures, and what it compares; shortest first
CASES = {
    "segment": "sums of rows per segment, against index_add_, scatter_add_, PyG, torch-scatter, pyg-lib",
    "typed_aggregate": "HGConv and DenseHGConv, against one matrix product, PyG's RGCNConv, GMMConv, SplineConv",
    "local_attention": "dilated local attention, against unfold, FlexAttention, attention to all pixels",
    "soft_slic": "soft assignment, centre update and the whole graph part of a stage, against eager PyTorch",
    "regions": "quality of regions and the time to a graph, against fast-slic, OpenCV, scikit-image; see --data",
    "hs3": "HS3: groupings of 150 classes, the analysis of images against a validation; a minute on a CPU",
    "hg_stage": "the HG stage and its parts, against the dense stage 4 of a ResNet-101",
    "py_conv": "pyramids against grouped convolution, PyConvResNet-50 against ResNet-50; two minutes on a CPU",
    "gald": "GALD's networks with and without local distribution, its attention against unfold; four minutes on a CPU",
    "specialize": "heads of Specialize and Fuse on HRNet-W48, fusing against upsampling; two minutes on a CPU",
    "predict": "a folder of photos to label pictures, against a loop by hand; two minutes on a CPU",
    "training": "training steps of HG-ResNet18, against dense ones and the loading of batches; five minutes on a CPU",
    "networks": "whole HG-ResNets, as trained and folded, against dense ones; ten minutes on a CPU",
}
LONG = ("hs3", "py_conv", "gald", "specialize", "predict", "training", "networks")  # measured only when named


class Dtype(StrEnum):
    """Precisions of features."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def run_benchmarks(
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASE", help=f"Any of {', '.join(CASES)}. Without one, all but the longest.", show_default=False
        ),
    ] = None,
    *,
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda", help="Where to run; a GPU where there is one.", show_default=False),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Precision of features; bfloat16 on a GPU, else float32.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Turns of each contender.")] = 5,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Time torch.compile's versions too; compiling takes minutes. On a GPU by default.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: sees that it runs, measures nothing.")] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write all measurements there.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Draw the ratios as a bar chart (PNG, PDF, SVG)."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, file_okay=False, help="Of `regions`: BSDS500.", show_default=False),
    ] = None,
    camvid: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", exists=True, file_okay=False, help="Of `regions`: CamVid.", show_default=False),
    ] = None,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Of `regions`: take every N-th photo.")] = 2,
    clusterer: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            exists=True,
            file_okay=False,
            help="Of `regions`: a run that learned them.",
            show_default=False,
        ),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Of `regions`: draw each measure there.", show_default=False
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Say what the cases are, and measure nothing.")] = False,
) -> None:
    """Measure hggraph against PyTorch, PyG and others, side by side in one process.

    Each case shows times with their quartiles, memory, and the share of what this machine could do (its copy
    bandwidth and matrix rate are measured first). A ratio is shown only where both results agree; where they do not,
    the command says so and ends with status 1. On a CPU it takes two threads and about three minutes.
    """
    names = _chosen(cases)
    if show_list:
        _list(names if cases else list(CASES))
        return
    place = device_of(device)
    named = {"--data": data, "--camvid": camvid, "--clusterer": clusterer, "--curves": curves}
    if "regions" not in names and any(named.values()):
        given = ", ".join(name for name, path in named.items() if path is not None)
        raise typer.BadParameter(f"{given} belongs to the case regions, which is not among those named")
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"the folder {path.parent} of {path.name} does not exist")
    for name, path in (("--plot", plot), ("--curves", curves)):
        if path is not None and importlib.util.find_spec("matplotlib") is None:
            raise typer.BadParameter(f'{name} needs matplotlib: pip install "hggraph[viz]"')
    from hggraph.benchmarks import _measure, _setting, _tables
    from hggraph.benchmarks._plot import plot_ratios

    setting = _setting.setting_for(
        str(place),
        dtype=None if dtype is None else getattr(torch, dtype.value),
        rounds=rounds,
        quick=quick,
        compile=place.type != "cpu" if compile is None else compile,
        regions=_setting.RegionData(data, camvid, every, clusterer, curves),
    )
    console = _tables.screen()
    console.print(_tables.heading(setting))
    reports = []
    for number, name in enumerate(names, start=1):
        if console.is_terminal:
            console.print(f"measuring {name}, {number} of {len(names)}", style="dim")
        reports.append(_measure_case(name, setting))
        _tables.show(reports[-1], console)
    if json is not None:
        _measure.write_json(json, [report.to_dict() for report in reports])
        screen().print(f"measurements: {json}")
    if plot is not None:
        plot_ratios(reports, plot, caption=_tables.hardware())
        screen().print(f"chart: {plot}")
    if any(report.refused or report.failure for report in reports):
        raise typer.Exit(1)


def _measure_case(name: str, setting: Setting) -> Report:
    """Run a case; one that fails must not cost the others."""
    from hggraph.benchmarks._measure import Report, reason
    from hggraph.benchmarks._roofline import Roofline

    report = Report(name, name, setting)
    try:
        module = importlib.import_module(f"hggraph.benchmarks.bench_{name}")
        report.title = module.TITLE
        report.roofline = Roofline.measure(setting.device, setting.dtype, quick=setting.quick)
        module.measure(report)
    except Exception as error:
        report.failure = reason(error)
    return report


def _list(names: list[str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_row(name, CASES[name])
    screen().print(table)


def _chosen(cases: list[str] | None) -> list[str]:
    for case in cases or ():
        if case not in CASES:
            near = difflib.get_close_matches(case, CASES, n=2, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(CASES)}"
            raise typer.BadParameter(f"there is no case {case!r}; {hint}")
    return [case for case in CASES if (case in cases if cases else case not in LONG)]
