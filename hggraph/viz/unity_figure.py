"""A unity pyramid: where one label fills a cell, and which level decides each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.schemes.specialize import levels_used
from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import draw_image
from hggraph.viz.scale import draw_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["unity_figure"]

_COLORS = "viridis"
# coarse to fine, over the image: the coarsest level leaves it as it is
_LEVELS = torch.tensor(
    [[0.99, 0.91, 0.15], [0.37, 0.79, 0.38], [0.13, 0.56, 0.55], [0.23, 0.32, 0.55], [0.27, 0.0, 0.33]]
)


def unity_figure(image: Tensor, unity: Sequence[Tensor], threshold: float = 0.9) -> Figure:
    """Draw the unity of each level beside its image, and which level decides (Specialize and Fuse, Fig. 1).

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        unity: Probabilities of unity of one image, coarse to fine, each ``(h, w)`` with twice the sides of the one
            before; they cover the image from its left upper corner on, and may reach beyond it.
        threshold: A cell has unity if its probability reaches it, as in `fuse`.

    Returns:
        A matplotlib figure: the image; the levels, light where a cell has unity; the image in the colours of the levels
        that decide, with the share of pixels of each in the titles.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if a shape is not as said, there is no level or there are more than four.

    Note:
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> figure = unity_figure(torch.rand(3, 16, 32), [torch.tensor([[0.95, 0.3]]), torch.rand(2, 4)])
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['Image', 'Unity of 16 x 16 pixels, reached by 50 %']
    """
    check_image(image)
    if not 1 <= len(unity) < len(_LEVELS):
        raise ValueError(f"`unity` must hold 1 to {len(_LEVELS) - 1} levels, got {len(unity)}.")
    size = (image.shape[1], image.shape[2])
    levels = levels_used([u[None].float() for u in unity], threshold)[0]
    side = 2 ** _exponent(size, (levels.shape[0], levels.shape[1]))
    full = _repeat(levels.float(), side, size).long()
    step = coarsening(size)
    photo = image.detach().clamp(0, 1).expand(3, -1, -1).cpu()
    figure, panels, _ = page(size[1] / size[0], -(-(len(unity) + 2) // 3), 3)
    for spare in panels[len(unity) + 2 :]:
        spare.set_axis_off()
    draw_image(panels[0], shrink(photo, step), size, step, "Image")
    for number, (axes, probability) in enumerate(zip(panels[1:], unity, strict=False)):
        cell = side * 2 ** (len(unity) - number)
        plane = _repeat(probability.detach().float(), cell, size)
        share = (plane >= threshold).float().mean().item()
        title = f"Unity of {cell} x {cell} pixels, reached by {100 * share:.0f} %"
        draw_image(axes, shrink(plane[None], step)[..., 0], size, step, title, cmap=_COLORS, vmin=0, vmax=1)
    mixed = 0.45 * photo + 0.55 * _LEVELS[full].permute(2, 0, 1)
    shares = [(full == level).float().mean().item() for level in range(len(unity) + 1)]
    title = "Decided coarse to fine: " + ", ".join(f"{100 * share:.0f}" for share in shares) + " %"
    draw_image(panels[len(unity) + 1], shrink(mixed, step), size, step, title)
    draw_scale(figure, panels[0], (0.0, 1.0), _COLORS, "Probability of unity", mark=threshold)
    return figure


def _exponent(size: tuple[int, int], cells: tuple[int, int]) -> int:
    """Return by how many doublings cells first cover an image."""
    exponent = 0
    while cells[0] << exponent < size[0] or cells[1] << exponent < size[1]:
        exponent += 1
    return exponent


def _repeat(x: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Return values of cells ``(h, w)`` at each of their pixels, cropped to the image."""
    whole = F.interpolate(x[None, None], scale_factor=side, mode="nearest")[0, 0]
    return whole[: size[0], : size[1]].cpu()
