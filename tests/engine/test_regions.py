"""Regions are learned by the recipe from start to end, and used wherever a clusterer is."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from hggraph import HGStage, SoftSLIC, ToRegionGraph, region_graph
from hggraph.cli import app
from hggraph.engine import RegionTask, load_clusterer
from hggraph.engine.run import run
from hggraph.metrics import RegionQuality
from hggraph.nn import HGBasicBlock, RegionEmbedding, RegionLoss

RECIPE = Path(__file__).parents[2] / "recipes/camvid_regions.yaml"

# of Lightning's own doings
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def write_frames(root: Path) -> Path:
    """Write frames of 48 x 64 in CamVid's layout: grey noise in which a faint colour tells two classes apart."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for number in range(count):
            labels = random.integers(0, 2, (5, 6), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            grey = random.integers(60, 190, (20, 24)).repeat(4, 0).repeat(4, 1)[..., None]
            frame = grey + (2.0 * labels[..., None] - 1) * np.array([3, 0, -3])
            y, x = random.integers(0, 16, 2)
            cut = np.s_[y : y + 48, x : x + 64]
            Image.fromarray(frame.astype(np.uint8)[cut]).save(root / split / f"0006R0_f{number:05}.png")
            Image.fromarray(labels[cut]).save(root / f"{split}annot" / f"0006R0_f{number:05}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """Return the data and the folder of a run."""
    folder = tmp_path_factory.mktemp("regions")
    root, out = write_frames(folder / "data"), folder / "run"
    options = {
        "config": RECIPE,
        "data.root": root,
        "out": out,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        "trainer.max_epochs": 10,
        "trainer.check_val_every_n_epoch": 10,
        "data.num_workers": 0,
        "data.batch_size": 4,
        "data.train_transform.init_args.crop": "[32, 32]",
        "model.optimizer.init_args.lr": 0.01,
        "model.net.init_args.downsample": 64,
        "model.net.init_args.projection.init_args.channels": 8,
    }
    run("fit", [f"--{key}={value}" for key, value in options.items()])
    return root, out


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_run_learns_and_is_measured(trained):
    _, out = trained
    with (out / "logs/csv/version_0/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 20 and sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert {"train/labels", "train/compactness", "val/asa", "val/ue"} <= set(rows[0])
    run("validate", [f"--config={out / 'config.yaml'}"])
    results = json.loads((out / "results-val.json").read_text())["results"]
    assert 0.5 < results["asa"] <= 1 and results["regions"] > 1


def test_the_trained_clusterer_is_used_everywhere(trained, tmp_path):
    root, out = trained
    clusterer = load_clusterer(out)
    assert isinstance(clusterer, SoftSLIC) and not clusterer.training
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    expected = {name.removeprefix("net."): value for name, value in best.items() if name.startswith("net.")}
    assert all(torch.equal(value, expected[name]) for name, value in clusterer.state_dict().items())
    photo = torch.rand(1, 3, 48, 64)
    assert clusterer(photo).num_regions == 48
    assert load_clusterer(out, num_regions=10)(photo).num_regions == 10
    assert load_clusterer(out, downsample=256)(photo).num_regions == 12
    few = load_clusterer(out, num_regions=10)
    with torch.no_grad():
        assert region_graph(photo, clusterer=few).num_nodes == 10
        assert ToRegionGraph(clusterer=few) is not None
    image = root / "val" / "0006R0_f00000.png"
    result = CliRunner().invoke(
        app, ["graph", str(image), "--out", str(tmp_path), "--clusterer", str(out), "--regions", "9", "--no-figure"]
    )
    assert result.exit_code == 0, result.output
    assert " 9 " in result.output


def test_recipes_load_it_by_its_run(trained):
    """As ``class_path: hggraph.engine.load_clusterer`` in a recipe's ``clusterer``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--clusterer", type=torch.nn.Module)
    given = {"class_path": "hggraph.engine.load_clusterer", "init_args": {"run": str(trained[1]), "num_regions": 5}}
    assert parser.instantiate(parser.parse_object({"clusterer": given})).clusterer.num_regions == 5


def test_what_cannot_be_loaded(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_clusterer(tmp_path)
    with pytest.raises(ValueError, match="not both"):
        load_clusterer(trained[1], num_regions=3, downsample=4)
    with pytest.raises(ValueError, match="num_regions"):
        load_clusterer(trained[1], num_regions=0)
    with pytest.raises(ValueError, match="downsample"):
        load_clusterer(trained[1], downsample=0.5)
    result = CliRunner().invoke(app, ["graph", "--out", str(tmp_path / "out"), "--clusterer", str(tmp_path)])
    assert result.exit_code == 2 and "has no config.json" in " ".join(result.output.replace("│", " ").split())


def test_a_network_on_regions_trains_the_embedding():
    """On feature maps it is a projection as any other: gradients reach it through S."""
    torch.manual_seed(0)
    clusterer = SoftSLIC(num_regions=6, projection=RegionEmbedding(8, 4, channels=4))
    stage = HGStage([HGBasicBlock(8, 8)], clusterer)
    stage(torch.randn(2, 8, 12, 12)).square().mean().backward()
    assert all(parameter.grad.any() for parameter in stage.clusterer.projection.parameters())


def test_each_image_counts_once():
    """The metric gets each image's labels, mask and colours."""
    clusterer = SoftSLIC(num_regions=4, feature_scale="photo").eval()
    task = RegionTask(clusterer, RegionLoss(), RegionQuality()).eval()
    batch = {"image": torch.rand(2, 3, 16, 16), "mask": torch.randint(3, (2, 16, 16))}
    task.count(batch)
    alone = [RegionQuality()(task(x[None]).labels[0], m, x) for x, m in zip(*batch.values(), strict=True)]
    for name, value in task.metric.compute().items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean(), rtol=0, atol=1e-9)


def test_regions_are_trained_before_they_are_connected():
    """And are connected again afterwards, also where the loss fails."""
    clusterer = SoftSLIC(num_regions=9, feature_scale="photo", threshold=0.0)
    loose = SoftSLIC(num_regions=9, feature_scale="photo", threshold=0.0, connected=False)
    image, mask = torch.rand(1, 3, 24, 24), torch.randint(3, (1, 24, 24))
    task = RegionTask(clusterer, RegionLoss(), RegionQuality())
    torch.testing.assert_close(
        task.losses({"image": image, "mask": mask})["loss"], RegionLoss()(loose(image), mask)["loss"]
    )
    assert clusterer.connected
    with pytest.raises(ValueError, match="24 x 24"):
        task.losses({"image": image, "mask": mask[:, 1:]})
    assert clusterer.connected


def test_recipes_differ_in_their_data_alone():
    recipes = [yaml.safe_load(RECIPE.with_name(f"{name}_regions.yaml").read_text()) for name in ("camvid", "bsds500")]
    assert recipes[0]["model"]["net"] == recipes[1]["model"]["net"]
