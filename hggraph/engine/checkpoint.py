"""Checkpoints that survive a crash: written whole, each with its hash beside it, read without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from hggraph._files import write_atomically
from hggraph.models.weights import check_state

__all__ = [
    "CheckpointError",
    "SafeCheckpointIO",
    "best_checkpoint",
    "check_parameters",
    "latest_checkpoint",
    "load_checkpoint",
]

PREVIOUS = "previous-"
LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.tmp\.(ckpt|sha256)")  # as `write_atomically` names what is not finished
SHARDS = "meta.pt"  # what a strategy of shards writes last into the folder that is its checkpoint


class CheckpointError(ValueError):
    """A checkpoint cannot be saved or used; the text names it and says what to do."""


class SafeCheckpointIO(CheckpointIO):
    """Save and load Lightning's checkpoints so that a crash at any moment leaves a whole one behind.

    A checkpoint is written under a temporary name, synced, and renamed; its SHA-256 stands beside it, in
    ``<name>.sha256``, as ``sha256sum`` writes it. The file that it replaces stays, as ``previous-<name>``, until the
    next save: it takes the room of one more checkpoint. What would need code to be read is not written: paths,
    enumerations and numpy's numbers become text and numbers, the rest is refused.

    For a local or mounted disk, and one run in a folder. What a killed run has left half-written is removed with the
    first save. Strategies that write folders of shards (FSDP) do so past it.

    Raises:
        OSError: from a save, if the disk is full or the folder cannot be written to; those saved before are there.
        CheckpointError: if something cannot be saved so, or a file is damaged or holds code.

    Note:
        Saving and loading cost the hash, 1 to 2 s per GB, but no copy in memory.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[SafeCheckpointIO()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        self._cleaned: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; see the class. A missing folder is made."""
        if storage_options is not None:
            raise TypeError(f"SafeCheckpointIO takes no `storage_options`, got {storage_options!r}.")
        path = _local(path)

        def write(temporary: Path) -> None:
            digest = _write(checkpoint, temporary)
            if path.is_file() and not path.is_symlink():
                _keep(path, path.with_name(PREVIOUS + path.name))
            _write_hash(path, digest)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in self._cleaned:
                for left in list(path.parent.iterdir()):
                    if LEFTOVER.fullmatch(left.name):
                        left.unlink(missing_ok=True)
                self._cleaned.add(path.parent)
            write_atomically(path, write)
        except OSError as error:
            raise OSError(
                error.errno,
                f"The checkpoint {path} could not be written: {error.strerror or error}. Those saved before are still "
                f"there; make room or choose another folder, and resume",
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; see the function `load_checkpoint`. `weights_only` has to be None or True."""
        if weights_only is False:
            raise ValueError("`weights_only` must be True or None: a checkpoint that needs code to be read is refused.")
        return load_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and the one that it has replaced, with their hashes."""
        path = _local(path)
        for one in (path, path.with_name(PREVIOUS + path.name)):
            one.unlink(missing_ok=True)
            _hash_file(one).unlink(missing_ok=True)


def load_checkpoint(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code, after a check that the file is whole.

    Args:
        path: What `SafeCheckpointIO` has written, or another file of `torch.save`. If its hash stands beside it, that
            has to be right; if not, the checksums inside the file.
        map_location: Where tensors go, as for `torch.load`.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is cut short or altered, or would need code to be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.ckpt")
        ...     SafeCheckpointIO().save_checkpoint({"global_step": 1}, path)
        ...     _ = path.write_bytes(path.read_bytes()[:-9])
        ...     try:
        ...         load_checkpoint(path)
        ...     except CheckpointError as error:
        ...         "is damaged" in str(error)
        True
    """
    path = _local(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    with path.open("rb") as file:
        _check_whole(file, path)
        try:
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} was refused: to read it, code that it names would have to run ({_code_in(path)}). Load only "
                f"what SafeCheckpointIO has written."
            ) from error
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} must hold a dict, as checkpoints do, got {type(checkpoint).__name__}.")
    return checkpoint


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest whole checkpoint that training can go on from.

    Args:
        folder: Where checkpoints are saved: files ``*.ckpt``, or folders of that name with shards.

    Returns:
        Its path; None if there is no folder, or nothing in it to resume from. Checkpoints of weights alone are passed
        over. If the newest is damaged, a warning says so in one line, and the one before is returned.

    Raises:
        CheckpointError: if there are checkpoints and none of them is whole: to start anew would hide the loss.

    Note:
        Reads the file that it returns once. Newest is what was changed last.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     latest_checkpoint(folder) is None
        True
    """
    found = {path.resolve() for path in Path(folder).glob("[!.]*.ckpt") if path.is_file() or (path / SHARDS).is_file()}
    damaged: list[str] = []
    for path in sorted(found, key=lambda one: (one.stat().st_mtime_ns, one.name), reverse=True):
        try:
            resumes = path.is_dir() or "optimizer_states" in load_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error).rstrip("."))
            continue
        if resumes and damaged:
            rank_zero_warn(f"{'; '.join(damaged)}. Going on from {path.name}, the one saved before.")
        if resumes:
            return path
    if damaged:
        raise CheckpointError(
            f"No checkpoint in {folder} can be used: {'; '.join(damaged)}. Bring one back from a copy, or move these "
            f"away to start anew."
        )
    return None


def best_checkpoint(folder: Path) -> Path | None:
    """Return the best checkpoint of a run, or the newest whole one, or None."""
    best = folder / "checkpoints" / "best.ckpt"
    return best if best.exists() else latest_checkpoint(folder / "checkpoints")


def check_parameters(checkpoint: Mapping[str, Any], module: nn.Module, path: str | Path = "the checkpoint") -> None:
    """Raise unless a checkpoint holds exactly the parameters and statistics of a module.

    Args:
        checkpoint: What was loaded, as `LightningModule.on_load_checkpoint` gets it; its ``"state_dict"`` is compared.
        module: The module that is to get them.
        path: Where it came from, for the message.

    Raises:
        ValueError: if there are missing, unexpected or reshaped ones; the text names the first of each.

    Example:
        >>> check_parameters({"state_dict": nn.Linear(2, 3).state_dict()}, nn.Linear(2, 3))
        >>> check_parameters({"state_dict": nn.Linear(2, 3, bias=False).state_dict()}, nn.Linear(2, 3), "a.ckpt")
        Traceback (most recent call last):
        ValueError: The weights in a.ckpt are not those of Linear (1 missing: bias). Nothing was loaded.
    """
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f"{path} holds no parameters: there is no `state_dict` in it. Nothing was loaded.")
    found, wanted = (
        {name: value for name, value in state.items() if isinstance(value, Tensor)}  # not what get_extra_state gives
        for state in (checkpoint["state_dict"], module.state_dict())
    )
    check_state(found, wanted, Path(path), type(module).__name__)


class _Hashed:
    """A file that hashes what is written, and keeps the error of the disk, which `torch.save` would hide."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write(checkpoint: dict[str, Any], path: Path) -> str:
    """Write and sync a checkpoint, make sure that it can be read back, and return its hash."""
    # a state_dict is tensors already, and carries the versions of its modules as an attribute
    plain = {
        key: value if key == "state_dict" else apply_to_collection(value, (PurePath, Enum, np.generic), _plain)
        for key, value in checkpoint.items()
    }
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(plain, hashed)  # type: ignore[arg-type]  # it needs no more than write and flush
            file.flush()
            os.fsync(file.fileno())
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # tensors stay on the disk
        except (pickle.PickleError, AttributeError, TypeError) as error:
            named = _code_in(path) if isinstance(error, pickle.UnpicklingError) else str(error)
            raise CheckpointError(
                f"The checkpoint was not saved, for reading it would run code: {named}. Save numbers, text, lists, "
                f"dicts and tensors in its place, or leave it out (`save_hyperparameters(ignore=[...])`)."
            ) from error
        except RuntimeError:
            if hashed.error is not None:
                raise hashed.error from None
            raise
    return hashed.hash.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return value.item() if isinstance(value, np.generic) else str(value)


