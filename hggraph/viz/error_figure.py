"""Where networks are wrong, over the photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from hggraph.viz.page import coarsening, page, shrink
from hggraph.viz.panels import draw_image
from hggraph.viz.prediction_figure import check_labelled, share_right
from hggraph.viz.scale import make_room
from hggraph.viz.shapes import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["error_figure"]

_WRONG, _IGNORED = (0.84, 0.0, 0.13), (0.42, 0.45, 0.5)
_WHITE = 0.68  # share of white in the photo
_LEGEND = 0.34  # inches under the panels


def error_figure(
    images: Sequence[Tensor],
    targets: Sequence[Tensor],
    predictions: Sequence[Tensor],
    *,
    before: Sequence[Tensor] | None = None,
    networks: tuple[str, str] = ("Before", "After"),
    names: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> Figure:
    """Draw where predictions are wrong, a row for each image (as GALD, Li et al. 2021, Fig. 10).

    Args:
        images: Colours in [0, 1], each ``(3, H, W)`` or ``(1, H, W)``.
        targets: Classes, each ``(H, W)``; where they are `ignore_index`, nothing is wrong.
        predictions: Classes, each ``(H, W)``.
        before: Predictions of another network, drawn between the image and those of this one.
        networks: What the titles call the other network and this one, where there are two.
        names: A title for each image.
        ignore_index: The label that does not count.

    Returns:
        A matplotlib figure: the image, then it in pale colours with wrong pixels red and those that do not count grey.
        Titles say how many of the pixels that count are wrong.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if there is no image, or numbers or sizes disagree.

    Note:
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> import torch
        >>> image, target = torch.rand(3, 8, 10), torch.zeros(8, 10, dtype=torch.long)
        >>> prediction = target.clone()
        >>> prediction[:2] = 1
        >>> figure = error_figure([image], [target], [target], before=[prediction])
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['Image', 'Before, 25.0 % wrong', 'After, 0.0 % wrong']
    """
    sets = {"": predictions} if before is None else {networks[0]: before, networks[1]: predictions}
    for several in sets.values():
        check_labelled(images, targets, several, names)
    columns = 1 + len(sets)
    figure, panels, _ = page(images[0].shape[2] / images[0].shape[1], len(images), columns)
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        size = (image.shape[1], image.shape[2])
        step = coarsening(size)
        colors = shrink(image.detach().clamp(0, 1).expand(3, -1, -1), step)
        photo, *maps = panels[columns * i : columns * (i + 1)]
        draw_image(photo, colors, size, step, "Image" if names is None else names[i])
        for panel, (network, several) in zip(maps, sets.items(), strict=True):
            wrong = 100 * (1 - share_right(several[i], target, ignore_index))
            title = f"{network}, {wrong:.1f} % wrong" if network else f"{wrong:.1f} % wrong"
            draw_image(panel, _error_map(colors, several[i], target, ignore_index, step), size, step, title)
    _draw_legend(figure)
    return figure


def _error_map(colors: Floats, prediction: Tensor, target: Tensor, ignore_index: int, step: int) -> Floats:
    """Return colours of errors over a pale photo; a pixel that stands for several mixes them."""
    counts: Tensor = target != ignore_index
    wrong: Tensor = (prediction != target) & counts
    picture = _WHITE + (1 - _WHITE) * colors
    for where, color in ((wrong, _WRONG), (~counts, _IGNORED)):
        share = shrink(where[None], step)
        picture = picture + share * (np.array(color) - picture)
    return picture


def _draw_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    make_room(figure, _LEGEND)
    handles = [Patch(color=_WRONG, label="wrong"), Patch(color=_IGNORED, label="does not count")]
    left = 72 * figure.axes[0].get_position().x0 * figure.get_size_inches()[0] / 10.5
    figure.legend(handles=handles, loc="lower left", ncols=2, frameon=False, fontsize=10.5, borderaxespad=left)
