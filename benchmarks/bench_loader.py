"""Loading of training batches against a training step on them.

    python -m hggraph.benchmarks.bench_loader [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

64 photos of 480 x 360 pixels as CamVid's copies have them, PNG with masks, cut from scikit-learn's two; the recipe
camvid_hg_resnet18: crops of 360 x 480 with scaling, flipping and colours, batches of 8, HG-ResNet18 with AdamW. The
loader runs alone, with as many processes as a run takes on this machine; so does the step. What agrees are the batches
of the processes with those made one sample at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hggraph.benchmarks._measure import Report, agree
from hggraph.benchmarks._setting import options
from hggraph.benchmarks._timing import Timing
from hggraph.data import FolderDataset, TrainTransform, sample_photo
from hggraph.engine.loading import EpochBatches, SeededSamples, collate
from hggraph.models import hg_resnet
from hggraph.nn import CrossEntropy, OutputLoss

# isort: split
import torch
from torch.utils.data import DataLoader

TITLE = "Loading batches against training on them, HG-ResNet18, 360 x 480, batch 8"
CLASSES = 11


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


def batches_for_ever(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def training_step(device: torch.device, batch: dict, dtype: torch.dtype):
    """Return a step of the recipe's network on a batch, as a function."""
    net = hg_resnet(18, num_classes=CLASSES).to(device).train()
    criterion, optimizer = OutputLoss(CrossEntropy()), torch.optim.AdamW(net.parameters(), lr=1e-3)
    image, mask = batch["image"].to(device), batch["mask"].to(device)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = criterion(net(image), mask)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(report: Report) -> None:
    """Time loader and step in turns, and report how much faster the loader is."""
    count, batch_size, side = (4, 2, (90, 120)) if report.quick else (64, 8, (360, 480))
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), count)
        transform = TrainTransform(side, scale=(0.75, 1.5), flip=0.5, color=0.2)
        dataset = FolderDataset(folder, classes=[f"level {k}" for k in range(CLASSES)], transform=transform)
        compare(report, SeededSamples(dataset, seed=0), EpochBatches(count, batch_size))


def compare(report: Report, samples: SeededSamples, keys: EpochBatches) -> None:
    """Time what `measure` has made; the loader's processes end with this call."""
    setting, workers = report.setting, max(1, min(8, len(os.sched_getaffinity(0)) - 1))  # as ImageData
    loader = DataLoader(samples, batch_sampler=keys, num_workers=workers, collate_fn=collate, persistent_workers=True)
    stream = batches_for_ever(loader)
    first = next(stream)
    want = collate([samples[key] for key in next(iter(keys))])
    same = agree("batches of processes = one sample at a time", first["image"], want["image"], 0)

    def load() -> None:
        for _ in range(len(keys)):
            next(stream)

    contenders = {
        f"loader, {len(keys)} batches, {workers} processes": load,
        "training step": training_step(setting.device, first, setting.dtype),
    }
    loading, step = report.time(contenders, warmup=1).values()
    one = Timing(tuple(seconds / len(keys) for seconds in loading.seconds))
    report.more["workers"] = workers
    report.more["images_per_second"] = {
        "loader": len(want["image"]) / one.median,
        "step": len(want["image"]) / step.median,
    }
    report.ratio("training step / loading of a batch", step, one, same, at_least=3)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=5)
    report = Report("loader", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
