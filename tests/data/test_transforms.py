"""Whatever is drawn, mask and boxes stay on the image, and what lies outside is the mean and ignored."""

import math
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate
from torchvision import tv_tensors

from hggraph.data.transforms import EvalTransform, TrainTransform
from tests.data.samples import PLAIN, blobs, objects, ramp, sides


def test_blur_is_psp_nets():
    """5 x 5 pixels, sigma 1.1: the weights literally, of an impulse far from the border."""
    image, expected = torch.zeros(2, 3, 15, 15)
    image[:, 7, 7] = 1
    options = {"scale": (1, 1), "flip": 0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    plain, blurred = (TrainTransform((15, 15), blur=blur, **options)({"image": image})["image"] for blur in (0, 1))
    line = torch.tensor([math.exp(-(d**2) / (2 * 1.1**2)) for d in (-2, -1, 0, 1, 2)])
    expected[:, 5:10, 5:10] = line[:, None] * line / line.sum() ** 2
    assert torch.equal(plain, image)
    torch.testing.assert_close(blurred, expected, rtol=1e-5, atol=1e-6)


def inner(mask, away=1):
    """Return the pixels whose neighbours all have the same label and lie inside."""
    planes = torch.nn.functional.pad(mask[None, None].double(), [away] * 4, value=-1)
    size = 2 * away + 1
    high = torch.nn.functional.max_pool2d(planes, size, 1, away)
    low = -torch.nn.functional.max_pool2d(-planes, size, 1, away)
    return (high == low)[0, 0, away:-away, away:-away]


DRAWN = {
    "scale": {"scale": (0.5, 2.0)},
    "flips": {"flip": 0.5, "vertical_flip": 0.5, "scale": (1.0, 1.0)},
    "turns": {"quarter_turns": True, "scale": (0.6, 1.7)},
    "rotate": {"rotate": 35.0, "scale": (0.8, 1.6)},
    "all": {"rotate": 180.0, "scale": (0.7, 2.0), "quarter_turns": True, "vertical_flip": 0.5, "color": 0.2},
}


@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=30)
@given(sides, sides, sides, sides, st.integers(0, 10**6))
def test_shapes_types_and_fill(name, height, width, crop_height, crop_width, seed):
    torch.manual_seed(seed)
    transform = TrainTransform((crop_height, crop_width), **DRAWN[name])
    sample = ramp(height, width)
    before = sample["image"].clone(), sample["mask"].clone()
    out = transform(sample)
    assert out["image"].shape == (3, crop_height, crop_width) and out["image"].dtype == torch.float32
    assert out["mask"].shape == (crop_height, crop_width) and out["mask"].dtype == torch.int64
    assert type(out["image"]) is type(out["mask"]) is torch.Tensor and out["name"] == "ramp"
    assert out["image"].is_contiguous() and out["image"].isfinite().all()
    assert (out["mask"] != 255).any() or "rotate" in DRAWN[name]  # something of the image is always seen
    assert torch.equal(sample["image"], before[0]) and torch.equal(sample["mask"], before[1])
    if "rotate" not in DRAWN[name]:  # there the edge is a mixture
        filled = (out["image"] == 0).all(0)
        assert torch.equal(filled, out["mask"] == 255)


@pytest.mark.parametrize("name", ["scale", "flips", "turns"])
@settings(max_examples=60)
@given(sides, sides, sides, sides, st.integers(0, 10**6))
def test_mask_is_the_nearest_column(name, height, width, crop_height, crop_width, seed):
    """An image that is its own coordinates: the mask differs from it by no more than half a pixel."""
    torch.manual_seed(seed)
    out = TrainTransform((crop_height, crop_width), **DRAWN[name], **PLAIN)(ramp(height, width))
    seen = out["mask"] != 255
    column = out["image"][0] * 255
    # less than a pixel at the ends of a window, where antialiasing has one side only
    assert ((column - out["mask"]).abs()[seen] < 1.01).all()
    far = seen & (out["mask"] > out["mask"][seen].min() + 2) & (out["mask"] < out["mask"][seen].max() - 2)
    assert ((column - out["mask"]).abs()[far] < 0.51).all()
    assert abs((column - out["mask"])[far].sum()) <= 0.51 * far.sum()


