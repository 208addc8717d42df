"""One figure per image: where detail is, where regions start, what they become, and how they touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hggraph.cluster import SoftSLIC
from hggraph.cluster.color import COLOR_SCALE
from hggraph.graph import Assignment, RegionAdjacency
from hggraph.stencil import Stencil
from hggraph.viz.legend import STRIP, draw_bar, draw_caption, draw_compass, draw_widths
from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import (
    draw_arrows,
    draw_borders,
    draw_centers,
    draw_image,
    draw_outline,
    draw_shade,
    outline_of,
    paper_tone,
)
from hggraph.viz.shapes import (
    Floats,
    mean_positions,
    seed_positions,
    shown_directions,
    spread_regions,
    strongest_neighbors,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["region_figure"]

_PAGE, _LEAST = (9.2, 10.5), (3.05, 0.6)  # of all panels together and of one, in inches
_HAIRLINE = 0.35  # inches: an image that would be drawn thinner is stretched
_FAINT = 0.1  # arrows of less than this share of a strong one are left out


def region_figure(
    image: Tensor,
    clusterer: SoftSLIC | None = None,
    *,
    assignment: Assignment | None = None,
    attention: Tensor | None = None,
    stencil: Stencil | None = None,
) -> Figure:
    """Draw how an image becomes a region graph, in six panels (as HG-Conv, Fig. 5 and 11).

    The photo (with a line around what has attention, if there is any); the importance map, where regions crowd; their
    seeds; the regions in their mean colours; and, of up to 18 regions that lie apart, the strongest neighbour in each
    direction, without noise cancelling and in the graph. Arrows go from centre to centre (mean pixel coordinates),
    coloured by direction, wide where the edge is strong, to the same scale in both panels. Of stencils with more than
    eight directions the nearest are drawn. A caption says what arrows mean and how many there are.

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        clusterer: Makes the importance map, and the regions unless `assignment` is given. None: 300
            regions (fewer for images under 19,200 pixels) by ``SoftSLIC(feature_scale="photo")`` in eval mode.
        assignment: Regions of this image that `clusterer` has made already.
        attention: Attention in [0, 1], shape ``(H, W)``, or None.
        stencil: Directions; ``Stencil.square(3)`` when None.

    Returns:
        A matplotlib figure, at most 10 inches wide: for `save_figure` or a notebook. Its first six axes are the panels.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if shapes disagree, or `clusterer` cannot work with the image.

    Note:
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> clusterer = SoftSLIC(num_regions=6, feature_scale="photo").eval()
        >>> [axes.get_title(loc="left") for axes in region_figure(torch.rand(3, 24, 32), clusterer).axes[2:4]]
        ['6 seeds', '6 regions in their mean colours']
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
        if focus is not None:
            unit = f"importance (largest 1) + {clusterer.alpha:g} \N{MULTIPLICATION SIGN} attention"
        elif clusterer.feature_scale == "photo":
            importance = importance / COLOR_SCALE
            unit = f"step to the {clusterer.neighbors} neighbours, CIELAB, 2 \N{MULTIPLICATION SIGN} chroma"
        else:
            unit = f"distance to the {clusterer.neighbors} neighbours, image's unit"
        sheet = _Sheet(x, assignment)
        _draw_clustering(sheet, x, assignment, importance, unit, attention, tidy=not clusterer.connected)
        _draw_edges(sheet, assignment, stencil)
    return sheet.figure


class _Sheet:
    """The page, and how the image stands on its panels."""

    def __init__(self, x: Tensor, assignment: Assignment) -> None:
        self.size = assignment.size
        self.step = coarsening(self.size)
        self.colors = shrink(x[0].clamp(0, 1).expand(3, -1, -1), self.step)
        half = self.step // 2
        labels = assignment.labels[0, half :: self.step, half :: self.step].cpu().numpy()
        self.labels = labels[: self.colors.shape[0], : self.colors.shape[1]]
        aspect = self.size[1] / self.size[0]
        rows, columns = (3, 2) if aspect > 0.9 else (2, 3)
        self.columns = columns
        strips = [STRIP, *[0.0] * (rows - 2), STRIP]
        self.figure, self.panels, (across, down) = page(
            aspect, rows, columns, largest=_PAGE, least=_LEAST, below=strips
        )
        drawn = min(across, down * aspect), min(down, across / aspect)
        self.stretched = min(drawn) < _HAIRLINE
        across, down = (across, down) if self.stretched else drawn
        self.point = self.size[1] / (72 * across), self.size[0] / (72 * down)  # of type, in pixels
        area = 72 * 72 * across * down
        self.spacing = (area / assignment.num_regions) ** 0.5  # of regions, in points

    def show(self, panel: Axes, picture: Floats, title: str, **options: Any) -> None:
        """Show a picture of the image's size in a panel."""
        aspect = "auto" if self.stretched else "equal"
        draw_image(panel, picture, self.size, self.step, title, aspect=aspect, **options)


