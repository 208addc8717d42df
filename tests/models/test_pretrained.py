"""Published networks: come back the same, say what was measured, and never run what is in the files."""

import hashlib
import inspect
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hggraph.cluster import SoftSLIC
from hggraph.models import hg_hrnet, hg_orientation, hg_resnet, hg_resunet
from hggraph.models.pretrained import from_pretrained, model_card, pretrained_config, save_pretrained

SMALL = {"channels": 8, "depth": 1, "stacks": 1, "branches": 1, "clusterer": SoftSLIC(4)}
CLASSES = ["ground", "road"]


def small() -> nn.Module:
    return hg_orientation(**SMALL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    evaluation = {"dataset": "roads", "results": {"miou": 0.75, "iou": [1.0, 0.5]}}
    folder = tmp_path_factory.mktemp("published") / "roads"
    return save_pretrained(
        small(), folder, model="hg_orientation", arguments=SMALL, classes=CLASSES, evaluation=evaluation
    )


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "roads"))


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def sign(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    edit(folder, files={"model.safetensors": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


OPTIONS = inspect.signature(SoftSLIC).parameters.keys() - {"projection"}


def clusterers(net) -> list[SoftSLIC]:
    return [part for part in net.modules() if isinstance(part, SoftSLIC)]


PROJECTED = SoftSLIC(num_regions=6, projection=nn.Conv2d(128, 8, 1, bias=False), feature_scale=2.0, candidates=3)
NEW = {"update": "column", "position": 1.5, "threshold": 0.01, "connected": True, "hard": True, "sampling": "density"}


@pytest.mark.parametrize(
    ("maker", "arguments"),
    [
        (hg_resnet, {"depth": 18, "hg_stages": (3, 4), "num_classes": 3, "clusterer": PROJECTED, "pretrained": False}),
        (hg_resnet, {"depth": 18, "clusterer": SoftSLIC.paper(16, num_regions=6)}),
        (hg_resnet, {"depth": 18, "clusterer": SoftSLIC(4, **NEW)}),
        (hg_orientation, SMALL | {"clusterer": None, "hg": False, "attention": None}),
    ],
)
def test_comes_back(maker, arguments, tmp_path):
    net = maker(**arguments)
    save_pretrained(net, tmp_path / "net", model=maker.__name__, arguments=arguments)
    assert {path.name for path in (tmp_path / "net").iterdir()} == {
        *("README.md", "config.json", "metrics.json", "model.safetensors")
    }
    before = torch.get_rng_state()
    back = from_pretrained(tmp_path / "net")
    assert torch.equal(torch.get_rng_state(), before)
    assert not back.training and type(back) is type(net)
    assert repr(back) == repr(net.eval())
    for ours, theirs in zip(clusterers(net), clusterers(back), strict=True):
        assert {name: getattr(ours, name) for name in OPTIONS} == {name: getattr(theirs, name) for name in OPTIONS}
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("maker", "arguments"),
    [
        (hg_hrnet, {"width": "w18_small_v2", "num_classes": 2}),
        (hg_hrnet, {"width": "w18_small_v2", "num_classes": 2, "clusterer": SoftSLIC(4, iterations=2)}),
        (hg_resunet, {"attention": "object", "plus": True, "num_classes": 2}),
        (hg_resnet, {"depth": 50, "variant": "dcn", "hg_stages": (), "num_classes": 2}),
    ],
)
def test_every_maker_is_called_as_described(maker, arguments, tmp_path):
    with torch.device("meta"):  # shapes alone
        net = maker(**arguments)
    with pytest.raises(ValueError, match="`classes` must be 2 names, got 1"):  # what is looked at after the shapes
        save_pretrained(net, tmp_path, model=maker.__name__, arguments=arguments, classes=["one"])


def test_clusterer_of_an_older_file(folder):
    """Without the options that came later: it clusters as it did when the file was written."""
    config = json.loads((folder / "config.json").read_text())
    options = config["arguments"]["clusterer"]["SoftSLIC"]
    for name in ("update", "position", "smooth", "connected", "hard"):
        del options[name]
    options |= {"sampling": "topk_random", "candidates": None}
    edit(folder, arguments=config["arguments"])
    first = SoftSLIC.paper(4, feature_scale="auto")
    (found,) = (
        part for part in clusterers(from_pretrained(folder)) if part.downsample == 4
    )  # others are given regions
    assert {name: getattr(found, name) for name in OPTIONS} == {name: getattr(first, name) for name in OPTIONS}


def test_predicts_the_same(saved):
    net = from_pretrained(saved)
    again = small().eval()
    again.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 40, 50)
    with torch.no_grad():
        assert torch.equal(again(x)["out"], net(x)["out"])


def test_defaults_are_written_out(saved):
    arguments = pretrained_config(saved)["arguments"]
    assert arguments["num_orientations"] == 37 and "pretrained" not in arguments
    assert arguments["clusterer"]["SoftSLIC"]["iterations"] == 3


def test_card_says_what_the_evaluation_says(tmp_path):
    results = {
        "miou": torch.tensor(0.712345, dtype=torch.float64),
        "pixels": 1234567,
        "iou": torch.tensor([0.5, float("nan")]),
        "seen": np.array([7, 0]),
        "table": [[1, 2, 3]],
    }
    evaluation = {"dataset": "a|b", "split": "test", "checkpoint": "/data/me/runs/best.ckpt", "results": results}
    path = tmp_path / "results-test.json"
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in results.items()}
    path.write_text(json.dumps(evaluation | {"results": plain}))
    words = {"name": "Roads: <b>1", "description": "Made of noise.", "license_id": "cc-by-4.0"}
    for number, given in enumerate((evaluation, path)):
        folder = tmp_path / str(number)
        save_pretrained(
            small(),
            folder,
            model="hg_orientation",
            arguments=SMALL,
            classes=CLASSES,
            palette=[(0, 0, 0), (255, 0, 0)],
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            evaluation=given,
            **words,
        )
        config = pretrained_config(folder)
        (record,) = json.loads((folder / "metrics.json").read_text())
        assert record["results"] == plain | {"iou": [0.5, None]}
        assert record["weights"] == config["files"]["model.safetensors"]["sha256"]
        assert config["classes"] == CLASSES and config["mean"] == [0.5, 0.5, 0.5]
        assert config["palette"] == [[0, 0, 0], [255, 0, 0]]
        card = (folder / "README.md").read_text()
        assert card == model_card(config, [record])
        for line in (
            "| miou | 0.7123 |",
            "| pixels | 1,234,567 |",
            "| ground | 0.5 | 7 |",
            "| road | - | 0 |",
            'license: "cc-by-4.0"',
            "# Roads: &lt;b>1",
            "dataset: a\\|b, split: test, checkpoint: best.ckpt",
            "Made of noise.",
            config["files"]["model.safetensors"]["sha256"],
        ):
            assert line in card
        assert "/data/me" not in card + json.dumps([config, record])
        head = card.split("---\n")[1]
        yaml = pytest.importorskip("yaml")
        found = yaml.safe_load(head)
        assert found["library_name"] == "hggraph"
        assert found["model-index"][0]["results"][0]["metrics"][0] == {"type": "miou", "value": 0.712345}


