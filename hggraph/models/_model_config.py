"""What stands in a model folder's configuration, checked before anything is made of it: it may come from anyone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hggraph.models.makers import NETWORKS, task_of

__all__ = ["FORMAT", "TASKS", "check_config", "describe_preprocessing"]

FORMAT = 2
TASKS = ("segmentation", "classification", "detection", "regions")
TRANSFORMS = ("EvalTransform", "ClassEvalTransform")
_SIDE = 1 << 16  # pixels
_OPTIONS = {
    "size": "size",
    "long_side": "side",
    "multiple": "side",
    "short_side": "side",
    "crops": "side",
    "views": "flag",
}
_KEYS = {
    *("format", "hggraph", "name", "description", "license", "task", "model", "arguments", "recipe", "classes"),
    *("palette", "mean", "std", "preprocessing", "parameters", "files"),
}


def describe_preprocessing(transform: Any, bands: int) -> tuple[dict[str, Any], list[float], list[float]]:
    """Return what a transform for evaluation does to images, as JSON says it, and its mean and deviation.

    Raises:
        ValueError: if it is none of `hggraph.data` that can be written down.
    """
    kind = type(transform)
    if kind.__name__ not in TRANSFORMS or not kind.__module__.startswith("hggraph.data."):
        raise ValueError(
            f"Images are prepared by {kind.__module__}.{kind.__qualname__}, which cannot be written down for "
            f"prediction: give `preprocessing`, an EvalTransform or ClassEvalTransform that does the same."
        )
    options = {key: getattr(transform, key) for key in inspect.signature(kind).parameters}
    mean, std = list(options.pop("mean")), list(options.pop("std"))
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return {"bands": bands, "range": [0, 1], kind.__name__: plain}, mean, std


def check_config(config: Any) -> dict[str, Any]:
    """Return a configuration, once every value is one that can be.

    Raises:
        ValueError: if it is not; the text names what.
    """
    if not isinstance(config, dict):
        raise ValueError(f"expected an object, got {type(config).__name__}")
    if config.get("format") != FORMAT:
        raise ValueError(f"format {config.get('format')!r:.40} is not known to this version, which reads {FORMAT}")
    if strange := sorted(str(key)[:40] for key in config.keys() - _KEYS):
        raise ValueError(f"there is something that is not known in it: {', '.join(strange[:5])}")
    if missing := sorted(_KEYS - config.keys()):
        raise ValueError(f"there is no {', '.join(missing[:5])} in it")
    for key in ("name", "description", "license"):
        _text(key, config[key], 10_000)
    if config["name"] is None or not _whole(config["parameters"], 0, 1 << 50):
        raise ValueError("`name` must be text and `parameters` their number")
    files = _mapping("files", config["files"])
    file = _mapping("files", files.get("model.safetensors"))
    sha256 = file.get("sha256")
    if len(files) != 1 or not (isinstance(file.get("size"), int) and isinstance(sha256, str) and len(sha256) == 64):
        raise ValueError("`files` must hold size and SHA-256 of model.safetensors")
    task, recipe = config.get("task"), config.get("recipe")
    if recipe is None:
        model = config.get("model")
        if not isinstance(model, str) or model not in NETWORKS:
            raise ValueError(f"`model` must be one of {', '.join(NETWORKS)}, got {model!r:.100}")
        _mapping("arguments", config.get("arguments"))
        if task != task_of(model):
            raise ValueError(f"`task` of {model} must be {task_of(model)}, got {task!r:.40}")
    elif task not in TASKS or not isinstance(_mapping("recipe", recipe).get("class_path"), str):
        raise ValueError(f"`recipe` must name a class and `task` one of {', '.join(TASKS)}")
    classes = _list("classes", config.get("classes"), 100_000)
    for name in classes:
        _text("classes", name, 1000)
    _check_palette(config.get("palette"), classes)
    _check_preprocessing(config)
    return config


def _check_palette(palette: Any, classes: Sequence[Any]) -> None:
    colors = _list("palette", palette, 100_000)
    for color in colors:
        if not isinstance(color, list) or len(color) != 3 or not all(_whole(value, 0, 255) for value in color):
            raise ValueError(f"`palette` must hold red, green and blue from 0 to 255, got {color!r:.60}")
    if colors and len(colors) < len(classes):
        raise ValueError(f"`palette` must have a colour for each of {len(classes)} classes, got {len(colors)}")


def _check_preprocessing(config: Mapping[str, Any]) -> None:
    preprocessing, mean, std = (config.get(key) for key in ("preprocessing", "mean", "std"))
    if preprocessing is None and mean is None and std is None:
        return
    found = _mapping("preprocessing", preprocessing)
    bands, kinds = found.get("bands"), [key for key in found if key not in ("bands", "range")]
    if not _whole(bands, 1, 4096) or found.get("range") != [0, 1] or len(kinds) != 1 or kinds[0] not in TRANSFORMS:
        raise ValueError(f"`preprocessing` must say bands, range [0, 1] and one of {', '.join(TRANSFORMS)}")
    for key, values, low, high in (("mean", mean, 0.0, 1.0), ("std", std, 1e-6, 1e6)):
        numbers = values if isinstance(values, list) and len(values) == bands else [None]
        if not all(_real(value) and value is not None and low <= value <= high for value in numbers):
            what = f"{bands} numbers from {low:g} to {high:g}, one for each band"
            raise ValueError(f"`{key}` must be {what}, got {values!r:.80}")
    for key, value in _mapping("preprocessing", found[kinds[0]]).items():
        rule = _OPTIONS.get(key)
        right = {
            "side": value is None or _whole(value, 1, _SIDE),
            "size": value is None
            or _whole(value, 1, _SIDE)
            or (isinstance(value, list) and len(value) == 2 and all(_whole(side, 1, _SIDE) for side in value)),
            "flag": isinstance(value, bool),
        }.get(rule or "", False)
        if not right:
            raise ValueError(
                f"`preprocessing` has {key} = {value!r:.40}, which is no option of {kinds[0]} in its range"
            )


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(key: str, value: Any, most: int) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > most):
        raise ValueError(f"`{key}` must be text of at most {most:,} characters, got {value!r:.60}")


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"`{key}` must be an object, got {type(value).__name__}")
    return value


def _list(key: str, value: Any, most: int) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"`{key}` must be a list of at most {most:,} entries, got {value!r:.60}")
    return value
