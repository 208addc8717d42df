"""Neighbour tables of the three border rules against literal loops, and their inverse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hggraph.ops._window import BORDERS, check_window, flat_offsets, neighbours, readers

lengths = st.integers(1, 6)
windows = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=5)


def fits(size, offsets):
    try:
        check_window(size, offsets, "shift")
    except ValueError:
        return False
    return True


def natten_start(index, length, taps, dilation):
    """Return where NATTEN's window of an odd number of taps starts, by its published case distinction."""
    half = taps // 2
    start = index - half * dilation
    if start < 0:
        return index % dilation
    if index + half * dilation >= length:
        whole = length // dilation * dilation
        rest = length - whole
        if index % dilation < rest:
            return length - rest + index % dilation - 2 * half * dilation
        return whole + index % dilation - taps * dilation
    return start


@given(lengths, lengths, windows, st.sampled_from(("zero", "mask")))
def test_outside(height, width, offsets, border):
    expected = []
    for y in range(height):
        for x in range(width):
            inside = [0 <= y + dy < height and 0 <= x + dx < width for dy, dx in offsets]
            flat = [(y + dy) * width + x + dx for dy, dx in offsets]
            expected.append([pixel if ok else -1 for pixel, ok in zip(flat, inside, strict=True)])
    assert neighbours((height, width), flat_offsets(offsets), border).tolist() == expected


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_natten(taps, dilation):
    offsets = [0, 0] if taps == 1 else [v for t in range(taps) for v in (0, dilation * (t - taps // 2))]
    for length in range(taps * dilation, taps * dilation + 7):
        actual = neighbours((1, length), offsets, "shift")
        step = dilation if taps > 1 else 1
        start = [natten_start(x, length, taps, step) for x in range(length)]
        assert actual.tolist() == [[first + step * t for t in range(taps)] for first in start]
        assert neighbours((length, 1), [*reversed(offsets)], "shift").flip(1).tolist() == actual.tolist()


@given(lengths, lengths, windows)
def test_shift(height, width, offsets):
    """A window that fits lies inside, is moved as little as its dilation allows, and keeps its form."""
    flat = flat_offsets(offsets)
    if not fits((height, width), flat):
        return
    near = neighbours((height, width), flat, "shift")
    for read, length, axis in ((near // width, height, 0), (near % width, width, 1)):
        taps = torch.tensor([offset[axis] for offset in offsets])
        query = torch.arange(height * width) // width if axis == 0 else torch.arange(height * width) % width
        moves = read - query[:, None] - taps
        assert (moves == moves[:, :1]).all()
        differences = (taps - taps.min()).tolist()
        step = max(
            (s for s in range(1, 7) if len(set(differences)) > 1 and all(d % s == 0 for d in differences)), default=1
        )
        for position, move in zip(query.tolist(), moves[:, 0].tolist(), strict=True):
            assert move % step == 0
            nearer = move - step * ((move > 0) - (move < 0))
            first, last = position + int(taps.min()) + nearer, position + int(taps.max()) + nearer
            assert move == 0 or first < 0 or last >= length
    assert near.min() >= 0
    assert near.max() < height * width


@given(lengths, lengths, windows, st.sampled_from(BORDERS))
def test_readers(height, width, offsets, border):
    """Each entry of a pixel reads it, and no other entry does."""
    size, flat = (height, width), flat_offsets(offsets)
    if border == "shift" and not fits(size, flat):
        return
    near = neighbours(size, flat, border).flatten()
    ptr, entries = readers(size, flat, border)
    assert ptr[0] == 0
    for pixel in range(height * width):
        found = sorted(entries[ptr[pixel] : ptr[pixel + 1]].tolist())
        assert found == (near == pixel).nonzero().flatten().tolist()


@pytest.mark.parametrize("border", BORDERS)
def test_lines(border):
    size, offsets = (5, 4), [-1, 0, 0, 1, 1, -2]
    whole = neighbours(size, offsets, border)
    parts = [neighbours(size, offsets, border, lines=slice(a, b)) for a, b in ((0, 2), (2, 3), (3, 5))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("size", "fit"), [((9, 5), True), ((8, 5), False), ((9, 4), False), ((10, 7), True)])
def test_fits(size, fit):
    """Three taps of dilation 3 need nine rows; five without dilation need five columns."""
    offsets = [v for dy in (-3, 0, 3) for dx in (0, 1, 4) for v in (dy, dx)]
    assert fits(size, offsets) == fit


@pytest.mark.parametrize("offsets", [[], [(0, 1, 2)], [(0, 0.5)], [()]])
def test_errors(offsets):
    with pytest.raises(ValueError, match="`offsets` must be"):
        flat_offsets(offsets)
