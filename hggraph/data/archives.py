"""Archives: fetched only if asked to, known by their hash, and unpacked so that they can do no harm."""

from __future__ import annotations

import filecmp
import hashlib
import http.client
import os
import re
import secrets
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hggraph._files import write_atomically
from hggraph.data._unpack import Budget, unpack
from hggraph.data.mask_reader import DatasetError

__all__ = ["download", "extract", "sha256_of", "unpacked"]

_CHUNK = 1 << 20
_NAMED = re.compile(r"(.+)\.(zip|tar|tgz|tbz2|txz|tar\.(gz|bz2|xz))", re.IGNORECASE)
_MARK = ".unpacked"


def unpacked(root: str | Path) -> Path:
    """Return the folder that a data set's root stands for: itself, or the content of an archive.

    ``data/photos.tar.gz`` is unpacked into ``data/photos`` when it is first asked for, whole or not at all, and what
    is there is used again. ``data/photos.tar.gz/a/b`` stands for the folder ``a/b`` in the archive.

    Args:
        root: A folder; or a file that ends in .zip, .tar, .tar.gz, .tgz, .tar.bz2, .tbz2, .tar.xz or .txz, or a folder
            inside such a file. Anything else is returned as it is.

    Raises:
        DatasetError: as `extract` does, or if the folder's name is taken by something else.
        OSError: if the disk is full or the folder cannot be written.

    Example:
        >>> import tempfile, zipfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with zipfile.ZipFile(f"{root}/photos.zip", "w") as file:
        ...         file.writestr("train/a.txt", "content")
        ...     (unpacked(f"{root}/photos.zip/train") / "a.txt").read_text()
        'content'
    """
    root = Path(root).expanduser()
    archive = next((path for path in (root, *root.parents) if path.is_file()), root)
    match = _NAMED.fullmatch(archive.name)
    if match is None or not archive.is_file():
        return root
    folder = archive.with_name(match[1])
    status = archive.stat()
    mark = f"{archive.name} {status.st_size} {status.st_mtime_ns}"
    if not folder.exists():
        temporary = archive.with_name(f".{secrets.token_hex(4)}.tmp")
        try:
            extract(archive, temporary)
            (temporary / _MARK).write_text(mark)
            if not folder.exists():  # another process may have been faster
                temporary.rename(folder)
        except OSError:
            if not (folder / _MARK).is_file():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if not (folder / _MARK).is_file() or (folder / _MARK).read_text() != mark:
        raise DatasetError(
            f"{folder} is there already and is not what {archive} holds now; remove it, or give it as the root."
        )
    return folder / root.relative_to(archive)


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
        DatasetError: if the archive cannot be read, is cut off, damaged or encrypted; if it has links, devices, sparse
            files, absolute paths or paths with ``..``; if it passes one of the limits; if something else of a name is
            there already (the same file may be). Nothing stays unpacked then.
        OSError: if the disk is full or the folder cannot be written.

    Note:
        Every checksum that the format has is checked to its end: of each file in a zip, of the whole stream of gzip,
        bzip2 and xz. A plain tar has checksums of its headers alone: a changed bit in a file's content passes there, so
        compare the archive's own hash (`sha256_of`). A process that is killed outright leaves a hidden folder
        ``.<8 hex digits>.tmp`` in `folder`.

    Example:
        >>> import tempfile, zipfile
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
    try:
        temporary.mkdir()
        unpack(archive, temporary, Budget(archive, max_bytes, max_files, max_ratio))
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