def _keep(path: Path, previous: Path) -> None:
    """Rename a checkpoint and its hash. Killed in between, one of both names is whole, without a hash at the least."""
    beside = _hash_file(path)
    digest = beside.read_text(encoding="utf-8").split(" ")[0] if beside.is_file() else ""
    _hash_file(previous).unlink(missing_ok=True)
    path.replace(previous)
    if digest:
        _write_hash(previous, digest)


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_hash(path: Path, digest: str) -> None:
    text = f"{digest}  {path.name}\n"
    write_atomically(_hash_file(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _check_whole(file: BinaryIO, path: Path) -> None:
    """Raise if an open file is not what was written; it is at its beginning before and after."""
    beside = _hash_file(path.resolve())
    if beside.is_file():
        words = beside.read_text(encoding="utf-8", errors="replace").split()
        if words[:1] != [hashlib.file_digest(file, "sha256").hexdigest()]:  # type: ignore[arg-type]
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {beside.name}.")
    else:
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except Exception as error:  # zipfile.BadZipFile, zlib.error, struct.error, ...
            raise CheckpointError(f"{path} is damaged or no checkpoint: {error}.") from error
        if broken is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {broken} in it is wrong.")
    file.seek(0)


def _code_in(path: Path) -> str:
    """Return the code that reading a file would run, by name, for a message."""
    try:
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))) or "unknown"
    except Exception:  # whatever a hostile file makes of it: this is for a message only
        return "unknown"


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise ValueError(f"Checkpoints are kept on a local or mounted disk, got {str(path)!r}.")
    return Path(path)
