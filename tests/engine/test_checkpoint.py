"""Checkpoints come back as they were, are refused when altered, and are never a way to run code."""

import hashlib
import os
import pickle
import shutil
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hggraph.engine.checkpoint import (
    CheckpointError,
    SafeCheckpointIO,
    check_parameters,
    latest_checkpoint,
    load_checkpoint,
)
from tests.engine.checkpoints import content, files, save

unix = pytest.mark.skipif(os.name == "nt", reason="needs fork, signals and resource limits")


def test_hash_beside(tmp_path):
    path = save(tmp_path, 7)
    want = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "last.ckpt.sha256").read_text() == f"{want}  last.ckpt\n"  # as sha256sum -c reads it
    assert files(tmp_path) == {"last.ckpt", "last.ckpt.sha256"}


def test_comes_back(tmp_path):
    back = load_checkpoint(save(tmp_path, 3))
    want = content(3)
    assert all(torch.equal(value, want["state_dict"][name]) for name, value in back["state_dict"].items())
    assert back["optimizer_states"] == want["optimizer_states"] and back["global_step"] == 3
    assert torch.equal(
        torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["b"], want["state_dict"]["b"]
    )


def test_the_replaced_one_is_kept(tmp_path):
    io = SafeCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(content(step), tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    assert load_checkpoint(tmp_path / "previous-last.ckpt")["global_step"] == 2
    names = {"last.ckpt", "previous-last.ckpt"}
    assert files(tmp_path) == names | {f"{name}.sha256" for name in names}
    for name in names:
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert (tmp_path / f"{name}.sha256").read_text() == f"{digest}  {name}\n"
    io.remove_checkpoint(tmp_path / "last.ckpt")
    assert files(tmp_path) == set()
    io.remove_checkpoint(tmp_path / "last.ckpt")  # nothing there: no error


class Color(Enum):
    RED = "red"


def test_plain_values(tmp_path):
    state = nn.BatchNorm1d(2).state_dict()
    hyper = {
        "data": Path("a", "b"),
        "rate": np.float64(0.5),
        "count": np.int32(3),
        "color": Color.RED,
        "one": (1, None),
    }
    checkpoint = {"hyper_parameters": hyper, "state_dict": state, "kept": torch.Size([2])}
    SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    back = load_checkpoint(tmp_path / "a.ckpt")
    want = {"data": str(Path("a", "b")), "rate": 0.5, "count": 3, "color": "red", "one": (1, None)}
    assert back["hyper_parameters"] == want and back["kept"] == torch.Size([2])
    assert all(type(back["hyper_parameters"][name]) is type(value) for name, value in want.items())
    assert back["state_dict"]._metadata == state._metadata
    assert isinstance(hyper["data"], Path)  # what is in memory stays


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda x: x, "lambda"),
        (SimpleNamespace(a=1), r"types\.SimpleNamespace"),
        (np.zeros(2), r"numpy\..*_reconstruct"),
        (nn.ReLU, r"torch\.nn\.modules\.activation\.ReLU"),
    ],
)
def test_what_needs_code_is_refused(value, named, tmp_path):
    path = save(tmp_path, 1)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=named):
        SafeCheckpointIO().save_checkpoint(content(2) | {"hyper_parameters": {"one": [1, value]}}, path)
    assert path.read_bytes() == before and latest_checkpoint(tmp_path) == path
    assert files(tmp_path) == {"last.ckpt", "last.ckpt.sha256"}


def test_leftovers(tmp_path):
    left = [tmp_path / name for name in (".0123abcd.tmp.ckpt", ".89abcdef.tmp.sha256")]
    other = [tmp_path / name for name in (".0123abcd.tmp.png", ".hidden", "a.tmp.ckpt")]
    for path in left + other:
        path.touch()
    save(tmp_path / "deeper" / "folder", 1)
    assert all(path.exists() for path in left)
    save(tmp_path, 1, "new")
    assert not any(path.exists() for path in left) and all(path.exists() for path in other)


