"""The page that panels are drawn on: its layout, how finely pictures show on it, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from hggraph._files import write_atomically
from hggraph.viz.shapes import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_image", "coarsening", "page", "save_figure", "shrink"]

_PAGE = (13.4, 12.0)  # largest width and height of the panels together, in inches
_LEAST = (3.6, 0.8)  # smallest width and height of a panel
_GAP, _TITLE = 0.12, 0.32  # between panels and over each, in inches
_LONG_SIDE = 1000  # pixels; larger images are drawn smaller, a panel shows no more


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
        >>> import tempfile, torch
        >>> from hggraph.viz import region_figure
        >>> figure = region_figure(torch.rand(3, 24, 32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(figure, f"{folder}/figure.png")
        ...     [path.name for path in Path(folder).iterdir()]
        ['figure.png']
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi))


def page(
    aspect: float,
    rows: int,
    columns: int,
    *,
    largest: tuple[float, float] = _PAGE,
    least: tuple[float, float] = _LEAST,
    below: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes], tuple[float, float]]:
    """Return a figure, its panels row by row, and their size in inches.

    Args:
        aspect: Width of the images over their height.
        rows: Panels below one another.
        columns: Panels side by side.
        largest: Width and height of all panels together, in inches.
        least: Smallest width and height of a panel, in inches: room for its title.
        below: Room under each row, in inches, for scales; none when None.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib, which is not installed: pip install "hggraph[viz]"') from error
    below = [0.0] * rows if below is None else below
    across, down = largest[0] / columns, largest[1] / rows
    across = max(min(across, down * aspect), least[0])
    down = max(min(down, across / aspect), least[1])
    width = columns * (across + _GAP) + _GAP
    height = rows * (down + _TITLE + _GAP) + sum(below)
    figure = Figure(figsize=(width, height), facecolor="white")
    panels = []
    for panel in range(rows * columns):
        row, column = divmod(panel, columns)
        left = _GAP + column * (across + _GAP)
        bottom = height - (row + 1) * (down + _TITLE) - row * _GAP - sum(below[:row])
        box = (left / width, bottom / height, across / width, down / height)
        panels.append(figure.add_axes(box))
    return figure, panels, (across, down)


def check_image(image: Tensor) -> None:
    """Raise unless this is a picture, ``(3, H, W)`` or ``(1, H, W)``, floating point."""
    if image.dim() != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise ValueError(
            "`image` must be floating point of shape (3, H, W) or (1, H, W), got "
            f"{image.dtype} of shape {tuple(image.shape)}."
        )


def coarsening(size: tuple[int, int]) -> int:
    """Return how many pixels of an image, along each side, one pixel of its drawing stands for."""
    return min(-(-max(size) // _LONG_SIDE), *size)


def shrink(picture: Tensor, step: int) -> Floats:
    """Return a map (C, H, W) as (h, w, C), one pixel for ``step x step``."""
    pooled = F.avg_pool2d(picture[None].float(), step)[0]
    return pooled.permute(1, 2, 0).cpu().numpy()
