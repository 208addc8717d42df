"""Regions of a photo of fur by the paper's soft SLIC with six candidates and by the default: docs/clustering.md.

    python -m hggraph.benchmarks.regions_before_after [--out FILE] [--regions N]

The photo is scikit-image's "chelsea" (by Stefan van der Walt, CC0). Region borders are drawn thin over it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hggraph import Assignment, SoftSLIC
from hggraph.viz import save_figure
from hggraph.viz.page import page
from hggraph.viz.panels import draw_borders, draw_image

# isort: split
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor


def fur_photo() -> Tensor:
    """Return scikit-image's photo of a cat, shape ``(3, 300, 451)``, in [0, 1]."""
    from skimage.data import chelsea

    return torch.from_numpy(chelsea()).permute(2, 0, 1).float().div_(255).contiguous()


def count_pieces(assignment: Assignment) -> int:
    """Return the number of 4-connected pieces of all regions."""
    from skimage.measure import label

    return int(label(assignment.labels[0].numpy(), connectivity=1, background=-1).max())


def before_after(photo: Tensor, num_regions: int) -> Figure:
    """Draw the borders of both forms' regions over the photo, side by side."""
    old = SoftSLIC(
        num_regions=num_regions,
        candidates=6,
        feature_scale="photo",
        update="column",
        sampling="topk_random",
        iterations=3,
        position=2.5,
        smooth=0.0,
        connected=False,
        threshold=1e-3,
    )
    new = SoftSLIC(num_regions=num_regions, feature_scale="photo")
    size = (photo.shape[1], photo.shape[2])
    picture = photo.permute(1, 2, 0).numpy()
    figure, panels, _ = page(size[1] / size[0], 1, 2, largest=(9.2, 6.0))
    for panel, name, clusterer in zip(panels, ("Before", "Now"), (old, new), strict=True):
        with torch.inference_mode():
            found = clusterer.eval()(photo[None])
        used = len(np.unique(found.labels))
        draw_image(
            panel, picture, size, 1, f"{name}: {used:,} of {num_regions} regions, {count_pieces(found):,} pieces"
        )
        draw_borders(panel, found.labels[0].numpy(), picture, 1, width=0.5)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures/regions_before_after.png"))
    parser.add_argument("--regions", type=int, default=300)
    arguments = parser.parse_args()
    save_figure(before_after(fur_photo(), arguments.regions), arguments.out, dpi=110)
    with Image.open(arguments.out) as drawn:
        small = drawn.convert("RGB").quantize(160, dither=Image.Dither.NONE)  # a third of the bytes
    small.save(arguments.out, optimize=True)
