"""Crops for classification: sizes, all frames alike, windows literally, and errors that say what to do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.data import ClassEvalTransform, ClassTrainTransform

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
sides = st.integers(8, 40)


@settings(max_examples=40)
@given(sides, sides, st.integers(1, 24), st.booleans(), st.integers(0, 10**6))
def test_training_crops(height, width, size, by_side, seed):
    transform = ClassTrainTransform(size, short_side=(size, size + 7) if by_side else None, color=0.3)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    torch.manual_seed(seed)
    out = transform({"image": image, "label": 4, "name": "a"})
    torch.manual_seed(seed)
    again = transform({"image": image, "label": 4, "name": "a"})
    assert type(out["image"]) is torch.Tensor and out["image"].dtype == torch.float32
    assert out["image"].shape == (3, size, size) and out["image"].is_contiguous()
    assert out["label"] == 4 and torch.equal(out["image"], again["image"])


@pytest.mark.parametrize("short_side", [None, (16, 20)])
def test_frames_of_a_clip_are_cropped_alike(short_side):
    frame = torch.randint(256, (1, 3, 20, 30), dtype=torch.uint8)
    out = ClassTrainTransform(16, short_side=short_side, color=0.4)({"video": frame.expand(5, -1, -1, -1)})["video"]
    assert out.shape == (3, 5, 16, 16) and all(torch.equal(out[:, i], out[:, 0]) for i in range(5))


def test_a_crop_is_a_window_of_the_resized_image():
    """A ramp stays a ramp: what is seen is a rectangle of the image, mirrored or not."""
    ramp = torch.linspace(0, 1, 64).expand(3, 48, 64)
    slopes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        line = ClassTrainTransform(16, area=(0.5, 1.0), **PLAIN)({"image": ramp})["image"][0, 5]
        steps = line.diff()
        slopes.add(bool(steps.mean() > 0))
        torch.testing.assert_close(steps[2:-2], steps[2:-2].mean().expand(11), rtol=0, atol=2e-3)
    assert slopes == {True, False}


@settings(max_examples=30)
@given(st.integers(10, 40), st.integers(10, 40), st.sampled_from([1, 3]))
def test_evaluation_windows(height, width, crops):
    """Without resizing, the windows are slices: the middle, or the two ends and the middle of the longer side."""
    size = 8
    image = torch.rand(3, height, width)
    transform = ClassEvalTransform(size, short_side=min(height, width), crops=crops, views=crops > 1, **PLAIN)
    out = transform({"image": image})["image"]
    middle = round((height - size) / 2), round((width - size) / 2)
    starts = [middle]
    if crops == 3 and width > height:
        starts = [(middle[0], left) for left in (0, middle[1], width - size)]
    elif crops == 3:
        starts = [(top, middle[1]) for top in (0, middle[0], height - size)]
    expected = torch.stack([image[:, top : top + size, left : left + size] for top, left in starts])
    torch.testing.assert_close(out, expected if crops > 1 else expected[0])


def test_clips_and_crops_are_views():
    """Two clips of three crops: view 2 c + n is crop c of clip n."""
    clips = torch.rand(2, 4, 3, 8, 14)
    out = ClassEvalTransform(8, short_side=8, crops=3, views=True, **PLAIN)({"video": clips})["video"]
    assert out.shape == (6, 3, 4, 8, 8)
    for crop, left in enumerate((0, 3, 6)):
        for clip in range(2):
            expected = clips[clip, :, :, :, left : left + 8].transpose(0, 1)
            torch.testing.assert_close(out[2 * crop + clip], expected)


def test_normalisation_and_default_length():
    out = ClassEvalTransform(28)({"image": torch.full((3, 40, 50), 255, dtype=torch.uint8)})["image"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(out, ((1 - mean) / std)[:, None, None].expand(3, 28, 28))
    assert ClassEvalTransform(224).short_side == 256


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ClassTrainTransform, {"size": 0}, "`size` must be a whole number >= 1"),
        (ClassTrainTransform, {"area": (0.5, 1.5)}, r"`area` must be shares in \(0, 1\]"),
        (ClassTrainTransform, {"area": (0.9, 0.5)}, "`area` must be two numbers above 0, the smaller one first"),
        (ClassTrainTransform, {"size": 20, "short_side": (10, 30)}, "two rising lengths of at least `size`, 20"),
        (ClassTrainTransform, {"short_side": 256}, "`short_side` must be .*got 256"),
        (ClassEvalTransform, {"short_side": 256.5}, "`short_side` must be a whole number"),
        (ClassTrainTransform, {"flip": 2}, r"`flip` must be a number in \[0, 1\]"),
        (ClassEvalTransform, {"crops": 2}, "`crops` must be 1 or 3, got 2"),
        (ClassEvalTransform, {"crops": 3}, "need `views=True`"),
        (ClassEvalTransform, {"size": 20, "short_side": 10}, "`short_side` must be at least `size`, 20, got 10"),
    ],
)
def test_wrong_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_wrong_samples():
    transform = ClassTrainTransform(8)
    with pytest.raises(TypeError, match=r"Sample 'a' must have an .*, got NoneType"):
        transform({"name": "a"})
    with pytest.raises(ValueError, match=r"must have pixels \(3, H, W\) under 'image', got \(1, 9, 9\)"):
        transform({"image": torch.rand(1, 9, 9)})
    with pytest.raises(ValueError, match=r"\(T, 3, H, W\) under 'video', got \(2, 4, 3, 9, 9\)"):
        ClassEvalTransform(8)({"video": torch.rand(2, 4, 3, 9, 9)})
