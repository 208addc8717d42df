"""The masks of GALD's first local distribution, beside the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hggraph.nn._conv import resize
from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import draw_image
from hggraph.viz.scale import color_range, draw_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["mask_figure"]

_COLORS = "viridis"


def mask_figure(image: Tensor, mask: Tensor) -> Figure:
    """Draw the mean of masks over channels beside their image (as GALD, Li et al. 2021, Fig. 7).

    Args:
        image: Colours in [0, 1], shape ``(3, H, W)``, or ``(1, H, W)`` for grey.
        mask: The masks M of one image, shape ``(C, h, w)``, or their mean ``(h, w)``: `LocalDistributionV1.mask`, or
            ``net.inspect(x)[0]`` of a `GALD` network.

    Returns:
        A matplotlib figure: the image; the mean of M, resized to the image (bilinear, corners on corners), with a
        colour scale from its least to its greatest value.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if a shape is not as said, or the mask is not floating point.

    Note:
        matplotlib's object interface only: no window and no global state. Deterministic.

    Example:
        >>> import torch
        >>> figure = mask_figure(torch.rand(3, 24, 32), torch.rand(8, 4, 5))
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['Image', 'Mean of M over 8 channels', 'Mean of M']
    """
    check_image(image)
    if mask.dim() not in (2, 3) or 0 in mask.shape or not mask.is_floating_point():
        raise ValueError(
            f"`mask` must be floating point of shape (C, h, w) or (h, w), got {mask.dtype} of shape "
            f"{tuple(mask.shape)}. Take one image of a batch."
        )
    size = (image.shape[1], image.shape[2])
    step = coarsening(size)
    mean = mask.detach().float()
    mean = mean.mean(0) if mean.dim() == 3 else mean
    title = "Mean of M" + (f" over {len(mask)} channels" if mask.dim() == 3 else "")
    figure, (left, right), _ = page(size[1] / size[0], 1, 2)
    draw_image(left, shrink(image.detach().clamp(0, 1).expand(3, -1, -1), step), size, step, "Image")
    limits = (float(mean.min()), float(mean.max()))
    drawn = shrink(resize(mean[None, None], size)[0], step)[..., 0]
    least, most = color_range(limits)
    draw_image(right, drawn, size, step, title, cmap=_COLORS, vmin=least, vmax=most)
    draw_scale(figure, right, limits, _COLORS, "Mean of M")
    return figure
