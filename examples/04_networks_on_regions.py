"""A segmentation network whose last stage runs on regions: operations, folding, and attention that steers it.

    python examples/04_networks_on_regions.py [--depth N] [--pretrained] [--out DIR]

Builds a dense ResNet and the HG-ResNet of the same weights, counts what each costs, folds the HG-ResNet for inference
and compares its logits, then draws where its regions go without and with attention to the leaves in a photo, which
have too little detail to draw any by themselves.
"""

import argparse
import importlib.util
from pathlib import Path

from hggraph import SoftSLIC
from hggraph.data import sample_photo
from hggraph.models import count, hg_resnet
from hggraph.viz import focus_figure, save_figure

# isort: split
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import avg_pool2d

CLASSES, SIZE = 19, (713, 713)
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet


def print_counts(depth: int) -> None:
    """Print parameters and multiply-adds of the dense network and those on regions, with all that regions cost."""
    table = Table("network", title=f"ResNet-{depth}, {SIZE[0]} x {SIZE[1]}, {CLASSES} classes")
    for column in ("parameters, M", "multiply-adds, G", "folded, G"):
        table.add_column(column, justify="right")
    for name, hg_stages in [("dense", ()), ("stage 4 on regions", (4,)), ("stages 3 and 4 on regions", (3, 4))]:
        net = hg_resnet(depth, "dilation", hg_stages, CLASSES, aux=False)
        whole, folded = count(net, SIZE)[-1], count(net.fold(), SIZE)[-1]
        cells = (whole.parameters / 1e6, whole.macs / 1e9, folded.macs / 1e9)
        table.add_row(name, *(f"{cell:.1f}" for cell in cells))
    Console().print(table)


def attention_to_leaves(photo: Tensor) -> Tensor:
    """Return 1 where a photo is blue-green, 0 elsewhere, shape ``(H, W)``: as a prediction or a click would be."""
    red, green, blue = avg_pool2d(photo, 9, stride=1, padding=4)  # without specks
    return ((red < 0.1) & (green > 0.22) & (blue > 0.2)).float()


def main(depth: int = 18, pretrained: bool = False, out: str | Path = "demo") -> torch.nn.Module:
    """Print the counts, fold, steer and draw; return the network on regions."""
    torch.manual_seed(0)
    print_counts(depth)

    clusterer = SoftSLIC(downsample=16)  # 16 pixels of the stage's map to a region, finer than the default 64
    net = hg_resnet(depth, num_classes=CLASSES, clusterer=clusterer, pretrained=pretrained).eval()
    photo = sample_photo("flower")  # (3, H, W), in [0, 1]
    x = ((photo - MEAN[:, None, None]) / DEVIATION[:, None, None])[None]
    attention = attention_to_leaves(photo)
    with torch.inference_mode():
        logits = net(x)["out"]
        folded = net.fold()(x)["out"]
        plain = net(x, return_regions=True)["regions"][0]
        steered = net(x, attention[None], return_regions=True)["regions"][0]
    print(f"\nlogits {tuple(logits.shape)}; folded, they differ by {(folded - logits).abs().max():.1e}")
    print(f"regions as a PyG graph: {plain.graph[0]}")

    if importlib.util.find_spec("matplotlib") is None:
        print('\nNo figure: matplotlib is not installed (pip install "hggraph[viz]").')
        return net
    path = Path(out) / "networks_on_regions.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(focus_figure(photo, plain.assignment, steered.assignment, attention), path)
    print(f"\nFigure: {path}")
    return net


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--depth", type=int, default=18, choices=(18, 34, 50, 101))
    parser.add_argument("--pretrained", action="store_true", help="download timm's ImageNet weights")
    parser.add_argument("--out", default="demo", help="folder for the figure")
    main(**vars(parser.parse_args()))