def test_mask_is_not_shifted():
    """Halved, a pixel is the mean of two and the mask one of them; of three it is the middle one, not the first."""
    out = TrainTransform((20, 20), scale=(0.5, 0.5), flip=0, **PLAIN)(ramp(40, 40))
    assert (out["image"][0, 10] * 255)[3:6].tolist() == pytest.approx([6.5, 8.5, 10.5])
    assert set((out["mask"][10, 3:6] - torch.tensor([6, 8, 10])).tolist()) <= {0, 1}
    third = TrainTransform((20, 20), scale=(1 / 3, 1 / 3), flip=0, **PLAIN)(ramp(60, 60))
    assert third["mask"][10, 3:6].tolist() == [10, 13, 16]  # the middle of three


@pytest.mark.parametrize("name", ["rotate", "all"])
@pytest.mark.parametrize("seed", range(25))
def test_rotated_colours_encode_the_mask(name, seed):
    torch.manual_seed(seed)
    sample = blobs(110, 120)
    out = TrainTransform((50, 40), **DRAWN[name] | {"color": 0}, **PLAIN)(sample)
    inside = inner(out["mask"], 3) & (out["mask"] != 255)
    assert inside.sum() > 20
    decoded = (out["image"][0] * 255 / 50).round().long()
    assert (decoded == out["mask"])[inside].all()
    outside = inner(out["mask"], 3) & (out["mask"] == 255)
    assert not out["image"][:, outside].any()


def test_a_turned_crop_is_filled_from_the_image():
    """Far from the image's edges nothing is padded, however the crop is turned."""
    transform, middle = TrainTransform((12, 40), scale=(1.0, 1.0), rotate=180, **PLAIN), 0
    for _ in range(30):
        out = transform(ramp(160, 160))
        place = out["image"][:2, out["mask"] != 255] * 255
        if place.min() > 5 and place.max() < 154:
            middle += 1
            assert not (out["mask"] == 255).any()
    assert middle > 5


def test_without_scale_it_is_a_slice_of_the_padded_image():
    """All places are drawn, and each is a literal slice."""
    sample = ramp(5, 9)
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        out = TrainTransform((7, 7), scale=(1.0, 1.0), flip=0, **PLAIN)(sample)
        image = torch.nn.functional.pad(sample["image"], (0, 0, 2, 2))
        mask = torch.nn.functional.pad(sample["mask"].long(), (0, 0, 2, 2), value=255)
        places = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if torch.equal(out["image"], image[:, top : top + 7, left : left + 7])
        ]
        ((top, left),) = places
        assert torch.equal(out["mask"], mask[top : top + 7, left : left + 7])
        found.add((top, left))
    assert len(found) == 9


def test_flips_and_turns_are_those_of_the_tensors():
    sample = ramp(6, 6)
    options = {"scale": (1.0, 1.0), **PLAIN}
    image = sample["image"].as_subclass(torch.Tensor)
    for transform, wanted in [
        (TrainTransform((6, 6), flip=1, **options), image.flip(2)),
        (TrainTransform((6, 6), flip=0, vertical_flip=1, **options), image.flip(1)),
        (TrainTransform((6, 6), flip=0, **options), image),
    ]:
        out = transform(sample)
        assert torch.equal(out["image"], wanted)
        assert torch.equal(out["mask"], (wanted[0] * 255).round().long())
    turned = TrainTransform((6, 6), flip=0, quarter_turns=True, **options)
    seen = set()
    for _ in range(40):
        out = turned(sample)
        (k,) = [k for k in range(4) if torch.equal(out["image"], image.rot90(k, (1, 2)))]
        assert torch.equal(out["mask"], (out["image"][0] * 255).round().long())
        seen.add(k)
    assert seen == {0, 1, 2, 3}


def test_turns_of_oblong_crops():
    sample = ramp(8, 12)
    seen = set()
    for _ in range(30):
        out = TrainTransform((8, 12), flip=0, quarter_turns=True, scale=(1.0, 1.0), **PLAIN)(sample)
        assert out["mask"].shape == (8, 12)
        seen.add(bool((out["mask"] == 255).any()))
    assert seen == {False, True}  # turned by 90 degrees the image does not fill the crop


