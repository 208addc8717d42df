"""One figure per image: what draws the centres, which regions they make, how these touch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.cluster import SoftSLIC
from hggraph.data import write_atomically
from hggraph.graph import Assignment
from hggraph.stencil import Stencil
from hggraph.viz.panels import (
    draw_arrows,
    draw_attention,
    draw_borders,
    draw_centers,
    draw_compass,
    draw_image,
    paper_tone,
)
from hggraph.viz.shapes import Floats, shown_directions, strongest_neighbors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["region_figure", "save_figure"]

_PAGE = (13.4, 12.0)  # largest width and height of the panels together, in inches
_LEAST = (3.6, 0.8)  # smallest width and height of a panel: room for its title
_GAP, _TITLE = 0.12, 0.32  # between panels and over each, in inches
_LONG_SIDE = 1000  # pixels; larger images are drawn smaller, a panel shows no more


def region_figure(
    image: Tensor,
    clusterer: SoftSLIC | None = None,
    *,
    assignment: Assignment | None = None,
    attention: Tensor | None = None,
    stencil: Stencil | None = None,
) -> Figure:
    """Draw how an image becomes a region graph, in six panels (as HG-Conv, Fig. 5 and 11).

    The photo (under its attention map, if there is one); the importance map that centres are drawn
    from; the sampled centres; the regions in their mean colours; and for each region and direction
    an arrow to its strongest neighbour, before and after noise cancelling. Arrows go from centre to
    centre (mean pixel coordinates), coloured by direction, wide where the connection is strong, to
    the same scale in both panels. Diagonal directions are left out to avoid clutter.

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        clusterer: Makes the importance map, and the regions unless `assignment` is given. None: 300
            regions (fewer for images under 19,200 pixels) by ``SoftSLIC(feature_scale="photo",
            candidates=6)`` in eval mode.
        assignment: Regions of this image that `clusterer` has made already.
        attention: Attention in [0, 1], shape ``(H, W)``, or None.
        stencil: Directions; ``Stencil.square(3)`` when None.

    Returns:
        A matplotlib figure, about 14 inches wide: for `save_figure` or a notebook.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if shapes disagree, or `clusterer` cannot work with the image.

    Note:
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> clusterer = SoftSLIC(num_regions=6, feature_scale="photo").eval()
        >>> len(region_figure(torch.rand(3, 24, 32), clusterer).axes)
        6
    """
    figure_class = _matplotlib_figure()
    if image.dim() != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise ValueError(
            "`image` must be floating point of shape (3, H, W) or (1, H, W), got "
            f"{image.dtype} of shape {tuple(image.shape)}."
        )
    x, stencil = image.detach()[None], Stencil.square(3) if stencil is None else stencil
    size = (image.shape[1], image.shape[2])
    if clusterer is None:
        regions = min(300, max(1, size[0] * size[1] // 64))
        clusterer = SoftSLIC(num_regions=regions, feature_scale="photo", candidates=6).eval()
    if assignment is not None and (assignment.size != size or assignment.batch_size != 1):
        raise ValueError(f"`assignment` must be of one image of {size}, got {assignment}.")
    focus = None if attention is None else attention.detach()[None]
    with torch.no_grad():
        importance = clusterer.importance(x, focus)[0]
        assignment = clusterer(x, focus) if assignment is None else assignment
        return _draw(figure_class, x, assignment, importance, attention, stencil)


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 110) -> None:
    """Write a figure under a temporary name and rename it.

    Args:
        figure: A figure, for example of `region_figure`.
        path: The file; its suffix chooses the format (.png, .pdf, .svg, ...).
        dpi: Pixels per inch, for formats of pixels.

    Raises:
        ValueError: if matplotlib does not know the format.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> figure = region_figure(torch.rand(3, 24, 32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(figure, f"{folder}/figure.png")
        ...     [path.name for path in Path(folder).iterdir()]
        ['figure.png']
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi))


def _matplotlib_figure() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib, which is not installed: pip install "hggraph[viz]"') from error
    return Figure


