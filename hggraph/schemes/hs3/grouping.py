"""Classes merged into fewer: labels, confusion matrices, and files that people can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph._files import write_atomically

__all__ = ["Grouping", "merge_labels", "read_groupings", "write_groupings"]


class Grouping:
    """Which classes are one class at a tap.

    Args:
        groups: Classes from 0, each in exactly one group; no group is empty.

    Groups are kept in the order of their first classes: two groupings are equal if they merge the same classes.
    ``len(grouping)`` is the number of groups, `num_classes` that of the classes.

    Raises:
        ValueError: if a class is missing or comes twice, or a group is empty.

    Example:
        >>> grouping = Grouping([[2], [0, 3], [1]])
        >>> grouping.groups, len(grouping), grouping.num_classes
        (((0, 3), (1,), (2,)), 3, 4)
        >>> grouping.merge_labels(torch.tensor([3, 2, 255, 1])).tolist()
        [0, 2, 255, 1]
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        if not groups or not all(len(group) for group in groups):
            raise ValueError(f"`groups` must be groups of at least one class each, got {list(groups)}.")
        found = Counter(int(number) for group in groups for number in group)
        num_classes = max(found) + 1
        missing = [number for number in range(num_classes) if number not in found]
        twice = [number for number, count in found.items() if count > 1]
        if missing or twice or min(found) < 0:
            raise ValueError(
                f"`groups` must have each class from 0 to {num_classes - 1} once: missing are {missing}, repeated "
                f"{twice}, negative {[number for number in found if number < 0]}."
            )
        self.groups = tuple(sorted(tuple(sorted(int(number) for number in group)) for group in groups))
        self.num_classes = num_classes
        table = torch.empty(num_classes, dtype=torch.long)
        for number, group in enumerate(self.groups):
            table[list(group)] = number
        self.table = table  # (K,): the group of each class

    @classmethod
    def identity(cls, num_classes: int) -> Grouping:
        """Return each class as a group of its own."""
        return cls([[number] for number in range(num_classes)])

    @classmethod
    def of_labels(cls, labels: Sequence[int]) -> Grouping:
        """Return the grouping in which classes of equal labels are together.

        Example:
            >>> Grouping.of_labels([7, 3, 7]).groups
            ((0, 2), (1,))
        """
        return cls([[i for i, other in enumerate(labels) if other == label] for label in dict.fromkeys(labels)])

    def merge_labels(self, target: Tensor, ignore_index: int = 255) -> Tensor:
        """Return labels of groups, int64, of the target's shape; those ignored stay.

        Args:
            target: Labels in [0, num_classes) or `ignore_index`, of any shape.
            ignore_index: The label that does not count.

        Raises:
            ValueError: if a label lies outside (looked at on the CPU alone).
        """
        return merge_labels(target, self.table.to(target.device), ignore_index)

    def merge_confusion(self, confusion: Tensor) -> Tensor:
        """Return the confusion matrix ``(n, n)`` of the groups from that of the classes ``(K, K)``."""
        if tuple(confusion.shape) != (self.num_classes, self.num_classes):
            raise ValueError(
                f"`confusion` must have shape ({self.num_classes}, {self.num_classes}), got {tuple(confusion.shape)}."
            )
        merged = confusion.new_zeros(len(self), len(self))
        table = self.table.to(confusion.device)
        return merged.index_put_((table[:, None], table[None, :]), confusion, accumulate=True)

    def names(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """Return a name for each group.

        Example:
            >>> Grouping([[0, 2], [1]]).names(["car", "sky", "truck"])
            ('car + truck', 'sky')
        """
        if len(class_names) != self.num_classes:
            raise ValueError(f"`class_names` must be {self.num_classes} names, got {len(class_names)}.")
        return tuple(" + ".join(class_names[number] for number in group) for group in self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grouping) and self.groups == other.groups

    def __hash__(self) -> int:
        return hash(self.groups)

    def __repr__(self) -> str:
        return f"Grouping({[list(group) for group in self.groups]})"


def merge_labels(target: Tensor, table: Tensor, ignore_index: int = 255) -> Tensor:
    """Return what `Grouping.merge_labels` does, with its table ``(K,)`` on the target's device."""
    labels = target.long()
    counted = labels != ignore_index
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = counted & ((labels < 0) | (labels >= len(table)))
        if wrong.any():
            raise ValueError(
                f"`target` must have labels in [0, {len(table)}) or {ignore_index}, got "
                f"{labels[wrong].unique().tolist()[:5]}: the grouping was made for {len(table)} classes."
            )
    return torch.where(counted, table[torch.where(counted, labels, 0)], ignore_index)


def write_groupings(path: str | Path, groupings: Mapping[str, Grouping], class_names: Sequence[str]) -> None:
    """Write the groupings of taps as YAML with the classes' names, whole or not at all.

    ::

        classes: [road, pavement, car]
        taps:
          tap_1:
            road + pavement: [road, pavement]
            car: [car]

    Raises:
        ValueError: if the names do not fit.
        OSError: if it cannot be written.
    """
    import yaml

    if len(set(class_names)) != len(class_names):
        raise ValueError("`class_names` must be different names.")
    taps = {
        tap: {
            name: [class_names[number] for number in group]
            for name, group in zip(grouping.names(class_names), grouping.groups, strict=True)
        }
        for tap, grouping in groupings.items()
    }
    content = {"classes": list(class_names), "taps": taps}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_groupings(path: str | Path) -> dict[str, Grouping]:
    """Read what `write_groupings` writes, or what was written by hand in that form.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has another form, a name is none of the classes (the nearest are named), or a class is
            missing or comes twice in a tap.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected groupings in YAML, got none ({error}).") from error
    if not isinstance(content, dict) or not content.get("classes") or not isinstance(content.get("taps"), dict):
        raise ValueError(f"{path}: expected `classes`, a list of names, and `taps`, groups of names for each tap.")
    classes = [str(name) for name in content["classes"]]
    return {tap: _of_names(f"{path}: {tap}", groups, classes) for tap, groups in content["taps"].items()}


def _of_names(where: str, groups: Any, classes: list[str]) -> Grouping:
    import difflib

    if isinstance(groups, dict):
        groups = list(groups.values())
    if not isinstance(groups, list) or not all(isinstance(group, list) and group for group in groups):
        raise ValueError(f"{where}: expected lists of class names by the groups' names, got {groups!r:.200}.")
    names = [str(name) for group in groups for name in group]
    unknown = [name for name in names if name not in classes]
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=3, cutoff=0.4) or classes[:5]
        raise ValueError(f"{where}: {unknown[0]!r} is none of the classes; the nearest are {near}.")
    missing = [name for name in classes if name not in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if missing or twice:
        raise ValueError(f"{where}: expected each class once; missing are {missing}, repeated {twice}.")
    return Grouping([[classes.index(str(name)) for name in group] for group in groups])


def check_confusion(confusion: Tensor) -> Tensor:
    """Return a confusion matrix ``(K, K)`` in float64, once it is one: square, of numbers from 0, K at least 2."""
    check_ndim("confusion", confusion, 2, shape="(K, K)")
    if confusion.shape[0] != confusion.shape[1] or len(confusion) < 2:
        raise ValueError(f"`confusion` must have shape (K, K) with K >= 2 classes, got {tuple(confusion.shape)}.")
    values = confusion.double()
    if not (values.isfinite() & (values >= 0)).all():
        raise ValueError("`confusion` must hold finite counts >= 0.")
    return values