def test_scale_is_drawn_evenly():
    """The scale is how fast the columns run."""
    slopes = []
    for _ in range(300):
        out = TrainTransform((16, 16), scale=(0.5, 2.0), flip=0, **PLAIN)(ramp(100, 100))
        row = out["image"][0, 8] * 255
        slopes.append(15 / (row[-1] - row[0]).item())
    slopes = torch.tensor(slopes)
    assert 0.45 < slopes.min() < 0.6 and 1.8 < slopes.max() < 2.4
    assert slopes.mean().item() == pytest.approx(1.25, abs=0.15)


def boxes_of(masks):
    """Return the boxes around masks (N, H, W), by looking for their pixels."""
    found = []
    for mask in masks:
        y, x = torch.nonzero(mask, as_tuple=True)
        found.append([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("seed", range(20))
def test_boxes_stay_on_their_objects(name, seed):
    torch.manual_seed(seed)
    out = TrainTransform((40, 44), **DRAWN[name])(objects())
    boxes = out["boxes"].as_subclass(torch.Tensor)
    assert len(boxes) == len(out["labels"]) == len(out["masks"])
    assert out["boxes"].canvas_size == (40, 44) and out["boxes"].format.name == "XYXY" and boxes.dtype == torch.float32
    tight = boxes_of(out["masks"])
    assert (boxes[:, :2] <= tight[:, :2] + 1.5).all() and (boxes[:, 2:] >= tight[:, 2:] - 1.5).all()
    if "rotate" not in DRAWN[name]:
        assert torch.allclose(boxes, tight, atol=1.5)
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0.99).all()
    assert (boxes >= 0).all() and (boxes[:, 2] <= 44).all() and (boxes[:, 3] <= 40).all()
    # each mask is where the label is, and an object without a box is not (by more than its edge) in the crop
    for label, mask in zip(out["labels"].tolist(), out["masks"], strict=True):
        assert ((mask == 1) == (out["mask"] == label)).all()
    for label in {1, 2, 3} - set(out["labels"].tolist()):
        assert min((out["mask"] == label).any(0).sum(), (out["mask"] == label).any(1).sum()) <= 2


def test_no_box_is_left():
    sample = objects()
    for rotate in (0.0, 30.0):
        for _ in range(40):
            out = TrainTransform((6, 6), scale=(1.0, 1.0), rotate=rotate, quarter_turns=True)(sample)
            if not len(out["boxes"]):
                break
        else:
            pytest.fail("always saw an object")
        assert out["boxes"].shape == (0, 4) and out["labels"].shape == (0,) and out["masks"].shape == (0, 6, 6)
        assert out["boxes"].canvas_size == (6, 6) and not set(out["mask"].unique().tolist()) & {1, 2, 3}


def test_samples_without_boxes_or_masks():
    empty = objects() | {
        "boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYWH", canvas_size=(48, 64)),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": tv_tensors.Mask(torch.zeros(0, 48, 64, dtype=torch.bool)),
    }
    for transform in (TrainTransform((20, 30), rotate=20, quarter_turns=True), EvalTransform(size=(20, 30))):
        out = transform(empty)
        # evaluation leaves masks in the image's own pixels
        size = (20, 30) if isinstance(transform, TrainTransform) else (48, 64)
        assert out["boxes"].shape == (0, 4) and out["masks"].shape == (0, *size) and out["boxes"].format.name == "XYXY"
        alone = transform({"image": empty["image"], "mask": None})
        assert alone["image"].shape == (3, 20, 30) and alone["mask"] is None


def test_other_box_formats_and_integers():
    sample = objects()
    wanted = sample["boxes"].as_subclass(torch.Tensor).float()
    boxes = torch.cat([wanted[:, :2], wanted[:, 2:] - wanted[:, :2]], 1).long()
    sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=(48, 64))
    sample["iscrowd"] = torch.tensor([0, 1, 0])
    assert torch.equal(EvalTransform(size=(24, 16))(sample)["boxes"], wanted)
    for _ in range(10):
        out = TrainTransform((30, 30), scale=(1.0, 1.0))(sample)
        assert torch.equal(out["iscrowd"] == 1, out["labels"] == 2)


def test_areas_change_as_the_boxes():
    sample = objects()
    sample["area"] = torch.tensor([100.0, 120.0, 300.0])
    wanted = torch.tensor([100.0, 120.0, 300.0])
    assert torch.equal(EvalTransform(size=(96, 128))(sample)["area"], wanted)
    for seed in range(20):
        torch.manual_seed(seed)
        out = TrainTransform((30, 30), scale=(0.5, 2.0), quarter_turns=True)(sample)
        x0, y0, x1, y1 = out["boxes"].as_subclass(torch.Tensor).T
        full = torch.tensor([144.0, 126.0, 420.0])[out["labels"] - 1]
        torch.testing.assert_close(out["area"], wanted[out["labels"] - 1] / full * (x1 - x0) * (y1 - y0))


