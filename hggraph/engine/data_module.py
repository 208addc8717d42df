"""Training, validation and test sets of one data set, as Lightning takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning
import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from torch.utils.data import BatchSampler, DataLoader, Dataset

from hggraph.data.archives import unpacked
from hggraph.data.loading import EpochBatches, ResumableLoader, SeededSamples, SplitEvenly, collate

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
        test_split: Name of the split to test on, another than `val_split`; None: there is none.
        num_workers: Processes that load; one less than this process has cores, from 1 to 8, when None.
        eval_batch_size: Samples per process in validation and test; 1 takes images of any sizes.
        seed: Of the order and of the transforms.
        train_dataset: Makes the data set to train on, where its options are others than those of `dataset`.

    Note:
        Training batches depend on the seed and on the number of samples taken alone, which checkpoints hold: a resumed
        run goes on with the batches that an unbroken one gets, and one with batches of another size at its sample.
        Evaluation sees each sample exactly once, on any number of processes.
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
        test_split: str | None = None,
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
        self.splits: dict[str, Any] = {"train": train_split, "val": val_split, "test": test_split}
        self.transforms = {"train": train_transform, "val": transform, "test": transform}
        self.num_workers = num_workers
        self.seed = seed
        self.datasets: dict[str, Any] = {}
        self.epoch = self.samples = 0  # where training is: samples taken of this epoch
        self.selected_on = val_split  # where the best checkpoint is chosen
        self.extra_steps = 0  # that training has had more than it would have had with batches of this size

    def dataset(self, stage: str) -> Any:
        """Return the data set of a stage, ``"train"``, ``"val"`` or ``"test"``, with its transform."""
        if stage not in self.datasets:
            dataset: Any = self.makers[stage](str(unpacked(self.root)), self.splits[stage])
            dataset.transform = self.transforms[stage]
            self.datasets[stage] = dataset
        return self.datasets[stage]

    def setup(self, stage: str) -> None:
        """Look at the folders now, so that what is missing there stops the run before it begins.

        Raises:
            ValueError: if there is nothing to test on but the validation split.
        """
        val, test = self.splits["val"], self.splits["test"]
        if stage == "test" and test in (None, val):
            raise ValueError(
                f"There is no test split: data.test_split is {test!r}, and validation takes {val!r}. Score that with "
                f"`hggraph validate`, or give --data.test_split."
            )
        names = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
        for name in names:
            check = getattr(self.dataset(name), "check", None)
            if check is not None:
                check(sizes=False)
        trainer = self.trainer
        if stage == "fit" and trainer is not None:
            others = [one for one in trainer.callbacks if not isinstance(one, _Position)]  # type: ignore[attr-defined]
            # the first: it counts a batch before others save
            trainer.callbacks = [_Position(self), *others]  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Return where training is, and what it is judged on."""
        names = ("epoch", "samples", "extra_steps", "per_step", "selected_on")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where training was, or take over what it was judged on."""
        if self.trainer is not None and not self.trainer.training:
            self.selected_on = state["selected_on"]
        self.epoch, self.samples, self.extra_steps = state["epoch"], state["samples"], state["extra_steps"]

    @property
    def per_step(self) -> int:
        """Samples that all processes together take in a step."""
        return self.batch_size * (1 if self.trainer is None else self.trainer.world_size)

    @property
    def workers(self) -> int:
        """Processes that load for each process that trains."""
        if self.num_workers is not None:
            return self.num_workers
        return min(8, suggested_max_num_workers(1 if self.trainer is None else self.trainer.num_devices))

    def batches(self) -> EpochBatches:
        """Return the training batches of the trainer's processes, from the sample on that training has reached."""
        trainer = self.trainer
        assert trainer is not None
        return EpochBatches(
            len(self.dataset("train")),
            self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            begun=lambda: (self.epoch, self.samples),
            shuffle=not trainer.overfit_batches,  # type: ignore[attr-defined]
        )

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled batches; see `batches`."""
        samples = SeededSamples(self.dataset("train"), self.seed)
        return ResumableLoader(samples, batch_sampler=self.batches(), **self._options())

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
        # batches of its own: a sampler alone would be replaced where Lightning overfits batches
        batches = BatchSampler(cast(Any, share), self.eval_batch_size, drop_last=False)
        return DataLoader(samples, batch_sampler=batches, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "collate_fn": collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.workers > 0,
            # its own: an iterator draws a seed, which must not come from the network's random numbers
            "generator": torch.Generator().manual_seed(self.seed),
        }


class _Position(lightning.Callback):
    """Counts the samples that training takes, and sets Lightning's count of batches where their size has changed."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step's samples; the rest of an epoch, which fills no step, is left out."""
        data = self.data
        data.samples += data.per_step
        if trainer.is_last_batch:
            data.epoch, data.samples = data.epoch + 1, 0

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count what lies behind in batches of the new size; the data module has its state already."""
        data = self.data
        saved = checkpoint.get(type(data).__qualname__)
        if saved is None:
            raise ValueError(f"{trainer.ckpt_path} says not which samples were taken: another data module's.")
        loops = checkpoint["loops"]["fit_loop"]
        if data.samples:  # Lightning takes an epoch that max_steps or max_time cut short for one that has ended
            for progress in loops["epoch_progress"].values():
                progress.update(dict.fromkeys(("processed", "completed"), progress["started"] - 1))
        if saved["per_step"] == data.per_step:
            return
        limit, each, full = trainer.limit_train_batches, trainer.accumulate_grad_batches, len(data.batches())
        steps = min(limit, full) if isinstance(limit, int) else int(limit * full)
        done = steps if data.epoch else 0
        if data.samples:  # at least one step is left of the epoch; it may take some samples twice
            data.samples = min(data.samples, (steps - 1) * data.per_step)
            done = steps - (steps * data.per_step - data.samples) // data.per_step
        progress = loops["epoch_loop.batch_progress"]["current"]
        more = done - progress["processed"]
        progress.update({name: count + more for name, count in progress.items()})
        in_epoch = done // each if data.samples else 0
        data.extra_steps = checkpoint["global_step"] - data.epoch * -(-steps // each) - in_epoch
