"""Runs from recipes: what they leave behind, that they resume to the last bit, and what they say to wrong recipes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hggraph.data import EvalTransform
from hggraph.engine.run import run
from hggraph.inference import Predictor, load_trained, predict_folder
from hggraph.metrics import MeanIoU
from hggraph.models.pretrained import publish, read_metrics
from tests.engine.toys import write_recipe

ROOT = Path(__file__).parents[2]

# of Lightning's own doings
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def fit(recipe: Path, out: Path, *more: str) -> None:
    run("fit", ["--config", str(recipe), "--out", str(out), *more])


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Return the folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    fit(write_recipe(folder), folder / "alone")
    return folder / "alone"


def test_what_a_run_leaves(alone):
    found = {str(path.relative_to(alone)) for path in alone.rglob("*") if path.is_file()}
    assert {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= found
    assert {f"model/{name}" for name in ("config.json", "model.safetensors", "metrics.json", "README.md")} <= found
    assert "logs/csv/version_0/metrics.csv" in found
    assert any(re.fullmatch(r"logs/tensorboard/version_0/events.*", name) for name in found)
    config = yaml.safe_load((alone / "config.yaml").read_text())
    assert config["model"]["power"] == 0.9  # with all defaults
    trained = load_trained(alone, trust=True)
    assert trained.classes == ("red", "green", "blue") and trained.palette[1] == (0, 255, 0)
    assert not trained.net.training


def test_evaluation_writes_results(alone, capsys):
    run("validate", ["--config", str(alone / "config.yaml")])
    results = json.loads((alone / "results-val.json").read_text())
    assert results["checkpoint"].endswith("best.ckpt")
    assert (results["dataset"], results["split"]) == ("Blocks", "val")
    table = capsys.readouterr().out
    assert re.search(rf"green .* {100 * results['results']['iou'][1]:.1f} ", table) and "mean" in table
    assert 0 < results["results"]["miou"] <= 1 and len(results["results"]["iou"]) == 3


def test_a_finished_run_is_left_as_it_is(alone):
    before = weights(alone)
    fit(alone / "config.yaml", alone)
    assert all(torch.equal(value, before[name]) for name, value in weights(alone).items())


def test_a_bad_image_costs_nothing(alone, tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(OSError, match="image 5 is broken"):
        fit(recipe, tmp_path / "run", "--data.root", "5")
    fit(recipe, tmp_path / "run")  # mended
    assert all(torch.equal(value, weights(alone)[name]) for name, value in weights(tmp_path / "run").items())


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `viz`")
    fit(write_recipe(tmp_path, max_epochs=1), tmp_path / "run", "--pictures", "2")
    (picture,) = (tmp_path / "run" / "pictures").iterdir()
    assert picture.stat().st_size > 2000


def test_averaged_weights_and_deterministic_mode(tmp_path):
    ema = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
    recipe = write_recipe(tmp_path, max_epochs=1, deterministic=True, gradient_clip_val=1.0, callbacks=[ema])
    fit(recipe, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    used = load_trained(tmp_path / "run", trust=True).net.head[0].weight
    assert torch.equal(used, saved["state_dict"]["net.head.0.weight"])  # the average, not the last step's
    assert not torch.equal(used, saved["current_model_state"]["net.head.0.weight"])


def test_publish(tmp_path):
    recipe = yaml.safe_load(write_recipe(tmp_path, max_epochs=1, limit_train_batches=1).read_text())
    clusterer = {"class_path": "hggraph.SoftSLIC", "init_args": {"downsample": 4}}
    net = {"depth": 18, "num_classes": 3, "clusterer": clusterer}
    recipe["model"]["net"] = {"class_path": "hggraph.models.hg_resnet", "init_args": net}
    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(recipe))
    fit(tmp_path / "toys.yaml", tmp_path / "run")
    run("validate", ["--config", str(tmp_path / "run" / "config.yaml")])
    publish(tmp_path / "run", tmp_path / "published")
    first, second = load_trained(tmp_path / "run"), load_trained(tmp_path / "published")
    assert first[1:4] == second[1:4] and second.palette[2] == (0, 0, 255)  # task, classes, colours
    assert repr(first.preprocessing) == repr(second.preprocessing) == repr(EvalTransform(mean=[0] * 3, std=[1] * 3))
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(first.net(x)["out"], second.net(x)["out"])
    assert "| green |" in (tmp_path / "published" / "README.md").read_text()
    (record,) = read_metrics(tmp_path / "published")  # that of the run, which validate has measured again
    assert record["results"] == json.loads((tmp_path / "run" / "results-val.json").read_text())["results"]
    assert record["split"] == "val" and "checkpoint" not in record


def test_what_cannot_be_written_down_is_refused(tmp_path):
    recipe = yaml.safe_load(write_recipe(tmp_path, max_epochs=1).read_text())
    del recipe["preprocessing"]
    for transform, text in ((None, "Nothing says how"), ("tests.engine.toys.Scaled", "toys.Scaled, which cannot be")):
        recipe["data"]["transform"] = transform and {"class_path": transform}
        (tmp_path / "toys.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(ValueError, match=rf"{text}.*give .*`preprocessing`"):
            fit(tmp_path / "toys.yaml", tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_normalisation_of_ones_own_predicts_as_it_was_measured(tmp_path):
    """The labels of `predict` are those that `validate` has counted, with a transform that is not ImageNet's."""
    root = tmp_path / "data"
    for part in ("images", "masks"):
        (root / "val" / part).mkdir(parents=True)
    for i in range(3):
        mask = torch.randint(3, (5, 6), generator=torch.Generator().manual_seed(i)).repeat_interleave(8, 0)
        mask = mask.repeat_interleave(8, 1).byte()
        colors = torch.nn.functional.one_hot(mask.long(), 3).mul(120).add(100).byte().numpy()
        Image.fromarray(colors).save(root / "val" / "images" / f"{i}.png")
        Image.fromarray(mask.numpy()).save(root / "val" / "masks" / f"{i}.png")
    recipe = yaml.safe_load(write_recipe(tmp_path, "PlainNet", max_epochs=3).read_text())
    del recipe["preprocessing"]
    options = {"size": [32, 40], "mean": [0.1, 0.6, 0.3], "std": [0.9, 0.2, 0.5]}
    transform = {"class_path": "hggraph.data.EvalTransform", "init_args": options}
    recipe["data"] |= {"dataset": "tests.engine.toys.Folder", "root": str(root), "train_split": "val", "batch_size": 1}
    recipe["data"] |= {"transform": transform, "train_transform": {**transform, "class_path": "tests.engine.toys.Same"}}
    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(recipe))
    fit(tmp_path / "toys.yaml", tmp_path / "run")
    run("validate", ["--config", str(tmp_path / "run" / "config.yaml")])
    measured = json.loads((tmp_path / "run" / "results-val.json").read_text())["results"]
    predictor = Predictor(load_trained(tmp_path / "run", trust=True), batch_size=2)
    predict_folder(predictor, [root / "val" / "images"], tmp_path / "out")
    metric = MeanIoU(3)
    for i in range(3):
        masks = []
        for path in (tmp_path / "out" / "labels" / f"{i}.png", root / "val" / "masks" / f"{i}.png"):
            with Image.open(path) as picture:
                masks.append(torch.from_numpy(np.array(picture)).long()[None])
        metric.update(torch.nn.functional.one_hot(masks[0], 3).movedim(-1, 1).float(), masks[1])
    assert float(metric.compute()["miou"]) == pytest.approx(measured["miou"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.nett", "3"], "unrecognized arguments: --model.nett 3. Did you mean --model.net"),
        (["--trainer.max_epoks", "3"], "Did you mean --trainer.max_epochs"),
        (["--model.net.init_args.widht", "4"], "Option 'widht' is not accepted. Did you mean width"),
        (["--data.batch_size", "many"], "data.batch_size"),
        (["--monitor"], "expected one argument"),
    ],
)
def test_wrong_arguments(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        fit(write_recipe(tmp_path), tmp_path / "run", *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and "--help lists all options" in error and error.count("\n") < 6
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "key", "said"),
    [
        ("trainer", "max_epoch", "Did you mean max_epochs"),
        ("data", "batchsize", "Did you mean batch_size"),
        ("model", "optimiser", "Did you mean optimizer"),
    ],
)
def test_wrong_keys_in_a_recipe(part, key, said, tmp_path, capsys):
    path = write_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    recipe[part][key] = 1
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(SystemExit):
        fit(path, tmp_path / "run")
    assert said in capsys.readouterr().err


def test_too_few_images_for_a_step(tmp_path):
    with pytest.raises(ValueError, match="has 12 samples, fewer than one step takes: 13"):
        fit(write_recipe(tmp_path), tmp_path / "run", "--data.batch_size", "13")


def test_checkpoint_of_another_network(alone, tmp_path, capsys):
    recipe = yaml.safe_load((alone / "config.yaml").read_text())
    recipe["model"]["net"]["init_args"]["width"] = 9
    (alone / "other.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=r"last\.ckpt are not those of SegmentationTask .* of another shape"):
        fit(alone / "other.yaml", alone, "--trainer.max_epochs", "4", "--change")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """A run killed 20 times, saving included, ends as the one that was left alone, to the last bit."""
    command = [sys.executable, "-m", "tests.engine.killed_runs", str(tmp_path), "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"alone": 0, "status": 0, "killed": 20, "steps": [48], "equal": True}
