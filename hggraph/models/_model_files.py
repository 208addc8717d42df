"""The files of a model folder: where they lie, and what stands in them, read without running anything."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hggraph._files import write_atomically
from hggraph.models._hub import fetch
from hggraph.models._model_config import check_config

__all__ = [
    "CARD",
    "CONFIG",
    "METRICS",
    "WEIGHTS",
    "files_of",
    "header_of",
    "model_folder",
    "read_config",
    "read_metrics",
    "size_and_hash",
    "write_json",
    "write_text",
]

CONFIG, WEIGHTS, METRICS, CARD = "config.json", "model.safetensors", "metrics.json", "README.md"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
MOST_BYTES = 16 << 20  # of a configuration


def model_folder(path: str | Path) -> Path:
    """Return the model folder that a path means: itself, or the ``model`` of a run in it.

    Raises:
        FileNotFoundError: if there is none, or a file is missing in it; the text says what to do.
        ValueError: if the path is a file.
    """
    folder = Path(path)
    if folder.suffix in PICKLES and not folder.is_dir():
        raise ValueError(f"{path} was refused: such files can run code. Give a folder with {CONFIG} and {WEIGHTS}.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{path} is a file; give the folder with {CONFIG} and {WEIGHTS}.")
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if not missing:
        return folder
    if (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{folder} is a run without a model yet, which its first best checkpoint writes; go on training it, or run "
            f"`hggraph validate --config {folder / 'config.yaml'}`, if it is your own."
        )
    pickles = sorted(one.name for one in folder.iterdir() if one.suffix in PICKLES) if folder.is_dir() else []
    hint = f" {', '.join(pickles)} can run code and is not read." if pickles else ""
    raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}, as `save_pretrained` writes.{hint}")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return what a model folder says was measured, of whichever weights; nothing if the file is missing or no list."""
    try:
        found = json.loads((folder / METRICS).read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def header_of(path: Path) -> dict[str, Any]:
    """Return the shapes of the tensors in a safetensors file, as tensors without memory.

    Raises:
        ValueError: if it is no such file.
    """
    import torch
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  (no mapping)
    except Exception as error:  # SafetensorError and what else a hostile file makes of it
        raise ValueError(f"{path} is not a file of weights (.safetensors): {error}") from error
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def files_of(path_or_hub_id: str | Path, revision: str | None) -> tuple[dict[str, Any], Path]:
    """Return the configuration, checked, and the path of the weights."""
    text, folder = str(path_or_hub_id), Path(path_or_hub_id)
    if folder.exists() or folder.suffix in PICKLES:
        folder = model_folder(folder)
        return read_config(folder / CONFIG), folder / WEIGHTS
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
        raise FileNotFoundError(
            f"There is no folder {text}, and it is no name on the hub, which has the form owner/name."
        )
    config = read_config(_fetch(text, CONFIG, revision))
    return config, _fetch(text, WEIGHTS, revision)


def _fetch(name: str, file: str, revision: str | None) -> Path:
    try:
        return fetch(name, file, revision)
    except Exception as error:
        raise RuntimeError(
            f"There is no folder {name} here, and {file} of https://huggingface.co/{name} could not be fetched "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}). Without a "
            f"network, fetch {CONFIG} and {WEIGHTS} elsewhere, put them into one folder and give its path."
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Return a configuration, checked; raise a ValueError that names the file if it is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
        return check_config(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not what `save_pretrained` writes: {error}.") from error


def size_and_hash(path: Path) -> dict[str, Any]:
    """Return what a configuration says of its weights."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
