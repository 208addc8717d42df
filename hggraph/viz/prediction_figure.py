"""What a network sees in images, beside what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hggraph.viz.page import check_image, coarsening, page, shrink
from hggraph.viz.panels import draw_image
from hggraph.viz.shapes import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_labelled", "prediction_figure", "share_right"]


def prediction_figure(
    images: Sequence[Tensor],
    targets: Sequence[Tensor],
    predictions: Sequence[Tensor],
    palette: Sequence[tuple[int, int, int]],
    *,
    names: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> Figure:
    """Draw images, targets and predictions in the classes' colours, a row for each image.

    Args:
        images: Colours in [0, 1], each ``(3, H, W)`` or ``(1, H, W)``.
        targets: Classes, each ``(H, W)``; where they are `ignore_index` all is white.
        predictions: Classes, each ``(H, W)``.
        palette: A colour from 0 to 255 for each class.
        names: A title for each image.
        ignore_index: The label that does not count.

    Returns:
        A matplotlib figure. The prediction's title says how many of the pixels that count it gets right.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no image, or sizes disagree.

    Example:
        >>> image, target = torch.rand(3, 8, 10), torch.zeros(8, 10, dtype=torch.long)
        >>> figure = prediction_figure([image], [target], [target], [(128, 64, 128)])
        >>> figure.axes[2].get_title(loc="left")
        'Prediction, 100.0 % right'
    """
    check_labelled(images, targets, predictions, names)
    colors = torch.tensor([*palette, (255, 255, 255)], dtype=torch.float32) / 255
    figure, panels, _ = page(images[0].shape[2] / images[0].shape[1], len(images), 3)
    for i, (image, target, prediction) in enumerate(zip(images, targets, predictions, strict=True)):
        size = (image.shape[1], image.shape[2])
        counts: Tensor = target != ignore_index
        right = share_right(prediction, target, ignore_index)
        step = coarsening(size)
        pictures = {
            "Image" if names is None else names[i]: shrink(image.detach().clamp(0, 1).expand(3, -1, -1), step),
            "Target": _colored(target, counts, colors, step),
            f"Prediction, {100 * right:.1f} % right": _colored(prediction, counts, colors, step),
        }
        for panel, (title, picture) in zip(panels[3 * i : 3 * i + 3], pictures.items(), strict=True):
            draw_image(panel, picture, size, step, title)
    return figure


def check_labelled(
    images: Sequence[Tensor], targets: Sequence[Tensor], predictions: Sequence[Tensor], names: Sequence[str] | None
) -> None:
    """Raise a ValueError unless there is an image, and a target, a prediction and a name of each, of its size."""
    if not images or not len(images) == len(targets) == len(predictions):
        found = f"{len(images)}, {len(targets)} and {len(predictions)}"
        raise ValueError(f"`images`, `targets` and `predictions` must be as many, at least one, got {found}.")
    if names is not None and len(names) != len(images):
        raise ValueError(f"`names` must be as many as `images`, {len(images)}, got {len(names)}.")
    for image, target, prediction in zip(images, targets, predictions, strict=True):
        check_image(image)
        size = (image.shape[1], image.shape[2])
        if tuple(target.shape) != size or tuple(prediction.shape) != size:
            shapes = f"{tuple(target.shape)} and {tuple(prediction.shape)}"
            raise ValueError(f"Target and prediction must have the image's size {size}, got {shapes}.")


def share_right(prediction: Tensor, target: Tensor, ignore_index: int) -> float:
    """Return the share of the pixels that count, in [0, 1], where a prediction is right; 1 where none counts."""
    counts: Tensor = target != ignore_index
    return (prediction == target)[counts].float().mean().item() if counts.any() else 1.0


def _colored(labels: Tensor, counts: Tensor, colors: Tensor, step: int) -> Floats:
    """Return labels as colours, every `step`-th pixel: classes have no mean."""
    last = len(colors) - 1
    shown = torch.where(counts, labels.long().clamp(0, last), last).cpu()[::step, ::step]
    height, width = labels.shape[0] // step, labels.shape[1] // step
    return np.asarray(colors[shown][:height, :width])
