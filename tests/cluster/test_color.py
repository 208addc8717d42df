"""Colours against scikit-image, and the points in which photos are clustered."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hggraph.cluster import photo_features, rgb_to_lab

rgb2lab = pytest.importorskip("skimage.color").rgb2lab


def test_lab_is_scikit_image_s():
    """Colours over the whole cube, its corners, greys, and dark ones below both thresholds."""
    cube = torch.cartesian_prod(*[torch.linspace(0, 1, 12, dtype=torch.float64)] * 3)
    dark = torch.rand(200, 3, dtype=torch.float64) * 0.06
    rgb = torch.cat([cube, dark]).T.view(1, 3, -1, 8)
    expected = rgb2lab(rgb[0].permute(1, 2, 0).numpy())
    assert_close(rgb_to_lab(rgb)[0].permute(1, 2, 0), torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_lab_of_single_colours():
    """The published values of sRGB's primaries (D65), to the digits given there."""
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    expected = torch.tensor(
        [
            [53.24, 80.09, 67.20],
            [87.73, -86.18, 83.18],
            [32.30, 79.19, -107.86],
            [100.0, 0, 0],
            [0, 0, 0],
        ]
    )
    lab = rgb_to_lab(colors.T.reshape(1, 3, 1, 5)).view(3, 5).T
    assert_close(lab, expected, rtol=0, atol=0.02)


def test_lab_of_dark_and_out_of_range_colours_has_a_gradient():
    values = [0.0, 0.02, 0.04045, 0.0405, 0.3, 0.99, 1.0, -0.1, 1.2]
    rgb = torch.tensor(values).repeat(3).view(1, 3, 1, -1).requires_grad_()
    lab = rgb_to_lab(rgb)
    (grad,) = torch.autograd.grad(lab, rgb, torch.randn_like(lab))
    assert torch.isfinite(grad).all() and grad.all()


def test_lab_gradcheck():
    rgb = torch.rand(1, 3, 2, 3, dtype=torch.float64).mul(0.9).add(0.05).requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_lab, (rgb,))


@pytest.mark.parametrize(("size", "num_regions"), [((8, 8), 4), ((1, 9), 3), ((12, 5), 60)])
def test_photo_features(size, num_regions):
    """SSN's scaling: 0.26 Lab, and 2.5 over the regions' spacing for positions."""
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    points = photo_features(image, num_regions)
    assert points.shape == (2, 5, *size)
    assert_close(points[:, :3], 0.26 * rgb_to_lab(image), rtol=0, atol=1e-12)
    spacing = np.sqrt(size[0] * size[1] / num_regions)
    for y in range(size[0]):
        for x in range(size[1]):
            expected = torch.tensor([[y, x]] * 2).double() * 2.5 / spacing
            assert_close(points[:, 3:, y, x], expected, rtol=0, atol=1e-12)


def test_one_spacing_is_about_ten_units_of_lab():
    """As the docstring says: 2.5 / 0.26 = 9.6."""
    points = photo_features(torch.zeros(1, 3, 20, 20, dtype=torch.float64), 16)  # spacing 5
    apart = (points[0, :, 3, 2] - points[0, :, 8, 2]).norm()
    assert apart.item() / 0.26 == pytest.approx(9.6, abs=0.1)


def test_grey_is_three_equal_channels():
    grey = torch.rand(2, 1, 4, 5)
    assert torch.equal(photo_features(grey, 4), photo_features(grey.expand(-1, 3, -1, -1), 4))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_errors(channels):
    image = torch.rand(1, channels, 2, 2)
    with pytest.raises(ValueError, match=f"`rgb` must have 3 channels, got .*, {channels}, 2, 2"):
        rgb_to_lab(image)
    if channels != 1:
        with pytest.raises(ValueError, match=r"`image` must have 3 channels \(or 1, grey\), got"):
            photo_features(image, 1)
    with pytest.raises(TypeError, match=r"`rgb` must be floating point, got torch\.uint8"):
        rgb_to_lab(image.byte())
