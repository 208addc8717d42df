"""A resumed run that draws the random numbers of the unbroken one, and counts epochs as it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn

__all__ = ["RandomState"]

KEY = "random_state"


class RandomState(Callback):
    """Save the states of Python's, numpy's and torch's generators in each checkpoint, and restore them on a resume.

    Of every process its own, and of its GPU. With the parameters, the optimizer and the batches, which others restore,
    a resumed run then draws the numbers that the unbroken one does (dropout, the sampling of centres) and ends equal to
    it: wherever the checkpoint was written if the loaders draw from generators of their own and resume inside an epoch,
    as those of `hggraph.engine` do; with other loaders if it was written at the end of a training epoch.

    On another number of processes nothing is restored, and a warning says so.

    A checkpoint may also be one of the last step of an epoch. Lightning takes the epoch that follows such a resume for
    the one that has ended, so that the checkpoints of that run count one epoch too few; here it is put right.

    Note:
        About 0.1 ms a step; 16 KB per process in a checkpoint, in types that load without code. In a run of
        several processes a save gathers from all of them, so all have to take part, as in Lightning's own saves.

    Example:
        >>> trainer = Trainer(callbacks=[RandomState()], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None  # of a checkpoint, until training begins
        self._batch_end: dict[str, Any] | None = None
        # where a save may happen: in a step, between two steps, or after an epoch's last step and before its end
        self._in_step = self._inside_epoch = self._at_last_step = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of all processes."""
        state = _state(trainer)
        if self._in_step and self._batch_end is not None:  # an error or Ctrl-C: this step will be taken anew
            state = self._batch_end
        states: list[Any] = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint[KEY] = {
            "processes": states,
            "inside_epoch": self._inside_epoch,
            "at_last_step": self._at_last_step and not self._in_step,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state of this process, if it is training that resumes."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint.get(KEY, {"processes": [], "inside_epoch": False, "at_last_step": False})
        self._inside_epoch, self._at_last_step = saved["inside_epoch"], saved["at_last_step"]
        if len(saved["processes"]) == trainer.world_size:
            self._restored = saved["processes"][trainer.global_rank]
            return
        rank_zero_warn(
            f"The checkpoint holds the random states of {len(saved['processes'])} processes, and training resumes on "
            f"{trainer.world_size}: random numbers will be others than in an unbroken run."
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore between two epochs: before the loaders' iterators, which draw from the generators too."""
        self._batch_end, self._in_step = None, False
        if not self._inside_epoch:
            self._restore(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore inside an epoch: after the iterators, whose draws lie behind."""
        self._restore(trainer)
        self._batch_end = _state(trainer)
        if self._at_last_step:  # what begins is a new epoch: it has to be counted, and its hooks called
            trainer.fit_loop.reset_restart_stage()
        self._at_last_step = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that what is saved from here on is of a step that is not done."""
        self._in_step = self._inside_epoch = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the state, for a save in the middle of the next step."""
        self._batch_end = _state(trainer)
        self._in_step = False
        self._at_last_step = trainer.is_last_batch
        self._inside_epoch = not trainer.is_last_batch

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that Lightning takes a save from here on for one of the epoch's end."""
        self._at_last_step = False

    on_train_epoch_end = on_validation_start

    def _restore(self, trainer: Trainer) -> None:
        if self._restored is None:
            return
        state = dict(self._restored)
        cuda = state.pop("cuda")
        name, words, *others = state["numpy"]
        _set_rng_states(state | {"numpy": (name, words.numpy().astype(np.uint32), *others)})
        if cuda is not None and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_rng_state(cuda, trainer.strategy.root_device)
        self._restored = None


def _state(trainer: Trainer) -> dict[str, Any]:
    """Return the states of the default generators and of this process's GPU, in types that load without code."""
    state = _collect_rng_states(include_cuda=False)
    name, words, *others = state["numpy"]
    device = trainer.strategy.root_device
    return state | {
        "numpy": (name, torch.from_numpy(words.astype(np.int64)), *others),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
