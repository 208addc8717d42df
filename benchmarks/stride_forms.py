"""What a CNN's deep strides are worth as regions: CamVid, 10 epochs, a frozen fine trunk; docs/results.md.

    python -m hggraph.benchmarks.stride_forms --root CAMVID --weights FILE --out FOLDER [--seeds 0 1 2] [--forms F...]
    python -m hggraph.benchmarks.stride_forms --out FOLDER --times [--forms F...]
    python -m hggraph.benchmarks.stride_forms --out FOLDER --table [--plot FILE]

MobileNetV2 with ImageNet weights up to stride 8 is frozen; its maps of the training crops (six of each frame, drawn
once) and of the validation frames lie in FOLDER. What is trained: the deep blocks (rate 5e-4), from ImageNet too, and
the head (2e-3). All forms of a seed see the same batches and begin with the same head. A finished run is not done
again; several processes share what is left. --times is for an idle machine: one thread, the whole network with its
trunk, inference of a frame of 360 x 480 and a training step of 8 crops of 256 x 320, the forms in turns, as ratios to
"strided".
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hggraph import SoftSLIC
from hggraph._files import write_atomically
from hggraph.cluster import Cells, Superpixels, Voronoi
from hggraph.data import CamVid, EvalTransform, TrainTransform
from hggraph.engine.task import poly_schedule
from hggraph.metrics import BoundaryF, MeanIoU
from hggraph.models import hg_cnn
from hggraph.models.hg_cnn import HGCNN
from hggraph.viz import save_figure

CROP, BATCH, EPOCHS, VARIANTS = (256, 320), 8, 10, 6
MARKERS = "osD^v<>Pph"
THIN = ("pole", "sign", "pedestrian", "bicyclist")


def learned(*channels: int) -> list[nn.Module]:
    """Return a clusterer for each level: one softmax over learned embeddings, no iteration."""
    return [SoftSLIC(4, iterations=1, position=2.5, projection=nn.Conv2d(number, 16, 1)) for number in channels]


def map_slic(image: Any, number: int) -> Any:
    """Return scikit-image's SLIC of a map, its 3 principal channels."""
    import numpy as np
    from skimage.segmentation import slic

    flat = image.reshape(-1, image.shape[2])
    _, _, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    seen = ((flat - flat.mean(0)) @ axes[:3].T).reshape(*image.shape[:2], 3)
    labels = slic(seen / (seen.std() + 1e-6), number, compactness=1.0, start_label=0, convert2lab=False)
    return np.minimum(labels, number - 1)


FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "left out": lambda: {"deep": "none"},
    "strided": lambda: {"deep": "strided"},
    "stretched": lambda: {"deep": "strided"},
    "upsampled": lambda: {"deep": "upsampled"},
    "regions": dict,
    "learned": lambda: {"clusterer": learned(32, 96)},
    "cells, sampled": lambda: {"clusterer": Cells(), "pooling": "sample"},
    "jump 64": lambda: {"steps": False, "clusterer": SoftSLIC(64)},
    "cells": lambda: {"clusterer": Cells()},
    "dense": lambda: {"deep": "dense"},
    "warp half": lambda: {"clusterer": [SoftSLIC(8, sampling="warp"), SoftSLIC(4)]},
    "grid half": lambda: {"clusterer": [SoftSLIC(8), SoftSLIC(4)]},
    "warp": lambda: {"clusterer": [SoftSLIC(4, sampling="warp"), SoftSLIC(4)]},
    "borders": lambda: {"directions": "borders"},
    "geometry": lambda: {"directions": "geometry"},
    "alone": lambda: {"directions": "alone"},
    "shuffled": lambda: {"directions": "shuffled"},
    "not nested": lambda: {"nested": False},
    "nearest back": lambda: {"back": "nearest"},
    "bilinear back": lambda: {"back": "bilinear"},
    "voronoi": lambda: {"clusterer": Voronoi(4), "nested": False, "directions": "geometry"},
    "superpixels": lambda: {
        "clusterer": Superpixels(map_slic, 4),
        "nested": False,
        "directions": "geometry",
    },
    "jump 16": lambda: {"steps": False, "clusterer": SoftSLIC(16)},
    "jump 4": lambda: {"steps": False, "clusterer": SoftSLIC(4)},
}


class Stretched(HGCNN):
    """The strided form as ``interpolate(size=...)`` brings it back, where a side leaves a rest beyond its cells."""

    def predict(self, x: Tensor, attention: Tensor | None) -> Any:
        """Return logits at the fine map's size."""
        fine, last = self.trunk(x)
        last = F.interpolate(last, fine.shape[2:], mode="bilinear", align_corners=False)
        return {"out": self.head(self.mix(torch.cat([fine, last], 1)))}, []


