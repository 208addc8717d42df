"""What local attention reads: the weights of the neighbours of chosen points, at their places in the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from hggraph.stencil import Stencil
from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import draw_image
from hggraph.viz.scale import color_range, draw_scale
from hggraph.viz.shapes import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["affinity_figure"]

_COLORS = "plasma_r"
_INK = "#1b1f24"
_WHITE = 0.6  # share of white in the photo under the dots
_LARGEST, _NUMBER = 24.0, 9.0  # diameter of a dot and radius of a number, in points


class _Neighbors(NamedTuple):
    """The neighbours of a pixel that lie inside the image, and the weight of the others; places are (x, y)."""

    center: Floats
    places: Floats
    weights: Floats
    outside: float


class _View(NamedTuple):
    """What a panel shows, in pixels of the image: a part of it, and a margin where it ends there."""

    left: float
    top: float
    width: float
    height: float

    def inside(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of the part of an image of `size`."""
        left, top = max(0, math.floor(self.left + 0.5)), max(0, math.floor(self.top + 0.5))
        right, bottom = math.ceil(self.left + self.width + 0.5), math.ceil(self.top + self.height + 0.5)
        return left, top, min(size[1], right), min(size[0], bottom)


def affinity_figure(image: Tensor, affinity: Tensor, points: Sequence[tuple[float, float]], stencil: Stencil) -> Figure:
    """Draw the weights with which chosen points read their neighbours (as GALD, Li et al. 2021, Fig. 9).

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        affinity: Weights of each map pixel's K neighbours, shape ``(K, h, w)``, or ``(heads, K, h, w)``, of which the
            mean is taken: ``net.inspect(x)[0]`` of a `GALD` network.
        points: At least one (y, x), in pixels of the image.
        stencil: The displacements of the K neighbours: ``net.distribution.attention.stencil``.

    Returns:
        A matplotlib figure. First the image with the points, numbered, and frames around what the other panels show.
        Then for each point its surroundings in pale colours, with a cross at the point and a dot at each neighbour of
        the nearest map pixel. A dot's area is proportional to its weight; its colour tells it on a scale from the least
        weight drawn to the greatest, one for all points. Neighbours outside the image are not drawn; where they have
        weight, as with a border of zeros, the title says how much.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if shapes disagree, or there is no point or one outside the image.

    Note:
        The corners of the map lie on those of the image, as in `GALD`: column x of the map is at
        ``x * (W - 1) / (w - 1)``. Neighbours stand where the stencil says, so not for the border ``"shift"``.
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> import torch
        >>> affinity = torch.rand(25, 13, 17).softmax(0)
        >>> figure = affinity_figure(torch.rand(3, 97, 129), affinity, [(48, 64)], Stencil.square(5, dilation=3))
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['1 point', '1: x 64, y 48']
    """
    check_image(image)
    size = (image.shape[1], image.shape[2])
    weights = _mean_of_heads(affinity, stencil)
    if not points:
        raise ValueError("`points` must hold at least one (y, x), got none.")
    pitch = np.array(  # image pixels per map pixel, (y, x)
        [(side - 1) / (small - 1) if small > 1 else 0.0 for side, small in zip(size, weights.shape[1:], strict=True)]
    )
    near = [_neighbors(point, weights, stencil, pitch, size) for point in points]
    drawn = np.concatenate([found.weights for found in near])
    limits = (float(drawn.min()), float(drawn.max())) if drawn.size else (0.0, 1.0)
    spacing = _spacing(stencil, pitch)
    step = coarsening(size)
    colors = image.detach().clamp(0, 1).expand(3, -1, -1)
    figure, overview, panels, inches = _layout(size, len(points))
    aspect = inches[0] / inches[1]
    draw_image(overview, shrink(colors, step), size, step, f"{len(points)} point{'s' if len(points) > 1 else ''}")
    for number, (point, panel, found) in enumerate(zip(points, panels, near, strict=True), 1):
        view = _view(found.center, np.array(stencil.reach) * pitch + 0.8 * spacing, 0.5 * spacing, size, aspect)
        title = f"{number}: x {point[1]:g}, y {point[0]:g}"
        if found.outside > 0:
            share = f"{100 * found.outside:.0f}" if found.outside >= 0.01 else "under 1"
            title += f"; {share} % of weight outside"
        _draw_surroundings(panel, colors, view, title)
        pixels_per_point = max(view.width / inches[0], view.height / inches[1]) / 72
        _draw_weights(panel, found, limits, min(_LARGEST, 0.82 * spacing / pixels_per_point))
        _draw_cross(panel, point)
        _draw_frame(overview, view.inside(size), size)
        _draw_number(figure, overview, point, size, number)
    title = f"Weight of a neighbour; the line is at 1/{len(stencil)}"
    draw_scale(figure, overview, limits, _COLORS, title, mark=1 / len(stencil))
    return figure


def _mean_of_heads(affinity: Tensor, stencil: Stencil) -> Floats:
    count = len(stencil)
    if affinity.dim() not in (3, 4) or affinity.shape[-3] != count or 0 in affinity.shape or stencil.ndim != 2:
        raise ValueError(
            f"`affinity` must have shape (K, h, w) or (heads, K, h, w) with the K = {count} of {stencil!r} of images, "
            f"got {tuple(affinity.shape)}. Take one image of a batch, and the stencil that made it."
        )
    weights = affinity.detach().float()
    return (weights.mean(0) if weights.dim() == 4 else weights).cpu().numpy()


