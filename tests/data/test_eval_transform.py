"""Evaluation sees the whole image, and logits come back to its pixels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.data.transforms import EvalTransform, undo, undo_detections
from tests.data.samples import PLAIN, blobs, objects, ramp, sides


@given(sides, sides, sides, st.integers(1, 9))
def test_long_side_and_padding(height, width, long_side, multiple):
    transform = EvalTransform(long_side=long_side, multiple=multiple, **PLAIN)
    out = transform(ramp(height, width))
    scale = long_side / max(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    assert max(tall, wide) == long_side
    assert out["image"].shape[1:] == (math.ceil(tall / multiple) * multiple, math.ceil(wide / multiple) * multiple)
    assert out["size"] == (height, width) and out["shown"] == (tall, wide)
    padded = torch.ones(out["image"].shape[1:], dtype=torch.bool)
    padded[:tall, :wide] = False
    assert torch.equal(padded, (out["image"] == 0).all(0))
    logits = torch.randn(2, 3, *out["image"].shape[1:])
    assert transform.undo(logits, out["size"]).shape == (2, 3, height, width)


@settings(max_examples=50)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 3), st.integers(1, 9))
def test_undo_brings_labels_back(height, width, factor, multiple):
    """Logits that say each pixel's label in the larger image, brought back, say the mask."""
    transform = EvalTransform(size=(height * factor, width * factor), multiple=multiple)
    sample = blobs(height, width)
    out = transform(sample)
    assert torch.equal(out["mask"], sample["mask"].long())
    grown = sample["mask"].long().repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    logits = torch.randn(7, *out["image"].shape[1:])
    logits[:, : grown.shape[0], : grown.shape[1]] = torch.nn.functional.one_hot(grown, 7).movedim(-1, 0).float()
    back = transform.undo(logits, out["size"])
    assert torch.equal(back.argmax(0), sample["mask"].long())
    assert torch.equal(transform.undo(logits[None], out["size"])[0], back)
    assert torch.equal(undo(logits, out["shown"], out["size"]), back)


def test_undo_detections():
    found = {"boxes": torch.tensor([[2.0, 4.0, 10.0, 8.0]]), "masks": torch.ones(1, 1, 24, 32), "scores": torch.ones(1)}
    back = undo_detections(found, (24, 32), (48, 96))
    assert back["boxes"].tolist() == [[6.0, 8.0, 30.0, 16.0]] and back["masks"].shape == (1, 1, 48, 96)
    assert undo_detections(found, (24, 32), (24, 32)) is found


def test_undo_is_aligned_with_the_image():
    """What lies at a column of the transformed image comes back to that column."""
    transform = EvalTransform(size=(24, 40), **PLAIN)
    out = transform(ramp(48, 64))
    back = transform.undo(out["image"], (48, 64))
    torch.testing.assert_close(back[0, 3:-3, 3:-3] * 255, torch.arange(3.0, 61).expand(42, 58), atol=0.06, rtol=0)


def test_evaluation_as_it_is():
    transform = EvalTransform()
    out = transform(blobs(20, 30))
    assert torch.equal(out["mask"], blobs(20, 30)["mask"].long())
    mean, std = torch.tensor(transform.mean)[:, None, None], torch.tensor(transform.std)[:, None, None]
    torch.testing.assert_close(out["image"], (blobs(20, 30)["image"] / 255 - mean) / std)
    logits = torch.randn(4, 20, 30)
    assert transform.undo(logits, (20, 30)) is logits or torch.equal(transform.undo(logits, (20, 30)), logits)


def test_mask_left_in_its_own_pixels():
    sample = objects()
    out = EvalTransform(long_side=30, multiple=8)(sample)
    assert out["image"].shape == (3, 24, 32)
    assert torch.equal(out["mask"], sample["mask"].long()) and out["mask"].dtype == torch.int64
    assert torch.equal(out["boxes"], sample["boxes"].float()) and out["boxes"].canvas_size == (48, 64)


def test_evaluation_keeps_every_box():
    out = EvalTransform(size=(3, 4))(objects())
    assert len(out["boxes"]) == 3 and out["labels"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": (4, 4), "long_side": 5}, "`size` or `long_side`, not both"),
        ({"size": (4,)}, "`size` must be"),
        ({"long_side": 0}, "`long_side`"),
        ({"multiple": 2.5}, "`multiple`"),
        ({"mean": [], "std": []}, "a number for each channel"),
    ],
)
def test_bad_evaluation_options(options, text):
    with pytest.raises(ValueError, match=text):
        EvalTransform(**options)


def test_bad_undo():
    transform = EvalTransform(long_side=30, multiple=16)
    with pytest.raises(
        ValueError, match=r"\(B, K, 32, 32\) or \(K, 32, 32\) for an image of 40 x 60, got \(5, 20, 30\)"
    ):
        transform.undo(torch.rand(5, 20, 30), (40, 60))
    with pytest.raises(ValueError, match="`size` must be"):
        transform.undo(torch.rand(5, 32, 32), 40)
