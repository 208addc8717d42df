"""Windows cover an axis, their weights sum to 1, and blocks of a plane add up to what a loop over windows gives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hggraph.inference.windows import blend, cut


@st.composite
def axes(draw, longest=40):
    length, window = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    overlap = draw(st.integers(0, window - 1))
    margin = draw(st.none() | st.integers(0, overlap // 2))
    return length, window, overlap, margin


@given(axes(300))
def test_windows_cover_the_axis_and_weights_sum_to_one(axis):
    length, window, overlap, margin = axis
    starts, weights = cut(length, window, overlap, margin)
    side = min(length, window)
    assert weights.shape == (len(starts), side) and weights.dtype == torch.float32
    assert starts[0] == 0 and starts[-1] + side == length
    gaps = np.diff(starts)
    assert (gaps >= 1).all() and (gaps <= window - overlap).all()
    # no fewer windows could do it
    assert len(starts) == 1 or window + (len(starts) - 2) * (window - overlap) < length
    assert (weights >= 0).all()
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=3e-7)
    unused = overlap // 4 if margin is None else margin
    assert not weights[1:, :unused].any() and not weights[:-1, side - unused :].any()


def test_weights_are_half_hann_windows():
    """Two windows: the second fades in as sin^2 over the overlap but a quarter at each end."""
    starts, weights = cut(26, 16, 6)  # a margin of 1
    assert starts == [0, 10]
    rise = [math.sin(math.pi / 2 * (k + 0.5) / 4) ** 2 for k in range(4)]
    assert weights[1].tolist() == pytest.approx([0, *rise, 1] + [1] * 10, abs=1e-7)
    assert weights[0].tolist() == pytest.approx([1] * 10 + [1, *(1 - value for value in rise), 0], abs=1e-7)


def test_no_seams():
    """From one pixel to the next no weight changes much, ends of windows included."""
    for length, window, overlap in [(100, 32, 16), (101, 32, 24), (333, 64, 32), (90, 64, 32)]:
        starts, weights = cut(length, window, overlap)
        dense = torch.zeros(len(starts), length)
        for row, start, weight in zip(dense, starts, weights, strict=True):
            row[start : start + window] = weight
        steepest = math.pi / 2 / (overlap - 2 * (overlap // 4))
        assert dense.diff(dim=1).abs().max() <= steepest + 1e-6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 8, 4), "`length` must be a whole number >= 1, got 0"),
        ((8, 0, 0), "`window` must be a whole number >= 1, got 0"),
        ((8, 4, 4), "`overlap` must be a whole number of pixels below the window of 4, or a fraction .* got 4"),
        ((8, 4, -1), "`overlap` must be"),
        ((8, 4, True), "`overlap` must be"),
        ((8, 4, 1.0), r"`overlap` must be .*got 1\.0"),
        ((8, 4, float("nan")), "`overlap` must be"),
        ((8, 4, 3, 2), "`margin` must be a whole number from 0 to half the overlap of 3 pixels, got 2"),
        ((8, 4, 3, -1), "`margin` must be"),
        ((8, 4, 3, 0.5), "`margin` must be"),
    ],
)
def test_bad_options(arguments, text):
    with pytest.raises(ValueError, match=text):
        cut(*arguments)


def test_overlap_as_a_fraction():
    assert cut(100, 10, 0.5).starts == cut(100, 10, 5).starts
    assert cut(9, 2, 0.99).starts == cut(9, 2, 1).starts  # never the whole window
    assert cut(9, 1, 0.9).starts == list(range(9))


def by_hand(rows, columns, values):
    """Return the weighted sum of windows over the plane, in float64."""
    height, width = rows.ends[-1], columns.ends[-1]
    total = np.zeros((values.shape[1], height, width))
    h, w = rows.weights.shape[1], columns.weights.shape[1]
    found = iter(values)
    for y, row in zip(rows.starts, rows.weights.double().numpy(), strict=True):
        for x, column in zip(columns.starts, columns.weights.double().numpy(), strict=True):
            total[:, y : y + h, x : x + w] += next(found).double().numpy() * np.outer(row, column)
    return torch.from_numpy(total)


@given(axes(), axes(), st.integers(1, 5), st.sampled_from([1, 2, 7, 16]), st.integers(0, 4000))
def test_blocks_equal_a_loop_over_windows(vertical, horizontal, batch_size, align, limit):
    rows, columns = cut(*vertical), cut(*horizontal)
    sides = (rows.weights.shape[1], columns.weights.shape[1])
    places = [(y, x) for y in rows.starts for x in columns.starts]
    values = dict(zip(places, torch.randn(len(places), 2, *sides), strict=True))
    calls = []

    def predict(some):
        assert 1 <= len(some) <= batch_size
        calls.extend(some)
        return torch.stack([values[place] for place in some])

    size = (rows.ends[-1], columns.ends[-1])
    plane, seen = torch.full((2, *size), math.nan), torch.zeros(size, dtype=torch.int64)
    for top, left, block in blend(rows, columns, predict, batch_size=batch_size, align=align, limit=limit):
        bottom, right = top + block.shape[1], left + block.shape[2]
        assert block.shape[1] > 0 and block.shape[2] > 0
        assert top % align == 0 and left % align == 0
        assert (bottom % align == 0 or bottom == size[0]) and (right % align == 0 or right == size[1])
        plane[:, top:bottom, left:right] = block
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()
    assert set(calls) == set(places) and calls[0] == (0, 0)
    expected = by_hand(rows, columns, torch.stack(list(values.values())))
    torch.testing.assert_close(plane.double(), expected, rtol=0, atol=3e-6)


def test_strips_bound_memory():
    """A wide plane is done in strips; only windows that reach into two of them are predicted twice."""
    rows, columns = cut(200, 32, 8), cut(4000, 32, 8)
    calls = []

    def predict(some):
        calls.extend(some)
        return torch.ones(len(some), 3, 32, 32)

    windows = len(rows.starts) * len(columns.starts)
    assert all(block.eq(1).all() or block.sub(1).abs().max() < 1e-6 for *_, block in blend(rows, columns, predict))
    assert len(calls) == windows
    calls.clear()
    # 8 rows are kept, and one more as windows lie evenly: 600 pixels of 3 classes
    blocks = [(left, block.shape[2]) for _, left, block in blend(rows, columns, predict, limit=600 * 9 * 3 * 4)]
    assert sum(width for _, width in blocks) == 4000 * len(rows.starts)
    strips = 4000 // (600 - 24) + 1
    assert windows < len(calls) <= windows + 2 * (strips - 1) * len(rows.starts)