def _neighbors(
    point: tuple[float, float], weights: Floats, stencil: Stencil, pitch: Floats, size: tuple[int, int]
) -> _Neighbors:
    """Return what the map pixel nearest to a point reads."""
    if not all(0 <= at <= side - 1 for at, side in zip(point, size, strict=True)):
        raise ValueError(
            f"`points` must be (y, x) inside the image, y from 0 to {size[0] - 1} and x from 0 to {size[1] - 1}, "
            f"got {tuple(point)}."
        )
    center = np.rint([at / step if step else 0 for at, step in zip(point, pitch, strict=True)]).astype(np.int64)
    places = center + np.array(stencil.offsets)
    inside = ((places >= 0) & (places < weights.shape[1:])).all(1)
    weight = weights[:, center[0], center[1]]
    return _Neighbors(
        (center * pitch)[::-1], (places[inside] * pitch)[:, ::-1], weight[inside], float(weight[~inside].sum())
    )


def _spacing(stencil: Stencil, pitch: Floats) -> float:
    """Return the least distance between two neighbours, in pixels of the image."""
    places = np.array(stencil.offsets) * pitch
    apart = np.hypot(*(places[:, None] - places).transpose(2, 0, 1))
    apart = apart[apart > 0]
    return float(apart.min()) if apart.size else max(1.0, float(pitch.max()))


def _layout(size: tuple[int, int], count: int) -> tuple[Figure, Axes, list[Axes], tuple[float, float]]:
    """Return a page, its panel for the image, `count` others and their size; the first is as large as four of many."""
    aspect = size[1] / size[0]
    if count < 3:
        figure, panels, inches = page(aspect, 1, count + 1)
        return figure, panels[0], panels[1:], inches
    figure, panels, inches = page(aspect, 2 + max(0, -(-(count - 4) // 4)), 4)
    overview, beside, below = panels[0], panels[1], panels[4]
    first, last = below.get_position(), beside.get_position()
    overview.set_position((first.x0, first.y0, last.x1 - first.x0, last.y1 - first.y0))
    free = [*panels[2:4], *panels[6:]]
    for unused in (beside, below, panels[5], *free[count:]):
        figure.delaxes(unused)
    return figure, overview, free[:count], inches


def _view(center: Floats, reach: Floats, margin: float, size: tuple[int, int], aspect: float) -> _View:
    """Return what shows all within `reach` (y, x) of a place (x, y), beyond the image by a margin at most."""
    height = max(2 * reach[0], 2 * reach[1] / aspect)
    starts, lengths = [], []
    for at, near, side, length in zip(center, reach[::-1], size[::-1], (height * aspect, height), strict=True):
        first, last = min(-0.5, max(-0.5 - margin, at - near)), max(side - 0.5, min(side - 0.5 + margin, at + near))
        lengths.append(min(length, last - first))
        starts.append(min(max(first, at - length / 2), last - lengths[-1]))
    return _View(*starts, *lengths)


def _draw_surroundings(axes: Axes, colors: Tensor, view: _View, title: str) -> None:
    """Draw a part of the photo in pale colours, in the coordinates of the whole."""
    left, top, right, bottom = view.inside((colors.shape[1], colors.shape[2]))
    step = coarsening((bottom - top, right - left))
    part = shrink(colors[:, top:bottom, left:right], step)
    draw_image(axes, _WHITE + (1 - _WHITE) * part, (bottom - top, right - left), step, title, interpolation="bilinear")
    (photo,) = axes.images
    right, bottom = left + part.shape[1] * step, top + part.shape[0] * step
    photo.set_extent((left - 0.5, right - 0.5, bottom - 0.5, top - 0.5))
    axes.set(xlim=(view.left, view.left + view.width), ylim=(view.top + view.height, view.top))


def _draw_weights(axes: Axes, found: _Neighbors, limits: tuple[float, float], diameter: float) -> None:
    """Draw a dot for each neighbour; `diameter` in points is that of the greatest weight."""
    most = limits[1]
    share = found.weights / most if most > 0 else np.ones_like(found.weights)
    x, y = found.places.T
    area = diameter**2 * np.maximum(share, 0.01)
    least, top = color_range(limits)
    axes.scatter(
        x, y, s=area, c=found.weights, cmap=_COLORS, vmin=least, vmax=top, edgecolors=_INK, linewidths=0.5, zorder=2.5
    )


def _draw_cross(axes: Axes, point: tuple[float, float]) -> None:
    for color, length, width in (("white", 11.0, 3.0), (_INK, 10.0, 1.3)):
        axes.plot(point[1], point[0], "+", color=color, markersize=length, markeredgewidth=width, zorder=3)


def _draw_frame(axes: Axes, part: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """Draw a frame around a part of an image, unless it is the whole."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = part
    if (right - left, bottom - top) == size[::-1]:
        return
    for color, width in ((_INK, 2.2), ("white", 1.0)):
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=color, linewidth=width)
        axes.add_patch(frame)


def _draw_number(figure: Figure, axes: Axes, point: tuple[float, float], size: tuple[int, int], number: int) -> None:
    """Draw a point's number on the whole image; at an edge so far inside that it does not reach the title."""
    inches = figure.get_size_inches() * axes.get_position().size
    margin = _NUMBER * max(size[1] / inches[0], size[0] / inches[1]) / 72
    y, x = (min(max(at, margin), side - 1 - margin) for at, side in zip(point, size, strict=True))
    look = {"boxstyle": "circle,pad=0.25", "facecolor": "#ffd23f", "edgecolor": _INK, "linewidth": 0.9}
    axes.text(x, y, str(number), ha="center", va="center", fontsize=9, fontweight="bold", color=_INK, bbox=look)
