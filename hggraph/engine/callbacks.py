"""What a run tells while it goes: speed, pictures of predictions, results."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import MetricCollection

from hggraph._files import write_atomically
from hggraph._screen import screen
from hggraph.data.loading import SeededSamples, length_of
from hggraph.data.transforms import undo
from hggraph.engine.data_module import ImageData
from hggraph.engine.segmentation import SegmentationTask
from hggraph.engine.task import Task
from hggraph.viz import save_figure
from hggraph.viz.prediction_figure import prediction_figure

__all__ = ["Results", "SamplePictures", "Throughput", "evaluation"]


class Throughput(Callback):
    """Log ``train/images_per_second``, over all processes, validation and saving left out.

    Args:
        steps: Steps over which it is taken.
    """

    def __init__(self, steps: int = 20) -> None:
        self.steps = steps
        self._since: float | None = None
        self._images = 0
        self._steps = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin anew: what lies between epochs does not count."""
        self._since, self._images, self._steps = time.perf_counter(), 0, 0

    on_validation_end = on_train_epoch_start

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log from time to time."""
        self._images += length_of(batch) * trainer.world_size
        self._steps += 1
        if self._since is None or self._steps < self.steps:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        pl_module.log("train/images_per_second", self._images / (now - self._since), prog_bar=True, batch_size=1)
        self._since, self._images, self._steps = now, 0, 0


class SamplePictures(Callback):
    """Draw images of the validation set with targets and predictions after each validation.

    Args:
        count: How many images, spread over the set; 0 draws none.

    Pictures go to ``pictures/`` in the folder of the run. Without matplotlib, of other tasks than segmentation and
    of other data than `ImageData`, there are none.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Predict and draw, in the first process."""
        if trainer.sanity_checking or not trainer.is_global_zero or self.count < 1:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, SegmentationTask) or not isinstance(data, ImageData):
            return
        dataset = data.dataset("val")
        chosen = [round(i * (len(dataset) - 1) / max(1, self.count - 1)) for i in range(min(self.count, len(dataset)))]
        samples = [SeededSamples(dataset, data.seed)[0, i] for i in dict.fromkeys(chosen)]
        predictions = [_predict(pl_module, sample) for sample in samples]
        try:
            figure = prediction_figure(
                [_as_colors(sample, dataset.transform) for sample in samples],
                [sample["mask"] for sample in samples],
                predictions,
                dataset.palette,
                names=[str(sample["name"]) for sample in samples],
            )
        except ImportError:
            return
        folder = Path(trainer.default_root_dir, "pictures")
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(figure, folder / f"step-{trainer.global_step:07d}.png", dpi=70)


class Results(Callback):
    """Write what ``validate`` and ``test`` found into ``results-<split>.json`` of the run, and print its tables.

    A file is never replaced: the next ones are ``results-<split>-2.json`` and so on; see `evaluation`.
    """

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the results of a test."""
        self._write(trainer, pl_module, "test")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the results of a validation that is not part of training."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def _write(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        found = evaluation(trainer, pl_module, stage)
        metric = pl_module.metric
        metrics: list[Any] = list(metric.values()) if isinstance(metric, MetricCollection) else [metric]
        names = getattr(_dataset(trainer, stage), "classes", ())
        tables = [  # sums over processes
            one.table(names if len(names) == one.num_classes else None) for one in metrics if hasattr(one, "table")
        ]
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = "results-" + re.sub(r"[^\w-]", "_", found["split"])
        path, number = folder / f"{name}.json", 1
        while path.exists():
            number += 1
            path = folder / f"{name}-{number}.json"
        text = json.dumps(found, indent=1)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        for table in tables:
            screen().print(table)


def evaluation(trainer: lightning.Trainer, task: Task, stage: str) -> dict[str, Any]:
    """Return the record of the task's last evaluation.

    Args:
        trainer: Whose evaluation it was.
        task: Its `results` are recorded.
        stage: ``"val"`` or ``"test"``.

    Returns:
        Plain values: ``"dataset"``, ``"split"``, ``"selected_on"`` (the split that the best checkpoint is chosen on),
        ``"size"`` (``"own"``: scores are those of the images' own pixels), ``"scales"``, ``"part"`` (where a run was
        limited to some batches), ``"date"`` (ISO 8601, UTC), ``"checkpoint"`` (empty while training) and ``"results"``,
        the scores.
    """
    dataset, data = _dataset(trainer, stage), trainer.datamodule  # type: ignore[attr-defined]
    splits = data.splits if isinstance(data, ImageData) else {}
    limit = trainer.limit_val_batches if stage == "val" else trainer.limit_test_batches
    return {
        "dataset": type(getattr(dataset, "base", dataset)).__name__,
        "split": splits.get(stage, stage),
        "selected_on": getattr(data, "selected_on", "val"),
        "size": "own",
        "scales": [1.0],
        **({} if limit == 1.0 else {"part": f"{limit} of its batches"}),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": str(trainer.ckpt_path or ""),
        "results": _plain(task.results),
    }


def _dataset(trainer: lightning.Trainer, stage: str) -> Any:
    """Return what a stage evaluates on: the data set, or of another data module the module itself."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return data.dataset(stage) if isinstance(data, ImageData) else data


def _predict(task: lightning.LightningModule, sample: Mapping[str, Any]) -> Tensor:
    with torch.inference_mode():
        logits = _at_own_size(task(sample["image"][None].to(task.device))["out"][0], sample)
    return (logits[0] > 0).long() if len(logits) == 1 else logits.argmax(0)


def _at_own_size(x: Tensor, sample: Mapping[str, Any]) -> Tensor:
    return undo(x, sample["shown"], sample["size"]) if "shown" in sample else x


def _as_colors(sample: Mapping[str, Any], transform: Any) -> Tensor:
    """Return an image as it was before it was normalised."""
    image = _at_own_size(sample["image"], sample)
    mean, std = (
        torch.tensor(getattr(transform, name, default)) for name, default in (("mean", (0.0,)), ("std", (1.0,)))
    )
    return (image * std[:, None, None] + mean[:, None, None]).clamp(0, 1)


def _plain(value: Any) -> Any:
    """Return tensors as numbers and lists, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value
