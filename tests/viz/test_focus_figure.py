"""The figure of active focus counts and places centres right, for images and for maps of any stride."""

import numpy as np
import pytest
import torch

from hggraph import Assignment, SoftSLIC
from hggraph.viz import focus_figure, save_figure

pytest.importorskip("matplotlib", reason="needs the extra `viz`")


def pair(image: torch.Tensor, attention: torch.Tensor, regions: int = 8) -> tuple[Assignment, Assignment]:
    clusterer = SoftSLIC(num_regions=regions, feature_scale="photo").eval()
    return clusterer(image[None]), clusterer(image[None], attention[None])


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    attention = torch.zeros(24, 32)
    attention[12:, 16:] = 1
    return torch.rand(3, 24, 32), attention


def test_centres_move_to_the_attention(scene, tmp_path):
    image, attention = scene
    figure = focus_figure(image, *pair(image, attention), attention)
    save_figure(figure, tmp_path / "focus.png", dpi=30)
    without, steered, *regions = titles(figure)
    assert regions == ["8 regions in their mean colours"] * 2
    counted = [int(title.split(", ")[1].removesuffix(" of them inside")) for title in (without, steered)]
    shown = [np.asarray(axes.collections[0].get_offsets()) for axes in figure.axes[:2]]
    assert [len(at) for at in shown] == [8, 8]
    assert counted == [int(((at[:, 0] >= 16) & (at[:, 1] >= 12)).sum()) for at in shown]
    assert counted[1] > counted[0]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1]
    for axes in figure.axes[:2]:  # a line around the attention, nothing over the photo
        lines = [line.get_path().vertices for line in axes.patches]
        assert len(lines) == 2 and all(ends.min(0).tolist() == [15.5, 11.5] for ends in lines)


def columns_of_mass(width: int) -> list[float]:
    """Return the mean columns of a map's two halves, the left one never narrower."""
    left = width // 2 + 1
    return [(left - 1) / 2, (left + width - 1) / 2]


@pytest.mark.parametrize(
    ("size", "stride"), [((96, 128), 8), ((97, 65), 8), ((100, 128), 4), ((33, 33), 8), ((9, 40), 1)]
)
def test_maps_of_a_network(size, stride):
    small = tuple(-(-side // stride) for side in size)
    labels = torch.arange(small[1]).expand(1, *small) // (small[1] // 2 + 1)
    regions = Assignment.from_labels(labels, 2)
    image = torch.zeros(1, *size)
    image[:, :, (small[1] // 2 + 1) * stride :] = 1
    figure = focus_figure(image, regions, regions, torch.zeros(size))
    assert titles(figure)[0] == "Without attention: 2 seeds"
    centers = np.asarray(figure.axes[0].collections[0].get_offsets())
    expected = [(at * stride, (small[0] - 1) / 2 * stride) for at in columns_of_mass(small[1])]
    np.testing.assert_allclose(centers, np.minimum(expected, (size[1] - 1, size[0] - 1)))
    picture = figure.axes[2].images[0].get_array()
    assert picture.shape == (*small, 3)
    assert picture[:, 0].max() == 0 and picture[:, -1].min() == 1  # the mean colours of either side
    borders = np.concatenate([border.get_path().vertices for border in figure.axes[2].patches])
    assert set(borders[:, 0]) == {(small[1] // 2 + 1) * stride - 0.5}


def test_bad_input(scene):
    image, attention = scene
    before, after = pair(image, attention)
    with pytest.raises(ValueError, match="`attention` must have the image's size"):
        focus_figure(image, before, after, attention[1:])
    with pytest.raises(ValueError, match="must be of one image and map"):
        focus_figure(image, before, Assignment.from_labels(torch.zeros(1, 3, 4, dtype=torch.long), 1), attention)
    two = Assignment.from_labels(torch.zeros(2, 24, 32, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="must be of one image and map"):
        focus_figure(image, two, two, attention)
    with pytest.raises(ValueError, match="smaller map"):
        focus_figure(image[:, :12], before, after, attention[:12])
    with pytest.raises(ValueError, match="`image` must be floating point"):
        focus_figure(image.byte(), before, after, attention)
