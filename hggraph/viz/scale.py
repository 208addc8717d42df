"""What stands under the panels of a page: a colour scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["color_range", "draw_scale", "make_room"]

_INK = "#1b1f24"
_STRIP, _WIDTH, _HEIGHT = 0.66, 4.6, 0.15  # of the strip under the panels and of the scale in it, in inches
_TOP = 0.28  # from the strip's upper edge to the scale: room for its title


def make_room(figure: Figure, inches: float) -> None:
    """Make a figure higher by an empty strip at its lower edge; panels keep their sizes."""
    width, height = figure.get_size_inches()
    boxes = [(axes, axes.get_position()) for axes in figure.axes]
    figure.set_size_inches(width, height + inches)
    for axes, box in boxes:
        bottom, share = box.y0 * height + inches, box.height * height
        axes.set_position((box.x0, bottom / (height + inches), box.width, share / (height + inches)))


def color_range(limits: tuple[float, float]) -> tuple[float, float]:
    """Return what a map's first and last colour stand for: the limits, or where they are one, what lies around it."""
    return limits if limits[1] > limits[0] else (limits[0] - 0.5, limits[0] + 0.5)


def draw_scale(
    figure: Figure, axes: Axes, limits: tuple[float, float], colors: str, title: str, *, mark: float | None = None
) -> None:
    """Draw a colour scale in a strip of its own at the lower edge of the page, under a panel.

    Args:
        figure: The page.
        axes: The panel whose left edge the scale begins at.
        limits: What the first and the last colour stand for. Both have a tick; where they are one, it is the only one.
        colors: Name of the colour map.
        title: What the colours tell, over the scale.
        mark: A value to draw a line at.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    make_room(figure, _STRIP)
    page_width, page_height = figure.get_size_inches()
    left = axes.get_position().x0
    width = min(_WIDTH / page_width, axes.get_position().width)
    inset = figure.add_axes((left, (_STRIP - _TOP - _HEIGHT) / page_height, width, _HEIGHT / page_height))
    bottom, top = limits
    digits = min(6, max(0, 2 - math.floor(math.log10(top - bottom)))) if top > bottom else 3
    ticks = np.linspace(bottom, top, 5 if digits < 5 else 3) if top > bottom else np.array([bottom])
    drawn = ScalarMappable(Normalize(*color_range(limits)), colors)
    bar = figure.colorbar(drawn, cax=inset, orientation="horizontal", ticks=list(ticks))
    bar.ax.set_xticklabels([f"{tick:.{digits}f}" for tick in ticks], fontsize=9.5, color=_INK)
    if top > bottom:  # labels stay inside the scale's ends
        bar.ax.get_xticklabels()[0].set_horizontalalignment("left")
        bar.ax.get_xticklabels()[-1].set_horizontalalignment("right")
    bar.ax.tick_params(length=2.5, pad=2, color=_INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.set_title(title, fontsize=10.5, color=_INK, loc="left", pad=4)
    if mark is not None and bottom < mark < top:
        bar.ax.axvline(mark, color="white", linewidth=2.6)
        bar.ax.axvline(mark, color=_INK, linewidth=1.2)
