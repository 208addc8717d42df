"""Training, validation and test sets of one data set, as Lightning takes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from hggraph.data.archives import unpacked
from hggraph.engine.loading import EpochBatches, ResumableLoader, SeededSamples, SplitEvenly, collate

__all__ = ["ImageData"]

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class ImageData(lightning.LightningDataModule):
    """Load the splits of a data set, the same samples in the same order on any number of processes.

    Args:
        dataset: Makes a data set of a root folder and a split: ``dataset(root, split)``, for example
            `hggraph.data.CamVid`. Its samples are dicts, and it has an attribute ``transform``.
        root: Folder of the data set, or an archive of it (`hggraph.data.archives.unpacked`).
        batch_size: Samples per process and step.
        train_transform: Applied to training samples; random by torch's generator.
        transform: Applied to samples of validation and test.
        train_split: Name of the split to train on.
        val_split: Name of the split to validate on.
        test_split: Name of the split to test on.
        num_workers: Processes that load; one less than there are cores, at most 8, when None.
        eval_batch_size: Samples per process in validation and test; 1 takes images of any sizes.
        seed: Of the order and of the transforms.
        train_dataset: Makes the data set to train on, where its options are others than those of `dataset`.

    Note:
        Training batches depend on the seed and on the number of steps done alone: a resumed run goes on with the
        batches that an unbroken one gets. Evaluation sees each sample exactly once, on any number of processes.
    """

    def __init__(
        self,
        dataset: Callable[[str, str], Dataset[Any]],
        root: str,
        batch_size: int = 8,
        train_transform: Transform | None = None,
        transform: Transform | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "val",
        num_workers: int | None = None,
        eval_batch_size: int = 1,
        seed: int = 0,
        train_dataset: Callable[[str, str], Dataset[Any]] | None = None,
    ) -> None:
        super().__init__()
        self.makers = {"train": train_dataset or dataset, "val": dataset, "test": dataset}
        self.root = root
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.transforms = {"train": train_transform, "val": transform, "test": transform}
        self.num_workers = max(0, min(8, len(os.sched_getaffinity(0)) - 1)) if num_workers is None else num_workers
        self.seed = seed
        self.datasets: dict[str, Any] = {}

    def dataset(self, stage: str) -> Any:
        """Return the data set of a stage, ``"train"``, ``"val"`` or ``"test"``, with its transform."""
        if stage not in self.datasets:
            dataset: Any = self.makers[stage](str(unpacked(self.root)), self.splits[stage])
            dataset.transform = self.transforms[stage]
            self.datasets[stage] = dataset
        return self.datasets[stage]

    def setup(self, stage: str) -> None:
        """Look at the folders now, so that what is missing there stops the run before it begins."""
        names = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
        for name in names:
            check = getattr(self.dataset(name), "check", None)
            if check is not None:
                check(sizes=False)

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled batches, from the step on that the trainer has reached."""
        trainer = self.trainer
        assert trainer is not None
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        samples = SeededSamples(self.dataset("train"), self.seed)
        full = len(samples) // (self.batch_size * trainer.world_size)
        limit = trainer.limit_train_batches
        batches = EpochBatches(
            len(samples),
            self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            begun=lambda: progress.processed,
            limit=limit if isinstance(limit, int) else max(1, int(limit * full)) if limit else None,
        )
        return ResumableLoader(samples, batch_sampler=batches, **self._options())

    def val_dataloader(self) -> DataLoader[Any]:
        """Return each validation sample once."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return each test sample once."""
        return self._evaluation("test")

    def _evaluation(self, stage: str) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        samples = SeededSamples(self.dataset(stage), self.seed)
        share = SplitEvenly(len(samples), trainer.global_rank, trainer.world_size)
        return DataLoader(samples, self.eval_batch_size, sampler=share, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            # its own: an iterator draws a seed, which must not come from the network's random numbers
            "generator": torch.Generator().manual_seed(self.seed),
        }
