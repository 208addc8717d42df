"""The affinity figure puts each neighbour at its place, in the colour and size of its weight."""

import numpy as np
import pytest
import torch

from hggraph import Stencil
from hggraph.models.gald import gald
from hggraph.viz import affinity_figure, save_figure

pytest.importorskip("matplotlib", reason="needs the extra `viz`")

LINE = Stencil([(0, -1), (0, 0), (0, 2)])


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def dots(axes) -> tuple[list[list[float]], list[float], list[float]]:
    """The places (x, y), weights and areas of a panel's dots."""
    (found,) = axes.collections
    return found.get_offsets().data.tolist(), found.get_array().tolist(), found.get_sizes().tolist()


def affinity_of(weights: list[float], size: tuple[int, int]) -> torch.Tensor:
    """Return the same weights at each pixel of a map."""
    return torch.tensor(weights).view(-1, 1, 1).expand(-1, *size).clone()


def test_places_by_hand():
    # 9 x 16 map pixels on an image of 81 x 121: 10 pixels apart down, 8 across; (42, 61) is nearest to row 4, column 8
    affinity = affinity_of([0.0, 0.0, 0.0], (9, 16))
    affinity[:, 4, 8] = torch.tensor([0.2, 0.3, 0.5])
    affinity[:, 8, 15] = torch.tensor([0.4, 0.35, 0.25])
    figure = affinity_figure(torch.rand(3, 81, 121), affinity, [(42, 61), (80, 120)], LINE)
    assert titles(figure) == [
        "2 points",
        "1: x 61, y 42",
        "2: x 120, y 80; 25 % of weight outside",
        "Weight of a neighbour; the line is at 1/3",
    ]
    places, weights, areas = dots(figure.axes[1])
    assert places == [[56, 40], [64, 40], [80, 40]]
    assert weights == pytest.approx([0.2, 0.3, 0.5])
    assert np.array(areas) / areas[2] == pytest.approx([0.4, 0.6, 1])
    places, weights, areas_there = dots(figure.axes[2])
    assert places == [[112, 80], [120, 80]]  # the third would be at 136
    assert weights == pytest.approx([0.4, 0.35])
    assert areas_there[0] / areas[2] == pytest.approx(0.8)  # one scale for all points
    crosses = [line.get_xydata().tolist() for line in figure.axes[1].lines]
    assert crosses == [[[61, 42]]] * 2
    numbers = [(text.get_text(), text.get_position()) for text in figure.axes[0].texts]
    assert numbers[0] == ("1", (61, 42))
    assert numbers[1][0] == "2" and all(105 < x < 120 and 70 < y < 80 for _, (x, y) in numbers[1:])  # inside its panel


def test_colours_are_those_of_the_scale():
    affinity = affinity_of([0.1, 0.2, 0.7], (9, 16))
    figure = affinity_figure(torch.rand(3, 81, 121), affinity, [(40, 64)], LINE)
    (found,) = figure.axes[1].collections
    assert found.get_clim() == pytest.approx((0.1, 0.7))
    scale = figure.axes[2]
    assert scale.get_xlim() == pytest.approx((0.1, 0.7))
    assert [text.get_text() for text in scale.get_xticklabels()] == ["0.100", "0.250", "0.400", "0.550", "0.700"]
    assert scale.lines[0].get_xdata()[0] == pytest.approx(1 / 3)


def test_heads_are_averaged_and_equal_weights_drawn():
    heads = torch.stack([affinity_of([0.2, 0.3, 0.5], (9, 16)), affinity_of([0.4, 0.3, 0.1], (9, 16))])
    figure = affinity_figure(torch.rand(1, 81, 121), heads, [(40, 64)], LINE)
    assert dots(figure.axes[1])[1] == pytest.approx([0.3, 0.3, 0.3])
    even = affinity_figure(torch.rand(1, 81, 121), affinity_of([0.25] * 3, (9, 16)), [(40, 64)], LINE)
    assert [text.get_text() for text in even.axes[2].get_xticklabels()] == ["0.250"]
    assert len(set(dots(even.axes[1])[2])) == 1


