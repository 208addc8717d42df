"""How accuracy falls as a tap has to tell more classes apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hggraph.schemes.hs3 import TradeOff

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["trade_off_figure"]

COLORS = ("#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
OUTPUT = "#1f77b4"


def trade_off_figure(
    curves: Mapping[str, TradeOff], chosen: Mapping[str, int], output: TradeOff, *, line: bool = True
) -> Figure:
    """Draw mean IoU over the number of classes, for each tap and the output (HS3 Fig. 2).

    Args:
        curves: Of the taps, by name.
        chosen: The number of classes of each tap, drawn as a dot.
        output: The curve of the network's output, whose last point is the reference.
        line: Draw the line through the origin and the reference: on it mean IoU per class is equal.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if a number chosen is not on its curve.

    Example:
        >>> from hggraph.schemes.hs3 import Grouping
        >>> curve = TradeOff((2, 3), (0.8, 0.6), (Grouping([[0, 1], [2]]), Grouping.identity(3)))
        >>> figure = trade_off_figure({"tap_2": curve}, {"tap_2": 2}, curve)
        >>> figure.axes[0].get_xlabel()
        'classes after merging'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib, which is not installed: pip install "hggraph[viz]"') from error
    figure = Figure(figsize=(7.2, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _draw(axes, "output", output, output.sizes[-1], OUTPUT)
    for number, (name, curve) in enumerate(curves.items()):
        if chosen[name] not in curve.sizes:
            raise ValueError(f"`chosen` must be on the curve of {name!r}, {curve.sizes}, got {chosen[name]}.")
        _draw(axes, name, curve, chosen[name], COLORS[number % len(COLORS)])
    if line:
        size, value = output.sizes[-1], 100 * output.miou[-1]
        axes.plot([0, size], [0, value], color="#888888", linestyle="--", linewidth=1, zorder=1)
    axes.set_xlim(0, 1.04 * output.sizes[-1])
    axes.set_ylim(0, 104 * max(max(curve.miou) for curve in (output, *curves.values())))
    axes.set_xlabel("classes after merging")
    axes.set_ylabel("mean IoU, %")
    axes.grid(color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _draw(axes: object, name: str, curve: TradeOff, dot: int, color: str) -> None:
    values: Sequence[float] = [100 * value for value in curve.miou]
    at = curve.sizes.index(dot)
    label = f"{name}: {dot} classes, {values[at]:.1f} %"
    axes.plot(curve.sizes, values, color=color, linewidth=1.6, label=label)  # type: ignore[attr-defined]
    axes.plot(dot, values[at], marker="o", color=color, markersize=7, zorder=3)  # type: ignore[attr-defined]
