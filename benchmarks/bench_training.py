"""Training steps of the CamVid recipes' networks, HG against dense, and the loading of their batches.

    python -m hggraph.benchmarks.bench_training [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

ResNet18-dilation, the same without stage 4, and with stage 4 on regions of 64 and of 16 pixels: a step of AdamW with
auxiliary loss on crops of 360 x 480 and 180 x 240, 8 images each, in channels_last; on a GPU by autocast in bfloat16.
Then the loader alone, with as many processes as a run takes on this machine, on 64 photos of 480 x 360 pixels, PNG with
masks, cut from scikit-learn's two: scaled, cropped, flipped and recoloured as by the recipes. What agrees: the HG
network, one region per pixel, with the dense one of dilation 1; batches of the loader's processes with those made one
sample at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hggraph import SoftSLIC
from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._setting import Setting, options
from hggraph.benchmarks._timing import Timing
from hggraph.benchmarks.bench_networks import one_region_per_pixel
from hggraph.data import FolderDataset, TrainTransform, sample_photo
from hggraph.data.loading import EpochBatches, SeededSamples, collate
from hggraph.models import hg_resnet
from hggraph.nn import CrossEntropy, OutputLoss

# isort: split
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

TITLE = "Training steps of ResNet18 and HG-ResNet18, and loading of their batches"
CLASSES, BATCH = 11, 8
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: hg_resnet(18, num_classes=CLASSES, hg_stages=()),
    "without stage 4": lambda: hg_resnet(18, num_classes=CLASSES, hg_stages=(), last_stage=3),
    "regions of 64 pixels": lambda: hg_resnet(18, num_classes=CLASSES),
    "regions of 16 pixels": lambda: hg_resnet(18, num_classes=CLASSES, clusterer=SoftSLIC(16)),
}


def training_step(net: nn.Module, image: Tensor, mask: Tensor, setting: Setting) -> Callable[[], object]:
    """Return a step of the recipes on a batch, as a function."""
    net = net.to(setting.device, memory_format=torch.channels_last).train()
    criterion, optimizer = OutputLoss(CrossEntropy()), torch.optim.AdamW(net.parameters(), lr=1e-4)
    image = image.to(setting.device).contiguous(memory_format=torch.channels_last)
    mask = mask.to(setting.device)

    def step() -> None:
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            loss = criterion(net(image), mask)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def steps(report: Report, batch: dict, same: Agreement) -> Timing:
    """Time the networks on a batch, report what regions save, and return the fastest step."""
    size = " x ".join(map(str, batch["image"].shape[2:]))
    contenders = {
        f"{name}, {size}": training_step(make(), batch["image"], batch["mask"], report.setting)
        for name, make in NETWORKS.items()
    }
    timings = dict(zip(NETWORKS, report.time(contenders, warmup=1).values(), strict=True))
    speeds = {f"{name}, {size}": len(batch["image"]) / timing.median for name, timing in timings.items()}
    report.more["images_per_second"] = report.more.get("images_per_second", {}) | speeds
    on_cpu = not report.setting.on_gpu
    for name, ours in timings.items():
        if name.startswith("regions"):
            least = 1.7 if on_cpu and name == "regions of 64 pixels" else None
            report.ratio(f"dense / {name}, {size}", timings["dense"], ours, same, at_least=least)
    return min(timings.values(), key=lambda timing: timing.median)


def write_photos(folder: Path, count: int) -> None:
    """Write photos and masks of 480 x 360 pixels, different parts of the sample photos."""
    generator = torch.Generator().manual_seed(0)
    photos = [(sample_photo(name) * 255).byte().permute(1, 2, 0).numpy() for name in ("china", "flower")]
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for i in range(count):
        photo = photos[i % 2]
        top, left = (int(torch.randint(side, (1,), generator=generator)) for side in (427 - 360, 640 - 480))
        crop = photo[top : top + 360, left : left + 480]
        Image.fromarray(crop).save(folder / "images" / f"{i:04d}.png")
        mask = (crop.astype(np.int64).sum(2) * CLASSES // 766).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{i:04d}.png")


def samples_in(folder: str, crop: tuple[int, int]) -> SeededSamples:
    """Return the photos as a run of the recipes sees them."""
    scale = (0.75 * crop[0] / 360, 1.5 * crop[0] / 360)
    transform = TrainTransform(crop, scale=scale, flip=0.5, color=0.2)
    return SeededSamples(FolderDataset(folder, classes=[f"level {k}" for k in range(CLASSES)], transform=transform), 0)


def batches_for_ever(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def loading(report: Report, samples: SeededSamples, keys: EpochBatches, step: Timing) -> None:
    """Time the loader alone; its processes end with this call."""
    workers = max(1, min(8, len(os.sched_getaffinity(0)) - 1))  # as ImageData
    loader = DataLoader(samples, batch_sampler=keys, num_workers=workers, collate_fn=collate, persistent_workers=True)
    stream = batches_for_ever(loader)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the loader's processes have: resizing rounds in another way on two
    first, want = next(stream), collate([samples[key] for key in next(iter(keys))])
    torch.set_num_threads(threads)
    same = agree("batches of the loader = one sample at a time", first["image"], want["image"], 0)

    def load() -> None:
        for _ in range(len(keys)):
            next(stream)

    label = f"loader, {len(keys)} batches, {workers} process{'es' if workers > 1 else ''}"
    found = report.time({label: load}, warmup=1)[label]
    one = Timing(tuple(seconds / len(keys) for seconds in found.seconds))
    report.more["images_per_second"]["loader"] = len(want["image"]) / one.median
    report.ratio("fastest step / loading of its batch", step, one, same, at_least=3)


def measure(report: Report) -> None:
    """Time steps and loader."""
    quick = report.quick
    count, batch_size, sizes = (4, 2, [(90, 120)]) if quick else (64, BATCH, [(180, 240), (360, 480)])
    same = one_region_per_pixel(18)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), count)
        for size in sizes:
            samples, keys = samples_in(folder, size), EpochBatches(count, batch_size)
            fastest = steps(report, collate([samples[key] for key in next(iter(keys))]), same)
        loading(report, samples, keys, fastest)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=5)
    report = Report("training", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
