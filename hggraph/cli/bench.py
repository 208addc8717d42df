"""``hggraph bench``: every operator against its peers, on this machine."""

from __future__ import annotations

import difflib
import importlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

__all__ = ["CASES", "run_benchmarks"]

# name of a case, and the file hggraph.benchmarks.bench_<name> that measures it, shortest first
CASES = ("segment", "typed_aggregate", "local_attention", "soft_slic", "hg_stage", "region_graph")


class Dtype(StrEnum):
    """Precisions of features."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def run_benchmarks(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="CASE", help=f"Which of {', '.join(CASES)}; all without any.", show_default=False),
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
    quick: Annotated[bool, typer.Option(help="Tiny sizes: sees that it runs, measures nothing.")] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write all measurements there.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Draw the ratios as a bar chart (PNG, PDF, SVG)."),
    ] = None,
) -> None:
    """Measure hggraph against PyTorch, PyG and others, side by side in one process.

    Each case shows times with their quartiles, memory, and the share of what this machine could do (its copy
    bandwidth and matrix rate are measured first). A ratio is shown only where both results agree; where they do not,
    the command says so and ends with status 1. Two threads on the CPU.
    """
    names = _chosen(cases)
    place = _device(device)
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"the folder {path.parent} of {path.name} does not exist")
    from hggraph.benchmarks import _measure
    from hggraph.benchmarks._roofline import Roofline

    setting = _measure.setting_for(
        place,
        dtype=None if dtype is None else getattr(torch, dtype.value),
        rounds=rounds,
        quick=quick,
        compile=place != "cpu" if compile is None else compile,
    )
    console = Console()
    roofline = Roofline.measure(setting.device, setting.dtype, quick=quick)
    reports, failed = [], False
    for name in names:
        report = None
        try:
            module = importlib.import_module(f"hggraph.benchmarks.bench_{name}")
            report = _measure.Report(module.TITLE, setting, roofline)
            module.measure(report)
        except Exception as error:  # one case must not cost the others
            failed = True
            console.print(f"[red]{name} failed:[/red] {type(error).__name__}: {error}", highlight=False)
        if report is not None:
            reports.append(report)
            failed |= bool(report.finish())
    if json is not None:
        _measure.write_json(json, [report.to_dict() for report in reports])
        console.print(f"measurements: {json}")
    if plot is not None:
        _draw(reports, plot, _measure.hardware(), console)
    if failed:
        raise typer.Exit(1)


def _chosen(cases: list[str] | None) -> list[str]:
    for case in cases or ():
        if case not in CASES:
            near = difflib.get_close_matches(case, CASES, n=2, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(CASES)}"
            raise typer.BadParameter(f"there is no case {case!r}; {hint}")
    return [case for case in CASES if not cases or case in cases]


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(f"--device must be cpu or cuda, got {device!r}") from error
    if place.type not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device must be cpu or cuda, got {device!r}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda needs a GPU, and PyTorch finds none; `hggraph info` says what there is")
    return device


def _draw(reports: list[Any], path: Path, caption: str, console: Console) -> None:
    from hggraph.benchmarks._plot import plot_ratios

    try:
        plot_ratios(reports, path, caption=caption)
    except (ImportError, ValueError) as error:
        console.print(f"[red]no chart:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    console.print(f"chart: {path}")
