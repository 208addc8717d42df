"""COCO's annotations become boxes, labels and masks; crowds and images without objects are no exceptions."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from hggraph.data.coco_file import draw_outline
from hggraph.data.detection import CocoDetection
from hggraph.data.image import ImageError
from hggraph.data.mask_reader import DatasetError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def thing(number, image, category, box, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}


OBJECTS = [
    thing(1, 2, 18, [1, 2, 3, 3], area=6.5, segmentation=[[1, 2, 4, 2, 4, 5, 1, 5]]),
    thing(2, 2, 90, [6.5, -2, 10, 4], area=7, segmentation=[[6, 0, 8, 0, 8, 2, 6, 2], [0, 0, 1, 0, 1, 1, 0, 1]]),
    thing(3, 2, 1, [0, 0, 8, 6], iscrowd=1, segmentation={"size": [6, 8], "counts": [6, 6, 36]}),
    thing(4, 2, 1, [3, 3, 0, 2], segmentation=[[3, 3, 3, 5]]),  # without area
    thing(5, 7, 1, [2, 1, 2, 2], segmentation=[[2, 1, 4, 1, 4, 3, 2, 3]]),
]


@pytest.fixture
def coco(tmp_path):
    """Write three images in COCO's folders: 2 with four objects, 5 with none, 7 with one."""
    for folder in ("annotations", "val2017"):
        (tmp_path / folder).mkdir()
    images = []
    for number in (7, 2, 5):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"val2017/{number:012d}.png")
        images.append({"id": number, "file_name": f"{number:012d}.png", "height": 6, "width": 8})
    write(tmp_path, images, OBJECTS)
    return tmp_path


def write(root, images, objects, categories=CATEGORIES):
    content = {"info": {}, "images": images, "annotations": objects, "categories": categories}
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))


def test_boxes_and_labels(coco):
    dataset = CocoDetection(coco, "val")
    dataset.check()
    dataset.check(labels=True)
    assert len(dataset) == 3 and dataset.classes == ("person", "dog", "toothbrush")
    assert dataset.category_ids == [1, 18, 90]
    sample = dataset[0]
    assert (sample["image_id"], sample["name"]) == (2, "000000000002") and sample["image"][0, 0, 0] == 2
    assert type(sample["image"]) is tv_tensors.Image and sample["image"].dtype == torch.uint8
    boxes = sample["boxes"]
    assert type(boxes) is tv_tensors.BoundingBoxes and boxes.dtype == torch.float32
    assert boxes.format == tv_tensors.BoundingBoxFormat.XYXY and boxes.canvas_size == (6, 8)
    assert boxes.tolist() == [[1, 2, 4, 5], [6.5, 0, 8, 2]]  # clipped; crowd and box without area left out
    assert sample["labels"].tolist() == [2, 3] and sample["labels"].dtype == torch.int64
    assert [dataset.classes[label - 1] for label in sample["labels"]] == ["dog", "toothbrush"]
    assert sample["area"].tolist() == [6.5, 7] and not sample["iscrowd"].any() and "masks" not in sample
    assert dataset[2]["area"].tolist() == [4]  # not given: that of the box


def test_crowds(coco):
    sample = CocoDetection(coco, "val", crowds=True)[0]
    assert sample["labels"].tolist() == [2, 3, 1] and sample["iscrowd"].tolist() == [False, False, True]
    assert sample["boxes"][2].tolist() == [0, 0, 8, 6]


def test_an_image_without_objects(coco):
    for masks in (False, True):
        if masks:
            pytest.importorskip("pycocotools", reason="draws outlines")
        sample = CocoDetection(coco, "val", masks=masks)[1]
        assert sample["image_id"] == 5 and sample["boxes"].shape == (0, 4) and sample["labels"].shape == (0,)
        assert sample["labels"].dtype == torch.int64 and sample["area"].shape == sample["iscrowd"].shape == (0,)
        if masks:
            assert sample["masks"].shape == (0, 6, 8) and sample["masks"].dtype == torch.uint8