def test_small_weight_outside_is_said():
    affinity = affinity_of([0.004, 0.5, 0.496], (9, 16))
    figure = affinity_figure(torch.rand(3, 81, 121), affinity, [(0, 0)], LINE)
    assert titles(figure)[1] == "1: x 0, y 0; under 1 % of weight outside"
    masked = affinity_figure(torch.rand(3, 81, 121), affinity_of([0, 0.5, 0.5], (9, 16)), [(0, 0)], LINE)
    assert titles(masked)[1] == "1: x 0, y 0"


@pytest.mark.parametrize("size", [(97, 129), (161, 97), (120, 481), (1040, 40)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_panels_show_all_dots_and_the_photo_at_its_place(size, count):
    stencil = Stencil.square(3, dilation=2)
    affinity = torch.rand(9, 13, 12).softmax(0)
    corners = [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 2)]
    points = [corners[i % 3] for i in range(count)]
    figure = affinity_figure(torch.rand(3, *size), affinity, points, stencil)
    overview, *panels, _ = figure.axes
    assert len(panels) == count
    assert overview.get_xlim() == (-0.5, size[1] - 0.5) and overview.get_ylim() == (size[0] - 0.5, -0.5)
    for point, panel in zip(points, panels, strict=True):
        places = np.array(dots(panel)[0])
        left, right = panel.get_xlim()
        bottom, top = panel.get_ylim()
        assert (places > [left, top]).all() and (places < [right, bottom]).all()
        assert left < point[1] < right and top < point[0] < bottom
        west, east, south, north = panel.images[0].get_extent()
        assert west >= -0.5 and north >= -0.5 and east <= size[1] - 0.5 and south <= size[0] - 0.5
        if point == corners[2]:
            assert len(places) == 9
            assert west <= left + 1 and north <= top + 1


def test_no_text_overlaps(tmp_path):
    points = [(30.5, 10.5), (80, 300), (299, 399), (0, 0)]
    figure = affinity_figure(torch.rand(3, 300, 400), torch.rand(25, 38, 50).softmax(0), points, Stencil.square(5))
    save_figure(figure, tmp_path / "affinity.png", dpi=60)  # draws
    page = figure.get_window_extent()
    boxes = [text.get_window_extent() for axes in figure.axes for text in (axes._left_title, *axes.get_xticklabels())]
    boxes = [box for box in boxes if box.width > 2]
    assert len(boxes) == 6 + 5
    for i, box in enumerate(boxes):
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_of_a_network(tmp_path):
    net = gald("resnet18", "aspp", "v2", num_classes=3, channels=16, kernel_size=3, dilation=2).eval()
    image = torch.rand(3, 120, 160)
    stencil, affinity = net.distribution.attention.stencil, net.inspect(image[None])[0]
    figure = affinity_figure(image, affinity, [(60, 80)], stencil)
    save_figure(figure, tmp_path / "affinity.png", dpi=30)
    places, weights, _ = dots(figure.axes[1])
    rows, columns = affinity.shape[2:]
    assert (rows, columns) == (15, 20)
    row, column = round(60 * 14 / 119), round(80 * 19 / 159)
    np.testing.assert_allclose(places[4], [column * 159 / 19, row * 119 / 14])
    np.testing.assert_allclose(places[0], [(column - 2) * 159 / 19, (row - 2) * 119 / 14])
    np.testing.assert_allclose(weights, affinity[0, :, row, column])
    assert sum(weights) == pytest.approx(1)


def test_bad_input():
    image, affinity = torch.rand(3, 81, 121), affinity_of([0.2, 0.3, 0.5], (9, 16))
    with pytest.raises(ValueError, match=r"at least one \(y, x\), got none"):
        affinity_figure(image, affinity, [], LINE)
    with pytest.raises(ValueError, match=r"y from 0 to 80 and x from 0 to 120, got \(20, 121\)"):
        affinity_figure(image, affinity, [(20, 121)], LINE)
    with pytest.raises(ValueError, match=r"with the K = 9 of .*, got \(3, 9, 16\)"):
        affinity_figure(image, affinity, [(20, 20)], Stencil.square(3))
    with pytest.raises(ValueError, match="Take one image of a batch"):
        affinity_figure(image, affinity[None, None], [(20, 20)], LINE)
    with pytest.raises(ValueError, match="`image` must be floating point"):
        affinity_figure(image.byte(), affinity, [(20, 20)], LINE)
