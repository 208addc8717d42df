"""One figure per image: what draws the centres, which regions they make, how these touch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hggraph.cluster import SoftSLIC
from hggraph.graph import Assignment
from hggraph.stencil import Stencil
from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import (
    draw_arrows,
    draw_attention,
    draw_borders,
    draw_centers,
    draw_compass,
    draw_image,
    paper_tone,
)
from hggraph.viz.shapes import mean_positions, seed_positions, shown_directions, strongest_neighbors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["region_figure"]


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
            regions (fewer for images under 19,200 pixels) by ``SoftSLIC(feature_scale="photo")`` in eval mode.
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
    check_image(image)
    x, stencil = image.detach()[None], Stencil.square(3) if stencil is None else stencil
    size = (image.shape[1], image.shape[2])
    if clusterer is None:
        regions = min(300, max(1, size[0] * size[1] // 64))
        clusterer = SoftSLIC(num_regions=regions, feature_scale="photo").eval()
    if assignment is not None and (assignment.size != size or assignment.batch_size != 1):
        raise ValueError(f"`assignment` must be of one image of {size}, got {assignment}.")
    focus = None if attention is None else attention.detach()[None]
    with torch.no_grad():
        importance = clusterer.importance(x, focus)[0]
        assignment = clusterer(x, focus) if assignment is None else assignment
        return _draw(x, assignment, importance, attention, stencil)


def _draw(
    x: Tensor,
    assignment: Assignment,
    importance: Tensor,
    attention: Tensor | None,
    stencil: Stencil,
) -> Figure:
    size = assignment.size
    step = coarsening(size)
    colors = shrink(x[0].clamp(0, 1).expand(3, -1, -1), step)
    labels = assignment.labels[0, step // 2 :: step, step // 2 :: step].cpu().numpy()
    labels = labels[: colors.shape[0], : colors.shape[1]]
    means = assignment.pool(x)[0].clamp(0, 1).expand(-1, 3).cpu().numpy()
    positions = mean_positions(assignment)
    seeds, kind = (positions, "region") if assignment.seeds is None else (seed_positions(assignment), "sampled")
    raw = assignment.adjacency(stencil, noise_cancel=False, max_direction=False)
    clean = assignment.adjacency(stencil, noise_cancel=True, max_direction=False)

    aspect = size[1] / size[0]
    figure, panels, (across, down) = page(aspect, *((2, 3) if aspect < 2.2 else (3, 2)))
    point = max(size[1] / (72 * across), size[0] / (72 * down))
    spacing = (size[0] * size[1] / len(positions)) ** 0.5 / point  # of the regions, in points
    thin = min(1.0, spacing / 12)
    photo, drawn_from, sampled, regions, before, after = panels
    with_attention = "" if attention is None else " and its attention map"
    draw_image(photo, colors, size, step, "Photo" + with_attention)
    if attention is not None:
        draw_attention(photo, shrink(attention[None].to(x), step)[..., 0], step)
    bright = shrink(importance[None], step)[..., 0]
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
