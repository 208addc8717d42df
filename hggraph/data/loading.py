"""Batches that depend on seed and epoch alone: the same on any number of processes, and after a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from hggraph._check import check_positive

__all__ = ["EpochBatches", "ResumableLoader", "SeededSamples", "SplitEvenly", "collate", "length_of"]

Key = tuple[int, int]  # epoch, index


class SeededSamples(Dataset[Any]):
    """A data set whose random transforms are those of (seed, epoch, index), whoever loads it and when.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``, random by torch's CPU generator alone.
        seed: Any whole number, not negative.

    A key is a pair (epoch, index). The generator of the process is left as it was.

    Example:
        >>> class Noise:
        ...     def __getitem__(self, index):
        ...         return torch.rand(1).item()
        >>> samples = SeededSamples(Noise(), seed=0)
        >>> samples[0, 1] == samples[0, 1], samples[0, 1] == samples[1, 1]
        (True, False)
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # the default generator alone: torch.manual_seed would seed those of GPUs too
            torch.default_generator.manual_seed(_seed_of(self.seed, epoch, index))
            return self.dataset[index]


class EpochBatches(Sampler[list[Key]]):
    """Shuffled batches of keys (epoch, index), the same samples in the same step on any number of processes.

    In each step the processes together take the next ``world_size * batch_size`` samples of the epoch's order, so that
    two processes with batches of 4 see what one with batches of 8 does. The rest of an epoch is left out.

    Args:
        length: Samples in the data set.
        batch_size: Samples per process and step.
        seed: Of the order.
        rank: Of this process.
        world_size: Number of processes.
        begun: Says where training is, epoch and samples taken of it: iteration goes on from there. None: the start.
        shuffle: Take each epoch in another order; if not, always in that of the data set.

    Raises:
        ValueError: if the data set does not fill one step.

    Example:
        >>> batches = EpochBatches(10, 4, begun=lambda: (1, 4))
        >>> len(batches), [[epoch for epoch, _ in batch] for batch in batches]
        (2, [[1, 1, 1, 1]])
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        begun: Callable[[], tuple[int, int]] | None = None,
        shuffle: bool = True,
    ) -> None:
        check_positive("batch_size", batch_size)
        self.per_step = batch_size * world_size
        if length < self.per_step:
            raise ValueError(
                f"The training set has {length} samples, fewer than one step takes: {self.per_step}, batches of "
                f"{batch_size} on {world_size} processes. Use smaller batches."
            )
        self.length, self.batch_size, self.seed, self.rank = length, batch_size, seed, rank
        self.begun, self.shuffle = begun, shuffle

    def __len__(self) -> int:
        return self.length // self.per_step

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, taken = (0, 0) if self.begun is None else self.begun()
        generator = torch.Generator().manual_seed(_seed_of(self.seed, epoch))
        order = torch.randperm(self.length, generator=generator).tolist() if self.shuffle else range(self.length)
        for first in range(taken, self.length - self.per_step + 1, self.per_step):
            start = first + self.rank * self.batch_size
            yield [(epoch, index) for index in order[start : start + self.batch_size]]


class SplitEvenly(Sampler[Key]):
    """Every sample once, in order, over all processes: what evaluation needs to be exact.

    Args:
        length: Samples in the data set.
        rank: Of this process.
        world_size: Number of processes; the first ones may get one sample more.

    Example:
        >>> [list(SplitEvenly(5, rank, 2)) for rank in (0, 1)]
        [[(0, 0), (0, 2), (0, 4)], [(0, 1), (0, 3)]]
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        return iter((0, index) for index in self.indices)


class ResumableLoader(DataLoader[Any]):
    """A loader that needs no state of its own: its `EpochBatches` asks how far training is."""

    def __iter__(self) -> Any:
        # asked when the first batch is: some strategies restore a checkpoint after Lightning has made the iterator
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing; that there is a state tells Lightning that the loader resumes inside an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the samples' tensors, and say which samples are at fault when sizes differ.

    Samples with boxes, of which each image has its own number, become lists, one entry for each sample.

    Raises:
        ValueError: if a tensor has another shape than that of the first sample.

    Example:
        >>> batch = collate([{"image": torch.zeros(3, 2, 2), "name": "a"}, {"image": torch.ones(3, 2, 2), "name": "b"}])
        >>> batch["image"].shape, batch["name"]
        (torch.Size([2, 3, 2, 2]), ['a', 'b'])
    """
    first = samples[0]
    if "boxes" in first:
        return {key: [sample[key] for sample in samples] for key in first}
    for key, value in first.items():
        for sample in samples[1:]:
            if isinstance(value, torch.Tensor) and sample[key].shape != value.shape:
                names = [str(one.get("name", "?")) for one in (first, sample)]
                raise ValueError(
                    f"Samples of one batch must have equal sizes, got {key!r} of shape {tuple(value.shape)} in "
                    f"{names[0]} and {tuple(sample[key].shape)} in {names[1]}. Use batches of 1, or a transform with a "
                    f"fixed size."
                )
    batch: dict[str, Any] = default_collate(samples)
    return batch


def length_of(batch: dict[str, Any]) -> int:
    """Return how many samples are in a batch that `collate` made.

    Example:
        >>> length_of({"image": torch.zeros(4, 3, 2, 2)}), length_of({"image": [torch.zeros(3, 2, 2)]})
        (4, 1)
    """
    return len(next(iter(batch.values())))


def _seed_of(*numbers: int) -> int:
    """Return a seed that differs for any two sequences of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
