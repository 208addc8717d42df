"""Quadtrees against a recursion, attention against a loop, and HGConv on cells as on any region graph."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph import DenseHGConv
from hggraph.nn import CrossEntropy
from hggraph.schemes.specialize import UnityOutputLoss, unity_attention, unity_pyramid, unity_regions


def pyramid(batch, height, width, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, height << i, width << i, generator=generator) for i in range(levels)]


def cells_of(unity, threshold):
    """Return the cells (top, left, side) of one image's quadtree, in pixels of half the finest cells."""

    def visit(level, row, column):
        side = 2 ** (len(unity) - level)
        if level == len(unity) or unity[level][row, column] >= threshold:
            return [(row * side, column * side, side)]
        return [cell for r in (0, 1) for c in (0, 1) for cell in visit(level + 1, 2 * row + r, 2 * column + c)]

    height, width = unity[0].shape
    return [cell for row in range(height) for column in range(width) for cell in visit(0, row, column)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6))
def test_regions_are_the_leaves_of_a_quadtree(batch, height, width, levels, seed):
    unity = pyramid(batch, height, width, levels, seed)
    assignment = unity_regions(unity, 0.6)
    labels = assignment.labels
    assert assignment.size == (height << levels, width << levels)
    most = 0
    for image in range(batch):
        cells = sorted(cells_of([u[image] for u in unity], 0.6))
        most = max(most, len(cells))
        for number, (top, left, side) in enumerate(cells):  # numbered by their first pixels
            assert (labels[image, top : top + side, left : left + side] == number).all()
    assert assignment.num_regions == most


def test_the_true_pyramid_makes_pure_regions():
    target = torch.zeros(1, 32, 64, dtype=torch.long)
    target[:, 5:20, 30:50] = 1
    unity = [level.float() for level, _ in unity_pyramid(target, (32, 16, 8, 4, 2, 1))[:-1]]
    assignment = unity_regions(unity)
    for number in range(assignment.num_regions):
        inside = target[assignment.labels == number]
        assert len(inside) and len(inside.unique()) == 1
    assert assignment.num_regions < 300  # of 2048 pixels


def test_room_for_more_regions():
    unity = [torch.tensor([[[0.95, 0.3]]])]
    assert torch.equal(unity_regions(unity, num_regions=8).labels, unity_regions(unity).labels)
    with pytest.raises(ValueError, match="4"):
        unity_regions(unity, num_regions=4)


def test_thresholds():
    unity = pyramid(2, 2, 3, 2, 0)
    assert unity_regions(unity, 0).num_regions == 6 and unity_regions(unity, 1.1).num_regions == 8 * 12


def test_convolution_on_cells():
    """Regions of one image of a batch do not depend on the other, though it has more of them."""
    unity = [torch.tensor([[[0.95, 0.3]], [[0.1, 0.2]]])]
    x, conv = torch.randn(2, 4, 2, 4), DenseHGConv(4, 3)
    both = unity_regions(unity)
    assert both.num_regions == 8
    out = both.unpool(conv(both.pool(x), both.adjacency()))
    alone = unity_regions([unity[0][:1]])
    assert alone.num_regions == 5
    torch.testing.assert_close(out[:1], alone.unpool(conv(alone.pool(x[:1]), alone.adjacency())))


def test_attention_is_one_minus_the_mean():
    unity = pyramid(2, 2, 3, 2, 1)
    found = unity_attention(unity, (16, 24))
    for y in range(16):
        for x in range(24):
            expected = 1 - (unity[0][:, y // 8, x // 8] + unity[1][:, y // 4, x // 4]) / 2
            torch.testing.assert_close(found[:, y, x], expected)
    assert not unity_attention([unity[0].requires_grad_()], (2, 3)).requires_grad
    with pytest.raises(ValueError, match="at least one level, got none"):
        unity_attention([], (2, 2))


def test_the_loss_of_unity():
    """Each level's cells by a loop; a cell without labels does not count."""
    torch.manual_seed(0)
    target = torch.randint(2, (2, 8, 8))
    target[0, :4, :4] = 1  # a cell of one label
    target[1, :4, :4] = 255
    unity = [torch.randn(2, 1, 1, dtype=torch.float64), torch.randn(2, 2, 2, dtype=torch.float64)]
    outputs = {"out": torch.randn(2, 2, 8, 8), "aux": torch.randn(2, 2, 8, 8), "unity": unity}
    parts = UnityOutputLoss(CrossEntropy(), {"out": 1.0, "aux": 0.5, "unity": 2.0}, stride=4)(outputs, target)
    levels = []
    for logits, side in zip(unity, (8, 4), strict=True):
        values = []
        for image in range(2):
            for row in range(8 // side):
                for column in range(8 // side):
                    cell = target[image, row * side : (row + 1) * side, column * side : (column + 1) * side]
                    labels = set(cell.unique().tolist()) - {255}
                    if labels:
                        sign = 1 if len(labels) == 1 else -1
                        values.append(-torch.nn.functional.logsigmoid(sign * logits[image, row, column]))
        levels.append(torch.stack(values).mean())
    torch.testing.assert_close(parts["unity"], torch.stack(levels).mean())
    assert list(parts) == ["out", "aux", "unity", "loss"]
    torch.testing.assert_close(parts["loss"], parts["out"] + 0.5 * parts["aux"] + 2 * parts["unity"])


def test_wrong_unity():
    loss, target = UnityOutputLoss(CrossEntropy(), stride=4), torch.zeros(1, 8, 8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"level 0, of stride 4, must have shape \(1, 2, 2\).*got \(1, 4, 4\)"):
        loss({"out": torch.randn(1, 2, 8, 8), "unity": [torch.randn(1, 4, 4)]}, target)
    with pytest.raises(ValueError, match="must hold logits of unity under 'unity', got"):
        loss({"out": torch.randn(1, 2, 8, 8)}, target)
    assert list(loss.eval()({"out": torch.randn(1, 2, 8, 8)}, target)) == ["out", "loss"]
    assert (
        UnityOutputLoss(CrossEntropy(), stride=8)(
            {"out": torch.randn(1, 2, 8, 8), "unity": [torch.randn(1, 1, 1)]}, torch.full((1, 8, 8), 255)
        )["loss"]
        == 0
    )