def _draw_clustering(
    sheet: _Sheet,
    x: Tensor,
    assignment: Assignment,
    importance: Tensor,
    unit: str,
    attention: Tensor | None,
    *,
    tidy: bool,
) -> None:
    """Draw the panels of the image, its importance, the seeds and the regions."""
    from matplotlib.colors import PowerNorm

    photo, drawn_from, started, regions = sheet.panels[:4]
    title = "Photo"
    if attention is not None:
        inside, level = outline_of(shrink(attention[None].to(x), sheet.step)[..., 0])
        title = (
            "Photo, attention the same all over" if level is None else f"Photo, outlined: attention above {level:.2g}"
        )
    sheet.show(photo, sheet.colors, title)
    bright = shrink(importance[None], sheet.step)[..., 0]
    norm = PowerNorm(0.5, vmin=0, vmax=max(float(np.quantile(bright, 0.995)), 1e-6), clip=True)
    focused = "Importance: where detail is" if attention is None else "Importance and attention"
    sheet.show(drawn_from, bright, focused, cmap="inferno", norm=norm)
    draw_bar(sheet.figure, drawn_from, norm, "inferno", unit)
    at, kind = mean_positions(assignment), "region centre"
    if assignment.seeds is not None:
        at, kind = seed_positions(assignment), "seed"
    sheet.show(started, sheet.colors, f"{len(at):,} {kind}{'' if len(at) == 1 else 's'}")
    if attention is not None:
        for panel in (photo, started):
            draw_outline(panel, inside, sheet.step)
    draw_centers(started, at, min(5.0, max(1.4, 0.18 * sheet.spacing)))
    means = assignment.pool(x)[0].clamp(0, 1).expand(-1, 3).cpu().numpy()
    count = f"{len(means):,} regions in their mean colours" if len(means) > 1 else "1 region in its mean colour"
    sheet.show(regions, means[sheet.labels], count)
    draw_borders(regions, sheet.labels, means[sheet.labels], sheet.step, width=min(0.5, sheet.spacing / 24), tidy=tidy)


def _draw_edges(sheet: _Sheet, assignment: Assignment, stencil: Stencil) -> None:
    """Draw the panels of the edges, before noise cancelling and in the graph, and what they mean."""
    before, after = sheet.panels[4:]
    shown = shown_directions(stencil)
    positions = mean_positions(assignment)
    raw, graph = (_arrows(assignment.adjacency(stencil, noise_cancel=cancel), shown) for cancel in (False, True))
    strength = np.bincount(graph[0], graph[3], minlength=len(positions)).astype(float)
    chosen = spread_regions(positions, strength, sheet.size)
    strong = float(np.quantile(graph[3], 0.95)) if len(graph[3]) else 1.0
    drawn = 0
    for panel, edges, title in [(before, raw, "Edges before noise cancelling"), (after, graph, "Edges of the graph")]:
        pale = paper_tone(sheet.colors)
        sheet.show(panel, pale, title)
        draw_shade(panel, np.isin(sheet.labels, chosen), sheet.step, "#f7c948", 0.55)
        draw_borders(panel, sheet.labels, pale, sheet.step, width=min(0.3, sheet.spacing / 40))
        keep = np.isin(edges[0], chosen) & (edges[3] >= _FAINT * strong)
        target, source, edge_type, weight = (part[keep] for part in edges)
        draw_arrows(panel, positions, (target, source, edge_type, weight), stencil, strong, sheet.point)
        draw_centers(panel, positions[chosen], min(4.0, max(1.2, 0.16 * sheet.spacing)))
        drawn = len(target)
    if len(raw[0]):
        first, second = sheet.panels[-sheet.columns :][:2]
        draw_compass(sheet.figure, first, stencil, shown)
        draw_widths(sheet.figure, second, strong)
    draw_caption(sheet.figure, _caption(len(chosen), len(positions), drawn, len(graph[0]), sheet.stretched))


def _arrows(adjacency: RegionAdjacency, shown: list[int]) -> tuple[Any, Any, Any, Any]:
    target, source, edge_type, weight = (part.numpy() for part in strongest_neighbors(adjacency, shown))
    return target, source, edge_type, weight


def _caption(chosen: int, regions: int, drawn: int, total: int, stretched: bool) -> str:
    if not total:
        text = "No arrows: no region has a neighbour in these directions."
    else:
        text = (
            "An arrow leads from a region (yellow) to the neighbour that it touches most in one direction. Shown are "
            f"{chosen} of {regions:,} regions, well connected and apart from each other, with {drawn} of the graph's "
            f"{total:,} such arrows. Between two regions only the strongest direction counts. Noise cancelling first "
            "subtracts from each direction what touches the opposite way."
        )
    return text + (" The image is drawn stretched." if stretched else "")
