"""The stencil and its conventions, against the taps of PyTorch's convolutions."""

import copy
import dataclasses
import pickle
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hggraph import Stencil

offset_sets = st.integers(1, 3).flatmap(
    lambda ndim: st.lists(st.tuples(*[st.integers(-4, 4)] * ndim), min_size=1, max_size=12, unique=True)
)


def per_axis(value, ndim):
    return value if isinstance(value, tuple) else (value,) * ndim


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "ndim"),
    [
        *[(3, 1, 2), (1, 1, 2), (2, 1, 2), (4, 2, 2), (5, 3, 2)],
        *[((1, 3), 1, 2), ((3, 2), (2, 1), 2), (3, (1, 2), 2)],
        *[(3, 1, 1), (3, 1, 3), ((1, 2, 3), (1, 3, 2), 3), (2, 2, 3)],
    ],
)
def test_taps(kernel_size, dilation, ndim):
    """Channel k of a convolution with one-hot taps is the image read at offset k, and 0 outside."""
    stencil = Stencil.square(kernel_size, dilation=dilation, ndim=ndim)
    sizes, steps = per_axis(kernel_size, ndim), per_axis(dilation, ndim)
    image = torch.arange(1, 1 + 5 * 4 ** (ndim - 1)).double().view(5, *[4] * (ndim - 1))
    taps = torch.eye(len(stencil)).double().view(len(stencil), 1, *sizes)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[ndim]
    padding = tuple(step * (size // 2) for size, step in zip(sizes, steps, strict=True))
    out = conv(image[None, None], taps, padding=padding, dilation=steps)[0]
    for k, offset in enumerate(stencil):
        for place in product(*map(range, image.shape)):
            read = tuple(p + o for p, o in zip(place, offset, strict=True))
            inside = all(0 <= r < n for r, n in zip(read, image.shape, strict=True))
            assert out[(k, *place)] == (image[read] if inside else 0)


def test_rows_first():
    assert Stencil.square(3).offsets == tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    assert Stencil.square(2).offsets == ((-1, -1), (-1, 0), (0, -1), (0, 0))
    assert Stencil.square(3, dilation=2).offsets[1:3] == ((-2, 0), (-2, 2))
    assert Stencil.square(1).offsets == ((0, 0),)


@pytest.mark.parametrize(("size", "center"), [(1, 0), (2, 3), (3, 4), (4, 10), (5, 12)])
def test_center(size, center):
    """An even size has its centre one further to the end, as `kernel_size // 2` says."""
    stencil = Stencil.square(size)
    assert stencil.center == center
    assert stencil.offsets[center] == (0, 0)


def test_opposite_squares():
    assert Stencil.square(3).opposite == (8, 7, 6, 5, 4, 3, 2, 1, 0)
    assert Stencil.square(2).opposite == (None, None, None, 3)
    assert Stencil([(0, 1), (1, 0), (0, -1)]).opposite == (2, None, 0)


@given(offset_sets)
def test_any_set(offsets):
    stencil = Stencil(offsets)
    assert stencil.offsets == tuple(offsets) == tuple(stencil)
    assert len(stencil) == len(offsets)
    assert stencil.ndim == len(offsets[0])
    zero = (0,) * stencil.ndim
    assert (stencil.center is None) == (zero not in offsets)
    assert stencil.center is None or offsets[stencil.center] == zero
    for offset, other in zip(offsets, stencil.opposite, strict=True):
        mirrored = tuple(-value for value in offset)
        assert (other is None) == (mirrored not in offsets)
        assert other is None or offsets[other] == mirrored
    for axis, reach in enumerate(stencil.reach):
        assert all(-reach <= offset[axis] <= reach for offset in offsets)
        assert any(abs(offset[axis]) == reach for offset in offsets)
    if offsets != [zero]:
        assert list(stencil.without_center()) == [offset for offset in offsets if offset != zero]
    for same in (
        Stencil(map(list, offsets)),
        copy.deepcopy(stencil),
        pickle.loads(pickle.dumps(stencil)),
    ):
        assert same == stencil
        assert hash(same) == hash(stencil)
        assert same.offsets == stencil.offsets


def test_order_counts():
    one, other = Stencil([(0, 1), (1, 0)]), Stencil([(1, 0), (0, 1)])
    assert one != other
    assert one != one.offsets
    assert {one: 1, other: 2}[Stencil([(1, 0), (0, 1)])] == 2


def test_immutable():
    stencil = Stencil.square(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stencil.offsets = ((0, 0),)
    assert stencil.without_center() is not stencil
    assert len(stencil) == 9


def test_whole_numbers():
    for row in ([1.0, -2.0], torch.tensor([1, -2]), torch.tensor([1.0, -2.0]), np.array([1, -2], np.int8)):
        (offset,) = Stencil([row])
        assert offset == (1, -2)
        assert all(type(value) is int for value in offset)
    assert Stencil.square([3, 2.0], dilation=[np.int64(1), 2]) == Stencil.square((3, 2), dilation=(1, 2))
    assert Stencil.square(torch.tensor(3), ndim=1) == Stencil([(-1,), (0,), (1,)])


@pytest.mark.parametrize(
    ("stencil", "text"),
    [
        (Stencil.square(3), "Stencil(3x3, dilation=1)"),
        (Stencil.square(1), "Stencil(1x1, dilation=1)"),
        (Stencil.square((3, 5), dilation=(2, 1)), "Stencil(3x5, dilation=(2, 1))"),
        (Stencil.square(4, dilation=3, ndim=3), "Stencil(4x4x4, dilation=3)"),
        (Stencil([(0, 1)]), "Stencil(((0, 1),))"),
        (Stencil([(0, 0), (0, -1)]), "Stencil(((0, 0), (0, -1)))"),
        (
            Stencil.square(3).without_center(),
            f"Stencil({Stencil.square(3).without_center().offsets})",
        ),
    ],
)
def test_repr(stencil, text):
    assert repr(stencil) == text


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "at least one displacement"),
        ([()], "same number of axes"),
        ([(0, 1), (0,)], "same number of axes"),
        ([(0, 1), (1, 0), (0, 1)], "must not repeat"),
        ([(0, 1), (0.0, 1.0)], "must not repeat"),
        ([(0, 0.5)], r"`offsets` must be whole pixels, got 0\.5"),
        ([(0.5, 1)], "whole pixels"),
        ([("1", 1)], r"whole pixels, got '1'"),
        (["01"], "whole pixels"),
        ("01", "whole pixels"),
        ([(0, float("nan"))], "whole pixels, got nan"),
        ([(0, float("inf"))], "whole pixels"),
        ([(0, True)], "whole pixels, got True"),
        ([(np.bool_(True), 0)], "whole pixels"),
        (torch.tensor([[True, False]]), "whole pixels"),
        ([(0, None)], "whole pixels"),
        ([(0, 1j)], "whole pixels"),
        ([(0, (1,))], "whole pixels"),
        ([(0, torch.tensor([1, 2]))], "whole pixels"),
        ([1, 2], r"sequence of displacements such as \(0, 1\), got \[1, 2\]"),
        (3, "sequence of displacements"),
        (None, "sequence of displacements"),
    ],
)
def test_bad_offsets(offsets, message):
    with pytest.raises(ValueError, match=message):
        Stencil(offsets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, ">= 1"),
        ({"kernel_size": (3, 0)}, ">= 1"),
        ({"dilation": 0}, ">= 1"),
        ({"ndim": 0}, ">= 1"),
        ({"kernel_size": (3, 3), "dilation": (1, 1, 1)}, "same number of axes"),
        ({"kernel_size": []}, ">= 1"),
        ({"kernel_size": [2.5, 3]}, r"`kernel_size` must be whole pixels, got 2\.5"),
        ({"kernel_size": 2.5}, "`kernel_size` must be whole"),
        ({"kernel_size": "3"}, "`kernel_size` must be whole"),
        ({"kernel_size": True}, "`kernel_size` must be whole"),
        ({"kernel_size": float("inf")}, "`kernel_size` must be whole"),
        ({"dilation": (1, None)}, "`dilation` must be whole"),
        ({"ndim": 1.5}, "`ndim` must be whole"),
    ],
)
def test_bad_squares(arguments, message):
    with pytest.raises(ValueError, match=message):
        Stencil.square(**arguments)


def test_nothing_left():
    with pytest.raises(ValueError, match="at least one displacement"):
        Stencil.square(1).without_center()
