"""Checkpoints that Lightning saves and resumes from."""

import errno
import tomllib
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from packaging.requirements import Requirement
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hggraph.engine.checkpoint import (
    CheckpointError,
    SafeCheckpointIO,
    check_parameters,
    latest_checkpoint,
    load_checkpoint,
)
from hggraph.engine.random_state import RandomState

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # in Lightning
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Model(pl.LightningModule):
    def __init__(self, root: Path, rate: float = 0.1, extra=None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(2, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(self.global_step)
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("score", self.net(batch[0]).square().mean())

    def on_load_checkpoint(self, checkpoint):
        check_parameters(checkpoint, self)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.rate)


def fit(folder: Path, model: pl.LightningModule, epochs: int, ckpt_path: Path | None = None) -> pl.Trainer:
    data = DataLoader(TensorDataset(torch.ones(4, 2)), 2)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafeCheckpointIO()],
        callbacks=[
            ModelCheckpoint(folder, "{step}", monitor="score", save_top_k=2, save_last=True),
            EarlyStopping("score"),
            EMAWeightAveraging(decay=0.5),
            RandomState(),
        ],
    )
    trainer.fit(model, data, data, ckpt_path=ckpt_path)
    return trainer


def test_lightning_saves_and_resumes(tmp_path):
    fit(tmp_path, Model(tmp_path), 3)
    names = {path.name for path in tmp_path.iterdir()}
    whole = {"step=4.ckpt", "step=6.ckpt", "last.ckpt", "previous-last.ckpt"}
    assert names == whole | {f"{name}.sha256" for name in whole}
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["hyper_parameters"] == {"root": str(tmp_path), "rate": 0.1, "extra": None}
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "step=6.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="Going on from"):
        latest = latest_checkpoint(tmp_path)
    model = Model(tmp_path)
    trainer = fit(tmp_path, model, 4, latest)
    assert model.seen == [4, 5, 6, 7] and trainer.global_step == 8
    loaded = Model.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(loaded.net.weight, load_checkpoint(tmp_path / "last.ckpt")["state_dict"]["net.weight"])


def test_lightning_stops_when_it_cannot_save(tmp_path, monkeypatch):
    saved, whole = [], torch.save

    def full(content, file, *more):
        saved.append(file)
        if len(saved) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(content, file, *more)

    monkeypatch.setattr(torch, "save", full)
    model = Model(tmp_path)
    with pytest.raises(OSError, match=r"last\.ckpt could not be written: No space left"):
        fit(tmp_path, model, 3)
    assert model.seen == [0, 1]
    assert latest_checkpoint(tmp_path) == tmp_path / "step=2.ckpt"


def test_lightning_with_a_module_among_the_hyper_parameters(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises against it too
        model = Model(tmp_path, extra=nn.ReLU())
    with pytest.raises(CheckpointError, match=r"would run code: torch\.nn\.modules\.activation\.ReLU"):
        fit(tmp_path, model, 1)


def test_lightning_with_a_checkpoint_of_another_model(tmp_path):
    fit(tmp_path, Model(tmp_path), 1)
    other = Model(tmp_path)
    other.net = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"Model \(2 of another shape: net\.bias \(1,\) instead of \(3,\)"):
        fit(tmp_path / "other", other, 2, latest_checkpoint(tmp_path))


def test_the_lightning_that_is_tested_is_one_that_is_allowed():
    """What a run leaves and resumes from rests on how Lightning counts; another minor version has to be tried first."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in project["optional-dependencies"]["train"]]
    (bounds,) = [one.specifier for one in wanted if one.name == "lightning"]
    assert any(bound.operator == "<" for bound in bounds) and bounds.contains(pl.__version__)
