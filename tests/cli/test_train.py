"""From a recipe to pictures by commands alone: fit, validate, predict."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hggraph.cli import app
from tests.engine.toys import Blocks, write_recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    done = invoke("fit", "--config", write_recipe(folder, max_epochs=1), "--out", folder / "run", "--save_every", 100)
    assert done.exit_code == 0, done.output
    (folder / "said.txt").write_text(done.stdout)
    return folder / "run"


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a", (40, 30)), ("b", (33, 47))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(
            folder / f"{name}.png"
        )
    return folder


def test_validate(run):
    done = invoke("validate", "--config", run / "config.yaml")
    assert done.exit_code == 0, done.output
    assert json.loads((run / "results-val.json").read_text())["results"]["miou"] > 0


def test_what_fit_says_at_its_end(run):
    lines = (run.parent / "said.txt").read_text().splitlines()
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    rows = csv.DictReader(next(run.rglob("metrics.csv")).read_text().splitlines())
    (score,) = (float(row["val/miou"]) for row in rows if row["val/miou"])
    assert lines[-4:] == [
        f"Run: {run}",
        f"Best: val/miou {score:.4g} in epoch {best['epoch']}: {run / 'checkpoints' / 'best.ckpt'}",
        f"Next: hggraph validate --config {run / 'config.yaml'}",
        f"Then: hggraph predict IMAGES --model {run} --out FOLDER",
    ]


@pytest.mark.parametrize("begun", [True, False])
def test_what_fit_says_when_it_is_interrupted(begun, tmp_path, monkeypatch):
    """In the second epoch, with what was saved and the best score; before the first step, that there is nothing."""
    give, given = Blocks.__getitem__, []

    def interrupt(self, index):
        given.append(index)
        if len(given) == (20 if begun else 1):
            raise KeyboardInterrupt
        return give(self, index)

    monkeypatch.setattr(Blocks, "__getitem__", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    try:
        done = invoke("fit", "--config", write_recipe(tmp_path), "--out", tmp_path / "a b")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has switched it off
    assert done.exit_code == 130 and done.stderr.endswith("error: interrupted\n")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"To go on: hggraph fit --config '{tmp_path / 'a b' / 'config.yaml'}'"
    if begun:
        assert lines[-3] == f"Stopped at step 4, in epoch 1. Saved: {tmp_path / 'a b' / 'checkpoints' / 'last.ckpt'}"
        assert lines[-2].startswith("Best: val/miou 0.") and "in epoch 0" in lines[-2]
    else:
        assert lines[-2] == "Stopped at step 0, in epoch 0. Saved: nothing yet; it will begin anew"


def test_predict_images(run, photos, tmp_path):
    (photos / "c.png").write_bytes(b"nothing")
    done = invoke(
        "predict",
        photos,
        "--model",
        run,
        "--trust",
        "--out",
        tmp_path / "out",
        "--window",
        32,
        "--flip",
        "--probabilities",
    )
    assert done.exit_code == 1 and "c.png" in done.output  # the others are there
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert {"labels/a.png", "labels/b.png", "overlay/a.png", "probabilities/b.npz"} <= found
    with Image.open(tmp_path / "out" / "labels" / "a.png") as labels:
        assert labels.mode == "P" and labels.size == (30, 40)
        assert labels.getpalette()[:6] == [255, 0, 0, 0, 255, 0]  # the data set's colours


def test_predict_a_raster(run, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(2, 0, 500, 0, -2, 900)
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": 50, "width": 70, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", **profile, transform=transform) as file:
        file.write(np.random.default_rng(0).integers(1, 255, (3, 50, 70), dtype=np.uint8))
    done = invoke("predict", path, "--model", run, "--trust", "--out", tmp_path / "out", "--window", 32)
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "out" / "scene.tif") as labels:
        assert labels.transform == transform and labels.crs.to_epsg() == 32633 and labels.shape == (50, 70)
        assert labels.read(1).max() < 3


def test_a_part_of_a_raster_with_other_bands(run, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(1, 10001, (4, 50, 70), dtype=np.uint16)
    profile = {"driver": "GTiff", "height": 50, "width": 70, "dtype": "uint16", "crs": "EPSG:32633"}
    places = {"a": rasterio.Affine(2, 0, 500, 0, -2, 900), "b": rasterio.Affine(2, 0, 520, 0, -2, 880)}
    # the part alone, its bands in the network's order, against the part of the whole
    for name, part in (("a", pixels), ("b", pixels[[3, 1, 0], 10:40, 10:50])):
        sizes = {"count": len(part), "height": part.shape[1], "width": part.shape[2], "transform": places[name]}
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile | sizes) as file:
            file.write(part)
    common = (
        "--model",
        run,
        "--trust",
        "--out",
        tmp_path / "out",
        "--full-scale",
        10000,
        "--probabilities",
        "--window",
        32,
    )
    common += ("--overlap", 0.25)
    bands = [word for band in (4, 2, 1) for word in ("--bands", band)]
    assert invoke("predict", tmp_path / "b.tif", *common).exit_code == 0
    done = invoke("predict", tmp_path / "a.tif", *common, *bands, "--bounds", 520, 820, 600, 880, "--nodata", 0)
    assert done.exit_code == 0, done.output
    found = []
    for name in "ab":
        with rasterio.open(tmp_path / "out" / f"{name}_probabilities.tif") as file:
            assert file.bounds == (520, 820, 600, 880)
            found.append(file.read())
    assert np.array_equal(*found) and found[0].std() > 0


def test_wrong_model(photos, tmp_path):
    done = invoke("predict", photos, "--model", tmp_path / "no run", "--out", tmp_path / "out")
    assert done.exit_code == 1 and "no run" in done.stderr and not (tmp_path / "out").exists()


def test_a_network_of_ones_own_needs_trust(run, photos, tmp_path):
    """Published too, where the names that would be imported stand in config.json."""
    assert invoke("publish", run, "--out", tmp_path / "published").exit_code == 0
    for model in (run, tmp_path / "published"):
        done = invoke("predict", photos, "--model", model, "--out", tmp_path / "out")
        assert done.exit_code == 1 and done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
        assert "tests.engine.toys.TinyNet" in done.stderr and "--trust" in done.stderr
    assert invoke("predict", photos, "--model", tmp_path / "published", "--trust", "--out", tmp_path).exit_code == 0


def test_help_of_the_trainer():
    done = invoke("fit", "--help")
    assert done.exit_code == 0 and "--data.root" in done.output and "--trainer.max_epochs" in done.output
    assert "--model.net.help hggraph.models.hg_resnet" in done.output
    for words in (["--model.net.help", "hggraph.models.hg_cnn"], ["--model.net.help=hg_cnn"]):
        done = invoke("fit", *words)
        assert (
            done.exit_code == 0 and done.output.startswith("hg_cnn: Make a") and "  trunk: str = 'mobile" in done.output
        )
    done = invoke("fit", "--model.net.help", "torch.nn.Dropout")  # a class: the parser knows
    assert done.exit_code == 0 and "--model.net.p P" in done.output


def test_commands_start_without_lightning():
    """`hggraph --help` must not wait for libraries that it does not need."""
    program = (
        "import sys; import hggraph.cli; print([n for n in ('lightning', 'torchvision', 'timm') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
