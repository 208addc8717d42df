"""No file and no call crashes, hangs, shows a traceback from inside, or is silently wrong (`make fuzz`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("images", "archives", "graph files", "graph attributes", "configurations", "right calls", "wrong calls")
SECONDS = float(os.environ.get("HGGRAPH_FUZZ_SECONDS", "70")) / len(TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target, tmp_path, capsys):
    noted = tmp_path / "example.txt"
    command = [sys.executable, "-m", "tests.fuzz.child", target, str(SECONDS), str(noted)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS + 120, check=False
    )
    last = noted.read_text() if noted.exists() else "none was tried"
    assert done.returncode == 0, f"the process ended with {done.returncode} at {last}\n{done.stderr[-4000:]}"
    report = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{target}: {sum(report['tried'].values()):,} tried, {report['tried']}")
    assert "wrong" not in report, f"at {last}\n{report['wrong'][-4000:]}"
    assert sum(report["tried"].values()) > 20
