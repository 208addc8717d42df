"""The curves as they are given, the dots on them, and the line of equal ratios."""

import pytest

from hggraph.schemes.hs3 import Grouping, TradeOff
from hggraph.viz import trade_off_figure

pytest.importorskip("matplotlib", reason="needs the extra `viz`")


def curve(*values):
    sizes = tuple(range(2, 2 + len(values)))
    return TradeOff(sizes, values, tuple(Grouping.identity(size) for size in sizes))


def test_curves_and_dots():
    output, tap = curve(0.9, 0.8, 0.6), curve(0.7, 0.5, 0.3)
    axes = trade_off_figure({"tap_2": tap}, {"tap_2": 3}, output).axes[0]
    lines = [(list(line.get_xdata()), [round(y, 6) for y in line.get_ydata()]) for line in axes.get_lines()]
    assert lines == [
        ([2, 3, 4], [90, 80, 60]),
        ([4], [60]),
        ([2, 3, 4], [70, 50, 30]),
        ([3], [50]),
        ([0, 4], [0, 60]),
    ]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["output: 4 classes, 60.0 %", "tap_2: 3 classes, 50.0 %"]
    assert len(trade_off_figure({}, {}, output, line=False).axes[0].get_lines()) == 2


def test_a_number_that_is_not_on_the_curve():
    with pytest.raises(ValueError, match=r"on the curve of 'tap_2', \(2, 3\), got 9"):
        trade_off_figure({"tap_2": curve(0.5, 0.4)}, {"tap_2": 9}, curve(0.6, 0.5))
