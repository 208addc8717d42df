"""``hggraph count``: what it prints, writes and refuses."""

import json

import pytest
from typer.testing import CliRunner

from hggraph.cli import app
from hggraph.cli._model import make_model
from hggraph.models import count, hg_resnet


def run(*args):
    return CliRunner().invoke(app, ["count", *map(str, args)], env={"COLUMNS": "200"})


def test_prints_and_writes(tmp_path):
    path = tmp_path / "counts.json"
    done = run("hg_resnet18", "--size", 97, 129, "--classes", 5, "--json", path)
    assert done.exit_code == 0, done.output
    want = count(hg_resnet(18, num_classes=5, aux=False), (97, 129))
    rows = json.loads(path.read_text())
    assert [(row["name"], row["parameters"], row["macs"]) for row in rows] == [tuple(part) for part in want]
    assert f"{want[-1].parameters:,}" in done.output and f"{want[-1].macs / 1e9:,.3f}" in done.output
    assert "trunk.hg: adjacency" in done.output and "100.0%" in done.output


@pytest.mark.parametrize("more", [["--fold"], ["--paper"], ["--downsample", 16]])
def test_options_change_the_count(more, tmp_path):
    totals = []
    for name, options in (("a.json", []), ("b.json", more)):
        assert run("hg_resnet18", "--size", 97, 97, "--json", tmp_path / name, *options).exit_code == 0
        totals.append(json.loads((tmp_path / name).read_text())[-1]["macs"])
    assert totals[0] != totals[1]


@pytest.mark.parametrize(
    ("text", "name", "hg"),
    [
        ("hg_resnet18", "HGResNet", True),
        ("resnet18", "HGResNet", False),
        ("hg_resunet18", "HGResUNet", True),
        ("resunet18", "HGResUNet", False),
        ("hg_hrnet_w18_small_v2", "HGHRNet", True),
        ("hrnet_w18_small_v2", "HGHRNet", False),
        ("orientation", "HGOrientation", False),
        ("hg_resnet(18, variant='dcn', hg_stages=(3, 4))", "HGResNet", True),
    ],
)
def test_names(text, name, hg):
    model = make_model(text, {"num_classes": 2})
    assert type(model).__name__ == name and model.num_classes == 2
    assert any(type(part).__name__ == "HGStage" for part in model.modules()) == hg


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["hg_resne"], "there is no network 'hg_resne'; did you mean hg_resnet"),
        (["zzz"], "known are hg_resnet, hg_cnn"),
        (["hg_resnet(7)"], "`depth` must be one of"),
        (["hg_resnet(foo=1)"], "takes no foo; it takes depth, variant"),
        (["hg_resnet(depth=open('x'))"], "neither a name such as hg_resnet101 nor a call with literal arguments"),
        (["hg_resnet18", "--size", "0", "30"], "greater than or equal to 1"),
    ],
)
def test_refusals(args, message):
    done = run(*args)
    assert done.exit_code == 2 and message in done.stderr


def test_images_that_are_too_small():
    done = run("hg_resnet18", "--size", 30, 30)
    assert done.exit_code == 1 and done.stderr.startswith("error: The images are too small")