def test_random_by_the_global_generator_alone():
    transform = TrainTransform((20, 20), rotate=20, color=0.5, quarter_turns=True, vertical_flip=0.5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append([transform(blobs(30, 40))["image"] for _ in range(3)])
    assert all(map(torch.equal, draws[0], draws[1])) and not torch.equal(draws[0][0], draws[2][0])
    assert not torch.equal(draws[0][0], draws[0][1])
    torch.manual_seed(1)
    other = pickle.loads(pickle.dumps(transform))  # as workers get it
    assert torch.equal(other(blobs(30, 40))["image"], draws[0][0])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_normalisation_and_colours(channels):
    mean, std = [0.1 * (c + 1) for c in range(channels)], [0.2 + 0.1 * c for c in range(channels)]
    image = torch.rand(channels, 12, 12)
    whole = (image * 255).round().to(torch.uint8)
    shift, width = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    transform = TrainTransform((12, 12), scale=(1.0, 1.0), flip=0, mean=mean, std=std)
    torch.testing.assert_close(transform({"image": image})["image"], (image - shift) / width)
    torch.testing.assert_close(transform({"image": whole})["image"], (whole / 255 - shift) / width)
    torch.testing.assert_close(transform({"image": image.double()})["image"], (image - shift) / width)
    loud = TrainTransform((16, 16), scale=(1.0, 1.0), flip=0, mean=mean, std=std, color=0.6)
    seen = []
    for _ in range(6):
        out = loud({"image": whole, "mask": torch.zeros(12, 12, dtype=torch.uint8)})
        back = out["image"] * width + shift
        assert back.min() > -1e-5 and back.max() < 1 + 1e-5
        assert not out["image"][:, out["mask"] == 255].any()  # colours do not reach the padding
        seen.append(back[:, out["mask"] == 0])
    assert all((a - b).abs().max() > 0.02 for a, b in pairwise(seen))


def test_colours_are_factors():
    """A grey image has no saturation, and a constant one no contrast: what changes is brightness, within bounds."""
    grey = torch.full((3, 4, 4), 0.4)
    factors = [
        (TrainTransform((4, 4), scale=(1.0, 1.0), color=0.5, **PLAIN)({"image": grey})["image"] / 0.4).mean().item()
        for _ in range(200)
    ]
    assert 0.5 <= min(factors) < 0.6 and 1.4 < max(factors) <= 1.5001
    # contrast and saturation: with all three drawn, the grey value of a colour moves by brightness, the rest shrinks
    image = torch.tensor([0.5, 0.3, 0.4])[:, None, None].expand(3, 4, 4)
    weights = torch.tensor([0.2989, 0.587, 0.114])
    ratios = []
    for _ in range(200):
        out = TrainTransform((4, 4), scale=(1.0, 1.0), color=0.5, **PLAIN)({"image": image})["image"][:, 0, 0]
        lightness = (out * weights).sum()
        ratios.append(((out[0] - out[1]) / 0.2 / (lightness / (image[:, 0, 0] * weights).sum())).item())
    assert min(ratios) < 0.7 and max(ratios) > 1.3


def test_large_ignored_labels():
    sample = ramp(4, 4)
    sample["mask"] = tv_tensors.Mask(torch.full((4, 4), 300, dtype=torch.int32))
    out = TrainTransform((6, 6), scale=(1.0, 1.0), rotate=20, ignore_index=-1)(sample)
    assert set(out["mask"].unique().tolist()) == {-1, 300}


def test_batches():
    for transform in (TrainTransform((16, 16)), EvalTransform(size=(16, 16))):
        other = blobs(33, 21) if isinstance(transform, TrainTransform) else blobs(20, 30)
        batch = default_collate([transform(blobs(20, 30)), transform(other)])
        assert batch["image"].shape == (2, 3, 16, 16) and len(batch["mask"]) == 2
        assert type(batch["image"]) is torch.Tensor


def test_repr_can_be_read_back():
    for transform in (
        TrainTransform((8, 9), scale=(1, 2), rotate=10, color=0.25, mean=[0.5], std=[0.25]),
        TrainTransform([8, 9], scale=[0.5, 2]),
        EvalTransform(),
        EvalTransform(size=[4, 5], multiple=8),
        EvalTransform(long_side=5),
    ):
        again = eval(repr(transform))
        assert repr(again) == repr(transform) and vars(again) == vars(transform)
    assert repr(TrainTransform((8, 9))).startswith("TrainTransform(crop=(8, 9), scale=(0.5, 2.0), flip=0.5, vert")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop": 5}, r"`crop` must be \(height, width\) in pixels, got 5"),
        ({"crop": (5, 0)}, "`crop` must be a whole number >= 1, got 0"),
        ({"scale": (2, 0.5)}, r"`scale` must be two numbers above 0, the smaller one first, got \(2, 0.5\)"),
        ({"scale": (0, 1)}, "`scale`"),
        ({"crop": (2, 9), "blur": 0.5}, r"`blur` needs crops of at least 3 x 3 pixels, got \(2, 9\)"),
        ({"scale": (1, math.inf)}, "`scale`"),
        ({"scale": 1.0}, "`scale`"),
        ({"flip": 1.5}, r"`flip` must be a number in \[0, 1\], got 1.5"),
        ({"vertical_flip": True}, "`vertical_flip`"),
        ({"quarter_turns": 1}, "`quarter_turns` must be True or False"),
        ({"rotate": 200}, r"`rotate` must be a number in \[0, 180\]"),
        ({"color": math.nan}, "`color`"),
        ({"ignore_index": 1.0}, "`ignore_index`"),
        ({"mean": (0.5,)}, r"a number for each channel, got \[0.5\] and \[0.229"),
        ({"mean": (120, 120, 120)}, r"in \[0, 1\].*Divide numbers of an 8-bit scale by 255"),
        ({"std": (0.2, 0.2, 0)}, "`std` above 0"),
    ],
)
def test_bad_training_options(options, text):
    with pytest.raises(ValueError, match=text):
        TrainTransform(**{"crop": (4, 4)} | options)


