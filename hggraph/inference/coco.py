"""Boxes, masks and classes that were found: in COCO's format, and as pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hggraph._files import write_atomically
from hggraph._screen import harmless
from hggraph.inference.outputs import Color, class_colors

__all__ = ["boxes_picture", "class_picture", "coco_objects", "run_lengths", "write_predictions"]

LEAST_SCORE = 0.5  # of what is drawn
TEXT = 13  # pixels
Found = tuple[str, int, int, list[dict[str, Any]]]


def coco_objects(found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return an image's detections as COCO's results: boxes as (x, y, width, height), masks as run lengths.

    Args:
        found: ``boxes`` ``(N, 4)`` as corners in pixels, ``labels`` and ``scores`` ``(N,)``, and perhaps ``masks``
            ``(N, 1, H, W)``, probabilities.

    Example:
        >>> one = {"boxes": torch.tensor([[1.0, 2.0, 4.0, 6.0]])}
        >>> coco_objects(one | {"labels": torch.tensor([3]), "scores": torch.tensor([0.5])})
        [{'category_id': 3, 'score': 0.5, 'bbox': [1.0, 2.0, 3.0, 4.0]}]
    """
    boxes = found["boxes"].double()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    entries: list[dict[str, Any]] = [
        {"category_id": label, "score": score, "bbox": box}
        for label, score, box in zip(found["labels"].tolist(), found["scores"].tolist(), boxes.tolist(), strict=True)
    ]
    for entry, mask in zip(entries, found.get("masks", ()), strict=False):
        entry["segmentation"] = run_lengths(mask[0] > LEAST_SCORE)
    return entries


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """Return a mask ``(H, W)`` as COCO's uncompressed run lengths: down the columns, pixels outside first.

    Example:
        >>> run_lengths(torch.tensor([[0, 1], [1, 1]]))
        {'size': [2, 2], 'counts': [1, 3]}
    """
    runs = [(value, sum(1 for _ in group)) for value, group in groupby(mask.bool().T.flatten().tolist())]
    counts = [length for _, length in runs]
    return {"size": list(mask.shape), "counts": [0, *counts] if runs and runs[0][0] else counts}


def write_predictions(path: Path, images: Sequence[Found], classes: Sequence[str], first: int) -> None:
    """Write what was found in images: ``images``, ``categories`` and ``annotations``, as COCO's files have them.

    Args:
        path: The file.
        images: Name, height, width and entries of each image.
        classes: Names of the classes from `first` on; perhaps with that of the background, 0, before them.
        first: Number of the first class.
    """
    names = list(classes)
    categories = [{"id": first + i, "name": name} for i, name in enumerate(names)]
    content = {
        "images": [
            {"id": i, "file_name": name, "height": height, "width": width}
            for i, (name, height, width, _) in enumerate(images, start=1)
        ],
        "categories": categories,
        "annotations": [
            {"image_id": i} | entry for i, (_, _, _, entries) in enumerate(images, start=1) for entry in entries
        ],
    }
    text = json.dumps(content)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def boxes_picture(
    pixels: Tensor, found: Mapping[str, Tensor], classes: Sequence[str], palette: Sequence[Color] | None = None
) -> Image.Image:
    """Draw what a detector has found, from a score of a half on, over a photo ``(3, H, W)`` of bytes."""
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    keep = found["scores"] >= LEAST_SCORE
    labels = found["labels"][keep].tolist()
    table = list(palette) if palette else class_colors(256)[1:]
    colors = [table[(label - 1) % len(table)] for label in labels]
    drawn = pixels
    if "masks" in found and labels:
        drawn = draw_segmentation_masks(drawn, found["masks"][keep, 0] > LEAST_SCORE, alpha=0.5, colors=colors)
    if labels:
        drawn = draw_bounding_boxes(drawn, found["boxes"][keep], colors=colors, width=2)
    picture = _picture(drawn)
    for label, score, box in zip(labels, found["scores"][keep].tolist(), found["boxes"][keep].tolist(), strict=True):
        _write_on(picture, (box[0], box[1]), f"{_name(label - 1, classes)} {score:.2f}")
    return picture


def class_picture(pixels: Tensor, entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Image.Image:
    """Draw the most probable classes over a corner of a photo ``(3, H, W)`` of bytes."""
    picture = _picture(pixels)
    lines = [f"{_name(entry['category_id'], classes)} {entry['score']:.2f}" for entry in entries]
    _write_on(picture, (4, 4), "\n".join(lines))
    return picture


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _write_on(picture: Image.Image, place: tuple[float, float], text: str) -> None:
    """Write white on black, which can be read over any photo and mask."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=TEXT)
    draw.rectangle(draw.multiline_textbbox(place, text, font=font), fill=(0, 0, 0))
    draw.multiline_text(place, text, fill=(255, 255, 255), font=font)


def _name(label: int, classes: Sequence[str]) -> str:
    return harmless(classes[label]) if 0 <= label < len(classes) else f"class {label}"
