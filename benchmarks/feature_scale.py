"""How soft an assignment is, over feature maps of 3 to 2048 channels and over scales.

    python -m hggraph.benchmarks.feature_scale

Maps: scikit-learn's sample photo and the stages of a ResNet-50 on it. Its weights are random unless a file of
pretrained weights is given (``--weights FILE``), since nothing is downloaded here. For each map the table says the
mean entropy of a pixel's weights (nats; 0 is hard, log R is uniform), the share of pixels that no region reaches by
more than the threshold, and the regions that hold pixels. In the paper's form: with positions all of these are larger.
"""

from __future__ import annotations

import argparse
import math

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hggraph import SoftSLIC
from hggraph.cluster.clusterer import SPREAD, spread_scale
from hggraph.data.image import sample_photo

SPREADS = (1.0, 4.0, 9.0, 16.0, 36.0)


def maps(weights: str | None = None, side: int = 713) -> dict[str, Tensor]:
    torch.manual_seed(0)
    image = sample_photo()[None]
    image = torch.nn.functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
    overlay = {"file": weights} if weights else None
    net = timm.create_model("resnet50", pretrained=bool(weights), pretrained_cfg_overlay=overlay, output_stride=8)
    out = {"photo, 3": torch.nn.functional.avg_pool2d(image, 8, ceil_mode=True)}
    with torch.no_grad():
        x = net.train(not weights).maxpool(net.act1(net.bn1(net.conv1((image - 0.45) / 0.225))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(net, name)(x)
            out[f"{name}, {x.shape[1]}"] = x
    return out


def softness(x: Tensor, scale: str | float, num_regions: int) -> tuple[float, float, int]:
    slic = SoftSLIC.paper(num_regions=num_regions, feature_scale=scale).eval()
    assignment = slic(x)
    weight = assignment.to_dense()
    entropy = -(weight * weight.clamp(min=1e-30).log()).sum(-1).mean()
    features = x if isinstance(scale, str) else x * scale
    distance = torch.cdist(features.flatten(2).transpose(1, 2), assignment.centers).square()
    unreached = (distance.amin(-1) >= -math.log(slic.threshold)).float().mean()
    return float(entropy), float(unreached), int((assignment.area > 0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights")
    args = parser.parse_args()
    console = Console()
    for name, x in maps(args.weights).items():
        pixels = x.shape[2] * x.shape[3]
        num_regions = max(1, round(pixels / 64))
        table = Table(
            title=f"{name} channels, {x.shape[2]} x {x.shape[3]}, {num_regions} regions "
            f"(log R = {math.log(num_regions):.2f})"
        )
        for column in ("feature_scale", "entropy", "pixels out of reach", "regions with pixels"):
            table.add_column(column, justify="right")
        scales: dict[str, str | float] = {"none": "none"}
        for spread in SPREADS:
            label = f"spread {spread:g}" + (" (auto)" if spread == SPREAD else "")
            scales[label] = float(spread_scale(x)) * math.sqrt(spread / SPREAD)
        for label, scale in scales.items():
            entropy, unreached, used = softness(x, scale, num_regions)
            table.add_row(label, f"{entropy:.2f}", f"{unreached:.0%}", str(used))
        console.print(table)


if __name__ == "__main__":
    main()
