"""Trained networks to publish and to use: weights, what they are the weights of, and what was measured."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hggraph._files import write_atomically
from hggraph.cluster import Cells, SoftSLIC
from hggraph.models._model_card import model_card as model_card
from hggraph.models._network import SegmentationNetwork
from hggraph.models.makers import MAKERS, Maker
from hggraph.models.weights import check_state, load_weights, save_weights

__all__ = ["from_pretrained", "model_card", "pretrained_config", "save_pretrained"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
FORMAT = 1
_FIRST = {"update": "column", "position": 0.0, "smooth": 0.0, "connected": False}  # before there were these options
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def save_pretrained(
    net: SegmentationNetwork,
    folder: str | Path,
    *,
    model: str,
    arguments: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    evaluation: Mapping[str, Any] | str | Path | None = None,
    name: str | None = None,
    description: str = "",
    license_id: str | None = None,
) -> Path:
    """Write a trained network so that `from_pretrained` makes it anew, with a model card.

    Three files, as a model hub wants them: ``model.safetensors``; ``config.json`` with all that is given here, and size
    and SHA-256 of the weights; ``README.md``, the card, made from the configuration.

    Args:
        net: The network as it was trained, not folded.
        folder: Where to; made if it is missing. Files of these names are replaced.
        model: The name of the function of `hggraph.models` that has made it: ``"hg_resnet"``, for example.
        arguments: The arguments that it was made with, by name: numbers, text, lists, and a `SoftSLIC`, which is
            described by its options. Those left out are written with their defaults; ``pretrained`` is not written.
        classes: Names, one for each channel of the logits.
        palette: Red, green and blue from 0 to 255 of each class.
        mean: What was subtracted from the channels of images in [0, 1].
        std: What they were divided by.
        evaluation: What was measured, as ``hggraph test`` writes it: a dict with a dict of numbers and lists under
            ``"results"``, and text such as ``"dataset"`` and ``"split"``; or the path of such a file. NaN becomes null.
        name: Title of the card; the folder's name when None.
        description: A paragraph for the card.
        license_id: Licence of the weights as hubs name it, for example ``"cc-by-4.0"``.

    Returns:
        The folder.

    Raises:
        ValueError: if the function makes another network with these arguments, or something does not fit in JSON.
        OSError: if a file cannot be written.

    Example:
        >>> import tempfile
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
    maker = _maker(model)
    defaults = {key: parameter.default for key, parameter in inspect.signature(maker).parameters.items()}
    given = {**defaults, **arguments}
    described = {key: _describe(key, value) for key, value in given.items() if key != "pretrained"}
    try:
        with torch.device("meta"):  # shapes alone
            same = _make(maker, described)
        check_state(net.state_dict(), same.state_dict(), Path("`net`"), model)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"This network is not the one that {model} makes with these `arguments`: {error} Give those that it was "
            f"made with, and the network before `fold()`; it can be folded after it is loaded."
        ) from error
    _check_parts(net, classes, palette, mean, std)
    config: dict[str, Any] = {
        "format": FORMAT,
        "hggraph": _version(),
        "name": folder.resolve().name if name is None else name,
        "description": description,
        "license": license_id,
        "model": model,
        "arguments": described,
        "classes": None if classes is None else list(classes),
        "palette": None if palette is None else [list(color) for color in palette],
        "mean": None if mean is None else [float(value) for value in mean],
        "std": None if std is None else [float(value) for value in std],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "evaluation": _evaluation(evaluation),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(net, folder / WEIGHTS)
    config["files"] = {WEIGHTS: _size_and_hash(folder / WEIGHTS)}
    _write(folder / CARD, model_card(config))
    _write(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return folder


def from_pretrained(path_or_hub_id: str | Path, *, revision: str | None = None) -> SegmentationNetwork:
    """Make a published network with its weights, in eval mode, on the CPU.

    Args:
        path_or_hub_id: A folder that `save_pretrained` has written; or, if there is no such folder here,
            ``"owner/name"`` on the Hugging Face hub, of which two files are fetched and kept.
        revision: Branch, tag or commit on the hub; None for its main branch.

    Returns:
        The network, float32.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing in it.
        ValueError: if a file is damaged, does not belong to the other, or is no safetensors file. Pickles are refused.
        RuntimeError: if the hub does not give the files, for example without a network.

    Note:
        Nothing in the files is run: the configuration can only name the makers of `hggraph.models` and their arguments.
    """
    config, weights = _files(path_or_hub_id, revision)
    expected, found = config["files"][WEIGHTS], _size_and_hash(weights)
    if found != expected:
        raise ValueError(
            f"{weights} is not the file that {CONFIG} describes: expected {expected['size']:,} bytes with SHA-256 "
            f"{expected['sha256']}, got {found['size']:,} bytes with {found['sha256']}. It is damaged, or one of the "
            f"two was replaced; fetch or save both again. Nothing was loaded."
        )
    with torch.random.fork_rng(devices=[]):
        try:
            net = _make(_maker(config["model"]), config["arguments"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{CONFIG} of {path_or_hub_id} describes no network: {error}") from error
    load_weights(net, weights)
    return net.eval()


def pretrained_config(path_or_hub_id: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """Return what is known of a published network: what was given to `save_pretrained`, ``"classes"`` for example.

    Args:
        path_or_hub_id: As for `from_pretrained`; so are the errors.
        revision: As for `from_pretrained`.
    """
    return _files(path_or_hub_id, revision)[0]


def _files(path_or_hub_id: str | Path, revision: str | None) -> tuple[dict[str, Any], Path]:
    """Return the configuration, checked, and the path of the weights."""
    text, folder = str(path_or_hub_id), Path(path_or_hub_id)
    if folder.suffix in PICKLES and not folder.is_dir():
        raise ValueError(f"{text} was refused: such files can run code. Give a folder with {CONFIG} and {WEIGHTS}.")
    if folder.is_dir():
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
            hint = f" {', '.join(pickles)} can run code and is not read." if pickles else ""
            raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}, as `save_pretrained` writes.{hint}")
        return _read_config(folder / CONFIG), folder / WEIGHTS
    if folder.exists():
        raise ValueError(f"{text} is a file; give the folder with {CONFIG} and {WEIGHTS}.")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
        raise FileNotFoundError(
            f"There is no folder {text}, and it is no name on the hub, which has the form owner/name."
        )
    config = _read_config(_fetch(text, CONFIG, revision))
    return config, _fetch(text, WEIGHTS, revision)


def _fetch(name: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except Exception as error:
        raise RuntimeError(
            f"There is no folder {name} here, and {file} of https://huggingface.co/{name} could not be fetched "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}). Without a "
            f"network, fetch {CONFIG} and {WEIGHTS} elsewhere, put them into one folder and give its path."
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']!r} is not known to this version, which reads {FORMAT}")
        file, arguments = config["files"][WEIGHTS], config["arguments"]
        if not (isinstance(file["size"], int) and isinstance(file["sha256"], str) and isinstance(arguments, dict)):
            raise ValueError("an entry of another form")
        _maker(config["model"])
    except KeyError as error:
        raise ValueError(f"{path} is not what `save_pretrained` writes: there is no {error} in it.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not what `save_pretrained` writes: {error}") from error
    return config


def _maker(model: str) -> Maker:
    if model not in MAKERS:
        near = difflib.get_close_matches(str(model), MAKERS, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"`model` must be one of {', '.join(MAKERS)}, got {model!r}.{hint}")
    return MAKERS[model]


def _make(maker: Maker, described: Mapping[str, Any]) -> SegmentationNetwork:
    """Call a maker with arguments out of a configuration, which may come from anyone."""
    known = inspect.signature(maker).parameters.keys() - {"pretrained"}
    unknown = sorted(described.keys() - known)
    if unknown:
        raise ValueError(f"{maker.__name__} takes no {', '.join(unknown)}.")
    arguments = dict(described)
    if isinstance(arguments.get("clusterer"), dict):
        arguments["clusterer"] = _clusterer(arguments["clusterer"])
    elif isinstance(arguments.get("clusterer"), list):
        arguments["clusterer"] = [_clusterer(one) for one in arguments["clusterer"]]
    return maker(**arguments)


def _describe(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_describe(name, one) for one in value]
    if type(value) is Cells and name == "clusterer":
        return {"Cells": {"side": value.side}}
    if type(value) is SoftSLIC and name == "clusterer":
        options = {key: getattr(value, key) for key in inspect.signature(SoftSLIC).parameters}
        projection = options["projection"]
        if projection is not None:
            if type(projection) is not nn.Conv2d or projection.padding_mode != "zeros":
                raise ValueError(f"The clusterer's `projection` must be an nn.Conv2d or None, got {projection}.")
            conv = {key: getattr(projection, key) for key in _CONV} | {"bias": projection.bias is not None}
            options["projection"] = {"Conv2d": {key: _describe(key, one) for key, one in conv.items()}}
        return {"SoftSLIC": options}
    raise ValueError(
        f"`arguments[{name!r}]` must be a number, text, a list, None or, for the clusterer, a SoftSLIC or Cells: what "
        f"JSON can say. Got {type(value).__name__}."
    )


def _clusterer(described: dict[str, Any]) -> SoftSLIC | Cells:
    if described.keys() == {"Cells"}:
        return Cells(**described["Cells"])
    if described.keys() != {"SoftSLIC"}:
        raise ValueError(f"the clusterer must be a SoftSLIC or Cells, got {', '.join(described) or 'nothing'}.")
    options = _FIRST | described["SoftSLIC"]
    if isinstance(options.get("projection"), dict):
        options["projection"] = nn.Conv2d(**options["projection"]["Conv2d"])
    return SoftSLIC(**options)


def _check_parts(
    net: SegmentationNetwork,
    classes: Sequence[str] | None,
    palette: Sequence[Sequence[int]] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    if classes is not None and len(classes) != net.num_classes:
        raise ValueError(f"`classes` must be {net.num_classes} names, got {len(classes)}.")
    for color in palette or ():
        if len(color) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in color):
            raise ValueError(f"`palette` must hold red, green and blue from 0 to 255, got {color!r}.")
    if palette is not None and len(palette) < max(net.num_classes, 2):
        raise ValueError(f"`palette` must have {max(net.num_classes, 2)} colours, got {len(palette)}.")
    if (mean is None) != (std is None):
        raise ValueError("`mean` and `std` must be given together.")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != net.in_channels:
            raise ValueError(f"`{name}` must be {net.in_channels} numbers, one for each channel, got {len(values)}.")


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


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _version() -> str:
    try:
        return version("hggraph")
    except PackageNotFoundError:
        return "unknown"