def test_card_of_little(tmp_path):
    save_pretrained(small(), tmp_path, model="hg_orientation", arguments=SMALL)
    card = (tmp_path / "README.md").read_text()
    assert "Evaluation" not in card and "model-index" not in card and "from_pretrained" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": SMALL | {"channels": 16}}, "is not the one that hg_orientation makes.*of another shape"),
        ({"arguments": SMALL | {"colour": 1}}, "takes no colour"),
        ({"arguments": SMALL | {"channels": 0}}, "is not the one.*channels"),
        ({"arguments": SMALL | {"channels": np.float32(8)}}, "`arguments\\['channels'\\]` must be a number"),
        ({"arguments": SMALL | {"clusterer": nn.Identity()}}, "`arguments\\['clusterer'\\]` must be .* Got Identity"),
        ({"arguments": SMALL | {"clusterer": SoftSLIC(projection=nn.ReLU())}}, r"clusterer\.projection.*Got ReLU"),
        ({"model": "hg_orientaton"}, "Did you mean hg_orientation"),
        ({"classes": ["one"]}, "must be 2 names, got 1"),
        ({"mean": [0.5] * 3}, "given together"),
        ({"mean": [0.5], "std": [0.5]}, "`mean` must be 3 numbers from 0 to 1"),
        ({"evaluation": {"miou": 0.5}}, 'under "results"'),
        ({"evaluation": {"results": {"miou": float("inf")}}}, "evaluation.results.miou.*inf"),
        ({"evaluation": {"results": {"net": nn.ReLU()}}}, "evaluation.results.net"),
    ],
)
def test_bad_arguments_write_nothing(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pretrained(small(), tmp_path / "net", **({"model": "hg_orientation", "arguments": SMALL} | change))
    assert not (tmp_path / "net").exists()


def test_folded_network(tmp_path):
    with pytest.raises(ValueError, match=r"before `fold\(\)`"):
        save_pretrained(small().fold(), tmp_path / "net", model="hg_orientation", arguments=SMALL)


# files that are not as written


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for bad in (good[:-1], good + b"\0", good[:-5] + bytes([good[-5] ^ 1]) + good[-4:], b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"is not the file that config\.json describes: expected .* bytes"):
            from_pretrained(folder)
    path.write_bytes(good)
    from_pretrained(folder)


def test_weights_of_another_network(folder, tmp_path):
    other = SMALL | {"channels": 16}
    save_pretrained(hg_orientation(**other), tmp_path / "other", model="hg_orientation", arguments=other)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match="is not the file"):
        from_pretrained(folder)
    sign(folder)
    with pytest.raises(ValueError, match="are not those of hg_orientation"):
        from_pretrained(folder)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickles_are_refused(folder, tmp_path):
    marker = tmp_path / "marker"
    for name in ("net.pt", "net.bin", "net.ckpt"):
        torch.save(Evil(marker), folder / name)
        with pytest.raises(ValueError, match=r"was refused: such files can run code"):
            from_pretrained(folder / name)
    (folder / "model.safetensors").write_bytes((folder / "net.pt").read_bytes())
    sign(folder)
    with pytest.raises(ValueError, match=r"is not a file of weights"):
        from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(marker)))
    sign(folder)
    with pytest.raises(ValueError, match=r"is not a file of weights"):
        from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*net\.bin, net\.ckpt, net\.pt can run code"):
        from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "eval"}, "`model` must be one of hg_resnet"),
        ({"model": ["hg_resnet"]}, "config.json is not what"),
        ({"format": 3}, "format 3 is not known"),
        ({"files": {}}, "`files` must be an object, got NoneType"),
        ({"files": {"model.safetensors": {"size": "1", "sha256": ""}}}, "must hold size and SHA-256"),
        ({"arguments": []}, "`arguments` must be an object, got list"),
        ({"arguments": {"pretrained": True}}, "hg_orientation takes no pretrained"),
        ({"arguments": {"clusterer": {"Evil": {}}}}, r"clusterer must name one of .*SoftSLIC, .*got Evil"),
        ({"arguments": {"clusterer": {"SoftSLIC": {"evil": 1}}}}, "describes no network.*evil"),
        ({"arguments": {"channels": "eight"}}, "describes no network.*channels"),
    ],
)
def test_altered_configurations(change, message, folder):
    edit(folder, **change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": 1}'])
def test_no_configuration(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not what `save_pretrained` writes"):
        from_pretrained(folder)


def test_resnet_with_weights_from_elsewhere(tmp_path):
    arguments = {"depth": 18, "clusterer": SoftSLIC(4)}
    save_pretrained(hg_resnet(**arguments), tmp_path, model="hg_resnet", arguments=arguments)
    config = pretrained_config(tmp_path)
    edit(tmp_path, arguments=config["arguments"] | {"pretrained": "weights.pth"})
    with pytest.raises(ValueError, match="hg_resnet takes no pretrained"):
        from_pretrained(tmp_path)


# where from


def test_no_such_place(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    for name in ("nowhere", "a/b/c", "/no/folder", "../owner/name", ".."[:1] + "x/y z"):
        with pytest.raises(FileNotFoundError, match=r"no folder .* owner/name"):
            from_pretrained(name)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        from_pretrained(folder / "README.md")


def test_hub(saved, monkeypatch, tmp_path):
    asked = []

    def download(name, file, *, revision=None, local_files_only):
        asked.append((name, file, revision))
        return str(saved / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    net = from_pretrained("owner/roads", revision="v1")
    assert asked == [("owner/roads", "config.json", "v1"), ("owner/roads", "model.safetensors", "v1")]
    assert torch.equal(net.stem[0].weight, from_pretrained(saved).stem[0].weight)
    shutil.copytree(saved, tmp_path / "owner" / "roads")
    from_pretrained("owner/roads")
    assert len(asked) == 2  # the folder here goes first
    assert pretrained_config("else/where")["classes"] == CLASSES


def test_hub_out_of_reach(monkeypatch, tmp_path):
    def fail(name, file, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"config\.json of \S+/owner/roads could not .*OSError: no route\).*give"):
        from_pretrained("owner/roads")
