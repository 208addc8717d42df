"""The clean-up of labels: the compiled one against the plain one, and what both promise."""

import pytest
import torch

from hggraph.ops import fast
from hggraph.ops.fast.plain_connect import plain_connect

SIZES = [(1, 1), (1, 17), (17, 1), (2, 2), (9, 11), (26, 31)]


def pieces(labels):
    """Return the number of 4-connected pieces, by spreading the smallest pixel number to equal neighbours."""
    labels = torch.nn.functional.pad(labels.long(), (1, 1, 1, 1), value=-1)
    number = torch.arange(labels.numel()).view(labels.shape)
    inner = (slice(1, -1), slice(1, -1))
    while True:
        before = number.clone()
        for dim in (0, 1):
            for step in (1, -1):
                same = labels.roll(step, dim) == labels
                number = torch.where(same, torch.minimum(number, number.roll(step, dim)), number)
        if torch.equal(before, number):
            return len(number[inner].unique())


def label_maps(size):
    height, width = size
    pixels = height * width
    for regions in sorted({1, min(2, pixels), min(7, pixels), pixels}):
        yield torch.zeros(size, dtype=torch.int32), regions  # all others empty
        yield torch.randint(regions, size), regions
        yield torch.full(size, regions - 1), regions
        checkerboard = (torch.arange(height)[:, None] + torch.arange(width)) % min(2, regions)
        yield checkerboard.int(), regions
    yield torch.arange(pixels).view(size), pixels


@pytest.mark.parametrize("size", SIZES)
def test_promises(size):
    for labels, regions in label_maps(size):
        out = plain_connect(labels, regions, torch.rand(3, *size))
        assert out.dtype == torch.int32 and out.shape == labels.shape
        assert out.unique().tolist() == list(range(regions))
        assert pieces(out) == regions


def test_connected_labels_stay():
    labels = torch.arange(5).repeat_interleave(4).expand(7, 20)
    assert torch.equal(plain_connect(labels, 5, torch.rand(3, 7, 20)).long(), labels)


def test_flood_follows_colour():
    labels = torch.tensor([[0, 0, 0, 2, 1, 2, 1, 1, 1, 2, 2, 2]])
    lab = torch.tensor([0.0, 0, 0, 0, 0, 5, 5, 5, 5, 9, 9, 9]).expand(3, 1, 12)
    assert plain_connect(labels, 3, lab).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]]


def test_largest_piece_stays_and_the_first_of_equals():
    labels = torch.tensor([[0, 1, 0, 0, 1, 1, 0, 0]])
    out = plain_connect(labels, 2, torch.tensor([0.0, 0, 0, 0, 9, 9, 9, 9]).expand(3, 1, 8))
    assert out.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_empty_regions_get_halves():
    out = plain_connect(torch.zeros(1, 8, dtype=torch.int32), 3, torch.zeros(3, 1, 8))
    assert out.tolist() == [[2, 2, 0, 0, 1, 1, 1, 1]] or out.unique(return_counts=True)[1].tolist() == [2, 4, 2]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colour", ["noise", "constant", "steps"])
def test_compiled_and_plain_agree(size, colour):
    pytest.importorskip("numba")
    lab = {
        "noise": torch.rand(3, *size) * 10,
        "constant": torch.zeros(3, *size),
        "steps": torch.randint(3, (3, *size)).float(),
    }[colour]
    for labels, regions in label_maps(size):
        expected = plain_connect(labels, regions, lab)
        assert torch.equal(fast.connect(labels, regions, lab), expected)
        assert torch.equal(fast.connect(labels.mT.contiguous().mT, regions, lab.mT.contiguous().mT), expected)


def test_compiled_and_plain_agree_on_large_pieces():
    pytest.importorskip("numba")
    coarse = torch.randint(9, (1, 1, 9, 12)).float()
    labels = torch.nn.functional.interpolate(coarse, (70, 90), mode="nearest")[0, 0].int()
    labels = torch.where(torch.rand(70, 90) < 0.2, torch.randint(9, (70, 90), dtype=torch.int32), labels)
    lab = torch.randn(3, 70, 90)
    assert torch.equal(fast.connect(labels, 12, lab), plain_connect(labels, 12, lab))


@pytest.mark.parametrize("function", ["connect", "plain_connect"])
def test_errors(function):
    pytest.importorskip("numba")
    connect = getattr(fast, function)
    lab = torch.zeros(3, 2, 2)
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        connect(torch.tensor([[0, 1], [2, 0]]), 2, lab)
    with pytest.raises(ValueError, match="-1"):
        connect(torch.tensor([[0, 1], [-1, 0]]), 2, lab)
    with pytest.raises(ValueError, match="5"):
        connect(torch.zeros(2, 2, dtype=torch.int32), 5, lab)
    with pytest.raises(ValueError, match="lab"):
        connect(torch.zeros(2, 3, dtype=torch.int32), 1, lab)
