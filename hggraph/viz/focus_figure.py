"""Two clusterings of one image side by side: what attention does to seeds and regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from hggraph.graph import Assignment
from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import draw_borders, draw_centers, draw_image, draw_outline, outline_of
from hggraph.viz.shapes import Floats, mean_positions, seed_positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["focus_figure"]


def focus_figure(image: Tensor, without: Assignment, steered: Assignment, attention: Tensor) -> Figure:
    """Draw the seeds and regions of an image without and with attention, in four panels (as HG-Conv, Fig. 5).

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        without: The regions without attention, of the image itself or of a network's map of it, for example
            ``net(x, return_regions=True)["regions"][0].assignment``.
        steered: The regions with attention, of the same map.
        attention: Attention in [0, 1], shape ``(H, W)``.

    Returns:
        A matplotlib figure: above the seeds, with a line around what has attention above the middle of its range; below
        the regions in their mean colours. Each title counts the seeds inside that line.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if shapes disagree, or an assignment is of several images.

    Note:
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> import torch
        >>> from hggraph import SoftSLIC
        >>> image, attention = torch.rand(3, 24, 32), torch.eye(24, 32)
        >>> clusterer = SoftSLIC(num_regions=6, feature_scale="photo").eval()
        >>> pair = clusterer(image[None]), clusterer(image[None], attention[None])
        >>> len(focus_figure(image, *pair, attention).axes)
        4
    """
    check_image(image)
    size = (image.shape[1], image.shape[2])
    if tuple(attention.shape) != size:
        raise ValueError(f"`attention` must have the image's size {size}, got shape {tuple(attention.shape)}.")
    if steered.size != without.size or (without.batch_size, steered.batch_size) != (1, 1):
        raise ValueError(f"`without` and `steered` must be of one image and map, got {without} and {steered}.")
    pitch = _pixels_per_node(size, without.size)
    step = coarsening(size)
    colors = shrink(image.detach().clamp(0, 1).expand(3, -1, -1), step)
    figure, panels, _ = page(size[1] / size[0], 2, 2)
    inside, level = outline_of(attention.numpy(force=True))
    coarse = shrink(attention[None], step)[..., 0]
    sides = [("Without attention", without), ("With attention", steered)]
    for (name, assignment), started, regions in zip(sides, panels[:2], panels[2:], strict=True):
        at = _centers(assignment, pitch, size)
        here = inside[at[:, 1].round().astype(int), at[:, 0].round().astype(int)]
        count = f"{len(at)} seeds, {int(here.sum())} of them inside" if level is not None else f"{len(at)} seeds"
        draw_image(started, colors, size, step, f"{name}: {count}")
        if level is not None:
            draw_outline(started, coarse > level, step)
        draw_centers(started, at, 5.0)
        _draw_regions(regions, image, assignment, pitch, size)
    return figure


def _pixels_per_node(size: tuple[int, int], map_size: tuple[int, int]) -> int:
    """Return the stride from an image to a map of it: a power of two, since the map's sides are rounded up."""
    ratios = [side / small for side, small in zip(size, map_size, strict=True)]
    if min(ratios) < 1:
        raise ValueError(f"Assignments must be of the image or a smaller map, got {map_size} for an image of {size}.")
    pitch = 1
    while pitch < max(ratios):
        pitch *= 2
    return pitch


def _centers(assignment: Assignment, pitch: int, size: tuple[int, int]) -> Floats:
    """Return the centres (x, y) in pixels of the image; of a network's map, where its pixels look at."""
    at = mean_positions(assignment) if assignment.seeds is None else seed_positions(assignment)
    return (at * pitch).clip(0, (size[1] - 1, size[0] - 1))


def _draw_regions(axes: Axes, image: Tensor, assignment: Assignment, pitch: int, size: tuple[int, int]) -> None:
    """Draw regions in their mean colours, with borders."""
    height, width = assignment.size
    bottom, right = max(0, height * pitch - size[0]), max(0, width * pitch - size[1])
    covered = F.pad(image.detach()[None].float(), (0, right, 0, bottom), mode="replicate")
    x = F.avg_pool2d(covered, pitch)[:, :, :height, :width].clamp(0, 1).expand(-1, 3, -1, -1)
    means = assignment.pool(x)[0].cpu().numpy()
    labels = assignment.labels[0].cpu().numpy()
    draw_image(axes, means[labels], size, pitch, f"{len(means)} regions in their mean colours")
    draw_borders(axes, labels, means[labels], pitch, width=0.5)
