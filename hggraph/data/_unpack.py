"""What is inside zip and tar files, written into a folder: counted, checked, and never outside of it."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Self

from hggraph.data.mask_reader import DatasetError

__all__ = ["Budget", "unpack"]

_CHUNK = 1 << 20
_SMALL = 64 << 20  # bytes that an archive may unpack to whatever its compression ratio
_OPENERS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_NAME_ERRORS = (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ)  # what a damaged archive makes the disk say


def unpack(archive: Path, folder: Path, budget: Budget) -> None:
    """Write what an archive holds into an empty folder; `hggraph.data.extract` says what is refused."""
    with archive.open("rb") as file:
        head = file.read(6)
    with _as_dataset_error(budget):
        if head.startswith(b"PK"):
            _unpack_zip(archive, folder, budget)
        else:
            _unpack_tar(archive, head, folder, budget)


class Budget:
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


@contextmanager
def _as_dataset_error(budget: Budget) -> Iterator[None]:
    """Turn what the libraries say about an archive into one error that names it; the disk's own errors pass."""
    try:
        yield
    except DatasetError:
        raise
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise budget.error(f"a file and a folder of one name ({error})") from error
    except NotImplementedError as error:
        raise budget.error(f"a compression that Python does not know ({error})") from error
    # what zipfile and tarfile raise on damaged numbers and names
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
        struct.error,
        EOFError,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is not None and number not in _NAME_ERRORS:  # the disk's; gzip and bz2 give no number
            raise
        raise DatasetError(
            f"{budget.archive}: expected a whole zip or tar archive, got {error}; fetch it again."
        ) from error


class _Counted:
    """Reads a stream of an archive, of which each byte counts."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self.stream, self.budget = stream, budget

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.budget.add_bytes(len(data))
        return data


class _Member(tarfile.TarInfo):
    """A header that is whole: tarfile takes a damaged one, or none, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, file: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(file)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} after {file.offset:,} bytes of the tar") from error


def _unpack_zip(archive: Path, folder: Path, budget: Budget) -> None:
    with zipfile.ZipFile(archive) as file, archive.open("rb") as raw:
        raw.seek(max(0, archive.stat().st_size - (1 << 16) - 22))
        end = raw.read()
        end = end[end.rfind(b"PK\5\6") :]
        declared = int.from_bytes(end[10:12], "little")
        if declared not in (len(file.infolist()), 0xFFFF):  # the latter: more than 16 bits can say
            raise zipfile.BadZipFile(f"{len(file.infolist()):,} files of {declared:,}")
        if min((info.header_offset for info in file.infolist()), default=archive.stat().st_size - len(end)) > 0:
            raise zipfile.BadZipFile("a first file that its table does not list")
        for info in file.infolist():
            budget.add_file()
            target = budget.target(folder, info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise budget.error(f"a link or device, {info.filename!r}")
            if info.flag_bits & 1:
                raise budget.error(f"an encrypted file, {info.filename!r}")
            raw.seek(info.header_offset + 6)
            if (int.from_bytes(raw.read(2), "little") ^ info.flag_bits) & 0x800 and not info.filename.isascii():
                raise zipfile.BadZipFile(f"two encodings of the name {info.filename!r}")
            raw.seek(info.header_offset + 14)
            own = struct.unpack("<3I", raw.read(12))  # what the file's own header says, where it says it
            listed = (info.CRC, info.compress_size, info.file_size)
            if not info.flag_bits & 8 and any(a != b for a, b in zip(own, listed, strict=True) if a != 0xFFFFFFFF):
                raise zipfile.BadZipFile(f"two sizes or checksums of {info.filename!r}")
            with file.open(info) as stream:  # looks at the file's own header, of folders too
                if info.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    _copy(_Counted(stream, budget), target)
                    if target.stat().st_size != info.file_size:  # of none zipfile does not look at the checksum
                        raise zipfile.BadZipFile(f"{target.stat().st_size:,} bytes of {info.filename!r}")


def _unpack_tar(archive: Path, head: bytes, folder: Path, budget: Budget) -> None:
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    with archive.open("rb") if opener is None else opener(archive) as stream:
        counted: Any = _Counted(stream, budget)
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Member) as file:  # a stream: nothing is read twice
            for member in file:
                budget.add_file()
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise budget.error(f"a link or device, {member.name!r}")
                if member.isdir() and not PurePosixPath(member.name).parts:
                    continue  # "./"
                budget.target(folder, member.name)
                try:
                    file.extract(member, folder, filter="data")
                except tarfile.FilterError as error:
                    raise budget.error(f"{error}") from error
        while counted.read(_CHUNK):  # the checksum stands at the end
            pass


def _copy(stream: _Counted, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while data := stream.read(_CHUNK):
            file.write(data)
