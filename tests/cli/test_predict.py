"""`hggraph predict` on rasters as a user runs it: which files are rasters; each option counts or is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from hggraph import SoftSLIC
from hggraph.cli import app
from hggraph.inference import Predictor, load_trained
from hggraph.inference.raster import predict_raster
from hggraph.models import hg_orientation, save_pretrained

pytest.importorskip("lightning", reason="needs the extra `train`")
pytest.importorskip("rasterio", reason="needs the extra `raster`")

from tests.inference.rasters import pixels, read, write

# rasters without a georeference are written and read here on purpose
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
NOWHERE = {"crs": None, "transform": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "model"
    torch.manual_seed(0)
    arguments = {"channels": 8, "depth": 1, "clusterer": SoftSLIC(4)}
    colors = {"classes": ["no", "yes"], "palette": [(0, 0, 0), (255, 255, 0)]}
    net = hg_orientation(**arguments).eval()
    save_pretrained(net, folder, model="hg_orientation", arguments=arguments, **STATISTICS, **colors)
    return folder


def invoke(model: Path, out: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--model", str(model), "--out", str(out)])


def words(text: str) -> str:
    """Return the text without line breaks and without the box that typer draws around errors."""
    return " ".join(text.replace("│", " ").split())


def results(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))


def test_a_folder_of_both_gives_both(model, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write(folder / "placed.tif", pixels(40, 50))
    write(folder / "wide.tif", pixels(40, 50, 3, "uint16"), **NOWHERE)
    write(folder / "scan.tif", pixels(40, 50), **NOWHERE)
    Image.fromarray(pixels(40, 50).transpose(1, 2, 0)).save(folder / "photo.png")
    run = invoke(model, out, folder)
    assert run.exit_code == 0, run.output
    pictures = [f"{kind}/{name}.png" for kind in ("labels", "overlay") for name in ("photo", "scan")]
    assert results(out) == sorted(["placed.tif", "wide.tif", *pictures])


def test_options_count_for_rasters(model, tmp_path):
    """The result is that of `predict_raster` with each of them; a photo is a raster if one is given."""
    Image.fromarray(pixels(70, 90).transpose(1, 2, 0)).save(tmp_path / "photo.png")
    options = ["--scale", 0.5, "--scale", 1, "--flip", "--window", 32, "--overlap", 0.25, "--probabilities"]
    special = ["--bands", 3, "--bands", 1, "--bands", 1, "--full-scale", 100, "--nodata", 9]
    part = ["--bounds", 10, 5, 80, 60, "--no-overlay", "--device", "cpu"]
    run = invoke(model, tmp_path, tmp_path / "photo.png", *options, *special, *part)
    assert run.exit_code == 0, run.output
    predictor = Predictor(load_trained(model), scales=(0.5, 1.0), flip=True, batch_size=4)
    expected = predict_raster(
        predictor,
        tmp_path / "photo.png",
        tmp_path / "expected.tif",
        **STATISTICS,
        window=32,
        overlap=0.25,
        bands=[3, 1, 1],
        full_scale=100,
        nodata=9,
        bounds=(10, 5, 80, 60),
        probabilities=True,
    )
    assert expected.size == (55, 70)
    for name, path in [("photo", expected.labels), ("photo_probabilities", expected.probabilities)]:
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif")[0], read(path)[0])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png"] + [".tif"] * 4


def test_options_that_cannot_count_are_refused(model, tmp_path):
    """By name, and before the network is loaded."""
    out = tmp_path / "out"
    raster = write(tmp_path / "a.tif", pixels(40, 50))
    other = write(tmp_path / "a_probabilities.tif", pixels(40, 50))
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    (tmp_path / "damaged.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    cases = [
        *[
            ((tmp_path / "damaged.png", *option), f"{option[0]} is for rasters, and GDAL reads none")
            for option in (("--bands", 1), ("--full-scale", 9), ("--nodata", 9), ("--bounds", 0, 0, 5, 5))
        ],
        ((raster, "--regions"), "--regions is for images: of a raster, here"),
        ((tmp_path / "photo.png", raster, "--overlay"), "--overlay is for images: of a raster, here"),
        (
            (tmp_path / "photo.png", "--overlap", 0.2),
            "--overlap is of windows, and images are taken whole",
        ),
        ((raster, other, "--probabilities"), "would be written over another file"),
        ((tmp_path / "empty",), "expected images or rasters"),
    ]
    for arguments, text in cases:
        run = invoke(tmp_path / "no model", out, *arguments)
        assert run.exit_code in (1, 2) and text in words(run.output), run.output
    run = invoke(tmp_path / "no model", tmp_path, raster)
    assert run.exit_code == 2 and "would be written over another file" in words(run.output)
    assert not out.exists()
    run = invoke(model, out, raster, "--scale", -1)
    assert run.exit_code == 1 and "`scales` must be positive numbers" in words(run.output)
    run = invoke(model, out, raster, "--device", "meta:x")
    assert run.exit_code == 2 and "--device must be one of what is here" in words(run.output)


def test_a_damaged_raster_is_one_line_and_the_others_go_on(model, tmp_path):
    good = write(tmp_path / "good.tif", pixels(40, 50))
    bad = write(tmp_path / "a[bold]b.tif", pixels(300, 300), tiled=True, blockxsize=64, blockysize=64)
    with bad.open("r+b") as file:
        file.truncate(bad.stat().st_size // 2)
    (tmp_path / "none.vrt").write_text("<VRTDataset/>")
    run = invoke(model, tmp_path / "out", tmp_path, "--window", 64)
    lines = run.output.splitlines()
    assert run.exit_code == 1 and results(tmp_path / "out") == [good.name] and len(lines) == 3
    assert lines[0].startswith(f"error: {bad}: expected a whole raster, got one that cannot be read at rows")
    assert "50 x 40 pixels" in lines[1]
    assert lines[2].startswith(f"error: {tmp_path}/none.vrt: expected a raster that GDAL reads")


@pytest.mark.parametrize("out", ["file/out", "/proc/self/out"])
def test_results_that_cannot_be_written(model, tmp_path, out):
    """One line, and no more of it: the next raster would fail alike."""
    (tmp_path / "file").write_text("kept")
    sources = [write(tmp_path / f"{name}.tif", pixels(40, 50)) for name in "ab"]
    run = invoke(model, tmp_path / out, *sources)
    assert run.exit_code == 1 and len(run.output.splitlines()) == 1
    assert run.output.startswith(f"error: {sources[0]}: ") and isinstance(run.exception, SystemExit)
    assert (tmp_path / "file").read_text() == "kept"
