"""Checkpoints when the process is killed or the disk is full."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hggraph.engine.checkpoint import latest_checkpoint, load_checkpoint
from tests.engine.checkpoints import files, save

ROOT = Path(__file__).parents[2]
unix = pytest.mark.skipif(os.name == "nt", reason="needs fork, signals and resource limits")

# kills: all in one process that has everything imported, and forks


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crashes")
    command = [sys.executable, str(ROOT / "tests" / "engine" / "crash.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    return json.loads(done.stdout)


@unix
def test_kill_at_each_moment_of_a_save(crashes):
    for steps in crashes["kill_at_each_moment"].values():
        assert len(steps) > 20 and set(steps) == {2, 3}
        assert steps == sorted(steps)  # from one moment on it is the new checkpoint


@unix
def test_kill_at_random_moments_of_slow_saves(crashes):
    rows = [row for rows in crashes["kill_while_writing_slowly"].values() for row in rows]
    assert len(rows) == 20 and max(found for _, _, found in rows) > 2
    for begun, done, found in rows:
        assert done <= found and found in (begun - 1, begun)


@unix
def test_training_killed_20_times_ends_equal(crashes):
    found = crashes["kill_training"]["found"]
    assert len(found) == 20 and found == sorted(found) and len(set(found)) > 5
    assert crashes["kill_training"]["equal"]


@unix
def test_two_processes_resume_equal(crashes):
    assert crashes["resume_two_processes"] == {"equal": True, "states": 2, "differ": True}


# failures to save


@pytest.fixture
def fails(tmp_path):
    """Save, run the block, in which a save must fail, and check that all is as before."""
    path = save(tmp_path, 1)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert latest_checkpoint(tmp_path) == path
    assert files(tmp_path) == {"last.ckpt", "last.ckpt.sha256"}
    save(tmp_path, 2)
    assert load_checkpoint(path)["global_step"] == 2


@unix
@pytest.mark.parametrize("size", [1_000_000, 30_000])  # too much in the first tensor; at the end
def test_full_disk_while_writing(fails, size):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt could not be written: .*Those saved before are still there"):
            save(fails.parent, 2, size=size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_disk_error(name, fails, monkeypatch):
    calls = []

    def broken(*args):
        calls.append(args)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, broken)
        with pytest.raises(OSError, match=r"could not be written: Input/output error"):
            save(fails.parent, 2)
    assert calls


@unix
def test_read_only_folder():
    with tempfile.TemporaryDirectory() as name:  # one that another user may enter
        folder = Path(name)
        folder.chmod(0o755)
        path = save(folder, 1)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # for root no folder is read-only
        try:
            with pytest.raises(PermissionError, match=r"last\.ckpt could not be written: Permission denied"):
                save(folder, 2)
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
        assert load_checkpoint(path)["global_step"] == 1
