"""What a user sees of a report: the machine in a line, the agreements, the tables."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hggraph.benchmarks._measure import Report
    from hggraph.benchmarks._setting import Setting

__all__ = ["hardware", "heading", "ratio_table", "screen", "show", "timing_table"]

_BUSY = 1.2  # running threads per core from which a warning is shown


def screen() -> Console:
    """Return where tables are printed; a file or a pipe has room."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console


def hardware() -> str:
    """Return one line on machine and software, with the load: above the number of cores, times mean little."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}; {name}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}; "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def heading(setting: Setting) -> str:
    """Return the lines that hold for all cases."""
    quick = "--quick: tiny sizes, to see that it runs; the numbers mean nothing"
    return f"{hardware()}\n{quick}" if setting.quick else hardware()


def load() -> float:
    """Return how many programs ran at once in the last minute, per core; 0 where that is not known."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def show(report: Report, console: Console) -> None:
    """Print a report."""
    console.print(f"\n[bold]{report.title}[/bold]")
    if report.roofline is not None and not report.quick:
        rates = f"{report.roofline.bandwidth / 1e9:.3g} GB/s copied, {report.roofline.rate / 1e9:,.0f} GFLOP/s"
        dtype = str(report.setting.dtype).removeprefix("torch.")
        console.print(f"roofline, measured just before: {rates} in a {dtype} matrix product")
    if load() > _BUSY and not report.quick:
        warning = f"{load():.1f} running threads per core: they wait for each other, and the numbers mean little"
        console.print(warning, style="yellow")
    for agreement in report.agreements:
        console.print(f"agreement: {agreement}", style="" if agreement.holds else "red")
    if report.timings or report.absent:
        console.print(timing_table(report))
    for table in report.tables:
        console.print(table)
    if report.ratios:
        console.print(ratio_table(report))
    if report.failure:
        console.print(Text(f"{report.case} failed: {report.failure}", style="red"))


def timing_table(report: Report) -> Table:
    """Return a row per contender; for one that was not measured, why."""
    table = Table(title=f"{report.setting.rounds} rounds, {report.setting.device}")
    table.add_column("contender", no_wrap=True)
    shares = {} if report.quick else report.shares
    for column in ("median ms", "quartiles", "extra MB", *(["of the roofline"] if shares else [])):
        table.add_column(column, justify="right")
    for name, timing in report.timings.items():
        low, high = timing.quartiles
        memory = f"{report.memory[name] / 1e6:.1f}" if name in report.memory else "not seen"
        share = f"{shares[name]:.0%}" if name in shares else ""
        cells = (f"{1e3 * timing.median:.2f}", f"{1e3 * low:.2f} - {1e3 * high:.2f}", memory)
        table.add_row(name, *cells, *([share] if shares else []))
    for name, reason in report.absent.items():
        table.add_row(Text(name), "", Text(reason, justify="left"), style="dim")
    return table


def ratio_table(report: Report) -> Table:
    """Return a row per ratio, with its target."""
    table = Table()
    table.add_column("ratio", no_wrap=True)
    for column in ("median", "quartiles", "target", "reached"):
        table.add_column(column, justify="right")
    for ratio in report.ratios:
        if ratio.median is None:
            table.add_row(ratio.label, "refused", "results disagree", ratio.target, "[red]no[/red]")
            continue
        spread = "" if ratio.quartiles is None else f"{ratio.quartiles[0]:.2f} - {ratio.quartiles[1]:.2f}"
        reached = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[ratio.reached]
        table.add_row(ratio.label, f"{ratio.median:.2f}", spread, ratio.target, reached)
    return table
