"""Figures are drawn for every kind of image, without global state; their shapes are right."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hggraph import Assignment, RegionAdjacency, SoftSLIC, Stencil
from hggraph.viz import region_figure, save_figure
from hggraph.viz.shapes import (
    arrow_polygons,
    border_segments,
    direction_colors,
    majority,
    shown_directions,
    strongest_neighbors,
)

pytest.importorskip("matplotlib", reason="needs the extra `viz`")

TITLES = ["Photo", "Importance (bright draws centres)", "6 sampled centres"]
TITLES += ["Regions in their mean colours", "Strongest neighbours, before noise cancelling"]
TITLES += ["Strongest neighbours, after noise cancelling"]


def clusterer(num_regions: int = 6, candidates: int | None = None) -> SoftSLIC:
    return SoftSLIC(num_regions=num_regions, feature_scale="photo", candidates=candidates).eval()


@pytest.fixture
def image() -> torch.Tensor:
    """Return a photo of 24 x 32 pixels: a gradient with a bright square."""
    image = torch.linspace(0, 0.5, 32).expand(3, 24, 32).clone()
    image[:, 8:16, 10:20] = 1
    return image


def draw(path, *args, **kwargs):
    """Return the panels' titles and the size of the written picture."""
    figure = region_figure(*args, **kwargs)
    save_figure(figure, path, dpi=40)
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).std() > 0
        return [axes.get_title(loc="left") for axes in figure.axes], picture.size


def test_panels(image, tmp_path):
    titles, (width, height) = draw(tmp_path / "a.png", image, clusterer())
    assert titles == TITLES
    assert width > height
    panel = region_figure(image, clusterer()).axes[0].get_window_extent()
    assert panel.width / panel.height == pytest.approx(32 / 24, rel=0.01)


def test_attention(image, tmp_path):
    attention = torch.zeros(24, 32)
    attention[8:16, 10:20] = 1
    titles, _ = draw(tmp_path / "a.png", image, clusterer(), attention=attention)
    assert titles == ["Photo and its attention map", "Importance focused by attention", *TITLES[2:]]
    figure = region_figure(image, clusterer(), attention=attention)
    centers = np.asarray(figure.axes[2].collections[0].get_offsets())
    inside = (centers >= [10, 8]).all(1) & (centers < [20, 16]).all(1)
    assert inside.sum() >= 4  # beta * R of them are drawn to it
    with pytest.raises(ValueError, match="attention"):
        region_figure(image, clusterer(), attention=attention[:-1])


@pytest.mark.parametrize(
    ("shape", "num_regions"),
    [
        *[((3, 40, 16), 6), ((3, 12, 60), 6), ((3, 1, 1), 1), ((3, 1, 30), 4), ((3, 60, 2), 5)],
        *[((1, 20, 20), 6), ((3, 16, 16), 1), ((3, 4, 4), 16), ((3, 1, 1040), 6)],
    ],
)
def test_shapes(shape, num_regions, tmp_path):
    titles, (width, height) = draw(tmp_path / "a.png", torch.rand(shape), clusterer(num_regions))
    assert titles[2] == (f"{num_regions} sampled centres" if num_regions > 1 else "1 sampled centre")
    assert max(width, height) <= 40 * 14


def test_constant_image(tmp_path):
    draw(tmp_path / "a.png", torch.full((3, 20, 20), 0.5), clusterer())


def test_default_clusterer_and_large_image(tmp_path):
    figure = region_figure(torch.rand(3, 30, 1040))  # drawn at half its size
    assert figure.axes[2].get_title(loc="left") == "300 sampled centres"
    assert figure.axes[0].images[0].get_array().shape == (15, 520, 3)
    assert figure.axes[0].get_xlim() == (-0.5, 1039.5)


def test_given_assignment(image):
    labels = (torch.arange(32) >= 16).long().expand(1, 24, 32)
    figure = region_figure(image, clusterer(), assignment=Assignment.from_labels(labels, 2))
    assert figure.axes[2].get_title(loc="left") == "2 region centres"
    centers = np.asarray(figure.axes[2].collections[0].get_offsets())
    np.testing.assert_allclose(centers, [[7.5, 11.5], [23.5, 11.5]])
    # one border, and after noise cancelling one arrow each way
    (border,) = figure.axes[3].patches
    assert set(border.get_path().vertices[:, 0]) == {15.5}
    assert len(figure.axes[5].collections[0].get_paths()) == 2
    with pytest.raises(ValueError, match="`assignment` must be of one image"):
        region_figure(image[:, :-1], clusterer(), assignment=Assignment.from_labels(labels, 2))


