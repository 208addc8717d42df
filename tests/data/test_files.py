"""A file is whole or not there, whoever interrupts its writing; graphs come back as they went."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch_geometric.data import Batch, Data

from hggraph._files import write_together
from hggraph.data import load_graph, save_graph, write_atomically

ROOT = Path(__file__).parents[2]


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "note.txt"
    write_atomically(path, lambda temporary: temporary.write_text("one"))
    write_atomically(str(path), lambda temporary: temporary.write_text("two"))
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_name(tmp_path):
    seen = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.touch()

    write_atomically(tmp_path / ("a" * 240 + ".tar.gz"), write)  # no room for a longer name
    (temporary,) = seen
    assert temporary.parent == tmp_path and temporary.suffix == ".gz"
    assert temporary.name.startswith(".")  # so that a folder of images does not show it


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_permissions_are_the_users_usual_ones(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "a", lambda temporary: temporary.touch())
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writer_that_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "a", lambda temporary: None)
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a", lambda temporary: temporary.touch())
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
write_atomically = runpy.run_path(sys.argv[2])["write_atomically"]  # alone, for speed

def write(temporary):
    with temporary.open("wb") as file:
        file.write(bytes(1_000_000))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), write)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("fault", ["third writer", "a folder in the way", "no folder"])
def test_files_written_together_are_complete_or_absent(fault, tmp_path):
    paths = [tmp_path / ("none" if fault == "no folder" else "") / name for name in ("a.txt", "b.txt", "c.txt")]
    if fault != "no folder":
        paths[0].write_text("old")
    if fault == "a folder in the way":
        paths[2].mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    write = full if fault == "third writer" else (lambda path: path.write_text("new"))
    with pytest.raises(OSError) as error:
        write_together({paths[0]: lambda path: path.write_text("new"), paths[1]: write, paths[2]: write})
    assert error.value.filename == str(paths[{"third writer": 1, "a folder in the way": 2, "no folder": 0}[fault]])
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if fault != "no folder":
        assert paths[0].read_text() == "old"


def test_kill_in_the_middle(tmp_path):
    path = tmp_path / "note.bin"
    path.write_bytes(b"old")
    source = ROOT / "hggraph" / "_files.py"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(source)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    left = [entry for entry in tmp_path.iterdir() if entry != path]
    assert all(entry.name.startswith(".") for entry in left)


def graph() -> Data:
    return Data(
        x=torch.rand(3, 2),
        edge_index=torch.tensor([[0, 1], [1, 2]]),
        edge_weight=torch.rand(2, 2).T[0],
        num_nodes=3,
        name="a",
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_graph_comes_back(suffix, tmp_path):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"graph{suffix}"
    data = graph()
    save_graph(data, path)
    back = load_graph(path)
    assert set(back.keys()) == set(data.keys())
    for key, value in data.to_dict().items():
        assert torch.equal(back[key], value) if torch.is_tensor(value) else back[key] == value
    first = path.read_bytes()
    save_graph(data, path)
    assert path.read_bytes() == first  # nothing in it depends on the temporary name


def test_graph_of_a_batch_is_small_and_loads_safely(tmp_path):
    batch = Batch.from_data_list([Data(x=torch.rand(1000, 8)) for _ in range(20)])
    save_graph(batch[3], tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 2 * 1000 * 8 * 4
    values = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(Data.from_dict(values).x, batch[3].x)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_graph_files(suffix, tmp_path):
    """A changed bit is found, wherever it is; files without a hash still load; each error names the file."""
    path = tmp_path / f"graph{suffix}"
    data = graph()
    save_graph(data, path)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            back = load_graph(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected a graph")
            refused += 1
            continue
        assert set(back.keys()) == set(data.keys())  # in the words around the hash alone
        assert torch.equal(back.x, data.x) and torch.equal(back.edge_weight, data.edge_weight)
    assert refused > 130
    for content in (b"", whole[: len(whole) // 2], b"words" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path}: expected a graph as `save_graph` w")):
            load_graph(path)
    values = data.to_dict()
    if suffix == ".pt":
        torch.save(values, path)
    else:
        tensors = {key: value.contiguous() for key, value in values.items() if torch.is_tensor(value)}
        safetensors.torch.save_file(tensors, path)
    assert torch.equal(load_graph(path).x, data.x)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / f"none{suffix}"))):
        load_graph(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_attributes_that_no_file_can_hold_are_named(suffix, tmp_path):
    for value in [object(), {1: 2}, 1j, b"a", np.zeros(2), torch.zeros(2, device="meta"), [{"a": {1}}]]:
        with pytest.raises(ValueError, match=rf"`data\.wrong` must be a tensor, .* as {suffix} can hold, got "):
            save_graph(Data(x=torch.zeros(2, 1), wrong=value), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_other_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.pt or \.safetensors"):
        save_graph(graph(), tmp_path / "a.pkl")
    with pytest.raises(ValueError, match=r"must end in \.pt or \.safetensors"):
        load_graph(tmp_path / "a.pkl")


def test_safetensors_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_graph(graph(), tmp_path / "a.safetensors")
