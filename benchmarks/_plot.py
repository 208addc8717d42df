"""A bar chart of ratios: how many times longer each peer takes than hggraph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hggraph.benchmarks._measure import Report
from hggraph.data import write_atomically

__all__ = ["plot_ratios"]

PEER, TARGET = "#3b6fb5", "#c0392b"


def plot_ratios(reports: Sequence[Report], path: str | Path, *, caption: str) -> None:
    """Draw one panel per report, a bar per ratio with its quartiles and a mark at its target.

    Args:
        reports: What was measured; refused ratios are left out, they mean nothing.
        path: Picture to write, the format by its suffix.
        caption: Hardware and versions, small under the panels.

    Raises:
        ImportError: if matplotlib is missing; the text says how to get it.
        ValueError: if there is no ratio to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`--plot` needs matplotlib: pip install "hggraph[viz]".') from error
    drawn = [(report, [ratio for ratio in report.ratios if ratio.median is not None]) for report in reports]
    drawn = [(report, ratios) for report, ratios in drawn if ratios]
    if not drawn:
        raise ValueError("There is no ratio to draw: all were refused, or none was measured.")
    heights = [len(ratios) + 1.6 for _, ratios in drawn]
    figure = Figure(figsize=(10, 0.34 * sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (report, ratios) in zip(panels, drawn, strict=True):
        for row, ratio in enumerate(ratios):
            median = float(ratio.median or 0)
            low, high = ratio.quartiles or (median, median)
            axes.barh(row, median, height=0.62, color=PEER)
            axes.plot([low, high], [row, row], color="black", linewidth=1)
            axes.annotate(f"{median:.2f}", (max(median, high), row), (4, 0), textcoords="offset points", va="center")
            if ratio.target:
                at = float(ratio.target.split()[1])
                axes.plot([at, at], [row - 0.42, row + 0.42], color=TARGET, linewidth=2)
        axes.set_yticks(range(len(ratios)), [ratio.label for ratio in ratios], fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.margins(x=0.12)
        axes.set_title(report.title, loc="left", fontsize=10, fontweight="bold")
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"ratio (black: quartiles, red: target)\n{caption}", fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))
