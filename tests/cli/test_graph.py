"""`hggraph graph` as a user runs it: good images, bad images, and wrong options."""

import errno
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from torch_geometric.data import Data
from typer.testing import CliRunner

from hggraph import SoftSLIC, region_graph
from hggraph.cli import app
from hggraph.data import load_graph, load_image

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["graph", *map(str, args)])


def make_image(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    """Write an image of blurred noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def words(text: str) -> str:
    """Return the text without line breaks and without the box that typer draws around errors."""
    return " ".join(text.replace("│", " ").split())


def bomb() -> bytes:
    """Return a PNG of 57 bytes that declares 60000 x 60000 pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))]
    chunks += [struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind)) for kind in (b"IDAT", b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_files_of_one_image(tmp_path):
    path = make_image(tmp_path / "in" / "photo.png")
    result = run(path, "--out", tmp_path / "new" / "out", "--regions", 12)
    assert result.exit_code == 0, result.output
    out = tmp_path / "new" / "out"
    assert names(out) == ["photo.graphml", "photo.png", "photo.pt"]

    values = torch.load(out / "photo.pt", weights_only=True)
    clusterer = SoftSLIC(num_regions=12, feature_scale="photo").eval()
    expected = region_graph(load_image(path)[None], clusterer=clusterer)[0]
    assert set(values) == set(expected.keys())
    for key, value in expected.to_dict().items():
        torch.testing.assert_close(values[key], value)
    assert Data.from_dict(values).validate()

    graph = nx.read_graphml(out / "photo.graphml", force_multigraph=True)
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (12, expected.num_edges)
    assert graph.graph["width"] == 40 and graph.graph["height"] == 30
    for _, _, edge in graph.edges(data=True):
        assert isinstance(edge["edge_weight"], float) and isinstance(edge["edge_type"], int)
    with Image.open(out / "photo.png") as figure:
        assert figure.width > 1000

    assert "\x1b" not in result.output
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("photo.png")]
    assert row.split()[:5] == ["photo.png", "40", "x", "30", "12"]
    assert result.stderr == ""


def test_same_image_gives_the_same_files(tmp_path):
    path = make_image(tmp_path / "photo.jpg")
    for folder in ["a", "b"]:
        assert run(path, "--out", tmp_path / folder, "--downsample", 64).exit_code == 0
    for name in ["photo.pt", "photo.graphml", "photo.png"]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert load_graph(tmp_path / "a" / "photo.pt").num_nodes == round(40 * 30 / 64)


def test_bad_files_in_a_folder_are_reported_and_skipped(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ["a.png", "c.jpg", "e.png"]:
        make_image(folder / name)
    whole = (folder / "c.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "d [red].png").write_text("words, not pixels")
    (folder / "f.png").write_bytes(bomb())
    (folder / "notes.txt").write_text("not an image, and not named like one")
    out.mkdir()
    (out / "d [red].pt").write_text("from an earlier run")
    result = run(folder, "--out", out, "--no-figure", "--regions", 6)
    assert result.exit_code == 1
    good = [f"{stem}.{ending}" for stem in "ace" for ending in ["graphml", "pt"]]
    assert names(out) == sorted([*good, "d [red].pt"])
    assert (out / "d [red].pt").read_text() == "from an earlier run"
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"error: {folder}") for line in lines)
    assert "b.jpg" in lines[0] and "d [red].png" in lines[1] and "178,956,970" in lines[2]
    assert "3 graphs in" in result.stdout and "3 images failed" in result.stdout
    assert "Traceback" not in result.output


def test_a_result_that_cannot_be_written_fails_alone(tmp_path):
    for name in ["a.png", "b.png"]:
        make_image(tmp_path / "in" / name)
    (tmp_path / "out" / "a.pt").mkdir(parents=True)  # in the way
    result = run(tmp_path / "in", "--out", tmp_path / "out", "--no-figure", "--regions", 6)
    assert result.exit_code == 1
    assert names(tmp_path / "out") == ["a.pt", "b.graphml", "b.pt"]
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_next_image_would_meet_ends_the_run(number, tmp_path, monkeypatch):
    """A full or read-only disk is said once, after the first image; what was written of that image is gone."""
    for name in "abc":
        make_image(tmp_path / "in" / f"{name}.png")
    (tmp_path / "out").mkdir()

    def fail(graph: object, path: Path) -> None:
        path.write_text("half")
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("networkx.write_graphml", fail)
    monkeypatch.setattr("hggraph.cli.graph.os.access", lambda _, mode: mode != os.W_OK | os.X_OK)
    result = run(tmp_path / "in", "--out", tmp_path / "out", "--no-figure", "--regions", 6)
    assert result.exit_code == 1 and names(tmp_path / "out") == []
    lines = result.stderr.splitlines()
    assert f"a.graphml: {os.strerror(number)}" in lines[0]
    assert len(lines) == (3 if number == errno.EIO else 1)
    assert ("stopped here, as every other image would meet it too" in lines[0]) == (number != errno.EIO)
    assert result.stdout.endswith("3 images failed\n")