def _draw(
    figure_class: type[Figure],
    x: Tensor,
    assignment: Assignment,
    importance: Tensor,
    attention: Tensor | None,
    stencil: Stencil,
) -> Figure:
    size = assignment.size
    step = min(-(-max(size) // _LONG_SIDE), *size)

    def small(picture: Tensor) -> Floats:
        """Return a map (C, H, W) as (h, w, C), one pixel for step x step."""
        pooled = F.avg_pool2d(picture[None].float(), step)[0]
        return pooled.permute(1, 2, 0).cpu().numpy()

    colors = small(x[0].clamp(0, 1).expand(3, -1, -1))
    labels = assignment.labels[0, step // 2 :: step, step // 2 :: step].cpu().numpy()
    labels = labels[: colors.shape[0], : colors.shape[1]]
    means = assignment.pool(x)[0].clamp(0, 1).expand(-1, 3).cpu().numpy()
    positions = _positions(assignment, x)
    seeds, kind = positions, "region"
    if assignment.seeds is not None:
        flat, kind = assignment.seeds[0].cpu(), "sampled"
        seeds = torch.stack([flat % size[1], flat // size[1]], 1).numpy()
    raw = assignment.adjacency(stencil, noise_cancel=False, max_direction=False)
    clean = assignment.adjacency(stencil, noise_cancel=True, max_direction=False)

    figure, panels, (across, down) = _page(figure_class, size[1] / size[0])
    point = max(size[1] / (72 * across), size[0] / (72 * down))
    spacing = (size[0] * size[1] / len(positions)) ** 0.5 / point  # of the regions, in points
    thin = min(1.0, spacing / 12)
    photo, drawn_from, sampled, regions, before, after = panels
    with_attention = "" if attention is None else " and its attention map"
    draw_image(photo, colors, size, step, "Photo" + with_attention)
    if attention is not None:
        draw_attention(photo, small(attention[None].to(x))[..., 0], step)
    bright = small(importance[None])[..., 0]
    top = max(float(np.quantile(bright, 0.995)), 1e-12)
    focused = "(bright draws centres)" if attention is None else "focused by attention"
    look = {"cmap": "inferno", "vmin": 0, "vmax": 1}
    draw_image(drawn_from, np.sqrt(bright / top), size, step, f"Importance {focused}", **look)
    centers = "centre" if len(seeds) == 1 else "centres"
    draw_image(sampled, colors, size, step, f"{len(seeds):,} {kind} {centers}")
    draw_centers(sampled, seeds, min(5.0, max(1.2, 0.16 * spacing)))
    draw_image(regions, means[labels], size, step, "Regions in their mean colours")
    draw_borders(regions, labels, step, color="white", width=0.45, alpha=0.75)

    shown = shown_directions(stencil)
    strong = None
    for panel, adjacency, when in [(before, raw, "before"), (after, clean, "after")]:
        draw_image(panel, paper_tone(colors), size, step, f"Strongest neighbours, {when} noise cancelling")
        target, source, edge_type, weight = (part.numpy() for part in strongest_neighbors(adjacency, shown))
        if strong is None:  # the same scale in both panels
            strong = float(np.quantile(weight, 0.95)) if len(weight) else 1.0
        draw_arrows(panel, positions, (target, source, edge_type, weight), stencil, strong, thin * point)
        draw_compass(panel, stencil, shown, point)
    return figure


def _positions(assignment: Assignment, x: Tensor) -> Floats:
    """Return the mean (x, y) of each region, shape ``(R, 2)``, in pixels."""
    y, column = torch.meshgrid(*(torch.arange(n, device=x.device) for n in assignment.size), indexing="ij")
    return assignment.pool(torch.stack([column, y])[None].to(x.dtype))[0].cpu().numpy()


def _page(figure_class: type[Figure], aspect: float) -> tuple[Figure, list[Axes], tuple[float, float]]:
    """Return a figure with six panels for images of an aspect ratio, and their size in inches."""
    rows, columns = (2, 3) if aspect < 2.2 else (3, 2)
    across, down = _PAGE[0] / columns, _PAGE[1] / rows
    across = max(min(across, down * aspect), _LEAST[0])
    down = max(min(down, across / aspect), _LEAST[1])
    width = columns * (across + _GAP) + _GAP
    height = rows * (down + _TITLE + _GAP)
    figure = figure_class(figsize=(width, height), facecolor="white")
    panels = []
    for panel in range(rows * columns):
        row, column = divmod(panel, columns)
        left = _GAP + column * (across + _GAP)
        bottom = height - (row + 1) * (down + _TITLE) - row * _GAP
        box = (left / width, bottom / height, across / width, down / height)
        panels.append(figure.add_axes(box))
    return figure, panels, (across, down)
