"""A resumed run that goes on as the unbroken one: its random numbers, and its count of epochs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn

__all__ = ["RandomState", "get_random_state", "set_random_state"]

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
        self._inside_epoch = False
        self._batch_end: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of all processes."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        inside_step = progress.current.processed < progress.current.ready
        state = get_random_state(_cuda(trainer))
        if inside_step and self._batch_end is not None:  # an error or Ctrl-C: this step will be taken anew
            state = self._batch_end
        checkpoint[KEY] = {
            "processes": _gathered(trainer, state),
            "inside_epoch": inside_step or not progress.is_last_batch,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state of this process, if it is training that resumes."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        states = checkpoint.get(KEY, {}).get("processes", [])
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint holds the random states of {len(states)} processes, and training resumes on "
                f"{trainer.world_size}: random numbers will be others than in an unbroken run."
            )
            return
        self._restored = states[trainer.global_rank]
        self._inside_epoch = checkpoint[KEY]["inside_epoch"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore between two epochs: before the loaders' iterators, which draw from the generators too."""
        self._batch_end = None
        if not self._inside_epoch:
            self._restore(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore inside an epoch: after the iterators, whose draws lie behind."""
        self._restore(trainer)
        self._batch_end = get_random_state(_cuda(trainer))
        epoch = trainer.fit_loop.epoch_progress.current
        if trainer.fit_loop.restarted_mid_epoch and epoch.ready == epoch.completed:
            # what begins is a new epoch: it has to be counted, and its hooks called
            trainer.fit_loop.reset_restart_stage()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the state, for a save in the middle of the next step."""
        self._batch_end = get_random_state(_cuda(trainer))

    def _restore(self, trainer: Trainer) -> None:
        if self._restored is not None:
            set_random_state(self._restored, _cuda(trainer))
            self._restored = None


def get_random_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return the states of the default generators in types that load without running code.

    Args:
        device: A CUDA device whose generator is included, or None.

    Returns:
        A dict of dicts, tensors and numbers, under ``"python"``, ``"numpy"``, ``"torch"`` and ``"cuda"``.

    Example:
        >>> state = get_random_state()
        >>> first = random.random(), torch.rand(2)
        >>> set_random_state(state)
        >>> second = random.random(), torch.rand(2)
        >>> first[0] == second[0], torch.equal(first[1], second[1])
        (True, True)
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "generator": legacy["bit_generator"],
            "words": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "position": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": None if device is None else torch.cuda.get_rng_state(device),
    }


def set_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Set the default generators to what `get_random_state` has returned.

    Args:
        state: The states.
        device: The CUDA device whose generator is set, if the state holds one; None leaves all GPUs alone.
    """
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    words = legacy["words"].cpu().numpy().astype(np.uint32)
    np.random.set_state((legacy["generator"], words, legacy["position"], legacy["has_gauss"], legacy["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    if device is not None and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _cuda(trainer: Trainer) -> torch.device | None:
    device = trainer.strategy.root_device
    return device if device.type == "cuda" else None


def _gathered(trainer: Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
