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
from pathlib import Path
from typing import Any, NoReturn

import lightning
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from hggraph._files import write_atomically
from hggraph._screen import harmless, one_line
from hggraph.engine.callbacks import Results, SamplePictures, Throughput
from hggraph.engine.checkpoint import SafeCheckpointIO, latest_checkpoint
from hggraph.engine.data_module import ImageData
from hggraph.engine.ending import Ending
from hggraph.engine.random_state import RandomState
from hggraph.engine.task import Task, find_task
from hggraph.engine.trained import CONFIG, DEFAULT_TASK, best_checkpoint, save_use

__all__ = ["COMMANDS", "run"]

COMMANDS = ("fit", "validate", "test")
_NETWORKS = "--model.net.help hggraph.models.hg_resnet shows the options of a network, `hggraph info` lists them."


def run(command: str, arguments: list[str]) -> None:
    """Run a command of the trainer as its arguments say.

    A run lives in one folder, ``--out``, by default ``runs/`` and the recipe's name, or for the ``config.yaml`` of a
    run its folder: ``config.yaml``, ``use.json``, ``checkpoints/``, ``logs/`` (CSV and TensorBoard, a version for each
    start), ``pictures/``, ``results-<stage>.json``. ``fit`` goes on from the newest whole checkpoint that it finds
    there; ``validate`` and ``test`` take the best one, or the newest.

    Args:
        command: ``"fit"``, ``"validate"`` or ``"test"``.
        arguments: As on a command line: ``["--config", "recipe.yaml", "--data.root", "folder"]``.

    Raises:
        SystemExit: if the arguments are wrong, after saying how, or only ask for help.
    """
    # rank_zero: Lightning recommends its makers' other products there, besides saying what it does
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Lightning's use of jsonargparse
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # and of torch
        warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")  # the command is parsed already
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists")  # that is how a run resumes
        cli = _RunCLI(
            _task(command, arguments),
            ImageData,
            save_config_callback=_SaveConfig,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": f"hggraph {command}", "epilog": _NETWORKS},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            args=arguments,
        )
        folder = Path(cli.trainer.default_root_dir)
        if command == "fit":
            newest = latest_checkpoint(folder / "checkpoints")
            if newest is not None:
                print(f"Going on from {newest}")
            try:
                cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=newest)
            except SystemExit as error:
                if cli.trainer.interrupted:  # Lightning leaves with 1 after Ctrl-C
                    raise KeyboardInterrupt from error
                raise
        else:
            getattr(cli.trainer, command)(cli.model, cli.datamodule, ckpt_path=best_checkpoint(folder))


def _task(command: str, arguments: list[str]) -> type[Task]:
    """Return the class of the task that the arguments or their recipes name; it has to be known to parse the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--task")
    try:
        given = parser.parse_known_args(arguments)[0]
        recipes = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in given.config]
    except (argparse.ArgumentError, OSError, ValueError, yaml.YAMLError):
        return find_task(DEFAULT_TASK)  # the parser of all arguments will say what is wrong
    names = [recipe["task"] for recipe in recipes if isinstance(recipe, dict) and "task" in recipe]
    try:
        return find_task(str(given.task or [DEFAULT_TASK, *names][-1]))
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
        self.exit(2, f"error: {text.rstrip('.')}. --help lists all options and their defaults.\n")


class _SaveConfig(SaveConfigCallback):
    """Saves the recipe, with all defaults written out, in the folder of the run."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` and ``use.json`` before training begins."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_unset=False)
        write_atomically(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
        save_use(folder, trainer.datamodule.dataset("val"))  # type: ignore[attr-defined]


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
        quiet = {"trainer.num_sanity_val_steps": 0, "trainer.enable_model_summary": False}
        parser.set_defaults(quiet | {"trainer.use_distributed_sampler": False, "trainer.log_every_n_steps": 10})

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Make the trainer."""
        config = self.config
        out = Path(config.out) if config.out else _default_folder(config)
        loggers = [CSVLogger(str(out / "logs"), name="csv"), TensorBoardLogger(str(out / "logs"), name="tensorboard")]
        one: dict[str, Any] = {"dirpath": out / "checkpoints", "enable_version_counter": False}
        best = ModelCheckpoint(filename="best", monitor=config.monitor, mode=config.monitor_mode, **one)
        newest = ModelCheckpoint(filename="last", every_n_train_steps=config.save_every, **one)
        of_epoch = ModelCheckpoint(filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **one)
        self.trainer_defaults["callbacks"] = [
            RandomState(),
            best,
            newest,
            of_epoch,
            Throughput(),
            SamplePictures(config.pictures),
            Results(),
            Ending(),
            LearningRateMonitor("step"),
            *([] if config.trainer.enable_progress_bar is False else [RichProgressBar()]),
        ]
        return super().instantiate_trainer(
            **kwargs, default_root_dir=str(out), logger=loggers, plugins=[SafeCheckpointIO()]
        )


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
