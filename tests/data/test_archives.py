"""Archives are unpacked whole or not at all, and never outside; files come over https and are known by their hash."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from hggraph.data import _unpack, archives
from hggraph.data.archives import extract, unpacked
from hggraph.data.mask_reader import DatasetError
from hggraph.engine import ImageData

CONTENT = {"data/images/a.jpg": b"\xff\xd8image", "data/masks/a.png": b"mask" * 1000, "readme.txt": b"read"}


def make_tar(path: Path, members, mode="w") -> Path:
    """Write a tar of (name, content) or ready `TarInfo`s."""
    with tarfile.open(path, mode) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, members) -> Path:
    """Write a zip of (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def link(name: str, target: str, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(folder: Path) -> dict[str, bytes]:
    """Return everything below a folder that is no folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_extract(kind, tmp_path):
    path = tmp_path / f"data.{kind}"
    if kind == "zip":
        make_zip(path, [("data/", b""), *CONTENT.items()])
    else:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        make_tar(path, [folder, *CONTENT.items()], f"w:{kind[4:]}")
    found = extract(path, tmp_path / "deep/out")
    assert found == [tmp_path / "deep/out/data", tmp_path / "deep/out/readme.txt"]
    assert tree(tmp_path / "deep/out") == CONTENT
    assert len(list((tmp_path / "deep/out").iterdir())) == 2  # nothing temporary is left


def test_what_is_there_stays(tmp_path):
    archive = make_zip(tmp_path / "a.zip", CONTENT.items())
    out = tmp_path / "out"
    extract(archive, out)
    (out / "data/images/a.jpg").write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"out/data is there already; remove it"):
        extract(archive, out)
    assert tree(out) == {**CONTENT, "data/images/a.jpg": b"mine"}
    second = make_zip(tmp_path / "b.zip", [("labels/a.png", b"x"), ("readme.txt", b"read")])
    extract(second, out)  # an equal file may be there
    assert (out / "labels/a.png").read_bytes() == b"x"
    third = make_zip(tmp_path / "c.zip", [("more/a.png", b"x"), ("readme.txt", b"another")])
    with pytest.raises(DatasetError, match=r"readme\.txt is there already"):
        extract(third, out)
    assert not (out / "more").exists() and (out / "readme.txt").read_bytes() == b"read"


ESCAPES = [
    "../evil.txt",
    "data/../inside.txt",
    "data/../../evil.txt",
    "/tmp/evil.txt",
    "..\\evil.txt",
    "C:\\evil.txt",
    "C:evil.txt",
    "",
]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_lead_out(kind, name, tmp_path):
    members = [("good.txt", b"good"), (zipfile.ZipInfo(name) if kind == "zip" else name, b"evil")]
    if kind == "zip":
        members[1][0].filename = name  # as it is, which ZipInfo would clean
    path = (make_zip if kind == "zip" else make_tar)(tmp_path / f"evil.{kind}", members)
    out = tmp_path / "in/out"
    with pytest.raises(DatasetError, match="a path that leads out of it"):
        extract(path, out)
    assert tree(tmp_path) == {path.name: path.read_bytes()} and list(out.iterdir()) == []


@pytest.mark.parametrize(
    "member",
    [
        link("data/link", "/etc/passwd"),
        link("data/link", "../../outside"),
        link("data/link", "a.txt"),
        link("data/link", "data/a.txt", tarfile.LNKTYPE),
        link("data/device", "", tarfile.CHRTYPE),
        link("data/pipe", "", tarfile.FIFOTYPE),
    ],
    ids=["absolute", "outside", "inside", "hard", "device", "pipe"],
)
def test_links_and_devices_in_a_tar(member, tmp_path):
    path = make_tar(tmp_path / "evil.tar", [("data/a.txt", b"a"), member, ("data/link/x.txt", b"through")])
    with pytest.raises(DatasetError, match="a link or device, 'data/"):
        extract(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_links_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = make_zip(tmp_path / "evil.zip", [(info, b"/etc/passwd"), ("link/x", b"through")])
    with pytest.raises(DatasetError, match="a link or device, 'link'"):
        extract(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_names_that_are_file_and_folder(tmp_path):
    members = [("data", b"file"), ("data/x.txt", b"inside it")]
    for path in (make_zip(tmp_path / "a.zip", members), make_tar(tmp_path / "a.tar", members)):
        with pytest.raises(DatasetError, match="a file and a folder of one name"):
            extract(path, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_limits(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    members = [(f"{number}.txt", bytes(10_000)) for number in range(5)]
    if kind == "zip":
        make_zip(path, members)
    else:
        make_tar(path, members, f"w:{kind[4:]}")
    for limit, text in [({"max_bytes": 30_000}, "more than 30,000 bytes"), ({"max_files": 4}, "more than 4 files")]:
        with pytest.raises(DatasetError, match=f"expected an archive of data, got {text}; nothing was unpacked"):
            extract(path, tmp_path / "out", **limit)
        assert list((tmp_path / "out").iterdir()) == []
    assert len(extract(path, tmp_path / "out", max_bytes=100_000, max_files=5)) == 5


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "headers"])
def test_bombs(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(_unpack, "_SMALL", 1000)  # bytes for which no ratio counts
    path = tmp_path / "bomb"
    if kind == "zip":
        make_zip(path, [("zeros.bin", bytes(4_000_000))])
    elif kind == "tar.gz":
        make_tar(path, [("zeros.bin", bytes(4_000_000))], "w:gz")
    else:  # a header that is itself huge, and read before any member is known
        info = tarfile.TarInfo("a.txt")
        info.pax_headers = {"comment": "0" * 4_000_000}
        with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as file:
            file.addfile(info)
    with pytest.raises(DatasetError, match="more than 200 bytes unpacked for each of its own"):
        extract(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_archives_that_are_damaged_or_none(tmp_path):
    good = {
        "zip": make_zip(tmp_path / "a.zip", CONTENT.items()),
        "tar": make_tar(tmp_path / "a.tar", CONTENT.items()),
        "gz": make_tar(tmp_path / "a.gz", CONTENT.items(), "w:gz"),
        "bz2": make_tar(tmp_path / "a.bz2", CONTENT.items(), "w:bz2"),
        "xz": make_tar(tmp_path / "a.xz", CONTENT.items(), "w:xz"),
    }
    for kind, path in good.items():
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 3] ^= 0xFF
        flipped[len(whole) // 2] ^= 0xFF
        for content in (whole[: len(whole) // 2], whole[:20], bytes(flipped) if kind != "tar" else b"words", b""):
            path.write_bytes(content)
            with pytest.raises(DatasetError, match=r"expected a whole zip or tar archive, got .*; fetch it again"):
                extract(path, tmp_path / "out")
            assert list((tmp_path / "out").iterdir()) == []
    for path, text in [(tmp_path / "none.zip", "no file"), (tmp_path, "a folder")]:
        with pytest.raises(DatasetError, match=f"expected an archive, got {text}"):
            extract(path, tmp_path / "out")


def test_encrypted_zip(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a.txt", b"secret")])
    content = bytearray(path.read_bytes())
    for signature, offset in [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)]:
        content[content.index(signature) + offset] |= 1  # the flag in both headers
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"an encrypted file, 'a\.txt'"):
        extract(path, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    path = make_zip(tmp_path / "a.zip", CONTENT.items())
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(PermissionError):
        extract(path, tmp_path / "out")


def test_a_gzip_that_is_no_tar(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"words"))
    with pytest.raises(DatasetError, match="expected a whole zip or tar archive"):
        extract(tmp_path / "a.gz", tmp_path / "out")


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "kind",
    ["crc", "length", "second header", "no end", "zip count", "zip end", "zip table", "zip encoding", "zip sizes"],
)
def test_one_bit_that_the_libraries_let_pass(kind, tmp_path):
    """Checksums behind the last file count, and a damaged header is not the end of a tar, nor of a zip."""
    if kind.startswith("zip"):
        path = make_zip(tmp_path / "a.zip", [("straße.txt", b"a" * 7)])
        content = path.read_bytes()
        central, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
        if kind == "zip encoding":
            flip(path, central + 9, 3)  # UTF-8 or not
        elif kind == "zip sizes":  # checksum and length of nothing
            path.write_bytes(content[: central + 16] + bytes(8) + content[central + 24 :])
        elif kind == "zip count":
            flip(path, end + 10)
        elif kind == "zip table":  # of no files
            path.write_bytes(content[: end + 8] + bytes(8) + content[end + 16 :])
        else:  # a table of no bytes: an archive of nothing
            path.write_bytes(content[: end + 12] + bytes(4) + content[end + 16 :])
    elif kind in ("crc", "length"):
        path = make_tar(tmp_path / "a.tgz", CONTENT.items(), "w:gz")
        flip(path, -6 if kind == "crc" else -3)
    else:
        path = make_tar(tmp_path / "a.tar", [("a.txt", b"a"), ("b.txt", b"b")])
        if kind == "second header":
            flip(path, 1024)
        else:
            path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DatasetError, match=r"a\.\w+: expected a whole zip or tar archive, got .*; fetch it again"):
        extract(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", [("inside.txt", b"inner")])
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"a"), ("inner.zip", inner.read_bytes())])
    assert [found.name for found in extract(path, tmp_path / "out")] == ["a.txt", "inner.zip"]


def test_a_root_may_be_an_archive(tmp_path, monkeypatch):
    """Unpacked once beside it, whole or not at all; a folder that is something else is never taken for it."""
    data = ImageData(lambda root, split: SimpleNamespace(folder=Path(root, split)), str(tmp_path / "sets.v1.tar.gz"))
    path = make_tar(tmp_path / "sets.v1.tar.gz", CONTENT.items(), "w:gz")
    whole = path.read_bytes()
    flip(path, -6)
    with pytest.raises(DatasetError, match="expected a whole zip or tar archive"):
        data.dataset("train")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    path.write_bytes(whole)
    assert data.dataset("train").folder == tmp_path / "sets.v1/train"
    assert {key: value for key, value in tree(tmp_path / "sets.v1").items() if key[0] != "."} == CONTENT

    with monkeypatch.context() as patch:
        patch.setattr(archives, "extract", None)  # it is not unpacked again
        assert unpacked(path / "data/masks") == tmp_path / "sets.v1/data/masks"
        assert unpacked(tmp_path / "sets.v1") == tmp_path / "sets.v1"
    flip(path, -6)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DatasetError, match=r"sets\.v1 is there already and is not what .*tar\.gz holds now; remove it"):
        unpacked(path)
    for other in (tmp_path / "none.zip", tmp_path / "words.txt", tmp_path):
        (tmp_path / "words.txt").write_text("words")
        assert unpacked(other) == other


def test_a_root_that_another_process_unpacks_first(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", CONTENT.items())
    real = archives.extract

    def slower(archive, folder):
        monkeypatch.setattr(archives, "extract", real)
        unpacked(path)
        return real(archive, folder)

    monkeypatch.setattr(archives, "extract", slower)
    assert unpacked(path) == tmp_path / "a" and sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.zip"]
