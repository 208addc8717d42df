"""Measures of regions against literal loops over pixels and regions, and cases worked out by hand."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.metrics import compare_regions, describe_regions, majority_labels

STEPS = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def pixels(grid):
    return [(y, x) for y in range(len(grid)) for x in range(len(grid[0]))]


def neighbours(grid, y, x, steps=STEPS):
    return [(y + dy, x + dx) for dy, dx in steps if 0 <= y + dy < len(grid) and 0 <= x + dx < len(grid[0])]


def is_border(grid, y, x, ignored=None):
    return grid[y][x] != ignored and any(grid[v][u] not in (grid[y][x], ignored) for v, u in neighbours(grid, y, x))


def compared(labels, truth, radius, ignored=None):
    """The definitions of Stutz et al., set by set and pixel by pixel."""
    counted = [(y, x) for y, x in pixels(truth) if truth[y][x] != ignored]
    regions = [{p for p in counted if labels[p[0]][p[1]] == k} for k in {labels[y][x] for y, x in counted}]
    segments = [{p for p in counted if truth[p[0]][p[1]] == k} for k in {truth[y][x] for y, x in counted}]
    n = len(counted)
    asa = sum(max(len(s & g) for g in segments) for s in regions)
    ue = sum(min(len(s & g), len(s - g)) for g in segments for s in regions if s & g)
    window = [(dy, dx) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1)]
    tp = fn = fp = 0
    for y, x in pixels(truth):
        near = neighbours(truth, y, x, window)
        if is_border(truth, y, x, ignored):
            met = any(is_border(labels, v, u) for v, u in near)
            tp, fn = tp + met, fn + (not met)
        elif truth[y][x] != ignored and is_border(labels, y, x):
            fp += not any(is_border(truth, v, u, ignored) for v, u in near)
    return [Fraction(a, b) if b else None for a, b in [(asa, n), (ue, n), (tp, tp + fn), (tp, tp + fp)]]


def described(labels, image):
    """K, pieces, edges per node, compactness and explained variation, region by region."""
    numbers = {labels[y][x] for y, x in pixels(labels)}
    seen, pieces, edges, compactness = set(), 0, set(), 0.0
    for start in pixels(labels):
        if start not in seen:
            pieces += 1
            stack = [start]
            while stack:
                y, x = stack.pop()
                if (y, x) not in seen:
                    seen.add((y, x))
                    stack += [(v, u) for v, u in neighbours(labels, y, x) if labels[v][u] == labels[y][x]]
    for y, x in pixels(labels):
        edges |= {(labels[y][x], labels[v][u]) for v, u in neighbours(labels, y, x) if labels[v][u] != labels[y][x]}
    for k in numbers:
        inside = [(y, x) for y, x in pixels(labels) if labels[y][x] == k]
        perimeter = sum(4 - sum(labels[v][u] == k for v, u in neighbours(labels, *p)) for p in inside)
        compactness += len(inside) * 4 * math.pi * len(inside) / perimeter**2
    top = bottom = Fraction(0)
    for channel in image:
        values = [Fraction(channel[y][x]) for y, x in pixels(labels)]
        mean = sum(values) / len(values)
        bottom += sum((v - mean) ** 2 for v in values)
        for k in numbers:
            inside = [Fraction(channel[y][x]) for y, x in pixels(labels) if labels[y][x] == k]
            top += len(inside) * (sum(inside) / len(inside) - mean) ** 2
    variation = float(top / bottom) if bottom else math.nan
    return len(numbers), pieces, len(edges) / len(numbers), compactness / len(pixels(labels)), variation


@st.composite
def maps(draw):
    height, width, grain = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def blocks(count):
        coarse = torch.randint(count, (-(-height // grain), -(-width // grain)), generator=generator)
        return coarse.repeat_interleave(grain, 0).repeat_interleave(grain, 1)[:height, :width]

    labels = blocks(draw(st.sampled_from([1, 2, 5, 40]))) * draw(st.sampled_from([1, -7, 10**6, 2**40]))
    truth = torch.stack([blocks(draw(st.sampled_from([1, 2, 4]))) for _ in range(2)])
    truth[torch.rand(truth.shape, generator=generator) < draw(st.sampled_from([0.0, 0.2, 1.0]))] = 255
    image = torch.randint(5, (2, height, width), generator=generator)
    return labels, truth * draw(st.sampled_from([1, -(2**40)])), image


@given(maps(), st.integers(1, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_borders_and_overlap_are_the_literal_loops(sample, radius, ignore):
    labels, truth, _ = sample
    ignored = int(truth.max()) if ignore else None
    found = compare_regions(labels, truth, ignore_index=ignored, tolerance=radius / math.hypot(*labels.shape))
    assert list(found) == ["asa", "ue", "boundary_recall", "boundary_precision"]
    for a in range(2):
        want = compared(labels.tolist(), truth[a].tolist(), radius, ignored)
        for value, expected in zip(found.values(), want, strict=True):
            assert value.dtype == torch.float64 and value.shape == (2,)
            assert math.isnan(value[a]) if expected is None else value[a].item() == float(expected)


@given(maps())
@settings(max_examples=40, deadline=None)
def test_regions_by_themselves_are_the_literal_loops(sample):
    labels, _, image = sample
    found = describe_regions(labels, image)
    want = described(labels.tolist(), image.tolist())
    assert found["regions"].dtype == found["pieces"].dtype == torch.int64
    names = ["regions", "pieces", "edges_per_node", "compactness", "explained_variation"]
    assert [found[name].item() for name in names] == pytest.approx(list(want), abs=1e-12, nan_ok=True)
    assert describe_regions(labels).keys() == set(names[:-1])


@given(maps())
@settings(max_examples=30, deadline=None)
def test_majority_is_the_literal_loop(sample):
    labels, truth, _ = sample
    target = truth[0]
    got = majority_labels(labels, target, 255)
    for k in labels.unique().tolist():
        inside = [c for c in target[labels == k].tolist() if c != 255]
        want = min(set(inside), key=lambda c: (-inside.count(c), c)) if inside else 255
        assert (got[labels == k] == want).all()


def test_undersegmentation_by_hand():
    # a region of 10 pixels: 6 of one segment and 4 of another leak 4 + 4; 3 + 3 + 4 leak all of them
    for split, want in [([6, 4], 8), ([3, 3, 4], 10), ([10], 0), ([5, 5], 10)]:
        truth = torch.cat([torch.full((n,), k) for k, n in enumerate(split)]).view(1, 10)
        found = compare_regions(torch.zeros(1, 10, dtype=torch.long), truth)
        assert found["ue"].item() == want / 10 and found["asa"].item() == max(split) / 10


@pytest.mark.parametrize(("shift", "recall", "precision"), [(0, 1, 1), (1, 1, 1), (2, 0.5, 0.5), (3, 0, 0)])
def test_borders_by_hand(shift, recall, precision):
    # both borders are two pixels wide; one pixel may lie between
    columns = torch.arange(20).expand(6, 20)
    labels, truth = (columns >= 10 + shift).long(), (columns >= 10).long()
    found = compare_regions(labels, truth)
    # where the nearer half is met, one of two border columns of the regions is false
    assert found["boundary_recall"].item() == recall and found["boundary_precision"].item() == precision


@pytest.mark.parametrize(("size", "radius"), [((321, 481), 1), ((481, 321), 1), ((600, 800), 3), ((20, 20), 1)])
def test_tolerance_is_a_share_of_the_diagonal(size, radius):
    columns = torch.arange(size[1]).expand(size)
    truth = (columns >= 10).long()
    for shift, met in [(radius, 1.0), (radius + 1, 0.5), (radius + 2, 0.0)]:
        found = compare_regions((columns >= 10 + shift).long(), truth)
        assert found["boundary_recall"].item() == met


def test_shapes_of_regions_by_hand():
    square = torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4
    found = describe_regions(square, torch.ones(3, 8, 8))
    assert found["compactness"].item() == pytest.approx(math.pi / 4)
    assert (found["regions"], found["pieces"], found["edges_per_node"]) == (4, 4, 2)
    assert found["explained_variation"].isnan()  # one colour has no variation
    checkers = (torch.arange(9)[:, None] + torch.arange(7)) % 2
    found = describe_regions(checkers, torch.stack([checkers, 3 * checkers]))
    assert (found["regions"], found["pieces"], found["edges_per_node"]) == (2, 63, 1)
    assert found["explained_variation"].item() == pytest.approx(1)


def spiral(side):
    """Return a spiral of 1 in 0, which joins a run with the next only at its ends."""
    grid = torch.zeros(side, side, dtype=torch.long)
    y = x = turn = 0
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    grid[0, 0] = 1
    for length in range(side - 1, 0, -2):
        for _ in range(2 if length < side - 1 else 3):
            for _ in range(length):
                y, x = y + steps[turn % 4][0], x + steps[turn % 4][1]
                grid[y, x] = 1
            turn += 1
    return grid


def test_pieces_of_long_ways_are_one():
    grid = spiral(61)
    assert describe_regions(grid)["pieces"] == 2
    comb = torch.zeros(40, 41, dtype=torch.long)
    comb[:, ::2] = 1
    assert describe_regions(comb)["pieces"] == 41
    comb[-1] = 1
    assert describe_regions(comb)["pieces"] == 21
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = (torch.rand(97, 83) < 0.6).long()
    want = sum(ndimage.label(noise.numpy() == k)[1] for k in (0, 1))
    assert describe_regions(noise)["pieces"] == want


def test_layout_and_type_of_maps_change_nothing():
    labels, truth = torch.randint(30, (25, 31)), torch.randint(6, (3, 25, 31))
    want = compare_regions(labels, truth) | describe_regions(labels)
    for change in (lambda x: x.mT.contiguous().mT, lambda x: x.to(torch.uint8), lambda x: x.to(torch.uint16)):
        got = compare_regions(change(labels), change(truth)) | describe_regions(change(labels))
        assert all(torch.equal(got[name], want[name]) for name in want)
    one = compare_regions(labels, truth[0])
    assert all(torch.equal(one[name], want[name][:1]) for name in one)


def test_nothing_to_measure():
    empty = torch.zeros(0, 5, dtype=torch.long)
    found = compare_regions(empty, empty[None]) | describe_regions(empty, torch.zeros(3, 0, 5))
    assert found.pop("regions") == found.pop("pieces") == 0
    assert all(value.isnan().all() for value in found.values())
    labels = torch.zeros(4, 5, dtype=torch.long)
    assert all(value.shape == (0,) for value in compare_regions(labels, labels.new_zeros(0, 4, 5)).values())
    assert majority_labels(empty, empty).shape == (0, 5)
    assert (majority_labels(labels, torch.full_like(labels, 255)) == 255).all()


def test_wrong_maps():
    labels = torch.zeros(4, 5, dtype=torch.long)
    with pytest.raises(TypeError, match=r"`labels` must hold integers, got torch\.float32"):
        compare_regions(labels.float(), labels)
    with pytest.raises(TypeError, match=r"`truth` must hold integers, got torch\.bool"):
        compare_regions(labels, labels.bool())
    with pytest.raises(ValueError, match=r"`truth` must be of the size of `labels`, \(A, 4, 5\), got \(1, 5, 4\)"):
        compare_regions(labels, labels.mT)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(H, W\), got \(1, 4, 5\)"):
        describe_regions(labels[None])
    with pytest.raises(ValueError, match=r"`image` must have the size of `labels`, \(C, 4, 5\), got \(4, 5\)"):
        describe_regions(labels, torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"`target` must have the shape of `labels`"):
        majority_labels(labels, labels[1:])
    with pytest.raises(ValueError, match="`tolerance` must be a share of the diagonal"):
        compare_regions(labels, labels, tolerance=-1.0)
