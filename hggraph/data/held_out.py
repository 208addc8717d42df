"""A part of the training images held out, for analysis: neither trained on nor validated on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from hggraph.data.mask_reader import DatasetError

__all__ = ["HeldOut"]


class HeldOut(Dataset[dict[str, Any]]):
    """A data set whose training images are split in two, the same way on every machine (HS3 Sec. 3.1.1).

    Args:
        root: Folder of the data set.
        split: ``"reduced"``: the training images but those held out; ``"analysis"``: those held out; anything else is
            the data set's own, ``"train"`` with all training images among it.
        dataset: Makes the data set: ``dataset(root, split)``, for example `CamVid`.
        share: Held out, in (0, 1); at least one image.
        seed: Of the choice.
        source: The split that is split.

    Items, classes, colours and the transform are the data set's; `names` are those of its images that are here.

    Raises:
        DatasetError: as the data set does, or if there are too few images to split.
        ValueError: if `share` is not as said.

    Example:
        >>> class Numbers(Dataset):
        ...     def __init__(self, root, split):
        ...         self.names = [f"{split} {i}" for i in range(10)]
        ...     def __len__(self):
        ...         return 10
        ...     def __getitem__(self, index):
        ...         return self.names[index]
        >>> reduced, analysis = (HeldOut("", split, dataset=Numbers, share=0.2) for split in ("reduced", "analysis"))
        >>> len(reduced), len(analysis), set(reduced.names) & set(analysis.names)
        (8, 2, set())
    """

    def __init__(
        self,
        root: str,
        split: str = "reduced",
        *,
        dataset: Callable[[str, str], Dataset[Any]],
        share: float = 0.1,
        seed: int = 0,
        source: str = "train",
    ) -> None:
        if not 0 < share < 1:
            raise ValueError(f"`share` must be in (0, 1), got {share}.")
        halves = ("reduced", "analysis")
        self.source = source if split in halves else split
        self.base = cast(Any, dataset(root, self.source))
        self.split = split
        total = len(self.base)
        self.indices = list(range(total))
        if split in halves:
            if total < 2:
                raise DatasetError(f"HeldOut: expected at least 2 images to split, got {total}.")
            count = min(max(1, round(share * total)), total - 1)
            order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
            self.indices = sorted(order[:count] if split == "analysis" else order[count:])

    @property
    def names(self) -> list[str]:
        """The names of the images; of a data set without names, its split and their numbers."""
        names = getattr(self.base, "names", None)
        return [f"{self.source} {index}" if names is None else str(names[index]) for index in self.indices]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        found: tuple[str, ...] = self.base.classes
        return found

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """A colour for each class."""
        found: tuple[tuple[int, int, int], ...] = self.base.palette
        return found

    @property
    def transform(self) -> Any:
        """Takes a sample and returns another."""
        return self.base.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.base.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.base[self.indices[index]]
        return sample

    def __repr__(self) -> str:
        return f"HeldOut({self.split}: {len(self)} of {self.base!r})"

    def check(self, labels: bool = False, *, sizes: bool = True) -> None:
        """Look at every file of the data set, if it has such a method; see there."""
        check = getattr(self.base, "check", None)
        if check is not None:
            check(labels, sizes=sizes)
