"""The error figure paints wrong pixels, leaves out those that do not count, and compares two networks."""

import numpy as np
import pytest
import torch

from hggraph.viz import error_figure, prediction_figure, save_figure

pytest.importorskip("matplotlib", reason="needs the extra `viz`")

RED, GREY = (0.84, 0.0, 0.13), (0.42, 0.45, 0.5)


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return an image, its labels, of which a row of ten does not count, and a prediction with 6 errors in 70."""
    target = torch.zeros(8, 10, dtype=torch.long)
    target[:, 5:] = 1
    target[7] = 255
    prediction = target.clone()
    prediction[7] = 0
    prediction[:6, 5] = 0
    return torch.rand(3, 8, 10), target, prediction


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def picture(axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_wrong_and_ignored_pixels(scene, tmp_path):
    image, target, prediction = scene
    figure = error_figure([image], [target], [prediction])
    save_figure(figure, tmp_path / "errors.png", dpi=30)
    assert titles(figure) == ["Image", "8.6 % wrong"]
    drawn = picture(figure.axes[1])
    np.testing.assert_allclose(drawn[:6, 5], np.tile(RED, (6, 1)), rtol=1e-6)
    np.testing.assert_allclose(drawn[7], np.tile(GREY, (10, 1)), rtol=1e-6)
    right = np.ones((8, 10), dtype=bool)
    right[7] = right[:6, 5] = False
    np.testing.assert_allclose(drawn[right], 0.68 + 0.32 * image.permute(1, 2, 0).numpy()[right], rtol=1e-5)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["wrong", "does not count"]


def test_two_networks(scene):
    image, target, prediction = scene
    figure = error_figure([image] * 2, [target] * 2, [target, prediction], before=[prediction] * 2, names=["a", "b"])
    assert titles(figure) == [
        *["a", "Before, 8.6 % wrong", "After, 0.0 % wrong"],
        *["b", "Before, 8.6 % wrong", "After, 8.6 % wrong"],
    ]
    np.testing.assert_allclose(picture(figure.axes[1])[0, 5], RED, rtol=1e-6)
    assert picture(figure.axes[2])[:7].min() >= 0.68
    named = error_figure([image], [target], [target], before=[prediction], networks=("ASPP", "ASPP + LDv2"))
    assert titles(named)[1:] == ["ASPP, 8.6 % wrong", "ASPP + LDv2, 0.0 % wrong"]


def test_another_ignored_label_and_none_that_counts(scene):
    image, target, prediction = scene
    figure = error_figure([image], [target], [prediction], ignore_index=1)
    assert titles(figure)[1] == "22.2 % wrong"  # the last row, in 45 pixels
    nothing = torch.full_like(target, 255)
    assert titles(error_figure([image], [nothing], [prediction]))[1] == "0.0 % wrong"


def test_pixels_that_stand_for_several_mix_colours():
    target = torch.zeros(4, 2000, dtype=torch.long)
    prediction = target.clone()
    prediction[0, :2], prediction[:2, 4] = 1, 1
    figure = error_figure([torch.ones(1, 4, 2000)], [target], [prediction])
    drawn = picture(figure.axes[1])
    assert drawn.shape == (2, 1000, 3)
    np.testing.assert_allclose(drawn[0, 0], 0.5 + 0.5 * np.array(RED), rtol=1e-6)
    np.testing.assert_allclose(drawn[0, 1], 1)
    np.testing.assert_allclose(drawn[0, 2], 0.5 + 0.5 * np.array(RED), rtol=1e-6)


@pytest.mark.parametrize(
    "draw", [error_figure, lambda *sets, **options: prediction_figure(*sets, [(0, 0, 0)], **options)]
)
def test_bad_input(scene, draw):
    image, target, prediction = scene
    with pytest.raises(ValueError, match="must be as many, at least one, got 1, 2 and 1"):
        draw([image], [target] * 2, [prediction])
    with pytest.raises(ValueError, match="at least one, got 0, 0 and 0"):
        draw([], [], [])
    with pytest.raises(ValueError, match=r"must have the image's size \(8, 10\), got \(8, 10\) and \(7, 10\)"):
        draw([image], [target], [prediction[1:]])
    with pytest.raises(ValueError, match="`image` must be floating point"):
        draw([image.byte()], [target], [prediction])
    with pytest.raises(ValueError, match="`names` must be as many as `images`, 1, got 2"):
        draw([image], [target], [prediction], names=["a", "b"])


def test_bad_predictions_before(scene):
    image, target, prediction = scene
    with pytest.raises(ValueError, match="got 1, 1 and 2"):
        error_figure([image], [target], [prediction], before=[prediction] * 2)
