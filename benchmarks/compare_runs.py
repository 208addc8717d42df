"""Runs of `hggraph fit` side by side: what each recipe reached over its seeds, and the curves.

    python -m hggraph.benchmarks.compare_runs RUN... [--metric val/miou]... [--loss train/loss] [--plot FILE]

A run's folder is named RECIPE-SEED; runs of one recipe are one line of the table. The last value of each metric counts,
not the best one: to choose by the validation set would flatter.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hggraph.viz import save_figure

Curve = list[tuple[int, float]]  # step, value


def curve(run: Path, name: str) -> Curve:
    """Return what a run has logged under a name; of a step that it took twice, after a crash, the second time."""
    starts = (run / "logs" / "csv").glob("version_*/metrics.csv")
    found: dict[int, float] = {}
    for path in sorted(starts, key=lambda path: int(path.parent.name.partition("_")[2])):
        with path.open(encoding="utf-8") as file:
            found |= {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
    if not found:
        raise SystemExit(f"{run} has logged no {name!r}.")
    return sorted(found.items())


def smooth(values: Curve, share: float = 0.1) -> Curve:
    """Return the running mean over a share of the values."""
    width = max(1, round(share * len(values)))
    return [
        (step, statistics.mean(value for _, value in values[max(0, i - width + 1) : i + 1]))
        for i, (step, _) in enumerate(values)
    ]


def draw(runs: dict[str, list[Path]], names: Sequence[str], colors: Sequence[Any]) -> Any:
    """Return a figure: a panel for each name, a colour for each recipe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for (recipe, paths), color in zip(runs.items(), colors, strict=False):
            for i, path in enumerate(paths):
                steps, values = zip(*smooth(curve(path, name)) if "loss" in name else curve(path, name), strict=True)
                axes.plot(steps, values, color=color, label=recipe if i == 0 else None, alpha=1 if i == 0 else 0.5)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--metric", action="append", help="what is compared, in [0, 1]; val/miou if none is given")
    parser.add_argument("--loss", default="train/loss", help="a loss, shown beside it")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves")
    args = parser.parse_args(argv)
    runs: dict[str, list[Path]] = {}
    for run in args.runs:
        runs.setdefault(run.name.rpartition("-")[0] or run.name, []).append(run)
    metrics: list[str] = args.metric or ["val/miou"]
    columns = [column for metric in metrics for column in (f"{metric}, %", "least to most")]
    table = Table("recipe", "runs", *columns, args.loss)
    for recipe, paths in runs.items():
        cells = []
        for metric in metrics:
            values = [100 * curve(path, metric)[-1][1] for path in paths]
            cells += [f"{statistics.mean(values):.1f}", f"{min(values):.1f} to {max(values):.1f}"]
        losses = [smooth(curve(path, args.loss))[-1][1] for path in paths]
        table.add_row(recipe, str(len(paths)), *cells, f"{statistics.mean(losses):.3f}")
    Console().print(table)
    if args.plot is not None:
        from matplotlib import colormaps

        save_figure(draw(runs, (args.loss, *metrics), colormaps["tab10"].colors), args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
