"""Regions of a network's feature maps, form by form: how pure, how local, how soft, how long they take.

    python -m hggraph.benchmarks.map_regions CAMVID_FOLDER [--weights MOBILENET_V2.pth] [--every N] [--json FILE]

The map is that of torchvision's MobileNetV2 up to stride 8 (32 channels, 45 x 60 for a frame of 360 x 480), with
ImageNet weights from a file; without one they are random, and the table says so. Purity is the share of labelled pixels
of the map whose class is the largest one of their region; distance is that of a pixel to its region's middle, in pixels
of the map; time is of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from hggraph import Assignment, SoftSLIC
from hggraph.data import CamVid
from hggraph.metrics import describe_regions

# isort: split
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

FORMS: dict[str, Callable[[int], SoftSLIC]] = {
    "paper, features as they are": lambda n: SoftSLIC.paper(n),
    "paper, scaled features": lambda n: SoftSLIC.paper(n, feature_scale="auto"),
    "softmax, no positions": lambda n: SoftSLIC(n, position=0.0, candidates=None),
    "column, positions": lambda n: SoftSLIC(n, update="column"),
    "the default": lambda n: SoftSLIC(n),
    "the default, all regions": lambda n: SoftSLIC(n, candidates=None),
    "the default, five iterations": lambda n: SoftSLIC(n, iterations=5),
    "the default, seeds by density": lambda n: SoftSLIC(n, sampling="density"),
    "the default, position 1.25": lambda n: SoftSLIC(n, position=1.25),
    "the default, position 5": lambda n: SoftSLIC(n, position=5.0),
    "the default, connected": lambda n: SoftSLIC(n, connected=True),
    "regular cells": lambda n: SoftSLIC(n, position=1e3),
}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def trunk_of(weights: Path | None) -> nn.Module:
    """Return MobileNetV2 up to stride 8."""
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2()
    if weights is not None:
        net.load_state_dict(torch.load(weights, weights_only=True))
    return net.features[:7].eval()


def measures(assignment: Assignment, target: Tensor) -> dict[str, float]:
    """Return what is measured of one map and its classes ``(H, W)``, 255 where none counts."""
    labels, classes = assignment.labels[0], target.long()
    seen = classes != 255
    count = torch.zeros(assignment.num_regions, 12).index_put_(
        (labels[seen], classes[seen]), torch.ones(()), accumulate=True
    )
    place = torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in labels.shape), indexing="ij"))[None]
    away = (assignment.harden().unpool(assignment.harden().pool(place)) - place).square().sum(1).sqrt()
    weight = assignment.weight
    return {
        "regions": float(assignment.num_regions),
        "pieces": float(describe_regions(labels)["pieces"]),
        "purity": float(count.amax(1).sum() / count.sum()),
        "distance": float(away.mean()),
        "entropy": float(-(weight * weight.clamp(min=1e-12).log()).sum(1).mean()),
    }


@torch.no_grad()
def main() -> None:
    """Measure all forms at one region for 64, 16 and 4 pixels of the map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trunk, frames = trunk_of(options.weights), CamVid(options.folder, "val")
    maps = []
    for number in range(0, len(frames), options.every):
        sample = frames[number]
        image = (sample["image"].float() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        features = trunk(image[None])
        maps.append((features, F.interpolate(sample["mask"][None, None].float(), features.shape[2:])[0, 0]))
    kind = "random" if options.weights is None else "ImageNet"
    rows = []
    for pixels in (64, 16, 4):
        for name, make in FORMS.items():
            clusterer, found, seconds = make(pixels).eval(), [], []
            for features, target in maps:
                start = time.process_time()
                assignment = clusterer(features)
                seconds.append(time.process_time() - start)
                found.append(measures(assignment, target))
            row = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
            rows.append({"pixels": pixels, "form": name, **row, "ms": 1e3 * sorted(seconds)[len(seconds) // 2]})
    table = Table(title=f"{len(maps)} CamVid validation frames, MobileNetV2 at stride 8, {kind} weights")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "form" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console(width=140).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
