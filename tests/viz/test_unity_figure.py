"""The unity of each level on its cells, and the shares of what each level decides."""

import pytest
import torch

from hggraph.viz import unity_figure

pytest.importorskip("matplotlib", reason="needs the extra `viz`")


def test_levels_and_shares():
    coarse = torch.tensor([[0.95, 0.1]])
    fine = torch.zeros(2, 4)
    fine[0, 2] = 1.0  # one of the four cells of the mixed one
    figure = unity_figure(torch.rand(3, 16, 32), [coarse, fine])
    titles = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    assert titles == [
        "Image",
        "Unity of 16 x 16 pixels, reached by 50 %",
        "Unity of 8 x 8 pixels, reached by 12 %",
        "Decided coarse to fine: 50, 12, 38 %",
    ]
    drawn = figure.axes[1].get_images()[0].get_array()
    assert drawn[:, :16].min() == pytest.approx(0.95) and drawn[:, 16:].max() == pytest.approx(0.1)


def test_cells_may_reach_beyond_the_image():
    figure = unity_figure(torch.rand(1, 13, 30), [torch.ones(1, 2)])
    assert figure.axes[2].get_title(loc="left") == "Decided coarse to fine: 100, 0 %"
    assert figure.axes[1].get_images()[0].get_array().shape == (13, 30)


def test_wrong_levels():
    with pytest.raises(ValueError, match="1 to 4 levels, got 0"):
        unity_figure(torch.rand(3, 8, 8), [])
    with pytest.raises(ValueError, match="twice the sides"):
        unity_figure(torch.rand(3, 8, 8), [torch.rand(1, 1), torch.rand(3, 3)])
