"""Model folders: trained networks to publish and to use, what they are made of, and what was measured of them.

A folder holds ``config.json``, ``model.safetensors`` and ``metrics.json``, and for a hub ``README.md``, made of them.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from hggraph._files import write_atomically
from hggraph.models._describe import foreign_names, make, make_foreign, on_meta, with_defaults
from hggraph.models._model_card import model_card as model_card
from hggraph.models._model_config import FORMAT, TASKS, check_config, describe_preprocessing
from hggraph.models._model_files import (
    CARD,
    CONFIG,
    METRICS,
    WEIGHTS,
    files_of,
    header_of,
    model_folder,
    read_config,
    read_metrics,
    size_and_hash,
    write_json,
    write_text,
)
from hggraph.models._network import SegmentationNetwork
from hggraph.models.makers import task_of
from hggraph.models.weights import check_state, load_weights, save_weights

__all__ = [
    "add_evaluation",
    "from_pretrained",
    "model_card",
    "pretrained_config",
    "publish",
    "save_pretrained",
]


def save_pretrained(
    net: nn.Module,
    folder: str | Path,
    *,
    model: str | Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocessing: Any = None,
    evaluation: Mapping[str, Any] | str | Path | None = None,
    task: str | None = None,
    name: str | None = None,
    description: str = "",
    license_id: str | None = None,
) -> Path:
    """Write a trained network so that `from_pretrained` makes it anew, with a model card.

    Four files, the configuration last: ``model.safetensors``; ``metrics.json``, a list of what was measured, each with
    the hash of the weights that it was measured of; ``config.json`` with all that is given here, and size and SHA-256
    of the weights; and ``README.md``, the card, made of these.

    Args:
        net: The network as it was trained, not folded.
        folder: Where to; made if it is missing. Files of these names are replaced.
        model: The name of what has made it: a function of `hggraph.models`, ``"hg_resnet"`` for example, a clusterer,
            or ``"timm.create_model"``. For a network of one's own the part of a recipe that makes it,
            ``{"class_path": "mine.Net", "init_args": {...}}``: such a folder loads with ``trust=True`` alone.
        arguments: The arguments that it was made with, by name: numbers, text, lists, and clusterers and such, which
            are described by their options. Those left out are written with their defaults; ``pretrained`` is not
            written.
        classes: Names, one for each class.
        palette: Red, green and blue from 0 to 255 of each class.
        mean: What was subtracted from the channels of images in [0, 1]; short for a `preprocessing` without a size.
        std: What they were divided by.
        preprocessing: The `hggraph.data.EvalTransform` or `ClassEvalTransform` that images went through. Without it and
            `mean` the folder cannot predict images.
        evaluation: What was measured, as ``hggraph test`` writes it: a dict with a dict of numbers and lists under
            ``"results"``, and text such as ``"dataset"`` and ``"split"``; or the path of such a file. NaN becomes null.
        task: Of a network of one's own: ``"segmentation"``, ``"classification"``, ``"detection"`` or ``"regions"``.
        name: Title of the card; the folder's name when None.
        description: A paragraph for the card.
        license_id: Licence of the weights as hubs name it, for example ``"cc-by-4.0"``.

    Returns:
        The folder.

    Raises:
        ValueError: if the function makes another network with these arguments, something does not fit in JSON, or the
            evaluation says that it was made with other weights.
        OSError: if a file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from hggraph import SoftSLIC
        >>> from hggraph.models import hg_orientation
        >>> arguments = {"channels": 8, "depth": 1, "clusterer": SoftSLIC(4)}
        >>> net = hg_orientation(**arguments)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(net, folder, model="hg_orientation", arguments=arguments, classes=["no", "road"])
        ...     again = from_pretrained(folder)
        >>> torch.equal(again.stem[0].weight, net.stem[0].weight)
        True
    """
    folder = Path(folder)
    made_of = _made_of(net, model, arguments or {}, task)
    bands = _bands(net, made_of["arguments"])
    _check_parts(net, classes, palette)
    prepared: dict[str, Any] = {"preprocessing": None, "mean": None, "std": None}
    if (mean is None) != (std is None) or (preprocessing is not None and mean is not None):
        raise ValueError("`mean` and `std` must be given together, or `preprocessing` alone.")
    if preprocessing is not None:
        prepared = dict(zip(prepared, describe_preprocessing(preprocessing, bands), strict=True))
    elif mean is not None and std is not None:
        plain: dict[str, Any] = {"bands": bands, "range": [0, 1], "EvalTransform": {}}
        prepared = {"preprocessing": plain, "mean": [float(x) for x in mean], "std": [float(x) for x in std]}
    config: dict[str, Any] = {
        "format": FORMAT,
        "hggraph": _version(),
        "name": folder.resolve().name if name is None else name,
        "description": description,
        "license": license_id,
        **made_of,
        "classes": None if classes is None else list(classes),
        "palette": None if palette is None else [list(color) for color in palette],
        **prepared,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "files": {WEIGHTS: {"size": 0, "sha256": "0" * 64}},
    }
    check_config(config)
    found = _evaluation(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(net, folder / WEIGHTS)
    config["files"] = {WEIGHTS: size_and_hash(folder / WEIGHTS)}
    write_json(folder / METRICS, [])
    write_json(folder / CONFIG, config)
    if found is None:
        write_text(folder / CARD, model_card(config, []))
    else:
        add_evaluation(folder, found)
    return folder


def from_pretrained(path_or_hub_id: str | Path, *, revision: str | None = None, trust: bool = False) -> nn.Module:
    """Make a published network with its weights, in eval mode, on the CPU.

    Args:
        path_or_hub_id: A folder that `save_pretrained` has written, or one that holds such a folder as ``model``, as a
            run of ``hggraph fit`` does; or, if there is no such folder here, ``"owner/name"`` on the Hugging Face hub,
            of which two files are fetched and kept.
        revision: Branch, tag or commit on the hub; None for its main branch.
        trust: Import and call what a folder of one's own names that hggraph does not know.

    Returns:
        The network, float32.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing in it.
        ValueError: if a file is damaged, does not belong to the other, is no safetensors file, or holds a value out of
            all range; without `trust` also if the folder names code that is not hggraph's. Pickles are refused.
        RuntimeError: if the hub does not give the files, for example without a network.

    Note:
        Without `trust` nothing in the files is run, imported or looked up: a configuration can only name what
        `hggraph.models` knows and its arguments, and gets memory only for weights that are in the file.
    """
    config, weights = files_of(path_or_hub_id, revision)
    expected, found = config["files"][WEIGHTS], size_and_hash(weights)
    if found != expected:
        raise ValueError(
            f"{weights} is not the file that {CONFIG} describes: expected {expected['size']:,} bytes with SHA-256 "
            f"{expected['sha256']}, got {found['size']:,} bytes with {found['sha256']}. It is damaged, or one of the "
            f"two was replaced; fetch or save both again. Nothing was loaded."
        )
    recipe = config.get("recipe")
    if recipe is not None and not trust:
        raise ValueError(
            f"{path_or_hub_id} holds a network that is not hggraph's: to make it, {', '.join(foreign_names(recipe))} "
            f"would be imported and run. If it is your own, say so: --trust, or `trust=True`. Nothing was loaded."
        )
    try:
        if recipe is not None:
            net = make_foreign(recipe)
        else:
            shapes = on_meta(config["model"], config["arguments"]).state_dict()
            check_state(header_of(weights), shapes, weights, config["model"])
            net = make(config["model"], config["arguments"])
    except ValueError as error:
        if "Nothing was loaded" in str(error) or "is not a file of weights" in str(error):
            raise
        raise ValueError(f"{CONFIG} of {path_or_hub_id} describes no network: {error}") from error
    load_weights(net, weights)
    return net.eval()


def pretrained_config(path_or_hub_id: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """Return what is known of a published network: what was given to `save_pretrained`, ``"classes"`` for example.

    Args:
        path_or_hub_id: As for `from_pretrained`; so are the errors.
        revision: As for `from_pretrained`.
    """
    return files_of(path_or_hub_id, revision)[0]


def add_evaluation(folder: str | Path, evaluation: Mapping[str, Any]) -> None:
    """Add what was measured to a model folder's ``metrics.json``, and make its card anew.

    Args:
        folder: A model folder.
        evaluation: See `save_pretrained`; with the hash of other weights under ``"weights"`` it is refused, without one
            it gets that of the folder's. The same evaluation of the same weights is replaced.

    Raises:
        ValueError: if it is of other weights, or `folder` is no model folder.
        OSError: if a file cannot be written.
    """
    folder = model_folder(folder)
    config = read_config(folder / CONFIG)
    record = _evaluation(evaluation)
    sha256 = config["files"][WEIGHTS]["sha256"]
    if record is None or record.setdefault("weights", sha256) != sha256:
        raise ValueError(
            f"The evaluation is of other weights than those in {folder}: expected SHA-256 {sha256}, got "
            f"{(record or {}).get('weights')}. Evaluate these."
        )
    what = ("weights", "dataset", "split", "part", "size", "scales", "flip")
    kept = [one for one in read_metrics(folder) if any(one.get(key) != record.get(key) for key in what)]
    write_json(folder / METRICS, [*kept, record])
    write_text(folder / CARD, model_card(config, [*kept, record]))


def publish(
    path: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    description: str = "",
    license_id: str | None = None,
) -> Path:
    """Copy a model folder, with a name, a description and a licence, and the card that goes with them.

    Args:
        path: A model folder, or a run of ``hggraph fit``.
        folder: Where to; see `save_pretrained`.
        name: Title of the card; the folder's name when None.
        description: A paragraph for the card.
        license_id: Licence of the weights as hubs name it.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, ValueError, OSError: as `from_pretrained` and `save_pretrained`. Nothing is imported or run.
    """
    source, folder = model_folder(path), Path(folder)
    config = read_config(source / CONFIG)
    if size_and_hash(source / WEIGHTS) != config["files"][WEIGHTS]:
        raise ValueError(f"{source / WEIGHTS} is not the file that {CONFIG} describes; train or save it again.")
    sha256 = config["files"][WEIGHTS]["sha256"]
    metrics = [one for one in read_metrics(source) if one.get("weights") == sha256]
    config |= {"description": description, "license": license_id}
    config["name"] = folder.resolve().name if name is None else name
    check_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, lambda temporary: shutil.copyfile(source / WEIGHTS, temporary))
    write_json(folder / METRICS, metrics)
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, model_card(config, metrics))
    return folder


def _made_of(
    net: nn.Module, model: str | Mapping[str, Any], arguments: Mapping[str, Any], task: str | None
) -> dict[str, Any]:
    """Return what a network is made of, once a network of that has its weights."""
    if not isinstance(model, str):
        if task not in TASKS:
            raise ValueError(f"`task` of a network of one's own must be one of {', '.join(TASKS)}, got {task!r}.")
        return {"task": task, "model": None, "arguments": {}, "recipe": _as_json("model", model)}
    described = with_defaults(model, arguments)
    try:
        same = on_meta(model, described)
        check_state(net.state_dict(), same.state_dict(), Path("`net`"), model)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"This network is not the one that {model} makes with these `arguments`: {error} Give those that it was "
            f"made with, and the network before `fold()`; it can be folded after it is loaded."
        ) from error
    return {"task": task_of(model), "model": model, "arguments": described, "recipe": None}


def _bands(net: nn.Module, arguments: Mapping[str, Any]) -> int:
    """Return how many channels a network's images have."""
    found = getattr(net, "in_channels", None) or arguments.get("in_channels") or arguments.get("in_chans")
    return found if isinstance(found, int) else 3