@pytest.mark.parametrize("name", [b"stra\xdfe", b"a\x01b", b"red \x1b[31m\nline"])
def test_any_file_name(name, tmp_path):
    """GraphML of it is XML, and what is printed of it cannot steer a terminal."""
    image = make_image(tmp_path / "a.png")
    path = image.rename(tmp_path / os.fsdecode(name + b".png"))
    result = run(os.fsdecode(path), "--out", tmp_path / "out", "--no-figure", "--regions", 6)
    assert result.exit_code == 0 and "\x1b" not in result.output and len(result.stdout.splitlines()) == 3
    (graphml,) = (tmp_path / "out").glob("*.graphml")
    assert graphml.stem == path.stem
    assert nx.read_graphml(graphml).graph["name"] == repr(path.stem)[1:-1]


def test_equal_names_do_not_overwrite_each_other(tmp_path):
    paths = ["x/p.png", "y/p.png", "y/P.jpg", "z/q.png", "z/y_p.png"]
    images = [make_image(tmp_path / path, seed=i) for i, path in enumerate(paths)]
    result = run(*images, "--out", tmp_path / "out", "--no-figure", "--regions", 6)
    assert result.exit_code == 0, result.output
    graphs = [name for name in names(tmp_path / "out") if name.endswith(".pt")]
    assert graphs == ["q.pt", "x_p.pt", "y_P-2.pt", "y_p-3.pt", "y_p.pt"]
    contents = {(tmp_path / "out" / name).read_bytes() for name in graphs}
    assert len(contents) == 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--regions", "5", "--downsample", "64"], "not both"),
        (["--regions", "0"], "--regions"),
        (["--downsample", "0.5"], "--downsample"),
        (["--max-pixels", "200000000"], "--max-pixels"),
        (["--format", "pickle"], "--format"),
        (["--candidates", "6"], "--candidates"),
        (["--attention", "missing.png"], "missing.png"),
        (["missing.jpg"], "missing.jpg"),
    ],
)
def test_wrong_options_stop_before_anything_is_made(options, text, tmp_path):
    path = make_image(tmp_path / "a.png")
    result = run(path, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert text in result.stderr
    assert not (tmp_path / "out").exists()


def test_out_is_required_and_must_not_be_a_file(tmp_path):
    path = make_image(tmp_path / "a.png")
    assert run(path).exit_code == 2
    assert run(path, "--out", path).exit_code == 2
    assert run(path, "--out", path / "inner").exit_code == 2


def test_images_and_maps_are_never_overwritten(tmp_path):
    path = make_image(tmp_path / "a.png")
    before = path.read_bytes()
    result = run(path, "--out", tmp_path, "--regions", 6)
    assert result.exit_code == 2 and "written over" in result.stderr
    assert path.read_bytes() == before and names(tmp_path) == ["a.png"]
    assert run(path, "--out", tmp_path, "--regions", 6, "--no-figure").exit_code == 0


def test_more_regions_than_pixels(tmp_path):
    small = make_image(tmp_path / "small.png", (5, 5))
    result = run(small, "--out", tmp_path / "out", "--regions", 26, "--no-figure")
    assert result.exit_code == 1
    assert "expected at least 26 pixels" in result.stderr and "5 x 5" in result.stderr
    assert run(small, "--out", tmp_path / "out", "--no-figure").exit_code == 0  # as many as fit
    assert load_graph(tmp_path / "out" / "small.pt").num_nodes == 1


def test_max_pixels(tmp_path):
    path = make_image(tmp_path / "a.png")
    result = run(path, "--out", tmp_path / "out", "--max-pixels", 1199)
    assert result.exit_code == 1 and "1,200" in result.stderr


def test_attention_draws_regions(tmp_path):
    path = make_image(tmp_path / "in" / "a.png")
    bright = np.zeros((30, 40), dtype=np.uint8)
    bright[:, 20:] = 255
    (tmp_path / "maps").mkdir()
    Image.fromarray(bright).save(tmp_path / "maps" / "a.png")
    options = ["--out", tmp_path / "out", "--regions", 40]
    share = []
    for attention in [
        [],
        ["--attention", tmp_path / "maps"],
        ["--attention", tmp_path / "maps/a.png"],
    ]:
        result = run(path, *options, *attention, "--figure" if len(share) == 1 else "--no-figure")
        assert result.exit_code == 0, result.output
        share.append((load_graph(tmp_path / "out" / "a.pt").pos[:, 1] > 20).float().mean().item())
    # half the image has attention; the density of seeds follows its root, blurred at the scale of a region
    assert share[1] == share[2] and share[1] > share[0] + 0.1 and share[1] > 0.6


def test_attention_that_does_not_fit(tmp_path):
    image, other = make_image(tmp_path / "in" / "a.png"), make_image(tmp_path / "b.png", (41, 30))
    result = run(image, "--out", tmp_path / "out", "--attention", other)
    assert result.exit_code == 1
    assert "40 x 30 pixels, got 41 x 30" in result.stderr and names(tmp_path / "out") == []
    (tmp_path / "maps").mkdir()
    make_image(tmp_path / "maps" / "z.png")
    result = run(image, "--out", tmp_path / "out", "--attention", tmp_path / "maps")
    assert result.exit_code == 2 and "has no map for a.png" in words(result.stderr)


def test_safetensors(tmp_path, monkeypatch):
    path = make_image(tmp_path / "a.png")
    pytest.importorskip("safetensors")
    options = ["--out", tmp_path / "out", "--no-figure", "--regions", 6]
    assert run(path, *options, "--format", "safetensors").exit_code == 0
    assert run(path, *options).exit_code == 0
    graph, expected = (load_graph(tmp_path / "out" / f"a.{end}") for end in ["safetensors", "pt"])
    for key, value in expected.to_dict().items():
        assert torch.equal(graph[key], value)


@pytest.mark.parametrize(
    ("module", "options", "text"),
    [
        ("matplotlib", ["a.png"], "hggraph[viz]"),
        ("sklearn", ["--no-figure"], "hggraph[sklearn]"),
        (
            "safetensors",
            ["a.png", "--no-figure", "--format", "safetensors"],
            "pip install safetensors",
        ),
    ],
)
def test_missing_library_is_said_before_the_work(module, options, text, tmp_path, monkeypatch):
    find_spec = sys.modules["importlib.util"].find_spec
    hidden = lambda name, *rest: None if name == module else find_spec(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", hidden)
    make_image(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    result = run(*options, "--out", "out")
    assert result.exit_code == 2
    assert text in words(result.stderr)
    assert not (tmp_path / "out").exists()


def test_help_is_for_people():
    result = CliRunner().invoke(app, ["graph", "--help"])
    assert result.exit_code == 0
    for word in [
        "IMAGE|FOLDER",
        "--out",
        "--regions",
        "--attention",
        "GraphML".lower(),
        "exit code",
    ]:
        assert word in result.output
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


PROCESS = """
import runpy, sys
import hggraph.cli
early = {"matplotlib", "sklearn", "timm", "torchvision", "lightning"} & set(sys.modules)
assert not early, early
sys.argv = ["hggraph", "graph", "--out", "out", "--regions", "50"]
runpy.run_module("hggraph", run_name="__main__")
"""


def test_a_process_of_its_own(tmp_path):
    """Without an image, as the demo runs it, and as ``python -m hggraph`` does.

    Warnings are errors, but PyG's own at its import. Optional libraries are loaded when needed only.
    """
    pytest.importorskip("sklearn", reason="needs the extra `sklearn`")
    strict = ["-W", "error", "-W", "ignore:`torch.jit.script` is:FutureWarning"]
    command = [sys.executable, *strict, "-c", PROCESS]
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "\x1b" not in done.stdout
    assert "sample photo" in done.stdout and "640 x 427" in done.stdout
    assert names(tmp_path / "out") == ["china.graphml", "china.png", "china.pt"]
