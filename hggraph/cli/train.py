"""``hggraph fit``, ``validate`` and ``test``: recipes for Lightning's trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from hggraph._screen import screen
from hggraph.cli._model import network_help, networks

__all__ = ["PASS_ON", "fit", "test", "validate"]

# options are those of the trainer, the task and the data, which only their parser knows
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def fit(context: typer.Context) -> None:
    """Train a network by a recipe; the same command goes on where it was stopped.

    hggraph fit --config recipes/camvid_hg_resnet18.yaml --data.root FOLDER

    Every key of a recipe is an option too: --trainer.max_epochs 10. --help lists all of them. Results go to runs/ and
    the recipe's name, or to --out. A run goes on with other options that change what is trained only by --change.
    """
    _run("fit", context.args)


def validate(context: typer.Context) -> None:
    """Evaluate a run on the validation split: hggraph validate --config runs/NAME/config.yaml.

    Takes the best checkpoint of the run, or --ckpt_path, and writes results-val.json there, or the next free name.
    """
    _run("validate", context.args)


def test(context: typer.Context) -> None:
    """Evaluate a run on the test split, data.test_split: hggraph test --config runs/NAME/config.yaml."""
    _run("test", context.args)


def _run(command: str, arguments: list[str]) -> None:
    from hggraph.engine.run import run  # Lightning takes seconds

    for name in _values(arguments, "--model.net.help"):
        function = name.removeprefix("hggraph.models.")
        if function in networks():  # a function, of which the parser, which knows classes, has no help
            where = f"In a recipe: class_path: hggraph.models.{function} under model.net, the options under init_args."
            for line in [*network_help(function), "", where]:
                screen().print(line)
            return
    for path in _values(arguments, "--config", "-c"):
        _check_recipe(Path(path))
    run(command, arguments)


def _values(arguments: list[str], *options: str) -> Iterator[str]:
    """Give what follows an option, as a word of its own or after ``=``."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in options and (value or following):
            yield value or following


def _check_recipe(path: Path) -> None:
    """Raise if a file is no recipe, with its name, which the parser does not give."""
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"--config {path}: {error.strerror}; give a recipe, a YAML file.") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise typer.BadParameter(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(recipe, dict):
        found = "nothing" if recipe is None else type(recipe).__name__
        raise typer.BadParameter(f"--config {path}: expected a recipe, YAML with keys such as model, got {found}.")
