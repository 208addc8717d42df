"""A resumed run draws what the unbroken one draws, and counts epochs as it does."""

import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from hggraph.engine.checkpoint import SafeCheckpointIO, latest_checkpoint, load_checkpoint
from hggraph.engine.random_state import RandomState
from tests.engine.crash import Noisy

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # in Lightning
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
EPOCHS, STEPS = 3, 6  # of `Noisy`


def draw() -> list:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()]


class Plain(Noisy):
    """Loaders without a generator of their own: their iterators draw from the network's."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(48.0).view(12, 4) / 48), 2, shuffle=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(2, 4)))


class Stop(pl.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.at:
            draw()
            raise KeyError("an error in the middle of a step")


def fit(folder: Path, model=Noisy, *, resume=None, stop=None, on_error=False, keep=-1, options=None, **when):
    """Train; each checkpoint stays in the folder. Return the trainer and the weights."""
    module = model()
    random.seed(3)
    np.random.seed(3)
    saver = ModelCheckpoint(folder, "{step}", save_top_k=keep, save_on_exception=on_error, **when)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        plugins=[SafeCheckpointIO()],
        callbacks=[RandomState(), saver, *([] if stop is None else [Stop(stop)])],
        **(options or {}),
    )
    try:
        trainer.fit(module, ckpt_path=resume)
    except KeyError:
        assert stop is not None
    return trainer, module.net[0].weight.detach().clone()


WHEN = {
    "every step": {"every_n_train_steps": 1},
    "every fourth step": {"every_n_train_steps": 4},
    "after each epoch": {"save_on_train_epoch_end": True},
    "after each validation": {"save_on_train_epoch_end": False},
    "inside the epoch, with validations": {"every_n_train_steps": 1, "options": {"val_check_interval": 2}},
}
STOPS = {  # each with another checkpoint behind it
    "every step": (1, 6, 7, 8, 12, 13, 14, 18),
    "every fourth step": (5, 9, 13, 17),
    "after each epoch": (7, 13),
    "after each validation": (7, 13),
    "inside the epoch, with validations": (2, 3, 6, 7, 8, 12, 13, 18),
}


@pytest.mark.parametrize("name", ["every step", "after each epoch"])
def test_resumed_from_each_checkpoint_ends_equal(name, tmp_path):
    _, want = fit(tmp_path / "a", **WHEN[name])
    files = sorted((tmp_path / "a").glob("[!.]*.ckpt"))
    assert len(files) >= EPOCHS
    for file in files:
        trainer, weight = fit(tmp_path / file.stem, resume=file, keep=0, **WHEN[name])
        assert trainer.global_step == EPOCHS * STEPS and trainer.current_epoch == EPOCHS
        assert torch.equal(weight, want), file.name


@pytest.mark.parametrize("name", WHEN)
def test_broken_off_after_each_checkpoint_ends_equal(name, tmp_path):
    _, want = fit(tmp_path / "a", **WHEN[name])
    resume = None
    for step in STOPS[name]:
        trainer, weight = fit(tmp_path / "b", resume=resume, stop=step, **WHEN[name])
        resume = latest_checkpoint(tmp_path / "b")
    trainer, weight = fit(tmp_path / "b", resume=resume, **WHEN[name])
    assert trainer.global_step == EPOCHS * STEPS and trainer.current_epoch == EPOCHS
    assert torch.equal(weight, want)


def test_error_inside_a_step(tmp_path):
    _, want = fit(tmp_path / "a", every_n_epochs=1)
    resume = None
    for step in (2, 5, 6, 7, 11, 12, 13, 17, None):
        _, weight = fit(tmp_path / "b", resume=resume, stop=step, on_error=True, every_n_epochs=1)
        resume = latest_checkpoint(tmp_path / "b")
    assert torch.equal(weight, want)


def test_any_loaders_between_epochs(tmp_path):
    _, want = fit(tmp_path / "a", Plain, save_on_train_epoch_end=True)
    for file in sorted((tmp_path / "a").glob("[!.]*.ckpt")):
        assert torch.equal(fit(tmp_path / file.stem, Plain, resume=file, keep=0)[1], want), file.name


def test_without_it_the_end_differs(tmp_path):
    _, want = fit(tmp_path / "a", save_on_train_epoch_end=True)
    file = tmp_path / "a" / "step=6.ckpt"
    checkpoint = load_checkpoint(file)
    del checkpoint["random_state"]
    SafeCheckpointIO().save_checkpoint(checkpoint, file)
    with pytest.warns(UserWarning, match="states of 0 processes, and training resumes on 1"):
        _, weight = fit(tmp_path / "b", resume=file, keep=0)
    assert not torch.equal(weight, want)


def test_another_number_of_processes(tmp_path):
    fit(tmp_path / "a", save_on_train_epoch_end=True)
    file = tmp_path / "a" / "step=6.ckpt"
    checkpoint = load_checkpoint(file)
    assert len(checkpoint["random_state"]["processes"]) == 1
    checkpoint["random_state"]["processes"] *= 2
    SafeCheckpointIO().save_checkpoint(checkpoint, file)
    with pytest.warns(UserWarning, match="states of 2 processes, and training resumes on 1"):
        trainer, _ = fit(tmp_path / "b", resume=file, keep=0)
    assert trainer.global_step == EPOCHS * STEPS
    trainer.validate(Noisy(), ckpt_path=file, verbose=False)  # no warning, and the generators stay as they are