def make(form: str, weights: str | bool, seed: int) -> HGCNN:
    """Return the network of a form; the head is the same for all of a seed."""
    torch.manual_seed(seed)
    net = hg_cnn(num_classes=11, pretrained=weights, aux=False, head_channels=128, **FORMS[form]())
    if form == "stretched":
        net.__class__ = Stretched
    generator = torch.Generator().manual_seed(seed)
    for layer in (*net.head, net.mix):
        if isinstance(layer, nn.Conv2d):
            bound = (layer.in_channels * layer.kernel_size[0] ** 2) ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    return net


def fine_trunk(weights: str) -> nn.Module:
    """Return the layers up to stride 8, frozen."""
    return hg_cnn(num_classes=11, deep="none", pretrained=weights, aux=False).trunk.eval().requires_grad_(False)


def without_fine(net: HGCNN) -> HGCNN:
    """Make a network take the map of stride 8 in place of the photo."""
    trunk: Any = net.trunk
    trunk.conv_stem = trunk.bn1 = nn.Identity()
    for i in range(3):
        trunk.blocks[i] = nn.Identity()
    return net


@torch.no_grad()
def cached(root: Path, weights: str, out: Path) -> dict[str, Tensor]:
    """Return maps and masks of the training crops and the validation frames, made once."""
    path = out / "features.pt"
    if path.is_file():
        return torch.load(path, weights_only=True, mmap=True)
    torch.manual_seed(0)
    trunk = fine_trunk(weights)
    train = CamVid(root, "train", transform=TrainTransform(crop=CROP, scale=(0.75, 1.5), flip=0.5, color=0.2))
    found: dict[str, list[Tensor]] = {name: [] for name in ("train", "train_mask", "val", "val_mask")}
    for split, data, times in (("train", train, VARIANTS), ("val", CamVid(root, "val", transform=EvalTransform()), 1)):
        for _ in range(times):
            for i in range(len(data)):
                sample = data[i]
                found[split].append(trunk(sample["image"][None])[0].half())
                found[f"{split}_mask"].append(sample["mask"][None].to(torch.uint8))
    result = {name: torch.cat(parts) for name, parts in found.items()}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: torch.save(result, temporary))
    return result


