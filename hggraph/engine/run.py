"""Runs from recipes: what ``hggraph fit``, ``validate`` and ``test`` do."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import logging
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import lightning
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_only

from hggraph._screen import harmless, one_line, screen
from hggraph.engine.callbacks import Results, SamplePictures, Throughput
from hggraph.engine.checkpoint import SafeCheckpointIO, best_checkpoint, latest_checkpoint
from hggraph.engine.data_module import ImageData
from hggraph.engine.ending import Ending
from hggraph.engine.model_folder import ModelFolder
from hggraph.engine.random_state import RandomState
from hggraph.engine.record import CONFIG, RunError, RunRecord
from hggraph.engine.task import DEFAULT_TASK, Task, find_task
from hggraph.inference.trained import Preprocessing

__all__ = ["COMMANDS", "run"]

_say = rank_zero_only(lambda line: screen().print(line))
COMMANDS = ("fit", "validate", "test")
_NETWORKS = "--model.net.help hggraph.models.hg_resnet shows the options of a network, `hggraph info` lists them."


def run(command: str, arguments: list[str]) -> None:
    """Run a command of the trainer as its arguments say.

    A run lives in one folder, ``--out``, by default ``runs/`` and the recipe's name, or for the ``config.yaml`` of a
    run its folder: ``config.yaml``, ``model/``, ``checkpoints/``, ``logs/`` (CSV and TensorBoard, a version for each
    start), ``pictures/``, ``results-<split>.json``. ``fit`` goes on from the newest whole checkpoint that it finds
    there; ``validate`` and ``test`` take the best one, or the newest; ``--ckpt_path`` names another.

    Args:
        command: ``"fit"``, ``"validate"`` or ``"test"``.
        arguments: As on a command line: ``["--config", "recipe.yaml", "--data.root", "folder"]``.

    Raises:
        SystemExit: if the arguments are wrong, after saying how, or only ask for help.
        RunError: if there is nothing to evaluate, or what a run was trained by has changed, without ``--change``.
        ValueError: if Lightning cannot do what is asked.
    """
    # rank_zero: Lightning recommends its makers' other products there, besides saying what it does
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Lightning's use of jsonargparse
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # and of torch
        warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")  # the command is parsed already
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists")  # that is how a run resumes
        task, own_data = _named(command, arguments)
        cli = _RunCLI(
            task,
            lightning.LightningDataModule if own_data else ImageData,
            subclass_mode_data=own_data,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": f"hggraph {command}", "epilog": _NETWORKS, "allow_abbrev": False},
            auto_configure_optimizers=False,
            run=False,
            args=arguments,
        )
        try:
            _start(command, cli)
        except MisconfigurationException as error:
            raise ValueError(" ".join(str(error).split())) from error


def _start(command: str, cli: _RunCLI) -> None:
    folder, path = Path(cli.trainer.default_root_dir), cli.config.ckpt_path
    if path in ("best", "last"):  # as Lightning names them
        path = best_checkpoint(folder) if path == "best" else latest_checkpoint(folder / "checkpoints")
    elif path and not Path(path).exists():
        raise RunError(f"There is no checkpoint at {path}.")
    if command != "fit":
        path = path or best_checkpoint(folder)
        if path is None:
            raise RunError(
                f"{folder} has no checkpoint to {command}: train it with `hggraph fit`, or give --ckpt_path."
            )
        getattr(cli.trainer, command)(cli.model, cli.datamodule, ckpt_path=path)
        return
    if not cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        path = path or latest_checkpoint(folder / "checkpoints")
        record = RunRecord(folder, cli.parser.dump(cli.config, skip_unset=False), path, change=cli.config.change)
        cli.trainer.callbacks.append(record)  # type: ignore[attr-defined]
        for line in record.lines:
            _say(line)
    splits = getattr(cli.datamodule, "splits", None)
    if splits and splits["val"] in ("test", splits["test"]):
        _say(
            f"The best checkpoint is chosen on the split {splits['val']!r}: its score there will be no test score, and "
            f"results say so (selected_on)."
        )
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=path)
    except SystemExit as error:
        if cli.trainer.interrupted:  # type: ignore[attr-defined]  # Lightning leaves with 1 after Ctrl-C
            raise KeyboardInterrupt from error
        raise


def _named(command: str, arguments: list[str]) -> tuple[type[Task], bool]:
    """Return the task that the arguments or their recipes name, and whether they name a data module of one's own.

    They have to be known to parse the rest.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--task")
    parser.add_argument("--data", "--data.class_path", dest="data")
    try:
        given = parser.parse_known_args(arguments)[0]
        recipes = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in given.config]
    except (argparse.ArgumentError, OSError, ValueError, yaml.YAMLError):
        return find_task(DEFAULT_TASK), False  # the parser of all arguments will say what is wrong
    recipes = [recipe for recipe in recipes if isinstance(recipe, dict)]
    names = [recipe["task"] for recipe in recipes if "task" in recipe]
    own_data = given.data is not None or any("class_path" in (recipe.get("data") or {}) for recipe in recipes)
    try:
        return find_task(str(given.task or [DEFAULT_TASK, *names][-1])), own_data
    except ValueError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡 Tip:")