def test_arguments(tmp_path):
    io = SafeCheckpointIO()
    with pytest.raises(TypeError, match="storage_options"):
        io.save_checkpoint({}, tmp_path / "a.ckpt", storage_options={})
    with pytest.raises(ValueError, match="local or mounted disk"):
        io.save_checkpoint({}, "s3://bucket/a.ckpt")
    with pytest.raises(ValueError, match="`weights_only` must be True or None"):
        io.load_checkpoint(save(tmp_path, 1), weights_only=False)
    assert io.load_checkpoint(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*b\.ckpt"):
        io.load_checkpoint(tmp_path / "b.ckpt")


# damaged and hostile files


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 3, 100, 4000, -1])
def test_cut_short(keep, hashed, tmp_path):
    path = save(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:keep])
    if not hashed:
        (tmp_path / "last.ckpt.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("hashed", [True, False])
def test_flipped_bits(hashed, tmp_path):
    path = save(tmp_path, 1)
    good = path.read_bytes()
    if not hashed:
        (tmp_path / "last.ckpt.sha256").unlink()
    tensor = good.index(torch.ones(8).numpy().tobytes())
    places = [tensor, tensor + 3999, good.index(b"state_dict")]  # without the hash: what the checksums inside cover
    for place in places + (list(range(0, len(good), 97)) if hashed else []):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
            load_checkpoint(path)
    path.write_bytes(good)
    assert load_checkpoint(path)["global_step"] == 1


def test_another_file_under_the_name(tmp_path):
    save(tmp_path, 1, "a")
    save(tmp_path, 2, "b")
    shutil.copy(tmp_path / "a.ckpt", tmp_path / "b.ckpt")  # whole, and of the same size
    with pytest.raises(CheckpointError, match=r"b\.ckpt is damaged: its SHA-256 is not the one in b\.ckpt\.sha256"):
        load_checkpoint(tmp_path / "b.ckpt")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize("listed", [True, False])
def test_code_in_a_file_is_not_run(form, listed, tmp_path):
    marker, path = tmp_path / "marker", save(tmp_path, 1)
    bad = tmp_path / "bad.ckpt"
    evil = {"state_dict": {}, "optimizer_states": [], "global_step": 9, "evil": Evil(marker)}
    if form == "pickle":
        bad.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, bad, _use_new_zipfile_serialization=form == "torch")
    if listed:  # by one who can write the hash too
        (tmp_path / "bad.ckpt.sha256").write_text(hashlib.sha256(bad.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match=r"bad\.ckpt (was refused|is damaged|cannot be read)") as caught:
        load_checkpoint(bad)
    if form == "torch":
        assert "touch" in str(caught.value) or "getattr" in str(caught.value)
    os.utime(bad, (4e9, 4e9))
    with pytest.warns(UserWarning, match=r"bad\.ckpt .* Going on from last\.ckpt"):
        assert latest_checkpoint(tmp_path) == path
    assert not marker.exists()
    torch.load(bad, weights_only=False) if form != "pickle" else pickle.loads(bad.read_bytes())
    assert marker.exists()  # it was a true trap


def test_no_dict(tmp_path):
    torch.save([1, 2], tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="must hold a dict"):
        load_checkpoint(tmp_path / "a.ckpt")


# the newest whole one


def test_latest(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None and latest_checkpoint(tmp_path) is None
    a, b = save(tmp_path, 5, "a"), save(tmp_path, 3, "b")  # newest by time: training was taken back
    assert latest_checkpoint(str(tmp_path)) == b
    SafeCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 9}, tmp_path / "weights.ckpt")
    assert latest_checkpoint(tmp_path) == b  # not from weights alone
    os.utime(a, (4e9, 4e9))
    assert latest_checkpoint(tmp_path) == a
    shards = tmp_path / "c.ckpt"  # what FSDP saves; half of it has no meta.pt
    shards.mkdir()
    assert latest_checkpoint(tmp_path) == a
    (shards / "meta.pt").touch()
    os.utime(shards, (5e9, 5e9))
    assert latest_checkpoint(tmp_path) == shards


def test_latest_falls_back_and_says_so(tmp_path):
    paths = [save(tmp_path, step, f"step={step}") for step in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    with pytest.warns(UserWarning) as caught:
        assert latest_checkpoint(tmp_path) == paths[1]
    (warning,) = caught
    text = str(warning.message)
    assert "\n" not in text and "step=3.ckpt is damaged: its SHA-256" in text and "Going on from step=2.ckpt" in text
    paths[1].write_bytes(b"")
    os.utime(paths[2])
    with pytest.warns(UserWarning, match=r"step=3\.ckpt .*; .*step=2\.ckpt .* Going on from step=1\.ckpt"):
        assert latest_checkpoint(tmp_path) == paths[0]
    paths[0].write_bytes(b"?" * paths[0].stat().st_size)
    os.utime(paths[2])
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used: .*step=1\.ckpt is damaged"):
        latest_checkpoint(tmp_path)


def test_latest_of_one_name(tmp_path):
    for step in (1, 2):
        path = save(tmp_path, step)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"Going on from previous-last\.ckpt"):
        found = latest_checkpoint(tmp_path)
    assert load_checkpoint(found)["global_step"] == 1


@unix
def test_latest_with_links(tmp_path):
    path = save(tmp_path, 1, "step=1")
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    (tmp_path / "gone.ckpt").symlink_to("step=0.ckpt")
    assert latest_checkpoint(tmp_path) == path
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        load_checkpoint(tmp_path / "last.ckpt")


# another model


def test_parameters_of_another_model():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    other = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 4, bias=False), nn.Linear(1, 1))
    check_parameters({"state_dict": net.state_dict()}, net)
    with pytest.raises(ValueError, match="not those of Sequential") as caught:
        check_parameters({"state_dict": other.state_dict()}, net, "runs/a.ckpt")
    text = str(caught.value)
    assert "runs/a.ckpt" in text and "1 missing: 1.bias" in text and "2 not expected: 2.bias, 2.weight" in text
    assert "3 of another shape: 0.bias (5,) instead of (3,)" in text
    with pytest.raises(ValueError, match="no `state_dict`"):
        check_parameters({"global_step": 1}, net)
