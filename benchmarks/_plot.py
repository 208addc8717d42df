"""A bar chart of the ratios, a panel per case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hggraph.benchmarks._measure import Ratio, Report
from hggraph.data import write_atomically

__all__ = ["plot_ratios"]

REACHED, MISSED, PLAIN = "#2e8b57", "#c0392b", "#8a9bb0"
ROW = 0.3  # inches


def plot_ratios(reports: Sequence[Report], path: str | Path, *, caption: str) -> None:
    """Draw one panel per report, a bar per ratio with its quartiles, and a mark at its target.

    Args:
        reports: What was measured; refused ratios are left out, they mean nothing.
        path: Picture to write, the format by its suffix.
        caption: Hardware and versions, small under the panels.

    Raises:
        ValueError: if there is no ratio to draw, or the suffix is no format.
    """
    from matplotlib.figure import Figure

    drawn = [(report, [ratio for ratio in report.ratios if ratio.median is not None]) for report in reports]
    drawn = [(report, ratios) for report, ratios in drawn if ratios]
    if not drawn:
        raise ValueError("There is no ratio to draw: all were refused, or none was measured.")
    heights = [len(ratios) + 0.6 for _, ratios in drawn]
    figure = Figure(figsize=(11, ROW * sum(heights) + 0.6 * len(drawn) + 0.8), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (report, ratios) in zip(panels, drawn, strict=True):
        axes.set_title(report.title, loc="left", fontsize=10, fontweight="bold")
        for row, ratio in enumerate(ratios):
            draw_bar(axes, row, ratio)
        axes.set_yticks(range(len(ratios)), [ratio.label for ratio in ratios], fontsize=8)
        axes.set_ylim(len(ratios) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    quick = "tiny sizes: the numbers mean nothing; " if any(report.quick for report, _ in drawn) else ""
    key = "bar: median of the rounds; line: quartiles; mark: target, green reached and red missed; dotted: 1"
    figure.supxlabel(f"{key}\n{quick}{caption}", fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))


def draw_bar(axes: object, row: int, ratio: Ratio) -> None:
    """Draw a ratio and write its number, and its target, right of the panel, where no bar is."""
    assert ratio.median is not None
    color = {True: REACHED, False: MISSED, None: PLAIN}[ratio.reached]
    axes.barh(row, ratio.median, height=0.62, color=color)
    if ratio.quartiles is not None:
        axes.plot(ratio.quartiles, [row, row], color="black", linewidth=1)
    if ratio.target:
        at = float(ratio.target.split()[1])
        axes.plot([at, at], [row - 0.42, row + 0.42], color="black", linewidth=2)
    where = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8, "annotation_clip": False}
    axes.annotate(f"{ratio.median:.2f}", (1.05, row), ha="right", **where)
    target = f"target {ratio.target.replace('>=', '≥').replace('<=', '≤')}" if ratio.target else ""
    axes.annotate(target, (1.07, row), ha="left", **where)
