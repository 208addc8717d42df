"""What a panel of a figure can show, each drawn into given axes in pixel coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hggraph.stencil import Stencil
from hggraph.viz.shapes import Floats, arrow_polygons, border_segments, direction_colors, majority

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "draw_arrows",
    "draw_attention",
    "draw_borders",
    "draw_centers",
    "draw_compass",
    "draw_image",
    "paper_tone",
]

_INK = "#1b1f24"


def draw_image(axes: Axes, picture: Floats, size: tuple[int, int], step: int, title: str, **options: Any) -> None:
    """Show a picture that has one pixel for each ``step x step`` pixels of an image of `size`."""
    axes.imshow(picture, extent=_extent(picture, step), **options)
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_anchor("NW")
    axes.set_title(title, fontsize=11.5, color=_INK, loc="left", pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_attention(axes: Axes, attention: Floats, step: int) -> None:
    """Lay attention in [0, 1] over the photo: clear where it is 0, orange where it is 1."""
    overlay = np.empty((*attention.shape, 4))
    overlay[..., :3] = (1.0, 0.42, 0.0)
    overlay[..., 3] = 0.8 * attention
    axes.imshow(overlay, extent=_extent(attention, step))


def draw_borders(
    axes: Axes,
    labels: NDArray[np.int64],
    step: int,
    *,
    color: str,
    width: float,
    alpha: float = 1.0,
) -> None:
    """Draw lines between the labels that most pixels have: specks of a few pixels get no border."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    ends = (border_segments(majority(labels)) + 0.5) * step - 0.5
    codes = np.tile([Path.MOVETO, Path.LINETO], len(ends))
    lines = Path(ends.reshape(-1, 2), codes)  # one path: thousands of lines are slow
    patch = PathPatch(lines, fill=False, edgecolor=color, linewidth=width, alpha=alpha)
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
    point: float,
) -> None:
    """Draw an arrow from each region to its strongest neighbour in each direction.

    Args:
        axes: Where to draw.
        positions: Region centres (x, y), shape ``(R, 2)``.
        edges: ``target, source, edge_type, weight``: the arrow goes from `target` to `source`.
        stencil: Its directions choose the colours.
        strong: The weight that is drawn widest.
        point: Length of a typographic point, in pixels of the image.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba_array

    target, source, edge_type, weight = edges
    strength = np.sqrt(np.clip(weight / strong, 0, 1))
    width = point * (0.45 + 1.65 * strength)
    polygons = arrow_polygons(positions[target], positions[source], width, lane=1.3 * point)
    order = np.argsort(-np.hypot(*(positions[source] - positions[target]).T))  # long ones below
    palette = np.array(direction_colors(stencil))
    colors = to_rgba_array(list(palette[edge_type]))
    colors[:, 3] = 0.35 + 0.6 * strength
    corners: Any = polygons[order]  # an array, which matplotlib takes faster than a list
    arrows = PolyCollection(corners, facecolors=colors[order], edgecolors="none")
    axes.add_collection(arrows, autolim=False)


def draw_compass(axes: Axes, stencil: Stencil, directions: list[int], point: float) -> None:
    """Draw the colours of the directions as a small compass in the lower right corner."""
    from matplotlib.collections import PolyCollection

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = right - left, bottom - top
    side = min(40 * point, 0.4 * width, 0.4 * height)
    margin = 0.12 * side
    inset = axes.inset_axes((1 - (side + margin) / width, margin / height, side / width, side / height))
    inset.set(xlim=(-1.5, 1.5), ylim=(1.5, -1.5), xticks=[], yticks=[], aspect="equal")
    inset.set_facecolor((1, 1, 1, 0.85))
    for spine in inset.spines.values():
        spine.set_visible(False)
    offsets = np.array(stencil.offsets, dtype=float)[directions][:, ::-1]
    tips = 1.25 * offsets / np.abs(offsets).max(initial=1)
    arrows: Any = arrow_polygons(0.25 * tips, tips, np.full(len(tips), 0.22))
    palette = direction_colors(stencil)
    colors = [palette[k] for k in directions]
    inset.add_collection(PolyCollection(arrows, facecolors=colors), autolim=False)


def paper_tone(colors: Floats) -> Floats:
    """Return the photo in pale grey, a ground on which coloured arrows stand out."""
    grey = colors @ np.array([0.299, 0.587, 0.114])
    return np.repeat((0.62 + 0.36 * grey)[..., None], 3, axis=-1)


def _extent(picture: Floats, step: int) -> tuple[float, float, float, float]:
    return (-0.5, picture.shape[1] * step - 0.5, picture.shape[0] * step - 0.5, -0.5)
