"""Every recipe is understood, and says what the paper's table says."""

import functools
import importlib
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from hggraph.engine import ImageData, Task
from hggraph.engine.task import DEFAULT_TASK, find_task

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@functools.cache
def make_parser(task: type[Task]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(task, "model")
    parser.add_class_arguments(ImageData, "data")
    return parser


def parsed(path: Path):
    """Return the parser, and the model and data parts of a recipe."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    parser = make_parser(find_task(recipe.get("task", DEFAULT_TASK)))
    recipe["data"]["root"] = "somewhere"
    return parser, parser.parse_object({"model": recipe["model"], "data": recipe["data"]})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_understood(path):
    parsed(path)
    assert f"hggraph fit --config recipes/{path.name} --data.root FOLDER" in path.read_text(encoding="utf-8")


def test_there_is_a_recipe_for_each_row_of_the_table():
    """HG-Conv Table 12: three data sets with six rows, roads with four, salient objects with two; and CamVid."""
    names = [
        path.stem
        for path in RECIPES
        if not any(word in path.stem for word in ("gald", "pyconv", "hs3", "specialize", "unity", "_regions", "hg_cnn"))
    ]
    for data in ("cityscapes", "ade20k", "pascal_context"):
        assert sum(name.startswith(data) for name in names) == 6
    assert sum(name.startswith("deepglobe") for name in names) == 4
    assert sum(name.startswith("duts") for name in names) == 2
    assert sum(name.startswith("camvid") for name in names) == 4


def test_there_are_the_recipes_of_gald():
    """Both versions on its five data sets; on CamVid from scratch what it is compared with, and on regions."""
    names = {path.stem for path in RECIPES if "gald" in path.stem}
    data = ("cityscapes", "ade20k", "pascal_context", "coco_stuff", "camvid")
    small = ("ga_resnet18", "v1_resnet18", "v2_resnet18", "v2_hg_resnet18", "hg_v2_resnet18")
    assert names == {f"{each}_gald_{version}_resnet101" for each in data for version in ("v1", "v2")} | {
        f"camvid_gald_{each}" for each in small
    }


def test_there_are_the_recipes_of_pyconv():
    """ImageNet with both settings, ADE20K, COCO and Kinetics-400 with their baselines; CamVid from scratch."""
    names = {path.stem for path in RECIPES}
    assert names >= {f"imagenet_{net}" for net in ("resnet50", "pyconv_resnet50", "pyconv_hg_resnet50")}
    assert names >= {"imagenet_pyconv_resnet50_cutmix", "imagenet_pyconv_inception"}
    assert names >= {f"ade20k_pyconv_segnet_{net}" for net in ("resnet50", "pyconv_resnet50")}
    assert names >= {"coco_ssd50", "coco_pyconv_ssd50", "coco_pyconv_ssd101"}
    assert names >= {"kinetics_resnet3d50", "kinetics_pyconv_resnet3d50"}
    assert names >= {f"camvid_pyconv_segnet_{net}" for net in ("resnet18", "pyconv_resnet18", "hg_resnet18")}


def test_there_are_the_recipes_of_hs3():
    """None, deep supervision, the three ways to group, fusing; the first phase, and one on regions."""
    rows = ("none", "deep_supervision", "manual", "kmeans", "spectral", "fuse", "phase_one", "hg_phase_one")
    assert {path.stem for path in RECIPES if "hs3" in path.stem} == {f"camvid_hs3_{row}" for row in rows}


def test_there_are_the_recipes_of_specialize_and_fuse():
    """Tables 6, 7 and 8 on CamVid; three data sets with both backbones; two ways to steer regions, and neither."""
    rows = (
        "single",
        "single_anl",
        "single_context",
        "no_context",
        "anl",
        "multi_anl",
        "naive",
        "ground_truth",
        "finest",
    )
    small = {"camvid_specialize", *(f"camvid_specialize_{row}" for row in rows)}
    sets, backbones = ("ade20k", "coco_stuff", "pascal_context"), ("hrnet_w48", "resnet101")
    large = {f"{name}_specialize_{backbone}" for name in sets for backbone in backbones}
    assert {path.stem for path in RECIPES if "specialize" in path.stem} == small | large
    steers = ("importance", "attention", "regions")
    assert {path.stem for path in RECIPES if "unity" in path.stem} == {f"camvid_unity_{steer}" for steer in steers}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_splits_are_those_that_are_published(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
    maker = data["dataset"] if isinstance(data["dataset"], str) else data["dataset"]["class_path"]
    published = getattr(getattr(importlib.import_module("hggraph.data"), maker.rpartition(".")[2]), "PUBLISHED", None)
    splits = {data.get("train_split", "train"), data.get("val_split", "val"), data.get("test_split", "val")}
    assert published is None or splits <= set(published)
    # no best checkpoint is chosen on what is tested on
    assert data.get("val_split", "val") not in ("test", data.get("test_split"))


def test_pyconv_segnet_learns_faster_in_its_heads():
    """PyConv's code: heads at ten times the learning rate of the backbone."""
    parser, config = parsed(RECIPES[0].with_name("ade20k_pyconv_segnet_pyconv_resnet50.yaml"))
    config.model.net.init_args.backbone = "pyconv_resnet18"
    task = parser.instantiate(config).model
    groups = task.make_groups()
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    by_factor = {factor: {names[id(one)].split(".")[1] for one in group} for factor, group in groups.items()}
    assert by_factor == {1.0: {"trunk"}, 10.0: {"head", "classify", "aux_head"}}


@pytest.mark.parametrize(
    "name",
    [
        "camvid_hg_resnet18",
        "camvid_resnet18_no_stage4",
        "camvid_gald_v2_resnet18",
        "camvid_pyconv_segnet_hg_resnet18",
        "camvid_hs3_spectral",
        "camvid_hs3_fuse",
        "camvid_specialize",
        "camvid_specialize_single_anl",
        "camvid_unity_attention",
        "camvid_unity_regions",
        "deepglobe_hg_orientation",
    ],
)
def test_recipe_makes_a_network_that_learns(name):
    parser, config = parsed(next(path for path in RECIPES if path.stem == name))
    objects = parser.instantiate(config)
    side = 104 if "gald" in name or "pyconv" in name else 64
    task = objects.model
    sample = {"image": torch.rand(2, 3, side, side), "mask": torch.zeros(2, side, side, dtype=torch.long)}
    sample["mask"][:, 20:40] = 1
    if "orientation" in name:
        sample["orientation"] = sample["mask"]
    targets = {"out": sample["mask"]} | {key: value for key, value in sample.items() if key == "orientation"}
    losses = task.criterion(task.net(sample["image"]), targets)
    losses["loss"].backward()
    assert losses["loss"] > 0 and any(key.startswith(("aux", "tap", "semantic")) for key in losses)
    task.net.eval()
    task.validation_step(sample, 0)
    assert 0 <= task.metric.compute()["miou"] <= 1
