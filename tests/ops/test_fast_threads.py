"""The fast path under any number of threads, in forked workers, with a cache that cannot be written, and not at all."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hggraph.ops import fast
from hggraph.ops.fast._threads import run

pytest.importorskip("numba")

OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1)]


def everything(seed):
    """Return the results of every function on one photo."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 9, 7, generator=generator)  # no interpolation: its bits depend on the threads
    photo = coarse.repeat_interleave(10, 1).repeat_interleave(10, 2)
    photo = (photo + 0.05 * torch.rand(3, 90, 70, generator=generator)).clamp(0, 1)
    lab = fast.lab(photo)
    seeds = fast.density_seeds(lab, 40)
    centers = fast.slic(lab, seeds, 0.16, 6, 8, 4)
    labels = fast.labels(lab, centers, 0.16, 6, 8)
    connected = fast.connect(labels, 40, lab)
    weight, index = fast.assign(lab, centers, 0.16, 6, 8)
    out = [lab, seeds, centers, labels, connected, weight, index]
    out += [*fast.pool_labels(photo, connected, 40), *fast.pool(photo.flatten(1), weight, index, 40)]
    out += fast.edges_of_labels(connected, 40, OFFSETS)
    out += fast.edges_of_weights(weight, index, (90, 70), 40, OFFSETS)
    return out


class Photos(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return everything(i)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same_bits(threads):
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append(everything(0))
    assert len({len(result) for result in results}) == 1
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_forked_workers(threads):
    threads(2)
    expected = [everything(i) for i in range(4)]  # this process has threads before it forks
    loader = DataLoader(Photos(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120)
    for ours, theirs in zip(expected, loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_child_makes_its_own_threads(threads):
    """The pool alone, in Python: torch's own threads do not live through a fork, and wait for ever."""
    threads(2)

    def stripes():
        done = []
        run(lambda first, last: done.extend(range(first, last)), 9)
        return sorted(done)

    assert stripes() == list(range(9))  # this process has threads before it forks
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, bytes(stripes()))
        os._exit(0)
    os.close(writer)
    answered = select.select([reader], [], [], 60)[0]
    if not answered:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert answered and os.read(reader, 9) == bytes(range(9))
    os.close(reader)


PROGRAM = """
import sys
import numba.core.caching as caching
for name in dir(caching):  # with an underscore before 0.62
    if name.strip("_").startswith(("InTreeCache", "UserWideCache")):
        getattr(caching, name).from_function = classmethod(lambda *_: None)
import torch
from hggraph.ops import fast
print(fast.nearest_regions(torch.zeros(1, 2), (1, 1), 1, 1).tolist())
"""


def test_cache_without_a_place(tmp_path):
    """Where neither the source nor the home can be written, the cache goes to the temporary folder."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "[[[0]]]", run.stderr
    assert list(tmp_path.glob("hggraph-numba-*/**/*.nbi"))


def test_without_numba(monkeypatch):
    monkeypatch.setattr(fast, "_found", lambda: False)
    assert not fast.available()
    with pytest.raises(ImportError, match=r"hggraph\[fast\]"):
        fast.__getattr__("slic")
    assert fast.plain_connect(torch.zeros(1, 1, dtype=torch.int32), 1, torch.zeros(3, 1, 1)).tolist() == [[0]]
    with pytest.raises(AttributeError, match="nothing"):
        fast.__getattr__("nothing")
