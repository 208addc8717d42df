"""What a run says when it ends: where it lies, how good it is, what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from hggraph._screen import screen
from hggraph.engine.checkpoint import latest_checkpoint

__all__ = ["Ending"]


class Ending(Callback):
    """Say at the end of training where the run is, its best score, and the next commands; after Ctrl-C how to go on.

    The best score is that of the checkpoint that watches one: a `ModelCheckpoint` with a ``monitor``. Epochs count from
    0, as in the logs.
    """

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Tell it, in the first process."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # that leaves nothing
            folder = str(trainer.default_root_dir)
            run, config = shlex.quote(folder), shlex.quote(str(Path(folder, "config.yaml")))
            _say(
                f"Run: {folder}",
                *_best(trainer),
                f"Next: hggraph validate --config {config}",
                f"Then: hggraph predict IMAGES --model {run} --out FOLDER",
            )

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Say what was saved when training is interrupted."""
        if trainer.is_global_zero and trainer.training and isinstance(exception, KeyboardInterrupt):
            folder = Path(trainer.default_root_dir)
            newest = latest_checkpoint(folder / "checkpoints")
            saved = "nothing yet; it will begin anew" if newest is None else str(newest)
            config = shlex.quote(str(folder / "config.yaml"))
            _say(
                f"Stopped at step {trainer.global_step}, in epoch {trainer.current_epoch}. Saved: {saved}",
                *_best(trainer),
                f"To go on: hggraph fit --config {config}",
            )


def _best(trainer: lightning.Trainer) -> list[str]:
    """Return a line on the best score of training so far, if one was watched and reached."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor and checkpoint.best_model_score is not None:
            path = Path(checkpoint.best_model_path)
            if path.is_file():
                epoch = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["epoch"]
                return [f"Best: {checkpoint.monitor} {float(checkpoint.best_model_score):.4g} in epoch {epoch}: {path}"]
    return []


def _say(*lines: str) -> None:
    for line in lines:
        screen().print(line)
