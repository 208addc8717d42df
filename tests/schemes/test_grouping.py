"""Groupings against literal loops; files that people write; errors that name the classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.schemes.hs3 import Grouping, read_groupings, write_groupings

NAMES = ("sky", "road", "car", "truck", "tree")
labelings = st.lists(st.integers(0, 5), min_size=1, max_size=9)


@settings(max_examples=60)
@given(labelings, st.integers(0, 10**6))
def test_merging_is_a_loop_over_pixels(labels, seed):
    grouping, classes = Grouping.of_labels(labels), len(labels)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes + 1, (2, 5, 4), generator=generator)
    target[target == classes] = 255
    merged = grouping.merge_labels(target)
    for old, new in zip(target.flatten().tolist(), merged.flatten().tolist(), strict=True):
        assert new == 255 if old == 255 else old in grouping.groups[new]
    assert len(grouping) == len(set(labels)) and grouping.num_classes == classes


@settings(max_examples=40)
@given(labelings, st.integers(0, 10**6))
def test_merged_confusion_is_that_of_merged_labels(labels, seed):
    grouping, classes = Grouping.of_labels(labels), len(labels)
    generator = torch.Generator().manual_seed(seed)
    target, prediction = torch.randint(classes, (2, 200), generator=generator)

    def confusion(rows, columns, size):
        return torch.bincount(rows * size + columns, minlength=size * size).view(size, size)

    merged = confusion(grouping.merge_labels(target), grouping.merge_labels(prediction), len(grouping))
    assert torch.equal(grouping.merge_confusion(confusion(target, prediction, classes)), merged)


def test_equal_whatever_the_order():
    assert Grouping([[3, 1], [0], [2]]) == Grouping([[2], [1, 3], [0]]) != Grouping([[0], [1], [2], [3]])
    assert hash(Grouping([[1], [0]])) == hash(Grouping.identity(2)) and Grouping.identity(2) != "a"
    assert Grouping([[1], [0]]).names(["a", "b"]) == ("a", "b")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [3]], r"missing are \[2\], repeated \[\]"),
        ([[0, 1], [1, 2]], r"missing are \[\], repeated \[1\]"),
        ([[-1, 0], [1]], r"negative \[-1\]"),
        ([[0], []], "groups of at least one class"),
        ([], "groups of at least one class"),
    ],
)
def test_wrong_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        Grouping(groups)


def test_wrong_labels_and_matrices():
    grouping = Grouping([[0, 1], [2]])
    with pytest.raises(ValueError, match=r"labels in \[0, 3\) or 255, got \[7\]"):
        grouping.merge_labels(torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"shape \(3, 3\), got \(2, 2\)"):
        grouping.merge_confusion(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="must be 3 names, got 1"):
        grouping.names(["a"])


def test_files_are_read_back(tmp_path):
    groupings = {"tap_2": Grouping([[0], [1], [2, 3], [4]]), "tap_3": Grouping.identity(5)}
    write_groupings(tmp_path / "groupings.yaml", groupings, NAMES)
    text = (tmp_path / "groupings.yaml").read_text()
    assert "car + truck: [car, truck]" in text and read_groupings(tmp_path / "groupings.yaml") == groupings


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("{t: {a: [sky, road], b: [car, tree]}}", r"t: expected each class once; missing are \['truck'\]"),
        ("{t: {a: [sky, road, car], b: [car, truck, tree]}}", r"repeated \['car'\]"),
        ("{t: {a: [sky, rood, car, truck, tree]}}", r"'rood' is none of the classes; the nearest are \['road'"),
        ("{t: 5}", "expected lists of class names"),
        ("5", "expected `classes`, a list of names, and `taps`"),
    ],
)
def test_wrong_files(tmp_path, taps, message):
    path = tmp_path / "by_hand.yaml"
    path.write_text(f"classes: [{', '.join(NAMES)}]\ntaps: {taps}\n")
    with pytest.raises(ValueError, match=message):
        read_groupings(path)
    path.write_text("a: [b")
    with pytest.raises(ValueError, match="expected groupings in YAML"):
        read_groupings(path)


def test_lists_without_names_are_read_too(tmp_path):
    (tmp_path / "by_hand.yaml").write_text(
        f"classes: [{', '.join(NAMES)}]\ntaps: {{t: [[sky], [road, car, truck, tree]]}}"
    )
    assert read_groupings(tmp_path / "by_hand.yaml") == {"t": Grouping([[0], [1, 2, 3, 4]])}