def predict(net: HGCNN, x: Tensor, size: Any, attention: Tensor | None = None) -> Tensor:
    """Return logits at the photo's size of maps of stride 8."""
    logits = net.predict(x, attention)[0]["out"]
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def train(net: HGCNN, data: dict[str, Tensor], seed: int, log: Callable[[str], None]) -> None:
    """Train the deep blocks and the head."""
    torch.manual_seed(seed)
    net.train().to(memory_format=torch.channels_last)
    deep = [p for name, p in net.named_parameters() if name.startswith("trunk.") and "region_levels" not in name]
    new = [p for name, p in net.named_parameters() if not name.startswith("trunk.") or "region_levels" in name]
    optimizer = torch.optim.AdamW([{"params": deep, "lr": 5e-4}, {"params": new, "lr": 2e-3}], weight_decay=1e-4)
    frames = len(data["train"]) // VARIANTS
    order = torch.Generator().manual_seed(seed)
    steps = EPOCHS * (frames // BATCH)
    schedule = poly_schedule(optimizer, steps)
    step = 0
    for epoch in range(EPOCHS):
        total, started = 0.0, time.perf_counter()
        shuffled = torch.randperm(frames, generator=order) + frames * torch.randint(
            VARIANTS, (frames,), generator=order
        )
        for batch in shuffled[: frames // BATCH * BATCH].view(-1, BATCH):
            mask = data["train_mask"][batch, ::2, ::2].long()  # every second pixel: the loss then costs less
            maps = data["train"][batch].float().contiguous(memory_format=torch.channels_last)
            logits = predict(net, maps, mask.shape[1:])
            loss = F.cross_entropy(logits, mask, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total, step = total + loss.item(), step + 1
        log(f"epoch {epoch + 1}: loss {total / (frames // BATCH):.4f}, {time.perf_counter() - started:.0f} s")


@torch.inference_mode()
def evaluate(net: HGCNN, data: dict[str, Tensor], names: list[str]) -> dict[str, Any]:
    """Return mIoU, IoU of each class and boundary F at 3 pixels on the validation frames, in percent."""
    net.eval()
    iou, boundary = MeanIoU(11), BoundaryF(11, tolerances=(3,))
    for x, mask in zip(data["val"], data["val_mask"], strict=True):
        logits = predict(net, x[None].float(), mask.shape)
        iou.update(logits, mask[None].long())
        boundary.update(logits, mask[None].long())
    found = iou.compute()
    classes = {name: 100 * float(value) for name, value in zip(names, found["iou"], strict=True)}
    thin = [value for name, value in classes.items() if any(word in name.lower() for word in THIN)]
    return {
        "miou": 100 * float(found["miou"]),
        "boundary_f_3px": 100 * float(boundary.compute()["boundary_f_3px"]),
        "thin": statistics.mean(thin),
        "iou": classes,
    }


def times(forms: list[str], rounds: int = 9) -> dict[str, dict[str, float]]:
    """Return seconds for a frame and for a training step of each form, the least of some rounds, and operations."""
    torch.set_num_threads(1)
    frame, crops = torch.rand(1, 3, 360, 480), torch.rand(8, 3, *CROP).to(memory_format=torch.channels_last)
    found: dict[str, dict[str, float]] = {}
    nets = {form: make(form, False, 0).to(memory_format=torch.channels_last) for form in forms}
    for form, net in nets.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(frame)
        found[form] = {"gmacs": counter.get_total_flops() / 2e9, "frame": float("inf"), "step": float("inf")}
    for number in range(rounds):
        for form, net in nets.items():
            started = time.perf_counter()
            with torch.inference_mode():
                net.eval()(frame)
            found[form]["frame"] = min(found[form]["frame"], time.perf_counter() - started)
            if number % 3 == 0:
                started = time.perf_counter()
                net.train()(crops)["out"].square().mean().backward()
                found[form]["step"] = min(found[form]["step"], time.perf_counter() - started)
    return found


def results(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the finished runs of each form."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(run["form"], []).append(run)
    return runs


def table(out: Path) -> Table:
    """Return mean and spread over the seeds of what has been run, and the times."""
    runs, path = results(out), out / "times.json"
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = Table("form", "seeds", "mIoU", "boundary F", "thin classes", "GMACs", "frame", "step")
    for form in FORMS:
        if form in runs:
            cells = []
            for name in ("miou", "boundary_f_3px", "thin"):
                values = [run[name] for run in runs[form]]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            if form in measured:
                one, base = measured[form], measured["strided"]
                cells.append(f"{one['gmacs']:.2f}")
                cells += [f"{one[key] / base[key]:.2f}" for key in ("frame", "step")]
            found.add_row(form, ", ".join(str(run["seed"]) for run in runs[form]), *cells)
    return found


def plot(out: Path, path: Path) -> None:
    """Draw accuracy over the time of a frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    measured = json.loads((out / "times.json").read_text(encoding="utf-8"))
    shown = sorted((measured[form]["frame"], form, runs) for form, runs in results(out).items() if form in measured)
    for number, (seconds, form, runs) in enumerate(shown):
        values = [run["miou"] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0
        axes.errorbar(
            1e3 * seconds, statistics.mean(values), spread, fmt=MARKERS[number % len(MARKERS)], capsize=3, label=form
        )
    axes.set_xlabel("a frame of 360 x 480, ms, one thread")
    axes.set_ylabel("mIoU, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    save_figure(figure, path)


def main() -> None:
    """Train what is not there yet, or show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.times:
        text = json.dumps(times(list(given.forms)), indent=1)
        given.out.mkdir(parents=True, exist_ok=True)
        write_atomically(given.out / "times.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if given.plot is not None:
        plot(given.out, given.plot)
    if given.table or given.times or given.plot is not None:
        Console(width=120).print(table(given.out))
        return
    if given.root is None or given.weights is None:
        parser.error("--root and --weights are needed to train")
    data = cached(given.root, given.weights, given.out)
    names = list(CamVid(given.root, "val").classes)
    for seed in given.seeds:
        for form in given.forms:
            path = given.out / f"{form.replace(' ', '_')}-{seed}.json"
            claim = path.with_suffix(".lock")
            if path.is_file():
                continue
            if claim.is_file():
                print(f"{form}, seed {seed}: left to another process; if there is none, delete {claim}", flush=True)
                continue
            claim.touch()
            try:
                print(f"{form}, seed {seed}", flush=True)
                started = time.perf_counter()
                net = without_fine(make(form, given.weights, seed))
                train(net, data, seed, lambda line: print(line, flush=True))
                result = {"form": form, "seed": seed, "seconds": time.perf_counter() - started}
                result |= evaluate(net, data, names)
                text = json.dumps(result, indent=1)
                write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
                print({key: value for key, value in result.items() if key != "iou"}, flush=True)
            finally:
                claim.unlink()


if __name__ == "__main__":
    main()
