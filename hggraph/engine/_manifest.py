"""The list of a folder's checkpoints, and whether a file is still what was written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from hggraph._files import write_atomically

__all__ = ["MANIFEST", "CheckpointError", "Entry", "check_file", "entries_of", "newest_first", "read", "write"]

MANIFEST = "manifest.json"
Entry = dict[str, Any]  # of one checkpoint: name, size, sha256, step, epoch, time, resumes

_TYPES: dict[str, Any] = {"name": str, "size": int, "sha256": str, "time": (int, float), "resumes": bool}


class CheckpointError(ValueError):
    """A checkpoint cannot be saved or used; the text names it and says what to do."""


def read(folder: Path) -> list[Entry]:
    """Return a folder's entries in the order of saving; none, with a warning, if the list is damaged.

    A name stands in it twice if a crash has left open whether the old or the new file carries it.
    """
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["checkpoints"]
        if not all(isinstance(entry[key], kind) for entry in entries for key, kind in _TYPES.items()):
            raise ValueError("an entry of another form")
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        rank_zero_warn(f"{path} cannot be read ({error}): checkpoints are judged by the checksums inside them.")
        return []
    return list(entries)


def write(folder: Path, entries: list[Entry]) -> None:
    """Write the list, whole or not at all."""
    text = json.dumps({"checkpoints": entries}, indent=1) + "\n"
    write_atomically(folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def entries_of(path: Path, entries: list[Entry]) -> list[Entry]:
    """Return those of a file's name."""
    return [entry for entry in entries if entry["name"] == path.name]


def check_file(file: io.BufferedReader, path: Path, known: list[Entry]) -> Entry | None:
    """Check that an open file is what was written.

    Args:
        file: The file, at its beginning; it is there again afterwards.
        path: Its path, for messages.
        known: What the manifest says of it: size and SHA-256 have to be those of one entry. If nothing, the checksums
            that every file of `torch.save` has inside have to be right.

    Returns:
        The entry that fits, or None if there is none at all.

    Raises:
        CheckpointError: if it is cut short or altered.
    """
    match = None
    if known:
        size = os.fstat(file.fileno()).st_size
        if all(entry["size"] != size for entry in known):
            raise CheckpointError(f"{path} is damaged: it has {size:,} bytes instead of {known[-1]['size']:,}.")
        match = _entry_with_hash(file, known)
        if match is None:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}.")
    else:
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except Exception as error:  # zipfile.BadZipFile, zlib.error, struct.error, ...
            raise CheckpointError(f"{path} is damaged or no checkpoint: {error}.") from error
        if broken is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {broken} in it is wrong.")
    file.seek(0)
    return match


def newest_first(folder: Path, suffix: str) -> list[tuple[Path, list[Entry]]]:
    """Return a folder's checkpoints, links resolved, with their entries, in the order of saving backwards."""
    paths = {path.resolve() for path in folder.glob(f"[!.]*{suffix}") if path.is_file()}  # no link to nothing
    entries = read(folder) if paths else []
    found: list[tuple[tuple[float, int], Path, list[Entry]]] = []
    for path in paths:
        known = entries_of(path, entries)
        if len(known) > 1:
            with path.open("rb") as file:
                match = _entry_with_hash(file, known)
            known = known if match is None else [match]
        # a file of unknown origin: the time of its last change
        order = (known[-1]["time"], entries.index(known[-1])) if known else (path.stat().st_mtime, -1)
        found.append((order, path, known))
    return [(path, known) for _, path, known in sorted(found, key=lambda one: one[0], reverse=True)]


def _entry_with_hash(file: io.BufferedReader, entries: list[Entry]) -> Entry | None:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((entry for entry in reversed(entries) if entry["sha256"] == digest), None)
