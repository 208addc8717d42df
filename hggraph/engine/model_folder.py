"""The model folder of a run: written with every best checkpoint, so that what was measured is what runs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from hggraph._files import write_folder
from hggraph.engine.callbacks import evaluation
from hggraph.engine.checkpoint import load_checkpoint
from hggraph.engine.classification import ClassificationTask
from hggraph.engine.data_module import ImageData
from hggraph.engine.detection import DetectionTask
from hggraph.engine.regions import RegionTask
from hggraph.inference.trained import Preprocessing, load_clusterer
from hggraph.models._describe import describe, described_recipe
from hggraph.models._model_config import describe_preprocessing
from hggraph.models._model_files import read_metrics
from hggraph.models.pretrained import add_evaluation, save_pretrained
from hggraph.schemes.hs3 import TappedNetwork

__all__ = ["ModelFolder"]

MODEL = "model"  # beside the checkpoints of a run


class ModelFolder(Callback):
    """Write the weights of ``checkpoints/best.ckpt`` as a model folder, ``model``, each time that there are new ones.

    It is what ``hggraph predict``, ``inspect`` and ``publish`` read, and `load_trained`: see `save_pretrained`. After a
    validation and a test of the best checkpoint it gets what was measured.

    Args:
        network: What makes the network, as a recipe says it: ``{"class_path": ..., "init_args": {...}}``.
        preprocessing: What the network's images went through in evaluation; None: the transform of the data module's
            validation set.

    Raises:
        ValueError: when training begins, if the preprocessing cannot be written down: what was trained could not be
            used.

    Note:
        Reads each new best checkpoint once and writes its weights, in the first process.
    """

    def __init__(self, network: Mapping[str, Any], preprocessing: Preprocessing | None = None) -> None:
        self.network = network
        self.preprocessing = preprocessing
        self._validated = False  # since the folder was last looked at

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Make sure that what is to be trained can be written down."""
        if stage == "fit":
            self._prepared(trainer)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write what a killed run has left to be written."""
        self._update(trainer, pl_module)

    # Lightning saves checkpoints after the last hook of a validation: these are the next ones
    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write new weights."""
        if self._validated:
            self._update(trainer, pl_module, measured=True)
            self._validated = False

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write new weights."""
        self._update(trainer, pl_module, measured=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write new weights."""
        self._update(trainer, pl_module, measured=True)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add what ``validate`` has measured."""
        self._validated = True
        if trainer.state.fn == "validate":
            self._add(trainer, pl_module, "val")

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add what ``test`` has measured."""
        self._add(trainer, pl_module, "test")

    def _add(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        path = _best(trainer)
        if not (trainer.is_global_zero and path.is_file() and trainer.ckpt_path and path.samefile(trainer.ckpt_path)):
            return  # other weights than the folder's
        self._update(trainer, pl_module)
        add_evaluation(path.parents[1] / MODEL, _public(evaluation(trainer, pl_module, stage)))

    def _update(self, trainer: lightning.Trainer, pl_module: Any, *, measured: bool = False) -> None:
        """Write the folder if the best checkpoint is newer; with what the task has just measured of it."""
        path = _best(trainer)
        folder = path.parents[1] / MODEL
        written = folder / "config.json"
        if not trainer.is_global_zero or not path.is_file():
            return
        if written.is_file() and written.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            return
        preprocessing, dataset = self._prepared(trainer)
        recipe, net, prefix = self.network, pl_module.net, "net."
        while isinstance(net, TappedNetwork):  # the taps have served
            recipe, net, prefix = recipe["init_args"]["net"], net.net, prefix + "net."
        net = copy.deepcopy(net).cpu()
        state = load_checkpoint(path)["state_dict"]
        net.load_state_dict({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)})
        recipe = _with_clusterers(recipe)
        known = described_recipe(recipe)
        record = _public(evaluation(trainer, pl_module, "val")) if measured and pl_module.results else None

        def write(temporary: Path) -> None:
            save_pretrained(
                net,
                temporary,
                model=recipe if known is None else known[0],
                arguments=None if known is None else known[1],
                classes=tuple(getattr(dataset, "classes", ())) or None,
                palette=tuple(getattr(dataset, "palette", ())) or None,
                preprocessing=preprocessing,
                evaluation=record,
                task=_task_of(pl_module),
                name=path.parents[1].resolve().name,
            )

        old = read_metrics(folder)
        write_folder(folder, write)
        for one in old:
            with contextlib.suppress(ValueError):  # of other weights
                add_evaluation(folder, one)

    def _prepared(self, trainer: lightning.Trainer) -> tuple[Preprocessing, Any]:
        """Return the preprocessing, once it can be written down, and the validation set or what stands for it."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset = data.dataset("val") if isinstance(data, ImageData) else data
        found: Any = self.preprocessing or getattr(dataset, "transform", None)
        if found is None:
            raise ValueError(
                "Nothing says how the network's images are prepared, so that it could not be used after training: give "
                "`data.transform`, or `preprocessing`, an EvalTransform or ClassEvalTransform of hggraph.data."
            )
        describe_preprocessing(found, len(getattr(found, "mean", ())))
        return found, dataset


def _best(trainer: lightning.Trainer) -> Path:
    return Path(trainer.default_root_dir, "checkpoints", "best.ckpt")


def _public(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "checkpoint"}  # where it lay concerns nobody else


def _task_of(task: Any) -> str:
    kinds = {ClassificationTask: "classification", DetectionTask: "detection", RegionTask: "regions"}
    return next((name for kind, name in kinds.items() if isinstance(task, kind)), "segmentation")


def _with_clusterers(recipe: Any) -> Any:
    """Return a recipe with the clusterers of other runs described: a model folder stands alone."""
    if isinstance(recipe, list):
        return [_with_clusterers(one) for one in recipe]
    if not isinstance(recipe, Mapping):
        return recipe
    if str(recipe.get("class_path", "")).endswith(".load_clusterer"):
        return describe("clusterer", load_clusterer(**recipe.get("init_args", {})))
    return {key: _with_clusterers(value) for key, value in recipe.items()}
