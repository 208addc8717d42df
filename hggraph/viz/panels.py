"""What a panel of a figure can show, each drawn into given axes in pixel coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hggraph.stencil import Stencil
from hggraph.viz.shapes import Floats, arrow_polygons, border_segments, direction_colors, majority, side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "arrow_widths",
    "draw_arrows",
    "draw_borders",
    "draw_centers",
    "draw_image",
    "draw_outline",
    "draw_shade",
    "outline_of",
    "paper_tone",
]

_INK = "#1b1f24"
_LUMA = np.array([0.299, 0.587, 0.114])


def draw_image(axes: Axes, picture: Floats, size: tuple[int, int], step: int, title: str, **options: Any) -> None:
    """Show a picture that has one pixel for each ``step x step`` pixels of an image of `size`."""
    axes.imshow(picture, extent=_extent(picture, step), **options)
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_anchor("NW")
    axes.set_title(title, fontsize=11.5, color=_INK, loc="left", pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def outline_of(attention: Floats) -> tuple[NDArray[np.bool_], float | None]:
    """Return where attention ``(h, w)`` is above the middle of its range, and that level: None if it has no range.

    Example:
        >>> outline_of(np.array([[0.0, 1.0]]))
        (array([[False,  True]]), 0.5)
    """
    low, high = float(attention.min()), float(attention.max())
    level = (low + high) / 2
    return attention > level, level if high > low else None


def draw_outline(axes: Axes, inside: NDArray[np.bool_], step: int) -> None:
    """Draw a line around a part of the image, bright with a dark rim, so that it shows on every ground."""
    ends = (border_segments(inside.astype(np.int64)) + 0.5) * step - 0.5
    _draw_lines(axes, ends, _INK, 3.0)
    _draw_lines(axes, ends, "#6ff0ff", 1.5)


def draw_shade(axes: Axes, inside: NDArray[np.bool_], step: int, color: str, alpha: float) -> None:
    """Tint a part of the image."""
    from matplotlib.colors import to_rgba

    overlay = np.zeros((*inside.shape, 4))
    overlay[inside] = to_rgba(color, alpha)
    axes.imshow(overlay, extent=_extent(overlay, step), aspect=axes.get_aspect(), interpolation="nearest")


def draw_borders(
    axes: Axes, labels: NDArray[np.int64], ground: Floats, step: int, *, width: float, tidy: bool = False
) -> None:
    """Draw lines between pixels of different labels: white where the ground is dark, grey where it is bright.

    Args:
        axes: Where to draw.
        labels: Shape ``(h, w)``.
        ground: Colours in [0, 1] of what lies below, shape ``(h, w, 3)``.
        step: How many pixels of the image, along each side, a label stands for.
        width: Of the lines, in points.
        tidy: Draw the borders between the labels that most pixels have, so that specks of a few pixels get none.
    """
    ends = border_segments(majority(labels) if tidy else labels)
    column, row = np.floor(ends.mean(1)).astype(np.int64).T.clip(0)
    bright = (ground @ _LUMA)[row, column] > 0.6
    for part, color, alpha in [(ends[bright], _INK, 0.5), (ends[~bright], "white", 0.85)]:
        _draw_lines(axes, (part + 0.5) * step - 0.5, color, width, alpha)


def _draw_lines(axes: Axes, ends: Floats, color: str, width: float, alpha: float = 1.0) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    codes = np.tile([Path.MOVETO, Path.LINETO], len(ends))
    lines = Path(ends.reshape(-1, 2), codes)  # one path: thousands of lines are slow
    patch = PathPatch(lines, fill=False, edgecolor=color, linewidth=width, alpha=alpha, capstyle="projecting")
    axes.add_artist(patch)  # add_patch would look for the curves' extremes


def draw_centers(axes: Axes, positions: Floats, size: float) -> None:
    """Draw dots at (x, y) with a dark rim, so that they show on every ground; size in points."""
    x, y = positions.T
    axes.scatter(x, y, s=size**2, c="#ffd23f", edgecolors=_INK, linewidths=0.22 * size)


def draw_arrows(
    axes: Axes,
    positions: Floats,
    edges: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
    stencil: Stencil,
    strong: float,
    point: tuple[float, float],
) -> None:
    """Draw an arrow for each edge, those between the same two regions side by side.

    Args:
        axes: Where to draw.
        positions: Region centres (x, y), shape ``(R, 2)``.
        edges: ``target, source, edge_type, weight``: the arrow goes from `target` to `source`.
        stencil: Its directions choose the colours.
        strong: The weight from which on arrows are drawn widest.
        point: Length of a typographic point across and down, in pixels of the image.
    """
    from matplotlib.collections import PolyCollection

    target, source, edge_type, weight = edges
    width = arrow_widths(weight, strong)
    start, stop = positions[target] / point, positions[source] / point
    lane = 1.3 + 2.6 * side_by_side(target, source)
    polygons: Any = arrow_polygons(start, stop, width, lane=lane) * point  # an array, which matplotlib takes faster
    order = np.argsort(-np.hypot(*(stop - start).T), kind="stable")  # long ones below
    palette = np.array(direction_colors(stencil))
    arrows = PolyCollection(polygons[order], facecolors=list(palette[edge_type[order]]), edgecolors="white")
    arrows.set_linewidth(0.35)  # tells crossing arrows apart
    axes.add_collection(arrows, autolim=False)


def arrow_widths(weight: Floats, strong: float) -> Floats:
    """Return the width of the arrows of edges, in points: it grows with the root of the weight, up to `strong`."""
    return 0.8 + 1.7 * np.sqrt(np.clip(weight / strong, 0, 1))


def paper_tone(colors: Floats) -> Floats:
    """Return the photo in pale grey, a ground on which coloured arrows stand out."""
    grey = colors @ _LUMA
    return np.repeat((0.62 + 0.36 * grey)[..., None], 3, axis=-1)


def _extent(picture: Floats, step: int) -> tuple[float, float, float, float]:
    return (-0.5, picture.shape[1] * step - 0.5, picture.shape[0] * step - 0.5, -0.5)
