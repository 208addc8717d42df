"""Archives: fetched only if asked to, known by their hash, and unpacked so that they can do no harm."""

from __future__ import annotations

import bz2
import filecmp
import gzip
import hashlib
import http.client
import lzma
import os
import secrets
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any
from urllib.parse import urlsplit

from hggraph._files import write_atomically
from hggraph.data.mask_reader import DatasetError

__all__ = ["download", "extract", "sha256_of"]

_CHUNK = 1 << 20
_SMALL = 64 << 20  # bytes that an archive may unpack to whatever its compression ratio


def extract(
    archive: str | Path,
    folder: str | Path,
    *,
    max_bytes: int = 1 << 40,
    max_files: int = 2_000_000,
    max_ratio: float = 200.0,
) -> list[Path]:
    """Unpack a zip or tar file (plain, gz, bz2, xz) into a folder.

    Everything is unpacked beside its place first, and then renamed, top folder by top folder: what stands there
    afterwards is whole. Nothing that is there before is changed.

    Args:
        archive: The file.
        folder: Where its content goes; made if it is missing.
        max_bytes: Most bytes in all, unpacked.
        max_files: Most files and folders.
        max_ratio: Most bytes unpacked for one byte of the archive, beyond 64 MB.

    Returns:
        The files and folders of the archive's top level, in `folder`, sorted.

    Raises:
        DatasetError: if the archive cannot be read or is encrypted; if it has links, devices, absolute paths or
            paths with ``..``; if it passes one of the limits; if something else of a name is there already (the same
            file may be). Nothing stays unpacked then.
        OSError: if the disk is full or the folder cannot be written.

    Note:
        A process that is killed outright leaves a hidden folder ``.<8 hex digits>.tmp`` in `folder`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with zipfile.ZipFile(f"{root}/masks.zip", "w") as file:
        ...         file.writestr("masks/a.txt", "content")
        ...     [path.name for path in extract(f"{root}/masks.zip", f"{root}/data")]
        ...     Path(root, "data/masks/a.txt").read_text()
        ['masks']
        'content'
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DatasetError(f"{archive}: expected an archive, got {'a folder' if archive.is_dir() else 'no file'}.")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(4)}.tmp"
    budget = _Budget(archive, max_bytes, max_files, max_ratio)
    try:
        temporary.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, temporary, budget)
            else:
                _unpack_tar(archive, temporary, budget)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise budget.error(f"a file and a folder of one name ({error})") from error
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's; gzip and bz2 give no number
                raise
            raise DatasetError(
                f"{archive}: expected a whole zip or tar archive, got {error}; fetch it again."
            ) from error
        return _move_in(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def download(
    url: str,
    path: str | Path,
    sha256: str,
    *,
    download: bool = False,
    max_bytes: int = 1 << 40,
    timeout: float = 60.0,
) -> Path:
    """Fetch a file over https, unless it is there, and make sure by its hash that it is the one meant.

    Args:
        url: An https address; redirections to others than https are refused.
        path: Where the file goes; its folder must exist.
        sha256: Its SHA-256, 64 hexadecimal digits.
        download: False never touches the network: it takes the file that is there, or says how to get it.
        max_bytes: Most bytes.
        timeout: Seconds without an answer after which it gives up.

    Returns:
        `path`. A fetch that breaks off is taken up where it stopped by the next call, from ``.<name>.part``.

    Raises:
        ValueError: if `url` is not https or `sha256` no hash.
        DatasetError: if the file is not there and `download` is False; if it cannot be fetched, is too large or has
            another hash, of which nothing is kept.
        OSError: if the disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = Path(root, "a.zip").write_bytes(b"content")
        ...     download("https://example.org/a.zip", f"{root}/a.zip", sha256_of(f"{root}/a.zip")).name
        'a.zip'
    """
    path = Path(path)
    if urlsplit(url).scheme != "https":
        raise ValueError(f"`url` must begin with https://, got {url!r}.")
    if len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef"):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits, got {sha256!r}.")
    if path.is_file():
        _check_hash(path, sha256, "remove it to fetch it again")
        return path
    if not download:
        raise DatasetError(
            f"{path} is missing. Read the data's licence, then fetch {url} there, or allow it with download=True."
        )
    part = path.with_name(f".{path.name}.part")
    try:
        _fetch(url, part, max_bytes, timeout)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DatasetError(
            f"{url} could not be fetched ({error}); call again to go on from where it stopped."
        ) from error
    except DatasetError:  # too large
        part.unlink(missing_ok=True)
        raise
    try:
        _check_hash(part, sha256, "the file at that address is another than was meant")
    except DatasetError:
        part.unlink()
        raise
    write_atomically(path, part.replace)
    return path


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Budget:
    """Counts what is unpacked and stops at the limits."""

    def __init__(self, archive: Path, max_bytes: int, max_files: int, max_ratio: float) -> None:
        self.archive, self.max_bytes, self.max_files = archive, max_bytes, max_files
        self.max_unpacked = max(_SMALL, int(max_ratio * archive.stat().st_size))
        self.max_ratio = max_ratio
        self.bytes = self.files = 0

    def add_file(self) -> None:
        self.files += 1
        if self.files > self.max_files:
            raise self.error(f"more than {self.max_files:,} files")

    def add_bytes(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.max_bytes:
            raise self.error(f"more than {self.max_bytes:,} bytes")
        if self.bytes > self.max_unpacked:
            raise self.error(f"more than {self.max_ratio:g} bytes unpacked for each of its own")

    def error(self, found: str) -> DatasetError:
        return DatasetError(f"{self.archive}: expected an archive of data, got {found}; nothing was unpacked.")

    def target(self, folder: Path, name: str) -> Path:
        """Return where a file of this name goes, inside the folder."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or PureWindowsPath(name).drive or "\0" in name:
            raise self.error(f"a path that leads out of it, {name!r}")
        target = folder.joinpath(*parts)
        if not target.resolve().is_relative_to(folder.resolve()):
            raise self.error(f"a path that leads out of it, {name!r}")
        return target