class _Parser(LightningArgumentParser):
    """Says what is wrong in a line or two, with near names for keys that are not known."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, on one line, and leave."""
        if not self.exit_on_error:  # the parser of a part, while alternatives are tried
            super().error(message, ex)
        text = harmless(" ".join((message + _near(self, message)).split()))
        text = text.rstrip(".") + ("" if text.endswith("?") else ".")
        self.exit(2, f"error: {text} --help lists all options and their defaults.\n")


class _RunCLI(LightningCLI):
    """The trainer of a run: its folder, loggers, checkpoints and what it tells."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is not the trainer's, the task's or the data's."""
        parser.add_argument("--out", type=str | None, default=None, help="Folder of the run (default: runs/<recipe>).")
        parser.add_argument(
            "--task", type=str, default=DEFAULT_TASK, help="Class of the task, which has --model's keys."
        )
        parser.add_argument("--monitor", type=str, default="val/miou", help="The best checkpoint has the most of it.")
        parser.add_argument("--monitor_mode", type=str, default="max", help="max, or min for an error.")
        parser.add_argument("--save_every", type=int, default=500, help="Steps between checkpoints inside an epoch.")
        parser.add_argument("--pictures", type=int, default=4, help="Images drawn after each validation.")
        parser.add_argument(
            "--preprocessing",
            type=Preprocessing | None,
            default=None,
            help="How images are prepared for the trained network, where data.transform does not say it.",
        )
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to go on from or to score.")
        parser.add_argument("--change", action="store_true", help="Go on with options that change what is trained.")
        quiet = {"trainer.num_sanity_val_steps": 0, "trainer.enable_model_summary": False}
        parser.set_defaults(quiet | {"trainer.log_every_n_steps": 10})
        # ImageData shares its samples out itself
        parser.set_defaults({"trainer.use_distributed_sampler": self.subclass_mode_data})
        if self.subclass_mode_data:  # keys of a recipe without a class are ImageData's
            parser.set_defaults({"data": {"class_path": "hggraph.engine.ImageData"}})

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Make the trainer."""
        config, given = self.config, self.config.trainer
        out = Path(given.default_root_dir or config.out or _default_folder(config))
        if given.default_root_dir and config.out:
            raise RunError(f"Give --out or --trainer.default_root_dir, not both, got {config.out} and {out}.")
        if given.logger is None or given.logger is True:
            where = str(out / "logs")
            kwargs["logger"] = [CSVLogger(where, name="csv"), TensorBoardLogger(where, name="tensorboard")]
        plugins = self.config_init.trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(one, CheckpointIO) for one in plugins):
            plugins = [*plugins, SafeCheckpointIO()]
        self.trainer_defaults["callbacks"] = [
            RandomState(),
            *([] if given.enable_checkpointing is False else self._checkpoints(out / "checkpoints")),
            Throughput(),
            SamplePictures(config.pictures),
            Results(),
            *([] if given.enable_checkpointing is False else [self._model_folder()]),
            Ending(),
            *([] if given.logger is False else [LearningRateMonitor("step")]),
            *([] if given.enable_progress_bar is False else [RichProgressBar()]),
        ]
        return super().instantiate_trainer(**kwargs, default_root_dir=str(out), plugins=plugins)

    def _model_folder(self) -> ModelFolder:
        recipe = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return ModelFolder(recipe["model"]["net"], self.config_init.preprocessing)

    def _checkpoints(self, folder: Path) -> list[ModelCheckpoint]:
        config, one = self.config, partial(ModelCheckpoint, folder, enable_version_counter=False)
        return [
            one("best", monitor=config.monitor, mode=config.monitor_mode),
            one("last", every_n_train_steps=config.save_every),
            one("last", every_n_epochs=1, save_on_train_epoch_end=True),
        ]


def _near(parser: LightningArgumentParser, message: str) -> str:
    """Return the known names that are nearest to the unknown one that an error is about, as a question."""
    prefix, known = "", [str(action.dest) for action in parser._actions]
    if found := re.search(r"unrecognized arguments: --([\w.]+)", message):
        prefix = "--"
    elif found := re.search(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>\w+)'", message):
        known = [name.removeprefix(found["group"] + ".") for name in known if name.startswith(found["group"] + ".")]
    elif found := re.search(r"class_path '(?P<maker>[\w.]+)':\s+Option '(?P<name>\w+)' is not accepted", message):
        module, _, name = found["maker"].rpartition(".")
        known = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    if found is None:
        return ""
    near = difflib.get_close_matches(found[found.lastindex or 0], known, n=3, cutoff=0.5)
    return f". Did you mean {' or '.join(prefix + name for name in near)}?" if near else ""


def _default_folder(config: Any) -> Path:
    given = config.get("config") or ["run"]
    recipe = Path(str(given[-1]))
    return recipe.parent if recipe.name == CONFIG else Path("runs", recipe.stem)
