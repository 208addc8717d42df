"""``hggraph fit``, ``validate`` and ``test``: recipes for Lightning's trainer."""

from __future__ import annotations

import typer

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
    try:
        from hggraph.engine.run import run
    except ImportError as error:
        raise typer.BadParameter(f'Training needs Lightning ({error}): pip install "hggraph[train,models]"') from error
    run(command, arguments)
