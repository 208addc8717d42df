"""Networks of every task predict folders of photos, from model folders, as they were evaluated."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hggraph import SoftSLIC
from hggraph.data import ClassEvalTransform, EvalTransform
from hggraph.data.image import load_pixels
from hggraph.data.transforms import undo
from hggraph.engine import SegmentationTask
from hggraph.inference import Predictor, load_trained, predict_folder
from hggraph.inference.coco import boxes_picture, run_lengths
from hggraph.metrics import MeanIoU
from hggraph.models import hg_detector, hg_resnet, pyconv_resnet, save_pretrained
from hggraph.nn import CrossEntropy, OutputLoss
from tests.inference.test_folder import silent

SIZES = [(40, 60), (40, 60), (64, 48), (33, 41)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def segmenter() -> tuple[nn.Module, dict]:
    arguments = {"depth": 18, "num_classes": 4, "clusterer": SoftSLIC(4), "dropout": 0.0}
    torch.manual_seed(0)
    net = hg_resnet(**arguments)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.normal_(part.running_mean)
    return net.eval(), arguments


@pytest.mark.parametrize("options", [{}, {"long_side": 96, "multiple": 32}, {"size": (48, 64)}])
def test_predict_gives_what_was_evaluated(options, photos, tmp_path):
    """Labels of a folder, in batches, folded, are the argmax of the logits that evaluation counts."""
    net, arguments = segmenter()
    transform = EvalTransform(**options)
    save_pretrained(net, tmp_path / "model", model="hg_resnet", arguments=arguments, preprocessing=transform)
    trained = load_trained(tmp_path / "model")
    assert repr(trained.preprocessing) == repr(transform) and trained.task == "segmentation"
    predictor = Predictor(trained, batch_size=3)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in predictor.model.modules())
    result = predict_folder(predictor, [photos], tmp_path / "out", console=silent())
    assert not result.failed
    task = SegmentationTask(net, OutputLoss(CrossEntropy()), MeanIoU(4)).eval()
    for path, name in result.done.items():
        labels = torch.from_numpy(read(tmp_path / "out/labels" / f"{name}.png")).long()
        sample = transform({"image": load_pixels(path), "mask": torch.zeros(labels.shape, dtype=torch.uint8)})
        batch = torch.utils.data.default_collate([sample])
        assert batch["mask"].shape[1:] == labels.shape
        with torch.no_grad():
            logits = net(batch["image"])["out"]
            wanted = undo(logits, sample["shown"], sample["size"])[0]
            task.metric.reset()
            task.count(batch | {"mask": wanted.argmax(0)[None]})
        assert task.metric.compute()["miou"] == 1
        best, second = wanted.topk(2, dim=0).values
        sure = best - second > 1e-4  # folding rounds otherwise
        assert sure.float().mean() > 0.9 and torch.equal(wanted.argmax(0)[sure], labels[sure])


def test_nothing_is_guessed(photos, tmp_path):
    net, arguments = segmenter()
    save_pretrained(net, tmp_path / "model", model="hg_resnet", arguments=arguments)
    predictor = Predictor(load_trained(tmp_path / "model"))
    with pytest.raises(ValueError, match="Nothing says how images are prepared"):
        predict_folder(predictor, [photos], tmp_path / "out", console=silent())
    assert not (tmp_path / "out").exists()


def test_classifier(photos, tmp_path):
    torch.manual_seed(0)
    net = pyconv_resnet(18, 7).eval()
    transform = ClassEvalTransform(32, crops=3, views=True)
    names = [f"class {i}" for i in range(7)]
    save_pretrained(
        net,
        tmp_path / "model",
        model="pyconv_resnet",
        arguments={"depth": 18, "num_classes": 7},
        classes=names,
        preprocessing=transform,
    )
    trained = load_trained(tmp_path / "model")
    assert trained.task == "classification" and repr(trained.preprocessing) == repr(transform)
    predict_folder(Predictor(trained, batch_size=2), [photos], tmp_path / "out", overlay=True, console=silent())
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [one["name"] for one in found["categories"]] == names and found["categories"][0]["id"] == 0
    assert [(one["height"], one["width"]) for one in found["images"]] == SIZES
    for image in found["images"]:
        views = transform({"image": load_pixels(photos / image["file_name"])})["image"]
        with torch.no_grad():
            wanted = net(views).softmax(1).mean(0)
        mine = [one for one in found["annotations"] if one["image_id"] == image["id"]]
        assert len(mine) == 5 and mine[0]["category_id"] == int(wanted.argmax())
        assert mine[0]["score"] == pytest.approx(float(wanted.max()), abs=1e-5)
        drawn = read(tmp_path / "out/overlay" / image["file_name"])
        assert drawn.shape == (image["height"], image["width"], 3)


def test_detector(photos, tmp_path):
    torch.manual_seed(0)
    backbone = {"depth": 18, "clusterer": SoftSLIC(4), "num_classes": 4}
    options = {"kind": "mask_rcnn", "num_classes": 3, "min_size": 64, "max_size": 96, "score_threshold": 0.0}
    net = hg_detector(backbone=hg_resnet(**backbone), **options | {"max_detections": 4}).eval()
    described = {"hg_resnet": {"depth": 18, "num_classes": 4, "clusterer": {"SoftSLIC": {"downsample": 4}}}}
    save_pretrained(
        net,
        tmp_path / "model",
        model="hg_detector",
        arguments=options | {"max_detections": 4, "backbone": described},
        classes=["cat", "dog"],
        preprocessing=EvalTransform(long_side=128, mean=[0.0] * 3, std=[1.0] * 3),
    )
    trained = load_trained(tmp_path / "model")
    predict_folder(Predictor(trained), [photos], tmp_path / "out", overlay=True, console=silent())
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}] and found["annotations"]
    sizes = {one["id"]: (one["height"], one["width"]) for one in found["images"]}
    for one in found["annotations"]:
        height, width = sizes[one["image_id"]]
        x, y, w, h = one["bbox"]
        assert x >= 0 and y >= 0 and x + w <= width + 1e-3 and y + h <= height + 1e-3
        assert one["category_id"] in (1, 2) and one["segmentation"]["size"] == [height, width]
        assert sum(one["segmentation"]["counts"]) == height * width
    assert len(list((tmp_path / "out/overlay").iterdir())) == len(SIZES)


def test_captions_can_be_read_over_masks():
    """White on black at each box's corner, whatever lies below; what scores less than a half is not drawn."""
    pixels = torch.full((3, 60, 80), 200, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 5.0, 75.0, 55.0], [0.0, 30.0, 9.0, 59.0]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.4])}
    found["masks"] = torch.ones(2, 1, 60, 80)
    drawn = np.array(boxes_picture(pixels, found, ["a\x1b[2J", "b"], [(255, 0, 0), (0, 255, 0)]))
    caption = drawn[7:18, 12:70].reshape(-1, 3)
    assert (caption == 0).all(1).mean() > 0.3 and (caption == 255).all(1).sum() > 10
    assert (drawn[40, 40] == [227, 100, 100]).all() and not (drawn == [0, 255, 0]).all(2).any()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_run_lengths_are_those_of_coco():
    coco = pytest.importorskip("pycocotools.mask")
    generator = torch.Generator().manual_seed(0)
    for share in (0.0, 0.3, 1.0):
        mask = torch.rand(9, 7, generator=generator) < share
        runs = coco.frPyObjects(run_lengths(mask), 9, 7)
        assert np.array_equal(coco.decode(runs), mask.numpy())


