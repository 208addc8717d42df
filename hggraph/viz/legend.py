"""What tells how to read a panel, under it: a colour bar, the colours of directions, the widths of arrows."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from hggraph.stencil import Stencil
from hggraph.viz.panels import arrow_widths
from hggraph.viz.scale import make_room
from hggraph.viz.shapes import arrow_polygons, direction_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

__all__ = ["STRIP", "draw_bar", "draw_caption", "draw_compass", "draw_widths"]

STRIP = 0.58  # height of the room under a panel that each of these needs, in inches
_INK, _SMALL = "#1b1f24", 9.5
_CHARACTERS = 13.0  # of the caption in an inch


def draw_bar(figure: Figure, panel: Axes, norm: Normalize, colors: str, title: str) -> None:
    """Draw a colour bar with its unit under a panel.

    Args:
        figure: The page.
        panel: What is explained.
        norm: From values to [0, 1]. Larger values have the last colour too.
        colors: Name of the colour map.
        title: What the colours tell, with its unit.
    """
    from matplotlib.cm import ScalarMappable

    inset = _strip(figure, panel, top=0.07, height=0.11)
    ticks = norm.inverse(np.linspace(0, 1, 5))
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=inset, orientation="horizontal", ticks=list(ticks))
    texts = ["0" if tick == 0 else f"{tick:.1f}" if 0.1 <= tick < 10 else f"{tick:.2g}" for tick in ticks]
    bar.ax.set_xticklabels([*texts[:-1], f"\u2265 {texts[-1]}"], fontsize=_SMALL, color=_INK)
    bar.ax.get_xticklabels()[0].set_horizontalalignment("left")  # labels stay inside the bar's ends
    bar.ax.get_xticklabels()[-1].set_horizontalalignment("right")
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=2.5, pad=2, color=_INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.set_xlabel(title, fontsize=_SMALL, color=_INK, loc="left", labelpad=2)


def draw_compass(figure: Figure, panel: Axes, stencil: Stencil, directions: list[int]) -> None:
    """Draw the colours of the directions under a panel, as a compass with a word beside it."""
    from matplotlib.collections import PolyCollection

    inset = _strip(figure, panel, top=0.05, height=0.5, width=0.5)
    inset.set(xlim=(-1.4, 1.4), ylim=(1.4, -1.4), aspect="equal")
    offsets = np.array(stencil.offsets, dtype=float)[directions][:, ::-1]
    tips = 1.3 * offsets / np.abs(offsets).max(initial=1)
    arrows: Any = arrow_polygons(0.2 * tips, tips, np.full(len(tips), 0.24))
    palette = direction_colors(stencil)
    inset.add_collection(PolyCollection(arrows, facecolors=[palette[k] for k in directions]), autolim=False)
    _write(inset, 1.15, "Colour: direction in which\nthe neighbour touches")


def draw_widths(figure: Figure, panel: Axes, strong: float) -> None:
    """Draw what the widths of arrows stand for under a panel, `strong` and shares of it."""
    from matplotlib.collections import PolyCollection

    inset = _strip(figure, panel, top=0.05, height=0.5, width=1.66)
    inset.set(xlim=(0, 1.66 * 72), ylim=(36, 0))
    weights = strong * np.array([0.06, 0.4, 1.0])
    left = np.array([2.0, 40.0, 78.0])
    start, stop = np.stack([left, np.full(3, 9.0)], 1), np.stack([left + 28, np.full(3, 9.0)], 1)
    arrows: Any = arrow_polygons(start, stop, arrow_widths(weights, strong))
    inset.add_collection(PolyCollection(arrows, facecolors="#59616b"), autolim=False)
    for x, weight, sign in zip(left, weights, ["", "", "\u2265 "], strict=True):
        text = f"{weight:.0f}" if weight >= 10 else f"{weight:.2g}"
        inset.text(x, 26, f"{sign}{text} px", fontsize=_SMALL, color=_INK, va="center")
    _write(inset, 1.06, "Width: weight, pixels\nof border that way")


def draw_caption(figure: Figure, text: str) -> None:
    """Write a caption under everything, in lines as long as the page is wide."""
    page_width = figure.get_size_inches()[0]
    lines = textwrap.wrap(text, max(30, int(_CHARACTERS * (page_width - 0.24))))
    make_room(figure, 0.175 * len(lines) + 0.1)
    page_width, page_height = figure.get_size_inches()
    top = (0.175 * len(lines) + 0.08) / page_height
    figure.text(0.12 / page_width, top, "\n".join(lines), fontsize=_SMALL, color=_INK, va="top", linespacing=1.25)


def _strip(figure: Figure, panel: Axes, *, top: float, height: float, width: float | None = None) -> Axes:
    """Return axes without a frame under a panel, so many inches below it and high, as wide as it or so many inches."""
    page_width, page_height = figure.get_size_inches()
    box = panel.get_position(original=True)
    share = box.width if width is None else min(width / page_width, box.width)
    inset = figure.add_axes((box.x0, box.y0 - (top + height) / page_height, share, height / page_height))
    inset.set(xticks=[], yticks=[], facecolor="none")
    for spine in inset.spines.values():
        spine.set_visible(False)
    return inset


def _write(inset: Axes, x: float, text: str) -> None:
    inset.text(x, 0.5, text, transform=inset.transAxes, fontsize=_SMALL, color=_INK, va="center", linespacing=1.25)