@pytest.mark.parametrize("transform", [TrainTransform((8, 8)), EvalTransform()])
def test_bad_samples(transform):
    good = objects()
    mask = good["mask"].as_subclass(torch.Tensor)
    masks = good["masks"].as_subclass(torch.Tensor)
    turned = tv_tensors.BoundingBoxes(torch.ones(3, 5), format="XYWHR", canvas_size=(48, 64))
    for change, error, text in [
        ({"image": None}, TypeError, "Sample 'objects' must have an \"image\".*got NoneType"),
        ({"image": good["image"].to(torch.int64)}, TypeError, "got a tensor of torch.int64"),
        ({"image": good["image"][:1]}, ValueError, r"shape \(3, H, W\), a channel for each.*got \(1, 48, 64\)"),
        ({"image": good["image"][:, :0]}, ValueError, r"got \(3, 0, 64\)"),
        ({"mask": mask[1:]}, ValueError, r"\"mask\" of shape \(48, 64\).*got \(47, 64\)"),
        ({"mask": mask[None]}, ValueError, r"got \(1, 48, 64\)"),
        ({"mask": mask.float()}, TypeError, '"mask" of integers, got a tensor of torch.float32'),
        ({"mask": [1, 2]}, TypeError, "got list"),
        ({"masks": masks[:, 1:]}, ValueError, r"\"masks\" of shape \(3, 48, 64\).*got \(3, 47, 64\)"),
        ({"masks": masks[0]}, ValueError, r"got \(48, 64\)"),
        ({"labels": torch.ones(2)}, ValueError, r"one entry for each box.*'labels': 2"),
        ({"labels": [1, 2, 3]}, ValueError, r"one entry for each box.*'labels': 'list'"),
        ({"boxes": torch.ones(3, 4)}, TypeError, r"BoundingBoxes with canvas_size=\(48, 64\), got tensor"),
        ({"boxes": turned}, TypeError, "along the axes, got the format XYWHR"),
        ({"orientation": good["mask"]}, TypeError, r"not known: \['orientation'\]"),
    ]:
        with pytest.raises(error, match=text):
            transform(good | change)
    with pytest.raises(TypeError, match="The sample must have"):
        transform({})
