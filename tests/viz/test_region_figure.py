"""Figures are drawn for every kind of image, without global state; their shapes are right."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hggraph import Assignment, RegionAdjacency, SoftSLIC, Stencil
from hggraph.viz import region_figure, save_figure
from hggraph.viz.shapes import (
    arrow_polygons,
    border_segments,
    direction_colors,
    majority,
    shown_directions,
    side_by_side,
    spread_regions,
    strongest_neighbors,
)

pytest.importorskip("matplotlib", reason="needs the extra `viz`")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

TITLES = ["Photo", "Importance: where detail is", "6 seeds", "6 regions in their mean colours"]
TITLES += ["Edges before noise cancelling", "Edges of the graph"]


def clusterer(num_regions: int = 6, **options: Any) -> SoftSLIC:
    return SoftSLIC(num_regions=num_regions, feature_scale="photo", **options).eval()


def caption(figure) -> str:
    return " ".join(figure.texts[0].get_text().split())


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
        return [axes.get_title(loc="left") for axes in figure.axes[:6]], picture.size


def test_panels(image, tmp_path):
    titles, (width, height) = draw(tmp_path / "a.png", image, clusterer())
    assert titles == TITLES
    assert 300 < width < height  # in rows of two
    panel = region_figure(image, clusterer()).axes[0].get_window_extent()
    assert panel.width / panel.height == pytest.approx(32 / 24, rel=0.01)


def test_attention(image, tmp_path):
    attention = torch.zeros(24, 32)
    attention[8:16, 10:20] = 0.8
    drawn = clusterer(sampling="topk_random")
    titles, _ = draw(tmp_path / "a.png", image, drawn, attention=attention)
    assert titles == ["Photo, outlined: attention above 0.4", "Importance and attention", *TITLES[2:]]
    figure = region_figure(image, drawn, attention=attention)
    centers = np.asarray(figure.axes[2].collections[0].get_offsets())
    inside = (centers >= [10, 8]).all(1) & (centers < [20, 16]).all(1)
    assert inside.sum() >= 4  # beta * R of them are drawn to it
    for panel in (figure.axes[0], figure.axes[2]):  # a line, and the photo is as it was
        assert len(panel.images) == 1
        np.testing.assert_allclose(panel.images[0].get_array(), image.permute(1, 2, 0))
        for line in panel.patches:
            ends = line.get_path().vertices
            np.testing.assert_allclose([*ends.min(0), *ends.max(0)], [9.5, 7.5, 19.5, 15.5])
    with pytest.raises(ValueError, match="attention"):
        region_figure(image, clusterer(), attention=attention[:-1])


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_attention_that_is_the_same_all_over(value, image):
    figure = region_figure(image, clusterer(), attention=torch.full((24, 32), value))
    assert figure.axes[0].get_title(loc="left") == "Photo, attention the same all over"
    assert all(len(line.get_path().vertices) == 0 for line in figure.axes[0].patches)


def test_bars_and_units(image):
    step = torch.zeros(3, 20, 20)
    step[:, :, 10:] = 1  # 100 units of CIELAB's lightness from black to white
    figure = region_figure(step, clusterer(smooth=0.0))
    (bar,) = [axes for axes in figure.axes[6:] if "CIELAB" in axes.get_xlabel()]
    texts = [text.get_text() for text in bar.get_xticklabels()]
    assert (texts[0], texts[-1]) == ("0", "\u2265 33")  # one of three or four neighbours: 100 / 3 in the corner's row
    assert figure.axes[1].images[0].norm.vmax == pytest.approx(100 / 3, rel=0.01)
    plain = region_figure(image, SoftSLIC(num_regions=6).eval())
    assert any("image's unit" in axes.get_xlabel() for axes in plain.figure.axes)
    focused = region_figure(image, clusterer(), attention=torch.eye(24, 32))
    assert any("10 \u00d7 attention" in axes.get_xlabel() for axes in focused.axes)


def test_arrows_are_few_and_apart_and_the_caption_counts_them():
    photo = F.interpolate(torch.rand(1, 3, 30, 40), (240, 320), mode="bilinear")[0]
    figure = region_figure(photo, clusterer(200))
    arrows = figure.axes[5].collections[0].get_paths()
    centers = np.asarray(figure.axes[5].collections[1].get_offsets())
    assert 40 <= len(arrows) <= 100 and 10 <= len(centers) <= 18
    gaps = np.hypot(*(centers[:, None] - centers).transpose(2, 0, 1))[np.triu_indices(len(centers), 1)]
    assert gaps.min() > 50
    text = caption(figure)
    assert f"{len(centers)} of 200 regions" in text and f"with {len(arrows)} of" in text


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (9, 90), (90, 9), (40, 40)])
def test_texts_stay_on_the_page_and_apart(size):
    figure = region_figure(torch.rand(3, *size), clusterer(20), attention=torch.rand(size))
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_window_extent().width > 1]  # drawn
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, texts[i]
        for j in range(i):
            assert not box.overlaps(boxes[j]), (texts[i], texts[j])


@pytest.mark.parametrize(
    ("shape", "num_regions"),
    [
        *[((3, 40, 16), 6), ((3, 12, 60), 6), ((3, 1, 1), 1), ((3, 1, 30), 4), ((3, 60, 2), 5)],
        *[((1, 20, 20), 6), ((3, 16, 16), 1), ((3, 4, 4), 16), ((3, 1, 1040), 6)],
    ],
)
def test_shapes(shape, num_regions, tmp_path):
    titles, (width, height) = draw(tmp_path / "a.png", torch.rand(shape), clusterer(num_regions))
    assert titles[2] == (f"{num_regions} seeds" if num_regions > 1 else "1 seed")
    assert width <= 40 * 10.1 and height <= 40 * 16


def test_constant_image(tmp_path):
    draw(tmp_path / "a.png", torch.full((3, 20, 20), 0.5), clusterer())


def test_default_clusterer_and_large_image(tmp_path):
    figure = region_figure(torch.rand(3, 30, 1040))  # drawn at half its size
    assert figure.axes[2].get_title(loc="left") == "300 seeds"
    assert figure.axes[0].images[0].get_array().shape == (15, 520, 3)
    assert figure.axes[0].get_xlim() == (-0.5, 1039.5)


def test_given_assignment(image):
    labels = (torch.arange(32) >= 16).long().expand(1, 24, 32)
    figure = region_figure(image, clusterer(), assignment=Assignment.from_labels(labels, 2))
    assert figure.axes[2].get_title(loc="left") == "2 region centres"
    centers = np.asarray(figure.axes[2].collections[0].get_offsets())
    np.testing.assert_allclose(centers, [[7.5, 11.5], [23.5, 11.5]])
    # one border, and one arrow each way
    borders = np.concatenate([border.get_path().vertices for border in figure.axes[3].patches])
    assert set(borders[:, 0]) == {15.5}
    assert len(figure.axes[5].collections[0].get_paths()) == 2
    assert "2 of 2 regions" in caption(figure) and "with 2 of the graph's 2 such arrows" in caption(figure)
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
    assert shown_directions(square) == [0, 1, 2, 3, 5, 6, 7, 8]
    wide = Stencil.square(5)
    assert [wide.offsets[k] for k in shown_directions(wide)] == list(square.without_center())
    assert shown_directions(Stencil([(-1, -1), (0, 0), (1, 1)])) == [0, 2]
    assert shown_directions(Stencil([(0, 0)])) == []
    assert len(shown_directions(Stencil.square(3, dilation=2))) == 8
    assert len(set(direction_colors(square))) == 9
    far, near = direction_colors(Stencil([(0, 3)])), direction_colors(Stencil([(0, 1)]))
    assert far == near


def test_spread_regions():
    places = np.random.default_rng(0).random((400, 2)) * [640, 480]
    strength = np.random.default_rng(1).random(400)
    chosen = spread_regions(places, strength, (480, 640), 18)
    apart = 0.92 * (480 * 640 / 18) ** 0.5
    gaps = np.hypot(*(places[chosen][:, None] - places[chosen]).transpose(2, 0, 1))
    assert (gaps + 1e9 * np.eye(len(chosen)) >= apart).all() and 10 <= len(chosen) <= 18
    assert (np.diff(strength[chosen]) < 0).all() and chosen[0] == strength.argmax()
    for region in range(400):  # all others are weaker than one nearby
        near = chosen[np.hypot(*(places[chosen] - places[region]).T) < apart]
        assert region in chosen or len(chosen) == 18 or strength[near].max() > strength[region]
    assert spread_regions(places[:3], np.zeros(3), (480, 640)).tolist() == []
    assert spread_regions(places[:0], strength[:0], (480, 640)).tolist() == []


def test_side_by_side():
    assert side_by_side(np.array([1, 1, 2, 1]), np.array([2, 2, 1, 3])).tolist() == [0, 1, 0, 0]


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
    lanes = arrow_polygons(start[[0, 0]], stop[[0, 0]], np.ones(2), lane=np.array([1.0, 99.0]))
    np.testing.assert_allclose(lanes[:, 3], [[10, 1], [10, 4]])  # not farther than 0.4 of its length
    assert arrow_polygons(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)).shape == (0, 7, 2)
