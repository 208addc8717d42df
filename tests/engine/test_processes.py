"""Two processes train as one with batches twice as large, and evaluate to the same last bit."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.toys import write_recipe

ROOT = Path(__file__).parents[2]


def hggraph(command: str, *arguments: object) -> None:
    run = [sys.executable, "-W", "ignore", "-m", "hggraph", command, *map(str, arguments)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(run: Path) -> list[float]:
    with next((run / "logs" / "csv").glob("version_*/metrics.csv")).open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Return the runs of one process with batches of 6 and of two with batches of 3."""
    folder = tmp_path_factory.mktemp("processes")
    recipe = write_recipe(folder, "PlainNet", max_epochs=3, log_every_n_steps=1)
    common = ["--config", recipe, "--save_every", "100"]
    hggraph("fit", *common, "--out", folder / "one", "--data.batch_size", "6")
    two = ["--data.batch_size", "3", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    hggraph("fit", *common, "--out", folder / "two", *two)
    return folder / "one", folder / "two"


def test_training(runs):
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    assert one["global_step"] == two["global_step"] == 6
    # sums in another order
    torch.testing.assert_close(dict(two["state_dict"]), dict(one["state_dict"]), rtol=1e-4, atol=1e-6)
    assert len(losses(runs[0])) == 6 and losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)


def test_evaluation(runs, tmp_path):
    """Five images: three for the first process, two for the second."""
    one, _ = runs
    found = []
    for devices, name in ((1, "results-val.json"), (2, "results-val-2.json")):
        hggraph("validate", "--config", one / "config.yaml", "--trainer.devices", devices, "--trainer.strategy", "auto")
        found.append(json.loads((one / name).read_text())["results"])
    assert found[0] == found[1]
    assert sum(found[0]["pixels"]) == 5 * 32 * 32