def _check_parts(net: nn.Module, classes: Sequence[str] | None, palette: Sequence[Sequence[int]] | None) -> None:
    """Raise a ValueError if a segmentation network has another number of classes than names or colours."""
    count = getattr(net, "num_classes", None)
    if not isinstance(net, SegmentationNetwork) or not isinstance(count, int):
        return
    if classes is not None and len(classes) != count:
        raise ValueError(f"`classes` must be {count} names, got {len(classes)}.")
    if palette is not None and len(palette) < max(count, 2):
        raise ValueError(f"`palette` must have {max(count, 2)} colours, got {len(palette)}.")


def _evaluation(evaluation: Mapping[str, Any] | str | Path | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    if not isinstance(evaluation, Mapping):
        evaluation = json.loads(Path(evaluation).read_text(encoding="utf-8"))
    if not isinstance(evaluation, Mapping) or not isinstance(evaluation.get("results"), Mapping):
        raise ValueError('`evaluation` must have a dict of what was measured under "results".')
    out: dict[str, Any] = _as_json("evaluation", evaluation)
    if isinstance(out.get("checkpoint"), str):
        out["checkpoint"] = re.split(r"[/\\]", out["checkpoint"])[-1]  # where it lay concerns nobody else
    return out


def _as_json(where: str, value: Any) -> Any:
    """Return numbers, lists and dicts of any library as JSON has them, NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(f"{where}.{key}", one) for key, one in value.items()}
    if hasattr(value, "tolist"):  # tensors, arrays and their numbers
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_as_json(where, one) for one in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"`{where}` must be a number, text, a list or a dict, got {value!r}.")


def _version() -> str:
    try:
        return version("hggraph")
    except PackageNotFoundError:
        return "unknown"
