"""Targets of detectors, checked before they reach a loss, where on a GPU a wrong label ends the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["check_targets"]


def check_targets(
    images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], num_classes: int, *, masks: bool = False
) -> None:
    """Raise a `ValueError` that names image and box unless targets fit their images.

    Args:
        images: Images ``(C, H, W)``.
        targets: For each image ``boxes`` (N, 4), ``labels`` (N,) and, with `masks`, ``masks`` (N, H, W).
        num_classes: Classes with the background: labels are from 1 to one less.
        masks: Whether masks are needed.

    Note:
        Reads the data: a GPU is waited for.
    """
    if len(targets) != len(images):
        raise ValueError(f"`targets` must hold one for each of {len(images)} images, got {len(targets)}.")
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        where = f"`targets[{number}]`"
        needed = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
        missing = [name for name in needed if not isinstance(target.get(name), Tensor)]
        if missing:
            raise ValueError(f"{where} must have tensors {', '.join(needed)}, got none for {', '.join(missing)}.")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{where}: `boxes` must have shape (N, 4), got {tuple(boxes.shape)}.")
        bad = ~((boxes[:, 2:] > boxes[:, :2]) & boxes.isfinite().view(-1, 2, 2).all(1)).all(1)  # NaN is above nothing
        if bad.any():
            box = int(bad.nonzero()[0])
            expected = "numbers (x1, y1, x2, y2) with x1 < x2 and y1 < y2"
            raise ValueError(f"{where}: `boxes` must be {expected}, got {boxes[box].tolist()} for box {box}.")
        if labels.shape != boxes.shape[:1] or labels.is_floating_point():
            got = f"{labels.dtype} {tuple(labels.shape)}"
            raise ValueError(f"{where}: `labels` must be a whole number for each of {len(boxes)} boxes, got {got}.")
        bad = (labels < 1) | (labels >= num_classes)
        if bad.any():
            box = int(bad.nonzero()[0])
            expected = f"from 1 to {num_classes - 1} (0 is the background)"
            raise ValueError(f"{where}: `labels` must be {expected}, got {labels[box].item()} for box {box}.")
        shape = (len(boxes), *image.shape[-2:])
        if masks and target["masks"].shape != shape:
            got = str(tuple(target["masks"].shape))
            raise ValueError(f"{where}: `masks` must have the shape {shape} of boxes and image, got {got}.")
