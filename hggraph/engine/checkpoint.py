"""Checkpoints that survive a crash: written whole, listed with their hashes, read without running code."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from hggraph._files import write_atomically
from hggraph.engine import _checkpoint_file, _manifest
from hggraph.engine._manifest import CheckpointError as CheckpointError
from hggraph.engine._manifest import Entry
from hggraph.engine._plain import plain
from hggraph.models.weights import check_state

__all__ = [
    "CheckpointError",
    "SafeCheckpointIO",
    "check_parameters",
    "latest_checkpoint",
    "load_checkpoint",
    "remove_leftovers",
]

SUFFIX = ".ckpt"
PREVIOUS = "previous-"
LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.tmp\.(ckpt|json)")  # as `write_atomically` names what is not finished


class SafeCheckpointIO(CheckpointIO):
    """Save and load Lightning's checkpoints so that a crash at any moment leaves a whole one behind.

    A checkpoint is written under a temporary name, synced and renamed. Before the rename its size and SHA-256 go into
    ``manifest.json`` of the same folder, with step, epoch and time, so that whichever file carries the name after a
    crash is known there. What would need code to be read is not written: paths, enumerations and numpy's numbers become
    text and numbers, the rest is refused. A file is read only if it is the one that was written.

    Args:
        keep_previous: Keep the file that a save replaces, as ``previous-<name>``, until the next one: then there is
            one to fall back to even if all are saved under one name. It takes the room of one more checkpoint.

    For a folder on a local or mounted disk, and one run in a folder. What a killed run has left half-written is
    removed with the first save. A failure to save always raises, and the checkpoints saved before are still there.

    Raises:
        OSError: from a save, if the disk is full or the folder cannot be written to.
        CheckpointError: if something cannot be saved so, or a file is damaged or holds code.

    Note:
        Saving and loading cost the hash, 1 to 2 s per GB, but no copy in memory.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch import Trainer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SafeCheckpointIO().save_checkpoint({"global_step": 7, "state_dict": {}}, Path(folder, "last.ckpt"))
        ...     load_checkpoint(Path(folder, "last.ckpt"))["global_step"]
        7
        >>> trainer = Trainer(plugins=[SafeCheckpointIO()], accelerator="cpu", logger=False)
    """

    def __init__(self, *, keep_previous: bool = True) -> None:
        self.keep_previous = keep_previous
        self._cleaned: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; see the class. A missing folder is made."""
        if storage_options is not None:
            raise TypeError(f"SafeCheckpointIO takes no `storage_options`, got {storage_options!r}.")
        path = _local(path)
        checkpoint = plain(checkpoint)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in self._cleaned:
                remove_leftovers(path.parent)
                self._cleaned.add(path.parent)
            _checkpoint_file.check_space(path.parent, checkpoint)
            self._save(checkpoint, path)
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
        """Remove a checkpoint, the one that it has replaced, and what the manifest says of them."""
        path = _local(path)
        names = {path.name, PREVIOUS + path.name}
        for name in names:
            path.with_name(name).unlink(missing_ok=True)
        entries = _manifest.read(path.parent)
        if any(entry["name"] in names for entry in entries):
            _manifest.write(path.parent, [entry for entry in entries if entry["name"] not in names])

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        folder, previous = path.parent, path.with_name(PREVIOUS + path.name)
        keep = self.keep_previous and path.is_file() and not path.is_symlink()
        entries = _manifest.read(folder)
        replaced = [known | {"name": previous.name} for known in _manifest.entries_of(path, entries) if keep]
        entry: Entry = {"name": path.name}

        def write(temporary: Path) -> None:
            entry.update(_checkpoint_file.write(checkpoint, temporary))
            # a clock that was set back must not make the newest checkpoint look old
            entry["time"] = max([time.time(), *(known["time"] for known in entries)])
            # the manifest goes first: from here on it knows the old files and the new one
            _manifest.write(folder, [*entries, *replaced, entry])
            if keep:
                _stand_for(previous, path)

        write_atomically(path, write)
        names = {path.name, previous.name} if keep else {path.name}
        others = [known for known in entries if known["name"] not in names and (folder / known["name"]).exists()]
        _manifest.write(folder, [*others, *replaced, entry])


def load_checkpoint(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code, after a check that the file is whole.

    Args:
        path: What `SafeCheckpointIO` has written, or another file of `torch.save`. If the manifest in its folder
            knows it, size and SHA-256 have to be those; if not, the checksums inside the file have to be right.
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
        ...         "bytes instead of" in str(error)
        True
    """
    path = _local(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    real = path.resolve()
    with real.open("rb") as file:
        _manifest.check_file(file, path, _manifest.entries_of(real, _manifest.read(real.parent)))
        try:
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} was refused: to read it, code that it names would have to run "
                f"({_checkpoint_file.names_in(real)}). Load only what SafeCheckpointIO has written."
            ) from error
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} must hold a dict, as checkpoints do, got {type(checkpoint).__name__}.")
    return checkpoint


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest whole checkpoint that training can go on from.

    Args:
        folder: Where `SafeCheckpointIO` saves; files ``*.ckpt``.

    Returns:
        Its path; None if there is no folder, or nothing in it to resume from. Checkpoints of weights alone are passed
        over. If the newest is damaged, a warning says so in one line, and the one before is returned.

    Raises:
        CheckpointError: if there are checkpoints and none of them is whole: to start anew would hide the loss.

    Note:
        Reads the file that it returns once, for its hash.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     latest_checkpoint(folder) is None
        True
    """
    damaged: list[str] = []
    for path, known in _manifest.newest_first(Path(folder), SUFFIX):
        try:
            resumes = _resumes(path, known)
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


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Remove what killed runs have left half-written in a folder of checkpoints.

    Args:
        folder: The folder; no other run may be saving into it.

    Returns:
        What was removed: hidden files ``.<8 hex digits>.tmp.ckpt`` and ``.json``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, ".0123abcd.tmp.ckpt").touch()
        ...     [path.name for path in remove_leftovers(folder)]
        ['.0123abcd.tmp.ckpt']
    """
    left = sorted(path for path in Path(folder).iterdir() if LEFTOVER.fullmatch(path.name))
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _stand_for(name: Path, path: Path) -> None:
    """Give a file a second name; the first stays all the time where the disk has hard links."""
    if name.exists() and name.samefile(path):
        return  # since a crash; to rename one name of a file to another of its names would do nothing
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        os.link(path, temporary)
    except OSError:
        path.replace(name)
    else:
        temporary.replace(name)


def _resumes(path: Path, known: list[Entry]) -> bool:
    """Say whether training can go on from a file; raise if it is damaged."""
    with path.open("rb") as file:
        entry = _manifest.check_file(file, path, known)
    return "optimizer_states" in load_checkpoint(path) if entry is None else bool(entry["resumes"])


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise ValueError(f"Checkpoints are kept on a local or mounted disk, got {str(path)!r}.")
    return Path(path)
