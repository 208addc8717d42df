"""Targets and relabelling against literal loops over cells and over ancestors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.schemes.specialize import RULES, relabel, unity_pyramid

STRIDES = [(8, 4, 2), (4, 2, 1), (6, 3), (4,), (1,), (2, 4)]


@st.composite
def label_maps(draw):
    """Draw labels of a few values in blocks, so that cells of all kinds occur, of any size, and strides."""
    strides = draw(st.sampled_from(STRIDES))
    height, width = draw(st.integers(1, 19)), draw(st.integers(1, 19))
    block = draw(st.sampled_from([1, 2, 4, 8]))
    ignore_index = draw(st.sampled_from([255, 0, -1]))
    rows, columns = -(-height // block), -(-width // block)
    values = draw(st.lists(st.sampled_from([1, 2, 3, ignore_index]), min_size=rows * columns, max_size=rows * columns))
    target = torch.tensor(values).view(1, rows, columns)
    target = target.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width].clone()
    for place in draw(st.lists(st.integers(0, height * width - 1), max_size=3)):
        target.view(-1)[place] = draw(st.sampled_from([1, 2, 3, ignore_index]))
    return target, strides, ignore_index


def cells_of(target, stride, coarsest, ignore_index):
    """Yield each cell's place and the labels of its pixels that count."""
    height, width = target.shape
    for i in range(-(-height // coarsest) * coarsest // stride):
        for j in range(-(-width // coarsest) * coarsest // stride):
            cell = target[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].flatten().tolist()
            yield i, j, [label for label in cell if label != ignore_index]


@settings(max_examples=150, deadline=None)
@given(label_maps())
def test_targets_are_a_loop(drawn):
    target, strides, ignore_index = drawn
    pyramid = unity_pyramid(target, strides, ignore_index)
    ordered = sorted(strides, reverse=True)
    assert len(pyramid) == len(ordered)
    for stride, (unity, label) in zip(ordered, pyramid, strict=True):
        assert unity.dtype == torch.bool and label.dtype == torch.int64 and unity.shape == label.shape
        seen = 0
        for i, j, labels in cells_of(target[0], stride, ordered[0], ignore_index):
            seen += 1
            assert bool(unity[0, i, j]) == (len(set(labels)) <= 1)
            if stride == min(ordered) and labels:
                wanted = min(labels, key=lambda value: (-labels.count(value), value))
            else:
                wanted = labels[0] if len(set(labels)) == 1 else ignore_index
            assert label[0, i, j] == wanted
        assert seen == unity.numel()


def literal_relabel(pyramid, predicted, rule, threshold, ignore_index):
    """Look at all ancestors of each cell."""
    out = []
    for level, (unity, label) in enumerate(pyramid):
        of_unity, of_label = torch.empty_like(label), label.clone()
        for b in range(label.shape[0]):
            for i in range(label.shape[1]):
                for j in range(label.shape[2]):
                    void = unity[b, i, j] and label[b, i, j] == ignore_index
                    of_unity[b, i, j] = 255 if void else int(unity[b, i, j])
                    for k in range(level):
                        place = b, i >> (level - k), j >> (level - k)
                        done = bool(pyramid[k][0][place]) and pyramid[k][1][place] != ignore_index
                        if rule == "true_positives":
                            done = done and predicted[k][place] >= threshold
                        if done and rule != "naive":
                            of_unity[b, i, j], of_label[b, i, j] = 255, ignore_index
        out.append((of_unity, of_label))
    return out


@settings(max_examples=100, deadline=None)
@given(label_maps(), st.sampled_from(RULES), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.01]), st.randoms())
def test_relabelling_is_a_loop(drawn, rule, threshold, random):
    target, strides, ignore_index = drawn
    pyramid = unity_pyramid(target, strides, ignore_index)
    predicted = [
        torch.tensor([random.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for _ in range(u.numel())]).view(u.shape)
        for u, _ in pyramid[:-1]
    ]
    found = relabel(pyramid, predicted, rule=rule, threshold=threshold, ignore_index=ignore_index)
    wanted = literal_relabel(pyramid, predicted, rule, threshold, ignore_index)
    for got, want in zip(found, wanted, strict=True):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_rules_meet_at_the_ends_of_the_threshold():
    torch.manual_seed(0)
    target = torch.randint(3, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    pyramid = unity_pyramid(target, (16, 8, 4))
    predicted = [torch.rand(u.shape) for u, _ in pyramid[:-1]]
    for threshold, rule in ((0.0, "ground_truth"), (1.5, "naive")):
        ours, other = relabel(pyramid, predicted, threshold=threshold), relabel(pyramid, rule=rule)
        assert all(torch.equal(a, b) for x, y in zip(ours, other, strict=True) for a, b in zip(x, y, strict=True))
    none, all_of_them = relabel(pyramid, rule="naive"), relabel(pyramid, rule="ground_truth")
    assert (all_of_them[-1][1] == 255).all() and not (none[-1][1] == 255).any()  # cells of 8 have one label


def test_of_several_images_each_is_for_itself():
    torch.manual_seed(0)
    target = torch.randint(3, (3, 10, 13))
    whole = unity_pyramid(target, (8, 4, 2))
    for b in range(3):
        alone = unity_pyramid(target[b : b + 1], (8, 4, 2))
        for x, y in zip(whole, alone, strict=True):
            assert torch.equal(x[0][b : b + 1], y[0]) and torch.equal(x[1][b : b + 1], y[1])
    assert [u.shape for u, _ in unity_pyramid(target[:0], (8, 4, 2))] == [(0, 2, 2), (0, 4, 4), (0, 8, 8)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_dtypes(dtype):
    target = torch.randint(3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    for (a, b), (c, d) in zip(unity_pyramid(target.to(dtype), (4, 2)), unity_pyramid(target, (4, 2)), strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_compiled():
    def both(target, predicted):
        return relabel(unity_pyramid(target, (4, 2)), [predicted])

    torch._dynamo.reset()
    target, predicted = torch.randint(2, (2, 8, 8)), torch.rand(2, 2, 2)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(target, predicted)
    for got, want in zip(compiled, both(target, predicted), strict=True):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


TARGET = torch.zeros(1, 8, 8, dtype=torch.long)
PYRAMID = unity_pyramid(TARGET, (4, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: unity_pyramid(TARGET, (32, 8, 4)), ValueError, r"`strides` must double .* Got \(32, 8, 4\)"),
        (lambda: unity_pyramid(TARGET, (12, 4)), ValueError, r"Got \(12, 4\)"),
        (lambda: unity_pyramid(TARGET, ()), ValueError, r"`strides` must be at least one whole number.* got \(\)"),
        (lambda: unity_pyramid(TARGET, 4), ValueError, "`strides` must be at least one whole number.* got 4"),
        (lambda: unity_pyramid(TARGET, (4, 2.0)), ValueError, "`strides` must be a whole number >= 1, got 2.0"),
        (lambda: unity_pyramid(TARGET, (2, 0)), ValueError, "`strides` must be a whole number >= 1, got 0"),
        (lambda: unity_pyramid(TARGET[0], (4, 2)), ValueError, r"`target` must have shape \(B, H, W\), got \(8, 8\)"),
        (lambda: unity_pyramid(TARGET.float(), (4, 2)), TypeError, "`target` must hold labels.*got torch.float32"),
        (lambda: unity_pyramid(TARGET, (4, 2), 0.5), ValueError, "`ignore_index` must be a whole number.* got 0.5"),
        (lambda: relabel(PYRAMID, rule="oracle"), ValueError, r"`rule` must be one of \('naive', .* got 'oracle'"),
        (lambda: relabel(PYRAMID), ValueError, "all of 2 levels but the finest.* got None"),
        (lambda: relabel(PYRAMID, []), ValueError, "all of 2 levels but the finest.* got 0"),
        (
            lambda: relabel(PYRAMID, [torch.rand(1, 4, 4)]),
            ValueError,
            r"shape \(1, 2, 2\) of its level, got \(1, 4, 4\)",
        ),
        (
            lambda: relabel(PYRAMID, [torch.rand(1, 2, 2)], threshold=-0.1),
            ValueError,
            "`threshold` must be .* got -0.1",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
