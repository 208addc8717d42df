"""Names for results, and writing a file so that its name never stands for half of it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["NO_ROOM", "unique_names", "write_atomically", "write_folder", "write_together"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of a disk that the next file will meet too


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Whoever opens `path`, at any moment, finds the old file, the new file or no file, never a part
    of one; after a crash or a full disk too, for the bytes are on the disk (fsync) before the name
    is.

    Args:
        path: The file to write; a file of this name is replaced. Its folder must exist.
        write: Gets the temporary name and writes the whole file there. The name has the suffix of
            `path`, so that libraries that choose the format by the suffix choose the same.

    Raises:
        OSError: if the folder is missing or not writable, or the disk is full.
        Exception: whatever `write` raises. In each case the temporary file is removed and a file
            that was at `path` before is still there, unchanged.

    Note:
        A process that is killed outright (SIGKILL, power cut) leaves a hidden file ``.<8 hex
        digits>.tmp<suffix>``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder, "note.txt")
        ...     write_atomically(target, lambda temporary: temporary.write_text("all of it"))
        ...     target.read_text(), len(list(Path(folder).iterdir()))
        ('all of it', 1)
    """
    write_together({Path(path): write})


def write_together(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write several files, complete or absent: none takes its name before each is on the disk.

    Args:
        files: What writes each file; see `write_atomically`.

    Raises:
        OSError, Exception: as `write_atomically`. Files that were there before are then still there; should a name be
            refused after others were taken (a folder that changes meanwhile), those are removed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one, two = Path(folder, "one.txt"), Path(folder, "two.txt")
        ...     write_together({one: lambda path: path.write_text("1"), two: lambda path: path.write_text("2")})
        ...     one.read_text(), two.read_text()
        ('1', '2')
    """
    temporaries = {path: path.with_name(f".{secrets.token_hex(4)}.tmp{path.suffix}") for path in files}
    made = list(temporaries.values())
    try:
        for path, write in files.items():
            write(temporaries[path])
            _flush_to_disk(temporaries[path])
        for path in files:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for path, temporary in temporaries.items():
            temporary.replace(path)
            made.append(path)
    except BaseException as error:  # Ctrl-C too
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        names = {str(temporary): str(path) for path, temporary in temporaries.items()}
        if isinstance(error, OSError) and error.filename in names:  # the name that its reader knows
            error.filename, error.filename2 = names[error.filename], None
        raise
    for folder in {path.parent for path in files}:
        with contextlib.suppress(OSError):  # a folder cannot be opened on Windows, nor synced on some network drives
            _flush_to_disk(folder)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder under a temporary name beside it, then let it take its name.

    Whoever looks finds the old folder or the new one, whole. (Where the system cannot exchange two names, which Linux
    can, for an instant neither.)

    Args:
        path: The folder; one of this name is replaced with all that is in it. The folder around it must exist.
        write: Gets the temporary folder, which is there, and writes into it.

    Raises:
        OSError, Exception: as `write_atomically`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder, "model")
        ...     for text in ("old", "new"):
        ...         write_folder(target, lambda temporary: Path(temporary, "note.txt").write_text(text))
        ...     Path(target, "note.txt").read_text(), len(list(Path(folder).iterdir()))
        ('new', 1)
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        write(temporary)
        if not path.exists():
            temporary.replace(path)
        elif not _exchange(temporary, path):
            old = path.with_name(f".{secrets.token_hex(4)}.tmp")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # the new one after an error, or the old one
    with contextlib.suppress(OSError):
        _flush_to_disk(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once, where the system can; say whether it did."""
    try:
        rename = ctypes.CDLL(None).renameat2  # of Linux's C library; -100 is the working directory, 2 an exchange
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return a name without suffix for each file: its own; where several share it, with the folder's; with a number.

    Names that differ in upper and lower case alone count as shared, since some file systems ignore case.

    Example:
        >>> unique_names([Path("a/1.png"), Path("b/1.png"), Path("b/1.jpg"), Path("b/2.jpg")])
        ['a_1', 'b_1', 'b_1-2', '2']
    """
    count = Counter(path.stem.casefold() for path in paths)
    names = [
        path.stem if count[path.stem.casefold()] == 1 else f"{path.resolve().parent.name}_{path.stem}" for path in paths
    ]
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while names[i].casefold() in taken:
            number += 1
            names[i] = f"{name}-{number}"
        taken.add(names[i].casefold())
    return names


def _flush_to_disk(path: Path) -> None:
    # a folder opens for reading only; Windows syncs a file only if it is open for writing
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
