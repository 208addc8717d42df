"""One file of a checkpoint: hashed while it is written, read back, refused if reading it would run code."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hggraph.engine._manifest import CheckpointError, Entry
from hggraph.engine._plain import leaves, refused

__all__ = ["HashedFile", "check_space", "names_in", "write"]

SPARE_BYTES = 1 << 20  # for what surrounds the tensors, and the manifest


class HashedFile:
    """A file that hashes what is written, and keeps the error of the disk, which `torch.save` would hide."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write and hash."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self.file.flush()


def write(checkpoint: dict[str, Any], path: Path) -> Entry:
    """Write and sync a checkpoint, make sure that it can be read back, and describe it."""
    with path.open("wb") as file:
        hashed = HashedFile(file)
        try:
            torch.save(checkpoint, hashed)  # type: ignore[arg-type]  # it needs no more than write and flush
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise _unsavable(checkpoint, str(error)) from error
        except RuntimeError:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # tensors stay on the disk
    except pickle.UnpicklingError as error:
        raise _unsavable(checkpoint, names_in(path)) from error
    return {
        "size": hashed.size,
        "sha256": hashed.hash.hexdigest(),
        "step": checkpoint.get("global_step"),
        "epoch": checkpoint.get("epoch"),
        "resumes": "optimizer_states" in checkpoint,
    }


def _unsavable(checkpoint: dict[str, Any], found: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint was not saved, for reading it would run code: {', '.join(refused(checkpoint)[:5]) or found}. "
        f"Save numbers, text, lists, dicts and tensors in its place, or leave it out "
        f"(`save_hyperparameters(ignore=[...])`)."
    )


def names_in(path: Path) -> str:
    """Return the code that reading a file would run, by name, for a message."""
    try:
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))) or "unknown"
    except Exception:  # whatever a hostile file makes of it: this is for a message only
        return "unknown"


def check_space(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Raise an OSError, as a full disk does, if a checkpoint will not fit."""
    storages: dict[int, int] = {}
    for _, leaf in leaves(checkpoint):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            storage = leaf.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    needed = sum(storages.values()) + 512 * len(storages) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"it needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")