@pytest.mark.parametrize("candidates", [None, 4])
def test_repeats(candidates, image, tmp_path):
    for name in ["a.png", "b.png"]:
        save_figure(region_figure(image, clusterer(candidates=candidates)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "image",
    [torch.rand(1, 3, 8, 8), torch.rand(8, 8), torch.rand(4, 8, 8), torch.ones(3, 8, 8).byte()],
)
def test_bad_image(image):
    with pytest.raises(ValueError, match="`image` must be floating point of shape"):
        region_figure(image)


def test_needs_no_pyplot(image, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    draw(tmp_path / "a.png", image, clusterer())


def test_without_matplotlib(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hggraph\[viz\]"'):
        region_figure(image)


def test_saving_fails_without_a_trace(image, tmp_path):
    with pytest.raises(ValueError, match="nonsense"):
        save_figure(region_figure(image, clusterer()), tmp_path / "a.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_directions():
    square = Stencil.square(3)
    assert [square.offsets[k] for k in shown_directions(square)] == [
        (-1, 0),
        (0, -1),
        (0, 1),
        (1, 0),
    ]
    diagonal = Stencil([(-1, -1), (0, 0), (1, 1)])
    assert shown_directions(diagonal) == [0, 2]
    assert shown_directions(Stencil([(0, 0)])) == []
    assert len(set(direction_colors(square))) == 9
    far, near = direction_colors(Stencil([(0, 3)])), direction_colors(Stencil([(0, 1)]))
    assert far == near


def test_stencils_without_axes_or_directions(image, tmp_path):
    for offsets in [[(-1, -1), (1, 1)], [(0, 0)], [(0, 0), (0, 2), (2, 1)]]:
        draw(tmp_path / "a.png", image, clusterer(), stencil=Stencil(offsets))


def test_strongest_neighbors():
    weights = torch.zeros(1, 2, 3, 3)
    weights[0, 0, 0] = torch.tensor([9.0, 2.0, 3.0])  # itself does not count
    weights[0, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    weights[0, 1, 2] = torch.tensor([4.0, 4.0, 0.0])  # of equals the first
    adjacency = RegionAdjacency(Stencil([(0, -1), (0, 1)]), weights)
    found = [part.tolist() for part in strongest_neighbors(adjacency, [0, 1])]
    assert found == [[0, 1, 2], [2, 0, 0], [0, 0, 1], [3.0, 1.0, 4.0]]
    assert strongest_neighbors(adjacency, [1])[0].tolist() == [2]
    assert strongest_neighbors(adjacency, [])[0].tolist() == []


def test_borders_lie_between_all_pixels_that_differ():
    labels = np.random.default_rng(0).integers(0, 3, (7, 9))
    expected = set()
    for y in range(7):
        for x in range(9):
            if y < 6 and labels[y, x] != labels[y + 1, x]:
                expected.add((x - 0.5, y + 0.5, x + 0.5, y + 0.5))
            if x < 8 and labels[y, x] != labels[y, x + 1]:
                expected.add((x + 0.5, y - 0.5, x + 0.5, y + 0.5))
    drawn = []
    for (x0, y0), (x1, y1) in border_segments(labels):  # cut into unit lengths
        steps = round(max(x1 - x0, y1 - y0))
        dx, dy = (x1 - x0) / steps, (y1 - y0) / steps
        for i in range(steps):
            drawn.append((x0 + i * dx, y0 + i * dy, x0 + (i + 1) * dx, y0 + (i + 1) * dy))
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == expected
    assert border_segments(np.zeros((3, 4), dtype=np.int64)).shape == (0, 2, 2)
    assert border_segments(np.zeros((1, 1), dtype=np.int64)).shape == (0, 2, 2)


def test_majority_removes_specks_and_keeps_edges():
    labels = np.zeros((8, 10), dtype=np.int64)
    labels[:, 5:] = 1
    speckled = labels.copy()
    speckled[3, 2] = speckled[6, 8] = 7
    np.testing.assert_array_equal(majority(labels), labels)
    np.testing.assert_array_equal(majority(speckled), labels)


def test_arrows():
    start, stop = np.array([[0.0, 0.0], [0.0, 0.0]]), np.array([[10.0, 0.0], [0.0, 0.0]])
    arrow, point = arrow_polygons(start, stop, np.array([1.0, 1.0]))
    np.testing.assert_allclose(arrow[3], [10, 0])  # the tip
    np.testing.assert_allclose(sorted(arrow[[0, 6], 1]), [-0.5, 0.5])  # the tail
    np.testing.assert_allclose(point, 0)
    (beside,) = arrow_polygons(start[:1], stop[:1], np.array([1.0]), lane=2.0)
    np.testing.assert_allclose(beside, arrow + np.array([0, 2]))  # right of an arrow to the right is down
    assert arrow_polygons(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)).shape == (0, 7, 2)
