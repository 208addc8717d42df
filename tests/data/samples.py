"""Samples whose colours say where they are and what they show."""

import torch
from hypothesis import strategies as st
from torchvision import tv_tensors

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
sides = st.integers(1, 40)


def ramp(height, width):
    """Return a sample whose colours say where they are: (column, row, 255) in 255ths; the mask holds the column."""
    columns = torch.arange(width).expand(height, width)
    rows = torch.arange(height)[:, None].expand(height, width)
    image = torch.stack([columns, rows, torch.full((height, width), 255)]) / 255
    return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(columns.to(torch.uint8)), "name": "ramp"}


def blobs(height, width):
    """Return a sample of uint8 whose colour encodes its class: 1 to 5 in bands of many pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    label = 1 + (x // 20 + y // 17) % 5
    image = torch.stack([label * 50, 255 - label * 50, label * 20 + 100]).to(torch.uint8)
    return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(label.to(torch.uint8)), "name": "blobs"}


def objects():
    """Return a sample with three rectangles, their boxes and masks."""
    corners = torch.tensor([[10, 8, 22, 20], [40, 5, 58, 12], [30, 25, 50, 46]])
    masks = torch.zeros(3, 48, 64, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, corners.tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    label = (masks * torch.tensor([1, 2, 3])[:, None, None]).sum(0).to(torch.uint8)
    return {
        "image": tv_tensors.Image((label * 60 + 10).expand(3, 48, 64).contiguous()),
        "mask": tv_tensors.Mask(label),
        "masks": tv_tensors.Mask(masks),
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(48, 64)),
        "labels": torch.tensor([1, 2, 3]),
        "name": "objects",
    }
