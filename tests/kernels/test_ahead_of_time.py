"""Every kernel compiles for three GPUs in every shipped configuration, within their registers and shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import ahead_of_time

ROOT = Path(__file__).parents[2]


def test_table(capsys):
    """No spills, nothing too large, no kernel left out; the table is printed, also where the test passes."""
    run = [sys.executable, "-m", "tests.kernels.ahead_of_time"]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = [line.split()[:2] for line in done.stdout.splitlines()[1:]]
    assert {row[0] for row in rows} == {"sm_80", "sm_90", "gfx942"}


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        (ahead_of_time.Row("sm_80", "k", "c", 255, 0, 166_912), True),
        (ahead_of_time.Row("sm_80", "k", "c", 255, 8, 0), False),
        (ahead_of_time.Row("sm_80", "k", "c", 32, 0, 166_913), False),
        (ahead_of_time.Row("gfx942", "k", "c", 300, 0, 65_536), True),
        (ahead_of_time.Row("gfx942", "k", "c", 300, 0, 65_537), False),
    ],
)
def test_limits(row, fits):
    assert row.fits is fits


def test_kernels_are_found():
    """The names that have to be compiled, read from the files."""
    names = ahead_of_time.kernel_names()
    assert {"_matmul_kernel", "_local_attention_bwd_kernel", "_segment_softmax_kernel"} <= names
    assert len(names) >= 15