class _Counted:
    """Reads a stream of an archive, of which each byte counts."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self.stream, self.budget = stream, budget

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.budget.add_bytes(len(data))
        return data


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            budget.add_file()
            target = budget.target(folder, info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise budget.error(f"a link or device, {info.filename!r}")
            if info.flag_bits & 1:
                raise budget.error(f"an encrypted file, {info.filename!r}")
            if info.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            try:
                with file.open(info) as stream:
                    _copy(_Counted(stream, budget), target)
            except NotImplementedError as error:
                raise budget.error(f"a compression that Python does not know, of {info.filename!r}") from error


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> None:
    openers: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    with archive.open("rb") as file:
        head = file.read(6)
    opener = next((opener for magic, opener in openers.items() if head.startswith(magic)), None)
    with archive.open("rb") if opener is None else opener(archive) as stream:
        counted: Any = _Counted(stream, budget)
        with tarfile.open(fileobj=counted, mode="r|") as file:  # a stream: nothing is read twice or ahead
            for member in file:
                budget.add_file()
                if not (member.isreg() or member.isdir()):
                    raise budget.error(f"a link or device, {member.name!r}")
                if member.isdir() and not PurePosixPath(member.name).parts:
                    continue  # "./"
                budget.target(folder, member.name)
                try:
                    file.extract(member, folder, filter="data")
                except tarfile.FilterError as error:
                    raise budget.error(f"{error}") from error


def _copy(stream: _Counted, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while data := stream.read(_CHUNK):
            file.write(data)


def _move_in(temporary: Path, folder: Path) -> list[Path]:
    """Rename what was unpacked, once it is certain that nothing is in its way."""
    moves = [(path, folder / path.name) for path in sorted(temporary.iterdir())]
    for path, target in moves:
        same = path.is_file() and target.is_file() and filecmp.cmp(path, target, shallow=False)
        if os.path.lexists(target) and not same:
            raise DatasetError(f"{target} is there already; remove it, or unpack into another folder.")
    for path, target in moves:
        path.replace(target)
    return [target for _, target in moves]


class _HttpsAlone(urllib.request.HTTPRedirectHandler):
    """Follows redirections to https addresses alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"it is redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, timeout: float) -> Any:
    return urllib.request.build_opener(_HttpsAlone).open(request, timeout=timeout)


def _fetch(url: str, part: Path, max_bytes: int, timeout: float) -> None:
    """Write what is at the address into a file, going on from what is there."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "hggraph", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        answer = _open(urllib.request.Request(url, headers=headers), timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing follows: all of it is there, as the hash will say
            return
        raise
    with answer, part.open("ab" if start and answer.status == 206 else "wb") as file:
        length = int(answer.headers.get("Content-Length") or 0)
        while data := answer.read(_CHUNK):
            if file.tell() + len(data) > max_bytes:
                raise DatasetError(f"{url}: expected at most {max_bytes:,} bytes, got more.")
            file.write(data)
            length -= len(data)
        if length > 0:
            raise ConnectionError(f"it broke off {length:,} bytes before the end")


def _check_hash(path: Path, sha256: str, todo: str) -> None:
    found = sha256_of(path)
    if found != sha256.lower():
        raise DatasetError(f"{path}: expected the file with SHA-256 {sha256}, got one with {found}; {todo}.")
