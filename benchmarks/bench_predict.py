"""Prediction of a folder of photos, reading and writing included.

    python -m hggraph.benchmarks.bench_predict [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

HG-ResNet18 with 11 classes on photos of 480 x 360 pixels, cut from scikit-learn's two, to label pictures and overlays:
`predict_folder` as ``hggraph predict`` calls it, against the loop that one writes by hand, the network as it was
trained, one photo after the other. What agrees: the label pictures, pixel by pixel.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from hggraph.benchmarks._measure import Report, agree
from hggraph.benchmarks._setting import options
from hggraph.benchmarks.bench_training import CLASSES, write_photos
from hggraph.data import EvalTransform, load_image
from hggraph.inference import Predictor, Trained, predict_folder, save_labels, save_overlay
from hggraph.models import hg_resnet

# isort: split
import torch
from torch import nn

TITLE = "Prediction of a folder of photos"


def network() -> nn.Module:
    """Return a network whose normalisations are none of the identity."""
    torch.manual_seed(0)
    net = hg_resnet(18, num_classes=CLASSES).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.normal_(part.running_mean, std=0.1)
    return net


def by_hand(net: nn.Module, transform: EvalTransform, photos: Sequence[Path], out: Path, device: torch.device) -> None:
    """Predict photos one after the other."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    for kind in ("labels", "overlay"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    for path in photos:
        image = load_image(path)
        with torch.inference_mode():
            labels = net(((image - mean) / std)[None].to(device))["out"].softmax(1).argmax(1)[0].cpu()
        save_labels(labels, out / "labels" / f"{path.stem}.png", num_classes=CLASSES)
        save_overlay(image, labels, out / "overlay" / f"{path.stem}.png")


def pictures(folder: Path) -> torch.Tensor:
    """Return the label pictures of a folder."""
    found = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            found.append(np.array(picture))
    return torch.from_numpy(np.stack(found))


def measure(report: Report) -> None:
    """Time both ways with batches of one and of four."""
    device, transform = report.setting.device, EvalTransform()
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), 3 if report.quick else 40)
        photos = sorted(Path(folder, "images").iterdir())
        net = network().to(device)
        trained = Trained(network(), "segmentation", (), (), transform)
        silent = Console(file=io.StringIO())
        predictors = {
            f"predict_folder, batches of {n}": Predictor(trained, batch_size=n, device=device) for n in (1, 4)
        }
        outs = {name: Path(folder, f"out{i}") for i, name in enumerate(predictors)}
        contenders = {"by hand": lambda: by_hand(net, transform, photos, Path(folder, "hand"), device)}
        for name, predictor in predictors.items():
            contenders[name] = lambda predictor=predictor, name=name: predict_folder(
                predictor, photos, outs[name], overlay=True, console=silent
            )
        timings = report.time(contenders, warmup=1)
        for name, out in outs.items():
            same = agree(
                f"labels: {name} = by hand", pictures(out / "labels"), pictures(Path(folder, "hand/labels")), 0
            )
            report.more.setdefault("images_per_second", {})[name] = len(photos) / timings[name].median
            report.ratio(f"by hand / {name}", timings["by hand"], timings[name], same, at_least=1.5)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=5)
    report = Report("predict", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
