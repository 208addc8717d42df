"""Model folders of a stranger: nothing in them runs, and nothing is made that their weights do not hold."""

import json
import os
import pickle
import resource
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hggraph.cluster import SoftSLIC
from hggraph.inference import load_trained
from hggraph.models import from_pretrained, hg_orientation, save_pretrained
from hggraph.models.pretrained import publish
from tests.models.test_pretrained import Evil, sign

SMALL = {"channels": 8, "depth": 1, "stacks": 1, "branches": 1, "clusterer": SoftSLIC(4)}


class Foreign(nn.Conv2d):
    """A network of one's own; to import or to make it leaves a trace."""

    made = 0

    def __init__(self, width: int = 2) -> None:
        super().__init__(3, width, 1)
        Foreign.made += 1


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("good") / "model"
    return save_pretrained(
        hg_orientation(**SMALL),
        folder,
        model="hg_orientation",
        arguments=SMALL,
        classes=["no", "yes"],
        palette=[(0, 0, 0), (255, 255, 0)],
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def change(folder: Path, *path: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


CONV = {"Conv2d": {"in_channels": 1 << 18, "out_channels": 1 << 18, "kernel_size": 9}}
VALUES = [
    (("arguments", "depth"), 10_000_000, "depth must be a number of at most 1,000"),
    (("arguments", "depth"), 999, "a network of more than 20,000 layers|not those of"),
    (("arguments", "channels"), 1 << 19, "are not those of hg_orientation"),
    (("arguments", "num_orientations"), float("inf"), "not what `save_pretrained` writes|must be a number"),
    (("arguments", "clusterer"), {"SoftSLIC": {"projection": CONV}}, "are not those of hg_orientation"),
    (("arguments", "clusterer"), {"os.system": {"command": "true"}}, "must name one of"),
    (("arguments", "branches"), nested(50), "nested more than"),
    (("model",), "timm.create_model", "`task` of timm.create_model must be classification"),
    (("model",), "builtins.eval", "`model` must be one of"),
    (("mean",), [0.5], "`mean` must be 3 numbers"),
    (("mean",), [0.5, 0.5, float("nan")], "NaN is no number of JSON"),
    (("std",), [0.0] * 3, "`std` must be 3 numbers"),
    (("palette",), [[0, 0, 0], [999, 0, 0]], "red, green and blue from 0 to 255"),
    (("palette",), [[0, 0, 0]], "a colour for each of 2 classes"),
    (("classes",), ["no", 7], "`classes` must be text"),
    (("preprocessing", "bands"), 1 << 30, "`preprocessing` must say bands"),
    (("preprocessing", "EvalTransform"), {"size": [1 << 30, 1 << 30]}, "no option of EvalTransform in its range"),
    (("preprocessing", "EvalTransform"), {"evil": 1}, "no option of EvalTransform"),
    (("files", "model.safetensors", "size"), -1, "is not the file"),
    (("std_dev",), [1], "not known in it: std_dev"),
    (("parameters",), "many", "`parameters` their number"),
    (("files", "README.md"), {"size": "x"}, "size and SHA-256 of model.safetensors"),
]


@pytest.mark.parametrize(("path", "value", "text"), VALUES)
def test_values_out_of_all_range(folder, path, value, text):
    change(folder, *path, value=value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=text):
        load_trained(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("key", ["classes", "preprocessing", "task", "name", "recipe"])
def test_a_key_that_is_missing(folder, key):
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    for read in (load_trained, lambda path: publish(path, folder / "out")):
        with pytest.raises(ValueError, match=rf"config\.json is not what .* there is no {key} in it"):
            read(folder)


def test_run_folder_that_would_import(good, tmp_path):
    """A ``config.yaml`` beside a model is not read, and without a model nothing else is."""
    marker = tmp_path / "marker"
    run = tmp_path / "run"
    run.mkdir()
    code = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    (run / "config.yaml").write_text(json.dumps({"task": "os.system", "model": {"net": code}}))
    with pytest.raises(FileNotFoundError, match=r"is a run without a model yet.*validate --config"):
        load_trained(run)
    shutil.copytree(good, run / "model")
    assert load_trained(run).classes == ("no", "yes")
    publish(run, tmp_path / "published")
    assert not marker.exists()


def test_foreign_network_asks_for_trust(tmp_path):
    recipe = {"class_path": f"{__name__}.Foreign", "init_args": {"width": 3}}
    net = Foreign(3)
    save_pretrained(net, tmp_path / "own", model=recipe, task="segmentation", mean=[0.5] * 3, std=[0.5] * 3)
    made = Foreign.made
    with pytest.raises(ValueError, match=rf"{__name__}\.Foreign would be imported and run.*--trust"):
        load_trained(tmp_path / "own")
    assert Foreign.made == made
    again = load_trained(tmp_path / "own", trust=True)
    assert torch.equal(again.net.weight, net.weight) and Foreign.made == made + 1
    assert "trust=True" in (publish(tmp_path / "own", tmp_path / "out") / "README.md").read_text()


def test_weights_that_are_no_weights(folder, tmp_path):
    marker, weights = tmp_path / "marker", folder / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for data in (
        pickle.dumps(Evil(marker)),
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", len(header)) + header,
    ):
        weights.write_bytes(data)
        sign(folder)
        with pytest.raises(ValueError, match="is not a file of weights"):
            from_pretrained(folder)
    assert not marker.exists()


def test_metrics_of_other_weights_are_not_shown(folder, tmp_path):
    own = json.loads((folder / "config.json").read_text())["files"]["model.safetensors"]["sha256"]
    evil = {"weights": "0" * 64, "dataset": "x", "results": {"miou": 0.99}}
    right = {"weights": own, "dataset": "x", "results": {"miou": 0.25}}
    (folder / "metrics.json").write_text(json.dumps([evil, right, 7]))
    card = (publish(folder, tmp_path / "out") / "README.md").read_text()
    assert "0.25" in card and "0.99" not in card
    (folder / "metrics.json").write_text('[{"weights": NaN}]')
    assert "Evaluation" not in (publish(folder, tmp_path / "nan") / "README.md").read_text()
    (folder / "metrics.json").write_text("[" * 100_000)
    assert "Evaluation" not in (publish(folder, tmp_path / "two") / "README.md").read_text()


def test_huge_configuration(folder):
    with (folder / "config.json").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(ValueError, match="more than"):
        load_trained(folder)


def test_nothing_is_imported(good):
    """What is loaded from a folder of hggraph's own networks needs no module that names in it could bring."""
    before = set(sys.modules)
    load_trained(good)
    assert not {name for name in set(sys.modules) - before if name.startswith(("lightning", "jsonargparse"))}
