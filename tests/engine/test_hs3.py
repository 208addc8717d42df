"""The step between the phases: counts against metrics, files, and a second phase that starts by one command."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hggraph import SoftSLIC
from hggraph.cli import app
from hggraph.data import HeldOut
from hggraph.engine.hs3 import _trained, analyse_run, second_phase
from hggraph.engine.run import run
from hggraph.metrics import MeanIoU
from hggraph.metrics.tap_confusion import analyse
from hggraph.models import from_pretrained, hg_resnet
from hggraph.models.pretrained import publish
from hggraph.schemes.hs3 import Grouping, mean_iou, read_groupings, tapped, write_groupings
from tests.engine.toys import Blocks

pytest.importorskip("sklearn", reason="groups classes")

# of Lightning's own doings
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]
CLUSTERER = {"class_path": "hggraph.SoftSLIC", "init_args": {"downsample": 4}}
RECIPE = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    "model": {
        "net": {
            "class_path": "hggraph.schemes.hs3.tapped",
            "init_args": {
                "net": {
                    "class_path": "hggraph.models.hg_resnet",
                    "init_args": {"depth": 18, "num_classes": 3, "aux": False, "clusterer": CLUSTERER},
                },
                "taps": {"2": "trunk.stages.1", "hg": "trunk.hg"},
            },
        },
        "criterion": {
            "class_path": "hggraph.schemes.hs3.HS3Loss",
            "init_args": {"losses": {"out": {"class_path": "hggraph.nn.CrossEntropy"}}},
        },
        "metric": {"class_path": "hggraph.metrics.MeanIoU", "init_args": {"num_classes": 3}},
    },
    "data": {
        "dataset": {
            "class_path": "hggraph.data.HeldOut",
            "init_args": {"dataset": "tests.engine.test_hs3.NamedBlocks", "share": 0.3},
        },
        "root": "anywhere",
        "train_split": "reduced",
        "batch_size": 2,
        "num_workers": 0,
    },
    "preprocessing": {"class_path": "hggraph.data.EvalTransform", "init_args": {"mean": [0.0] * 3, "std": [1.0] * 3}},
    "pictures": 0,
}


class NamedBlocks(Blocks):
    def __init__(self, root: str, split: str) -> None:
        super().__init__(root, split)
        self.names = [f"{split} {number}" for number in range(self.length)]

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)  # large enough for the strides of a ResNet
        sample["image"] = sample["image"].repeat_interleave(2, 1).repeat_interleave(2, 2)
        sample["mask"] = sample["mask"].repeat_interleave(2, 0).repeat_interleave(2, 1)
        return sample


def write(folder: Path, **data) -> Path:
    recipe = RECIPE | {"data": RECIPE["data"] | data}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def phase_one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run("fit", ["--config", str(write(folder)), "--out", str(folder / "phase_one")])
    return folder / "phase_one"


def batches(split: str = "analysis"):
    dataset = HeldOut("", split, dataset=NamedBlocks, share=0.3)
    return [{key: dataset[i][key][None] for key in ("image", "mask")} for i in range(len(dataset))]


def test_counts_are_those_of_the_metric():
    """The output's and a tap's on pixels; a tap's on regions by its labels at every pixel."""
    net = tapped(
        hg_resnet(18, num_classes=3, aux=False, clusterer=SoftSLIC(4)), RECIPE["model"]["net"]["init_args"]["taps"]
    )
    net.train()
    samples = batches()
    found = analyse(net, samples, 3)
    assert found.images == len(samples) == 4 and set(found.confusions) == {"out", "tap_2", "tap_hg"}
    assert all(part.training for part in net.modules())  # as it was
    net.eval()
    metrics = {name: MeanIoU(3) for name in found.confusions}
    for batch in samples:
        with torch.no_grad():
            net.training = True
            out = net(batch["image"])
            net.training = False
        regions = out["tap_hg"]
        labels = regions.logits.argmax(1).gather(1, regions.assignment.labels.flatten(1)).view(1, 8, 8)
        metrics["tap_hg"].update(labels.repeat_interleave(8, 1).repeat_interleave(8, 2), batch["mask"])
        for name in ("out", "tap_2"):
            metrics[name].update(out[name], batch["mask"])
    for name, metric in metrics.items():
        assert mean_iou(found.confusions[name]) == pytest.approx(float(metric.compute()["miou"]), abs=1e-12)


def test_mean_features_are_a_loop_over_classes():
    net = tapped(hg_resnet(18, num_classes=3, aux=False, clusterer=SoftSLIC(4)), {"2": "trunk.stages.1"}).eval()
    samples, seen = batches(), []
    found = analyse(net, samples, 3, features=True).features["tap_2"]
    net.heads["tap_2"][-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.training = True
    with torch.no_grad():
        for batch in samples:
            net(batch["image"])
    for number in range(3):
        parts = [
            f[0].flatten(1)[:, (b["mask"][0, 4::8, 4::8] == number).flatten()]
            for f, b in zip(seen, samples, strict=True)
        ]
        torch.testing.assert_close(found[number], torch.cat(parts, 1).double().mean(1), rtol=1e-5, atol=1e-6)


def test_mean_features_of_regions_are_weighted():
    """A region counts for each class by the share of its pixels: no class is lost, though none had a majority."""
    net = tapped(hg_resnet(18, num_classes=3, aux=False, clusterer=SoftSLIC(4)), {"hg": "trunk.hg"}).eval()
    samples, seen = batches()[:1], []
    found = analyse(net, samples, 3, features=True).features["tap_hg"]
    last = net.heads["tap_hg"].layers[-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, :, :, 0].double()))
    net.training = True
    with torch.no_grad():
        dense = net(samples[0]["image"])["tap_hg"].assignment.to_dense()[0].double()  # (P, R)
    mask = samples[0]["mask"][0, 4::8, 4::8].flatten()
    inside = dense / dense.sum(0)  # a region's pixels, as pooling weighs them
    for number in range(3):
        share = inside[mask == number].sum(0)
        torch.testing.assert_close(found[number], seen[0] @ share / share.sum(), rtol=1e-4, atol=1e-5)