def test_masks(coco):
    pytest.importorskip("pycocotools", reason="draws outlines")
    sample = CocoDetection(coco, "val", masks=True, crowds=True)[0]
    assert type(sample["masks"]) is tv_tensors.Mask and sample["masks"].dtype == torch.uint8
    expected = np.zeros((3, 6, 8), np.uint8)
    expected[0, 2:5, 1:4] = 1
    expected[1, 0:2, 6:8] = expected[1, 0, 0] = 1  # the union of two polygons
    expected[2, :, 1] = 1  # runs go down the columns: 6 pixels not, 6 pixels yes
    assert np.array_equal(sample["masks"], expected)


def test_masks_without_pycocotools(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    CocoDetection(coco, "val").check(labels=True)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        CocoDetection(coco, "val", masks=True)


def test_transforms_move_boxes_with_the_image(coco):
    from torchvision.transforms import v2

    dataset = CocoDetection(coco, "val", transform=v2.RandomHorizontalFlip(p=1.0))
    sample = dataset[0]
    assert sample["boxes"].tolist() == [[4, 2, 7, 5], [0, 0, 1.5, 2]]
    assert sample["labels"].tolist() == [2, 3] and sample["area"].tolist() == [6.5, 7]


def test_an_image_turned_by_its_camera(coco):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(144, dtype=np.uint8).reshape(6, 8, 3)
    Image.fromarray(pixels).save(coco / "val2017/000000000005.png", exif=exif)  # annotated as it is stored
    dataset = CocoDetection(coco, "val")
    dataset.check()
    assert np.array_equal(dataset[1]["image"].permute(1, 2, 0), pixels)


def test_what_is_wrong_is_told(coco):
    (coco / "val2017/000000000002.png").unlink()
    Image.new("RGB", (9, 6)).save(coco / "val2017/000000000005.png")
    images = json.loads((coco / "annotations/instances_val2017.json").read_text())["images"]
    wrong = [thing(11, 99, 1, [0, 0, 1, 1]), thing(12, 7, 2, [0, 0, 1, 1]), thing(13, 7, 1, [0, 0, 1])]
    write(coco, [*images, images[0]], [*OBJECTS, *wrong])
    dataset = CocoDetection(coco, "val")
    for labels in (False, True):
        with pytest.raises(DatasetError, match="has 6 problems") as error:
            dataset.check(labels)
        text = str(error.value)
        assert "instances_val2017.json: image 7 comes 2 times" in text
        assert "annotation 11: image 99 is not in the file" in text
        assert "annotation 12: category 2 is not in the file" in text
        assert "annotation 13: expected `bbox`, a box of four numbers (x, y, width, height), got [0, 0, 1]" in text
        assert "000000000002.png: expected an image, got a path that does not exist" in text
        assert "000000000005.png: expected 8 x 6 pixels, as annotated, got 9 x 6" in text
    with pytest.raises(ImageError, match="000000000002"):
        dataset[0]


def test_a_file_that_is_none(coco):
    file = coco / "annotations/instances_val2017.json"
    for content, text in [
        ("{", "expected annotations in JSON"),
        ("[]", "no list of objects 'images'"),
        ('{"images": [1], "annotations": [], "categories": []}', "no list of objects 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "expected images, got none"),
    ]:
        file.write_text(content)
        with pytest.raises(DatasetError, match=rf"instances_val2017\.json: .*{text}"):
            CocoDetection(coco, "val")
    with pytest.raises(DatasetError, match=r"has another layout(.|\n)*annotations/instances_train2017.json"):
        CocoDetection(coco)
    with pytest.raises(DatasetError, match=r"annotations/instances_mine.json(.|\n)*mine/000000000139.jpg"):
        CocoDetection(coco, "mine", year="")


NULL, NAN = None, float("nan")
FULL = {"size": [6, 8], "counts": [0, 48]}
FIELDS = {  # field of an annotation -> values that are none
    "id": [NULL, "1", 1.5, True, -1, 2**70],
    "image_id": [NULL, "2", 2.5, True, NAN, [2]],
    "category_id": [NULL, "18", 18.5, True, 2, [18]],
    "bbox": [NULL, "1 2 3 3", {}, [], [1, 2, 3], [1, 2, 3, NULL], [1, 2, 3, "3"], [1, 2, 3, True], [1, 2, 3, NAN],
             [1, 2, 3, float("inf")], [1, 2, -3, 3], [1, 2, 3, -3], [1, 2, 1e300, 3], [8, 2, 3, 3], [-5, 2, 3, 3],
             [1, 6, 3, 3], [1, -9, 3, 3]],
    "area": [NULL, "9", True, NAN, -1, 1e300],
    "iscrowd": [NULL, "0", 2, -1, NAN],
    "segmentation": [NULL, "x", 7, [], [1, 2, 3, 4, 5, 6], [[1, 2, 4, 2, 4, 5, 1]], [[1, 2, 4, 2, 4, NULL]],
                     [[1, 2, 4, 2, 4, "5"]], [[1, 2, 4, 2, 4, NAN]], [[0, 0, 40, 0, 40, 40, 0, 40]], {},
                     {"size": [4, 4], "counts": [2, 3, 11]}, {"size": [8, 6], "counts": [0, 48]},
                     {"size": NULL, "counts": [0, 48]}, {"size": [6, 8]}, {"size": [6, 8], "counts": NULL},
                     {"size": [6, 8], "counts": [2, 3]}, {"size": [6, 8], "counts": [2, 3, 99]},
                     {"size": [6, 8], "counts": [50, -2]}, {"size": [6, 8], "counts": [True, 47]},
                     {"size": [6, 8], "counts": "23;"}, {"size": [6, 8], "counts": "~~~"},
                     {"size": [6, 8], "counts": ""}, {"size": [6, 8], "counts": "é"}],
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_fields_that_are_none(field, coco):
    images = json.loads((coco / "annotations/instances_val2017.json").read_text())["images"]
    for value in FIELDS[field]:
        entry = thing(44, 2, 18, [1, 2, 3, 3], area=9, segmentation=FULL) | {field: value}
        write(coco, images, [entry])
        dataset = CocoDetection(coco, "val", masks=True)
        name = rf"instances_val2017\.json: annotation {entry['id']}: .*{'' if value == 2 else field[:4]}"
        for look in (dataset.check, lambda d=dataset: d.check(True), lambda d=dataset: d.check(sizes=False)):
            with pytest.raises(DatasetError, match=name):
                look()
        with pytest.raises(DatasetError, match=name):
            dataset[0]
    write(coco, images, [thing(44, 2, 18, [1, 2, 3, 3], area=9, segmentation=FULL)])
    CocoDetection(coco, "val", masks=True).check(labels=True)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", [NULL, "1", True, -1]),
        ("file_name", [NULL, 7, "", ".", "../secret.png", "/etc/x.png", "a\0.png", "\ud800.png"]),
        ("height", [NULL, "6", 6.5, True, 0, -6, NAN, 10**12]),
        ("width", [NULL, "8", 0]),
    ],
)
def test_images_and_categories_that_are_none(field, values, coco):
    image = {"id": 1, "file_name": "1.png", "height": 6, "width": 8}
    for entry in [*(image | {field: value} for value in values), {k: v for k, v in image.items() if k != field}]:
        write(coco, [entry], [])
        with pytest.raises(DatasetError, match=rf"val2017\.json (.|\n)*image .*: expected `{field}`, .*, got"):
            CocoDetection(coco, "val")
    for categories, text in [
        ([{"id": NULL, "name": "dog"}], "expected `id`"),
        ([{"id": 1, "name": NULL}], "expected `name`"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category 1 comes several times"),
    ]:
        write(coco, [image], [], categories)
        with pytest.raises(DatasetError, match=text):
            CocoDetection(coco, "val")


def test_run_lengths_as_text():
    coco_masks = pytest.importorskip("pycocotools.mask", reason="writes them")
    random = np.random.default_rng(0)
    for height, width in [(1, 1), (3, 5), (40, 700), (300, 3)]:
        for share in (0.0, 0.01, 0.5, 1.0):
            mask = np.asfortranarray(random.random((height, width)) < share, dtype=np.uint8)
            text = coco_masks.encode(mask)["counts"].decode()
            assert np.array_equal(draw_outline({"size": [height, width], "counts": text}, (height, width)), mask)