def test_clusterer(photos, tmp_path):
    clusterer = SoftSLIC(num_regions=6, feature_scale="photo")
    save_pretrained(
        clusterer,
        tmp_path / "model",
        model="SoftSLIC",
        arguments={"num_regions": 6, "feature_scale": "photo"},
        preprocessing=EvalTransform(mean=[0.0] * 3, std=[1.0] * 3),
    )
    trained = load_trained(tmp_path / "model")
    predict_folder(Predictor(trained), [photos], tmp_path / "out", overlay=True, console=silent())
    for path in photos.iterdir():
        image = load_pixels(path)[None] / 255
        with torch.no_grad():
            wanted = clusterer.eval()(image).labels[0].numpy()
        assert np.array_equal(read(tmp_path / "out/labels" / path.name), wanted)
        drawn = read(tmp_path / "out/overlay" / path.name)
        across = wanted[:, 1:] != wanted[:, :-1]
        assert (drawn[:, 1:][across] == (255, 255, 0)).all()
    with pytest.raises(ValueError, match="`probabilities` are for segmentation networks; this one is for regions"):
        predict_folder(Predictor(trained), [photos], tmp_path / "out", probabilities=True, console=silent())


def test_without_lightning():
    """`hggraph.inference` needs no training stack."""
    code = (
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('lightning', 'pytorch_lightning', 'jsonargparse', 'tensorboard', 'yaml'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "import hggraph.inference as i\n"
        "print(i.Predictor, i.load_trained, i.predict_raster)\n"
    )
    assert importlib.util.find_spec("lightning")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