def test_from_one_phase_to_the_next(phase_one, tmp_path):
    """One command each; the second network has as many classes at its taps as the analysis says."""
    result = CliRunner().invoke(app, ["hs3", "analyse", str(phase_one), "--theta", "90"])
    assert result.exit_code == 0, result.output
    folder = phase_one / "hs3"
    groupings = read_groupings(folder / "groupings.yaml")
    assert list(groupings) == ["tap_2", "tap_hg"] and "4 images analysed" in result.output
    curves = json.loads((folder / "curves.json").read_text())
    assert curves["chosen"] == {name: len(grouping) for name, grouping in groupings.items()}
    assert set(curves["curves"]) == {"out", "tap_2", "tap_hg"} and set(curves["curves"]["out"]) == {"2", "3"}
    recipe = yaml.safe_load((folder / "phase_one_hs3.yaml").read_text())
    assert recipe["data"]["train_split"] == "train"
    assert recipe["model"]["criterion"]["init_args"]["groupings"] == {
        name: [list(group) for group in grouping.groups] for name, grouping in groupings.items()
    }
    run("fit", ["--config", str(folder / "phase_one_hs3.yaml"), "--out", str(tmp_path / "phase_two")])
    state = torch.load(tmp_path / "phase_two/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert len(state["net.heads.tap_2.4.weight"]) == len(groupings["tap_2"])


def test_the_picture(phase_one):
    pytest.importorskip("matplotlib", reason="needs the extra `viz`")
    plan = analyse_run(phase_one, method="kmeans", out=phase_one / "by_features")
    assert (phase_one / "by_features/trade_off.png").stat().st_size > 5000
    assert set(plan.groupings) == {"tap_2", "tap_hg"} and plan.curves["tap_2"].sizes == (2, 3)


def test_a_constant_ratio(phase_one):
    plan = analyse_run(phase_one, ratio=0.7, out=phase_one / "by_ratio")
    assert plan.chosen == {"tap_2": 2, "tap_hg": 2}  # 3 * 0.7, and that * 0.7; never under 2
    with pytest.raises(ValueError, match="Give `theta` or `ratio`, not both, got 45"):
        analyse_run(phase_one, theta=45, ratio=0.5)


def test_groups_changed_by_hand(phase_one, tmp_path):
    """A file in place of the groups, and as many classes at the taps, from the command line."""
    write_groupings(
        tmp_path / "by_hand.yaml", {"tap_2": Grouping([[0, 2], [1]]), "tap_hg": Grouping.identity(3)}, Blocks.classes
    )
    net, criterion = "--model.net.init_args", "--model.criterion.init_args"
    by_hand = [f"{criterion}.groupings", str(tmp_path / "by_hand.yaml"), f"{net}.tap_classes", '{"2": 2, "hg": 3}']
    run("fit", ["--config", str(phase_one / "config.yaml"), "--out", str(tmp_path / "run"), *by_hand])
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert len(state["net.heads.tap_2.4.weight"]) == 2


def test_taps_are_not_published(phase_one, tmp_path):
    net = from_pretrained(publish(phase_one, tmp_path / "published"))
    inner = _trained(phase_one, yaml.safe_load((phase_one / "config.yaml").read_text()))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x)["out"], inner(x)["out"])
    assert not any("heads" in name for name in net.state_dict())


def test_what_is_not_held_out_is_not_analysed(phase_one, tmp_path):
    config = yaml.safe_load((phase_one / "config.yaml").read_text())

    def changed(**data) -> Path:
        folder = tmp_path / "-".join(data)
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"data": config["data"] | data}))
        (folder / "checkpoints").symlink_to(phase_one / "checkpoints")
        return folder

    with pytest.raises(ValueError, match=r"has no images held out for analysis.*'train'"):
        analyse_run(changed(train_split="train"))
    with pytest.raises(ValueError, match="has no images held out for analysis"):
        analyse_run(changed(dataset="tests.engine.test_hs3.NamedBlocks", train_split="train"))
    with pytest.raises(ValueError, match="must have no image in common, got 4: train"):
        analyse_run(changed(val_split="analysis"))
    with pytest.raises(FileNotFoundError, match="is no run"):
        analyse_run(tmp_path)


def test_networks_without_taps_are_refused():
    with pytest.raises(ValueError, match="has no taps; make it with"):
        analyse(hg_resnet(18, num_classes=3, clusterer=SoftSLIC(4)), batches(), 3)
    net = tapped(hg_resnet(18, num_classes=3, clusterer=SoftSLIC(4)), {"2": "trunk.stages.1"}, {"2": 2})
    with pytest.raises(ValueError, match="tap_2 has 2 classes; the first phase has all of them, 3"):
        analyse(net, batches(), 3)


def test_the_second_recipe_changes_nothing_else():
    config = {
        "config": ["x"],
        "model": {"net": {"init_args": {"tap_classes": [3, 3]}}, "criterion": {"class_path": "a", "init_args": {}}},
        "data": {"train_split": "reduced", "root": "r"},
    }
    recipe = second_phase(config, {"tap_1": Grouping([[0, 1], [2]]), "tap_2": Grouping.identity(3)})
    assert recipe["model"]["net"]["init_args"]["tap_classes"] == [2, 3] and "config" not in recipe
    assert recipe["data"] == {"train_split": "train", "root": "r"} and config["data"]["train_split"] == "reduced"
