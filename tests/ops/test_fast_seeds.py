"""Seeds and lists of the fast path against literal loops in float64."""

import math

import numpy as np
import pytest
import torch

from hggraph.cluster.importance import importance_map
from hggraph.ops import fast

pytest.importorskip("numba")


def grid(height: int, width: int, num_regions: int) -> list[tuple[int, int]]:
    rows = min(max(round(math.sqrt(num_regions * height / width)), -(-num_regions // width)), min(num_regions, height))
    out = []
    for i in range(rows):
        count = (i + 1) * num_regions // rows - i * num_regions // rows
        out += [(int((i + 0.5) * height / rows), int((j + 0.5) * width / count)) for j in range(count)]
    return out


def seeds_by_loops(lab: torch.Tensor, num_regions: int, importance: torch.Tensor, steps: int) -> list[int]:
    _, height, width = lab.shape
    seeds = np.array(grid(height, width, num_regions), dtype=np.float64)
    spacing = math.sqrt(height * width / num_regions)
    side = max(1, int(spacing / 5))
    rows, columns = -(-height // side), -(-width // side)
    middle, count, density = [], [], np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            y, x = (i * side, min((i + 1) * side, height)), (j * side, min((j + 1) * side, width))
            part = importance[y[0] : y[1], x[0] : x[1]]
            density[i, j] = float(part.mean())
            middle.append(((y[0] + y[1] - 1) / 2, (x[0] + x[1] - 1) / 2))
            count.append(part.numel())
    sigma = 0.5 * spacing / side
    radius = math.ceil(2 * sigma)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        near = np.arange(density.shape[axis])[:, None] + np.arange(-radius, radius + 1)
        near = near.clip(0, density.shape[axis] - 1)
        density = np.tensordot(np.moveaxis(density, axis, -1)[..., near], taps, 1)
        density = np.moveaxis(density, -1, axis)
    mean = density.mean()
    weight = np.maximum(0.3, np.sqrt(density / mean)) if mean > 0 else np.ones_like(density)
    weight = weight.ravel() * np.array(count)
    for _ in range(steps):
        sums = np.zeros((num_regions, 3))
        for (y, x), w in zip(middle, weight, strict=True):
            d = (np.float32(y) - seeds[:, 0].astype("f")) ** 2 + (np.float32(x) - seeds[:, 1].astype("f")) ** 2
            sums[d.argmin()] += w, w * y, w * x
        some = sums[:, 0] > 0
        seeds[some] = sums[some, 1:] / sums[some, :1]
    return [int(y + 0.499) * width + int(x + 0.499) for y, x in seeds]


@pytest.mark.parametrize(
    ("size", "num_regions"), [((40, 52), 1), ((40, 52), 20), ((33, 60), 77), ((1, 60), 7), ((60, 1), 7), ((90, 31), 3)]
)
def test_density_seeds(size, num_regions):
    lab = torch.rand(3, *size) * torch.linspace(1, 9, size[1])
    expected = seeds_by_loops(lab, num_regions, importance_map(lab[None])[0], 2)
    if size[0] * size[1] < 16 * num_regions:
        expected = [y * size[1] + x for y, x in grid(*size, num_regions)]
    assert fast.density_seeds(lab, num_regions).tolist() == expected


def test_given_importance_leads():
    importance = 0.1 * torch.rand(40, 40)
    importance[:, 30:] = 5
    seeds = fast.density_seeds(torch.zeros(3, 40, 40), 16, importance, steps=2)
    assert seeds.tolist() == seeds_by_loops(torch.zeros(3, 40, 40), 16, importance, 2)
    flat = fast.density_seeds(torch.zeros(3, 40, 40), 16, torch.ones(40, 40), steps=2)
    assert (seeds % 40).float().mean() > (flat % 40).float().mean()


@pytest.mark.parametrize(("size", "num_regions"), [((1, 1), 1), ((3, 5), 15), ((7, 4), 9), ((1, 9), 9), ((30, 30), 20)])
def test_constant_photo_and_grids(size, num_regions):
    lab = torch.zeros(3, *size)
    seeds = fast.density_seeds(lab, num_regions, steps=0)
    assert seeds.tolist() == [y * size[1] + x for y, x in grid(*size, num_regions)]
    assert len(fast.density_seeds(lab, num_regions).unique()) == num_regions


def test_errors():
    with pytest.raises(ValueError, match="2 x 2 = 4"):
        fast.density_seeds(torch.zeros(3, 2, 2), 5)
    with pytest.raises(ValueError, match="importance"):
        fast.density_seeds(torch.zeros(3, 20, 20), 5, torch.zeros(20, 19))
    with pytest.raises(ValueError, match="finite"):
        fast.density_seeds(torch.zeros(3, 20, 20), 5, torch.full((20, 20), torch.nan))


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (50, 43)])
@pytest.mark.parametrize("side", [1, 2, 16])
@pytest.mark.parametrize("kind", ["anywhere", "ties", "outside", "one place"])
def test_nearest_regions(size, side, kind):
    positions = torch.rand(30, 2) * torch.tensor(size)
    if kind == "ties":
        positions = positions.floor()
    elif kind == "outside":
        positions = positions * 5 - 40
    elif kind == "one place":
        positions = positions[:1].expand(30, 2)
    out = fast.nearest_regions(positions, size, side, 6)
    rows = [0.5 * (i + min(i + side, size[0]) - 1) for i in range(0, size[0], side)]
    columns = [0.5 * (j + min(j + side, size[1]) - 1) for j in range(0, size[1], side)]
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            d = ((positions[:, 0] - y) ** 2 + (positions[:, 1] - x) ** 2).tolist()
            assert out[:, i, j].tolist() == sorted(range(30), key=lambda r: (d[r], r))[:6]


def test_more_candidates_than_regions():
    with pytest.raises(ValueError, match="3 candidates"):
        fast.nearest_regions(torch.zeros(2, 2), (4, 4), 2, 3)
