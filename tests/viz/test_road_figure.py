"""The figure of two road graphs draws what is found and missed, and says how much."""

import networkx as nx
import numpy as np
import pytest
import torch

from hggraph.data.road_graph import mask_to_graph
from hggraph.viz.page import save_figure
from hggraph.viz.road_figure import road_figure

pytest.importorskip("matplotlib", reason="needs the extra `viz`")
pytest.importorskip("torchmetrics", reason="needs the extra `metrics`")
pytest.importorskip("skimage", reason="needs the extra `road`")

FOUND, MISSED = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)


@pytest.fixture
def graphs():
    mask = torch.zeros(80, 120, dtype=torch.bool)
    mask[40] = True
    broken = mask.clone()
    broken[40, 60:] = False
    return mask_to_graph(mask), mask_to_graph(broken)


def parts(axes):
    """The drawn length of each colour, in pixels of the image."""
    length = {}
    for lines in axes.collections:
        if hasattr(lines, "get_segments"):
            color = tuple(round(255 * value) for value in lines.get_colors()[0][:3])
            ends = np.array(lines.get_segments()).reshape(-1, 2, 2)
            length[color] = np.hypot(*(ends[:, 1] - ends[:, 0]).T).sum()
    return length


def test_found_and_missed(graphs, tmp_path):
    figure = road_figure(torch.rand(3, 80, 120), *graphs)
    save_figure(figure, tmp_path / "roads.png", dpi=30)
    left, right = figure.axes
    assert parts(left)[FOUND] == pytest.approx(59 + 4, abs=2)  # 59 pixels and the tolerance
    assert parts(left)[MISSED] == pytest.approx(119 - 59 - 4, abs=2)
    assert parts(right) == pytest.approx({FOUND: 59, MISSED: 0})
    assert left.get_title(loc="left") == "Target: 119 px of road, 53 % found"
    # control points at 0, 39.7, 79.3 and 119: of 6 routes one is found
    assert right.get_title(loc="left") == "Prediction: 59 px of road, 100 % right; APLS 0.286"
    points = [axes.collections[-1].get_offsets().data.tolist() for axes in (left, right)]
    assert points == [[[0, 40], [119, 40]], [[0, 40], [59, 40]]]  # x, y
    assert [len(axes.collections[-2].get_offsets()) for axes in (left, right)] == [2, 1]
    assert left.get_xlim() == (-0.5, 119.5) and left.get_ylim() == (79.5, -0.5)


def test_nothing_drawn_and_a_wider_tolerance(graphs):
    left, right = road_figure(torch.rand(1, 80, 120), nx.Graph(), graphs[0]).axes
    assert left.get_title(loc="left") == "Target: no road"
    assert right.get_title(loc="left") == "Prediction: 119 px of road, 0 % right; APLS 0.000"
    assert not left.collections
    left, _ = road_figure(torch.rand(1, 80, 120), *graphs, tolerance=100).axes
    assert left.get_title(loc="left") == "Target: 119 px of road, 100 % found"


def test_bad_input(graphs):
    with pytest.raises(ValueError, match="`image` must be floating point"):
        road_figure(torch.zeros(3, 8, 8, dtype=torch.uint8), *graphs)
    with pytest.raises(TypeError, match="undirected networkx graph"):
        road_figure(torch.zeros(3, 80, 120), graphs[0], nx.DiGraph())
