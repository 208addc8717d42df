"""Recipes of classification, video and detection run from start to end, on small data made of handwritten digits."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from hggraph.engine import ClassificationTask
from hggraph.engine.run import run
from hggraph.inference import load_trained
from hggraph.metrics import TopKAccuracy
from tests.engine import digits

pytest.importorskip("timm", reason="needs the extra `models`")
RECIPES = Path(__file__).parents[2] / "recipes"

# of Lightning's own doings
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def fit(name: str, root: Path, out: Path, **options) -> tuple[list[float], dict[str, float]]:
    """Run a recipe, with options by their names with ``__`` for points; return its losses and last validation."""
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        "data.num_workers": 0,
    } | {key.replace("__", "."): value for key, value in options.items()}
    arguments = ["--config", str(RECIPES / f"{name}.yaml"), "--data.root", str(root), "--out", str(out)]
    run("fit", arguments + [text for key, value in settings.items() for text in (f"--{key}", str(value))])
    with (out / "logs/csv/version_0/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {key: float(value) for row in rows for key, value in row.items() if key.startswith("val/") and value}
    return [float(row["train/loss"]) for row in rows if row["train/loss"]], found


SMALL_IMAGES = {
    "model.net.init_args.num_classes": 10,
    "data.batch_size": 32,
    "data.train_transform.init_args": "{size: 16, flip: 0, area: [0.7, 1.0]}",
    "data.transform.init_args": "{size: 16, short_side: 16}",
}


def test_classification(tmp_path):
    """A PyConvResNet18 begins to read digits in 32 steps, and is evaluated and loaded as any run."""
    root, out = digits.class_folder(tmp_path / "digits", 256), tmp_path / "run"
    losses, found = fit(
        "imagenet_pyconv_resnet50",
        root,
        out,
        **SMALL_IMAGES,
        trainer__max_epochs=4,
        model__net__init_args__depth=18,
        model__optimizer__init_args__lr=0.01,
    )
    assert len(losses) == 32 and sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert 0.2 < found["val/top1"] <= found["val/top5"] <= 1  # chance is 0.1
    run("validate", ["--config", str(out / "config.yaml")])
    results = json.loads((out / "results-val.json").read_text())
    assert results["dataset"] == "ClassFolder" and results["results"]["top1"] > 0.2
    trained = load_trained(out)
    assert trained.classes == tuple("0123456789") and trained.net(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_pyconv_hg_resnet50", "imagenet_pyconv_resnet50_cutmix"])
def test_other_settings_of_classification(tmp_path, name):
    root = digits.class_folder(tmp_path / "digits", 320)
    more = (
        {"trainer.precision": 32, "model.warmup": 5, "model.mix.init_args.num_classes": 10} if "cutmix" in name else {}
    )
    losses, found = fit(
        name,
        root,
        tmp_path / "run",
        **SMALL_IMAGES,
        **more,
        trainer__max_epochs=3,
        model__net__init_args__depth=18,
        model__optimizer__init_args__lr=0.01,
    )
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]) and 0 <= found["val/top1"] <= 1


@pytest.mark.slow
def test_inception(tmp_path):
    root = digits.class_folder(tmp_path / "digits", 120, size=96)
    losses, found = fit(
        "imagenet_pyconv_inception",
        root,
        tmp_path / "run",
        **SMALL_IMAGES | {"data.batch_size": 24},
        data__train_transform__init_args="{size: 96, flip: 0}",
        data__transform__init_args="{size: 96, short_side: 96}",
        trainer__max_epochs=2,
        model__optimizer__init_args__lr=0.001,
    )
    assert len(losses) == 10 and all(loss < 20 for loss in losses) and 0 <= found["val/top1"] <= 1


@pytest.mark.slow
def test_video(tmp_path):
    """Two clips and three crops of each video are averaged."""
    root = digits.video_folder(tmp_path / "digits", 24)
    losses, found = fit(
        "kinetics_pyconv_resnet3d50",
        root,
        tmp_path / "run",
        trainer__max_epochs=3,
        data__batch_size=8,
        data__dataset__init_args="{frames: 4, clips: 2}",
        data__train_dataset__init_args="{frames: 4, random_start: true}",
        data__train_transform__init_args="{size: 32, short_side: [32, 36]}",
        data__transform__init_args="{size: 32, short_side: 36, crops: 3, views: true}",
        model__net__init_args="{num_classes: 3, zero_init: true, dropout: 0}",
        model__metric__init_args__top_k="[1, 2]",
        model__optimizer__init_args__lr=0.002,
    )
    assert len(losses) == 9 and sum(losses[-3:]) < sum(losses[:3])
    assert 0 <= found["val/top1"] <= found["val/top2"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pretrained"), [("coco_pyconv_ssd50", "false"), ("coco_ssd50", "false")])
def test_detection(tmp_path, name, pretrained):
    pytest.importorskip("pycocotools", reason="COCO's average precision needs it")
    root = digits.coco_folder(tmp_path / "digits", 8)
    losses, found = fit(
        name,
        root,
        tmp_path / "run",
        trainer__max_epochs=3,
        data__batch_size=4,
        model__net__init_args__num_classes=3,
        model__net__init_args__pretrained=pretrained,
        model__warmup=2,
        model__optimizer__init_args__lr=0.001,
    )
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    assert 0 <= found["val/ap"] <= found["val/ap50"] <= 1 and found["val/ap_l"] == -1  # no digit is large
    results = load_trained(tmp_path / "run")
    assert results.classes == ("zero", "one")


def test_views_are_averaged():
    """A metric that sees what the network gives for each view alone."""

    class Net(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    task = ClassificationTask(Net(), TopKAccuracy((1,)), views=True)
    x = torch.zeros(1, 3, 2, 4, 4)  # a sample of three views, two classes
    x[0, :, 0] = torch.tensor([3.0, -1.0, -1.0])[:, None, None]
    task.count({"image": x, "label": torch.tensor([0])})
    views = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]).softmax(1).mean(0)
    assert views[0] < 0.5  # two of three views say 1, though the mean logit says 0
    assert task.metric.compute()["top1"] == 0


def test_an_unknown_task_is_refused(tmp_path, capsys):
    recipe = RECIPES / "imagenet_pyconv_resnet50.yaml"
    for name in ("hggraph.engine.Nothing", "hggraph.engine.Predictor", "words"):
        with pytest.raises(SystemExit):
            run("fit", ["--config", str(recipe), "--task", name, "--out", str(tmp_path)])
        assert "`task` must be a" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "pyconv_resnet18", "hg_resnet18"])
def test_segmentation_of_camvid(tmp_path, backbone):
    folder = os.environ.get("HGGRAPH_CAMVID")
    if not folder:
        pytest.skip("needs CamVid: set HGGRAPH_CAMVID to a folder with train/ and trainannot/")
    losses, found = fit(
        f"camvid_pyconv_segnet_{backbone}",
        Path(folder),
        tmp_path / "run",
        trainer__max_epochs=1,
        trainer__limit_train_batches=12,
        trainer__limit_val_batches=4,
        data__batch_size=2,
        data__train_transform__init_args="{crop: [180, 240], scale: [0.5, 0.5]}",
    )
    assert len(losses) == 12 and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert 0.02 < found["val/miou"] < 1 and 0 <= found["val/boundary_f_3px"] < 1
