"""The mask figure shows the mean of the masks, corners on corners, in its true range."""

import numpy as np
import pytest
import torch

from hggraph.models.gald import gald
from hggraph.viz import mask_figure, save_figure

pytest.importorskip("matplotlib", reason="needs the extra `viz`")


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[2].get_xticklabels()]


def test_mean_resized_corners_on_corners():
    mask = torch.tensor([[[0.0, 0.2], [0.4, 0.6]], [[0.2, 0.4], [0.6, 1.0]]])
    figure = mask_figure(torch.rand(3, 5, 9), mask)
    assert titles(figure) == ["Image", "Mean of M over 2 channels", "Mean of M"]
    drawn = np.asarray(figure.axes[1].images[0].get_array())
    assert drawn.shape == (5, 9)
    np.testing.assert_allclose(drawn[[0, 0, -1, -1], [0, -1, 0, -1]], [0.1, 0.3, 0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(drawn[2, 4], (0.1 + 0.3 + 0.5 + 0.8) / 4, rtol=1e-6)
    assert figure.axes[1].images[0].get_clim() == pytest.approx((0.1, 0.8))
    assert figure.axes[2].get_xlim() == pytest.approx((0.1, 0.8))
    assert labels(figure) == ["0.100", "0.275", "0.450", "0.625", "0.800"]


def test_a_narrow_range_has_labels_that_differ():
    figure = mask_figure(torch.rand(1, 5, 9), torch.tensor([[0.531405, 0.531434]]))
    assert titles(figure)[1] == "Mean of M"
    assert labels(figure) == ["0.531405", "0.531419", "0.531434"]


def test_a_constant_mask():
    figure = mask_figure(torch.rand(3, 12, 16), torch.full((4, 3, 2), 0.5))
    assert labels(figure) == ["0.500"]
    assert figure.axes[1].images[0].get_clim() == (0, 1)


def test_large_images_are_drawn_smaller():
    figure = mask_figure(torch.rand(3, 20, 1040), torch.rand(3, 5, 9))
    assert figure.axes[1].images[0].get_array().shape == (10, 520)
    assert figure.axes[1].get_xlim() == (-0.5, 1039.5)


def test_of_a_network(tmp_path):
    net = gald("resnet18", "aspp", "v1", num_classes=3, channels=16).eval()
    image = torch.rand(3, 128, 160)
    mask = net.inspect(image[None])[0]
    figure = mask_figure(image, mask)
    save_figure(figure, tmp_path / "mask.png", dpi=30)
    assert titles(figure)[1] == "Mean of M over 16 channels"
    drawn = figure.axes[1].images[0].get_array()
    assert drawn.shape == (128, 160)
    assert drawn[0, 0] == pytest.approx(mask[:, 0, 0].mean().item())


@pytest.mark.parametrize("mask", [torch.rand(2, 3, 4, 5), torch.rand(4), torch.ones(3, 4).long(), torch.rand(0, 3, 4)])
def test_bad_mask(mask):
    with pytest.raises(ValueError, match=r"`mask` must be floating point of shape \(C, h, w\) or \(h, w\), got"):
        mask_figure(torch.rand(3, 8, 8), mask)


def test_bad_image():
    with pytest.raises(ValueError, match="`image` must be floating point"):
        mask_figure(torch.rand(4, 8, 8), torch.rand(3, 3))
