"""Trained networks with what is needed to use them: classes, colours, normalisation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser
from torch import nn

from hggraph._files import write_atomically
from hggraph.engine.checkpoint import best_checkpoint, check_parameters, load_checkpoint
from hggraph.engine.task import Task, find_task
from hggraph.models.pretrained import from_pretrained, pretrained_config, save_pretrained
from hggraph.schemes.hs3 import TappedNetwork

__all__ = [
    "CONFIG",
    "DEFAULT_TASK",
    "USE",
    "Trained",
    "load_run",
    "load_trained",
    "publish",
    "save_use",
]

CONFIG, USE = "config.yaml", "use.json"
DEFAULT_TASK = "hggraph.engine.SegmentationTask"
Color = tuple[int, int, int]


class Trained(NamedTuple):
    """A network in eval mode, and how it is used."""

    net: nn.Module
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def save_use(folder: Path, dataset: Any) -> None:
    """Write beside a run what its data set says of the use of the network, ``use.json``.

    Args:
        folder: Folder of the run.
        dataset: Has ``classes``, ``palette`` and a ``transform`` with ``mean`` and ``std``, as far as they exist.
    """
    found = {name: getattr(dataset, name, ()) for name in ("classes", "palette")}
    found |= {name: getattr(dataset.transform, name, ()) for name in ("mean", "std")}
    text = json.dumps({name: [list(v) if isinstance(v, tuple) else v for v in value] for name, value in found.items()})
    write_atomically(folder / USE, lambda path: path.write_text(text, encoding="utf-8"))


def load_run(folder: str | Path) -> Trained:
    """Make the network of a run of ``hggraph fit`` with its best weights.

    Args:
        folder: With ``config.yaml``, ``use.json`` and ``checkpoints/``.

    Returns:
        The network in eval mode on the CPU, and how it is used.

    Raises:
        FileNotFoundError: if the folder has no ``config.yaml`` or no checkpoint; the text says what is missing.
        CheckpointError: if the checkpoint is damaged.
        ValueError: if its weights are another network's.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is no run: there is no {CONFIG} in it. Give the folder that `fit` wrote to.")
    path = best_checkpoint(folder)
    if path is None:
        raise FileNotFoundError(f"{folder} has no checkpoint to use; go on training it with `hggraph fit`.")
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    _drop_pretrained(config["model"]["net"])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(find_task(config.get("task", DEFAULT_TASK)), "model")
    task: Task = parser.instantiate(parser.parse_object({"model": config["model"]})).model
    checkpoint = load_checkpoint(path)
    check_parameters(checkpoint, task, path)
    task.load_state_dict(checkpoint["state_dict"])
    use = json.loads((folder / USE).read_text(encoding="utf-8")) if (folder / USE).is_file() else {}
    return Trained(
        task.net.eval(),
        tuple(use.get("classes", ())),
        tuple(_color(color) for color in use.get("palette", ())),
        tuple(use.get("mean", ())) or (0.0,) * 3,
        tuple(use.get("std", ())) or (1.0,) * 3,
    )


def load_trained(path_or_hub_id: str | Path) -> Trained:
    """Load a run of ``hggraph fit``, or a network that was published.

    Args:
        path_or_hub_id: The folder of a run, or what `from_pretrained` takes.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_run` and `from_pretrained`.
    """
    if Path(path_or_hub_id, CONFIG).is_file():
        return load_run(path_or_hub_id)
    config = pretrained_config(path_or_hub_id)
    net = from_pretrained(path_or_hub_id)
    plain = [0.0] * net.in_channels, [1.0] * net.in_channels
    mean, std = (tuple(config.get(key) or default) for key, default in zip(("mean", "std"), plain, strict=True))
    palette = tuple(_color(color) for color in config.get("palette") or ())
    return Trained(net, tuple(config.get("classes") or ()), palette, mean, std)


def publish(run: str | Path, folder: str | Path, *, description: str = "", license_id: str | None = None) -> Path:
    """Write the best network of a run as safetensors, with a model card made from its evaluation.

    Args:
        run: Folder of the run; of ``results-test.json`` and ``results-val.json`` the first that is there goes into the
            card.
        folder: Where to; see `save_pretrained`.
        description: A paragraph for the card.
        license_id: Licence of the weights as hubs name it.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, ValueError: as `load_run` and `save_pretrained`.
    """
    run = Path(run)
    trained = load_run(run)
    recipe = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))["model"]["net"]
    net: Any = trained.net
    while isinstance(net, TappedNetwork):  # the taps have served
        recipe, net = recipe["init_args"]["net"], net.net
    parser = ArgumentParser(exit_on_error=False)
    arguments = dict(recipe.get("init_args") or {})
    if arguments.get("clusterer"):
        parser.add_argument("--clusterer", type=nn.Module)
        arguments["clusterer"] = parser.instantiate(
            parser.parse_object({"clusterer": arguments["clusterer"]})
        ).clusterer
    found = [run / f"results-{stage}.json" for stage in ("test", "val")]
    return save_pretrained(
        net,
        folder,
        model=recipe["class_path"].rpartition(".")[2],
        arguments=arguments,
        classes=trained.classes or None,
        palette=trained.palette or None,
        mean=trained.mean,
        std=trained.std,
        evaluation=next((path for path in found if path.is_file()), None),
        description=description,
        license_id=license_id,
    )


def _drop_pretrained(maker: dict[str, Any]) -> None:
    """Make a network, and one inside it, without weights: they come from the checkpoint."""
    arguments = maker.get("init_args") or {}
    if "pretrained" in arguments:
        arguments["pretrained"] = False
    if isinstance(arguments.get("net"), dict):
        _drop_pretrained(arguments["net"])


def _color(values: Sequence[int]) -> Color:
    red, green, blue = values
    return red, green, blue
