"""The stencil: an ordered set of displacements, and the one place where directions are defined.

Conventions, used on every floor and tested here once:

- axes are (y, x), for video (t, y, x); y points down, x right, pixel centres lie at integers;
- a displacement is source minus target, ``pos[j] - pos[i]``, so direction k of target i reads the node at
  ``pos[i] + offset_k``, as tap k of a convolution does;
- displacements stand in row-major order with the centre in its place, exactly the flattened tap order of
  ``Conv2d.weight``;
- edges follow PyG: ``edge_index[0]`` is the source j, ``edge_index[1]`` the target i.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

__all__ = ["Stencil", "whole_offsets"]


@dataclass(frozen=True, repr=False)
class Stencil:
    """An ordered, immutable set of K integer displacements; it types the edges of a graph.

    An edge from source j to target i has type k when ``pos[j] - pos[i] == offsets[k]`` (HG-Conv, Eq. 1 and 2,
    where the set is the nine directions of a 3x3 convolution).

    Args:
        offsets: K displacements (pixels), each a sequence of the same number of whole numbers, without repetition.

    Raises:
        ValueError: if `offsets` is empty, mixes dimensions, repeats a displacement or is not made of whole numbers.

    Example:
        >>> s = Stencil.square(3)
        >>> len(s), s.center, s.offsets[0], s.opposite[0]
        (9, 4, (-1, -1), 8)
    """

    offsets: tuple[tuple[int, ...], ...]

    def __init__(self, offsets: Iterable[Iterable[int]]) -> None:
        rows = whole_offsets(offsets)
        if not rows:
            raise ValueError("`offsets` must hold at least one displacement, got none.")
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ValueError(f"`offsets` must all have the same number of axes (at least 1), got {rows}.")
        if len(set(rows)) != len(rows):
            raise ValueError(f"`offsets` must not repeat a displacement, got {rows}.")
        object.__setattr__(self, "offsets", tuple(rows))

    @classmethod
    def square(
        cls, kernel_size: int | Iterable[int] = 3, *, dilation: int | Iterable[int] = 1, ndim: int = 2
    ) -> Stencil:
        """Return the taps of a convolution with zero padding ``dilation * (kernel_size // 2)``.

        Args:
            kernel_size: Taps per axis, one number or one per axis, at least 1. Even sizes reach one further to
                the negative side, as that padding makes a convolution do.
            dilation: Pixels between taps, one number or one per axis, at least 1.
            ndim: Number of axes when `kernel_size` is one number: 2 for images, 3 for video.

        Returns:
            A stencil of ``kernel_size ** ndim`` displacements in the order of ``Conv2d.weight``'s taps.

        Raises:
            ValueError: if a number is not whole or below 1, or the two arguments have different numbers of axes.

        Example:
            >>> Stencil.square(2).offsets
            ((-1, -1), (-1, 0), (0, -1), (0, 0))
        """
        per_axis = {"kernel_size": kernel_size, "dilation": dilation}
        given = {name: tuple(value) for name, value in per_axis.items() if isinstance(value, tuple | list)}
        ndim = len(next(iter(given.values()))) if given else _whole("ndim", ndim)
        sizes, steps = (
            tuple(_whole(name, number) for number in given.get(name, (value,) * ndim))
            for name, value in per_axis.items()
        )
        if len(sizes) != len(steps):
            raise ValueError(f"`kernel_size` {sizes} and `dilation` {steps} must have the same number of axes.")
        if not sizes or min(sizes) < 1 or min(steps) < 1:
            raise ValueError(f"`kernel_size`, `dilation`, `ndim` must be >= 1, got {kernel_size}, {dilation}, {ndim}.")
        axes = [[step * (tap - size // 2) for tap in range(size)] for size, step in zip(sizes, steps, strict=True)]
        return cls(product(*axes))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.offsets[0])

    @property
    def center(self) -> int | None:
        """Index of the zero displacement, or None when the stencil has none."""
        zero = (0,) * self.ndim
        return self.offsets.index(zero) if zero in self.offsets else None

    @property
    def opposite(self) -> tuple[int | None, ...]:
        """For each direction k the index of ``-offsets[k]``, or None where the stencil lacks it."""
        index = {offset: k for k, offset in enumerate(self.offsets)}
        return tuple(index.get(tuple(-value for value in offset)) for offset in self.offsets)

    @property
    def reach(self) -> tuple[int, ...]:
        """Largest absolute displacement per axis (pixels)."""
        return tuple(max(abs(offset[axis]) for offset in self.offsets) for axis in range(self.ndim))

    @property
    def as_square(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Kernel size and dilation of the convolution whose taps these are, per axis; None if it is none's.

        Example:
            >>> Stencil.square(3, dilation=2).as_square, Stencil([(0, 1), (2, 0)]).as_square
            (((3, 3), (2, 2)), None)
        """
        axes = [sorted({offset[axis] for offset in self.offsets}) for axis in range(self.ndim)]
        sizes = tuple(len(values) for values in axes)
        steps = tuple(values[1] - values[0] if len(values) > 1 else 1 for values in axes)
        return (sizes, steps) if self == Stencil.square(sizes, dilation=steps) else None

    def without_center(self) -> Stencil:
        """Return the same stencil without the zero displacement.

        Raises:
            ValueError: if nothing would be left.
        """
        return Stencil(offset for offset in self.offsets if any(offset))

    def __len__(self) -> int:
        """Return the number of displacements K."""
        return len(self.offsets)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Iterate over the displacements in order."""
        return iter(self.offsets)

    def __repr__(self) -> str:
        """Show squares by their taps and everything else by its displacements."""
        square = self.as_square
        if square is None:
            return f"Stencil({self.offsets})"
        sizes, steps = square
        size = "x".join(map(str, sizes))
        return f"Stencil({size}, dilation={steps[0] if len(set(steps)) == 1 else steps})"


def whole_offsets(offsets: Iterable[Iterable[int]]) -> list[tuple[int, ...]]:
    """Return displacements as tuples of integers.

    Raises:
        ValueError: if one is no sequence of whole numbers.

    Example:
        >>> whole_offsets([[0.0, -1], (2, 3)])
        [(0, -1), (2, 3)]
    """
    try:
        rows = [tuple(offset) for offset in offsets]
    except TypeError:
        raise ValueError(f"`offsets` must be a sequence of displacements such as (0, 1), got {offsets!r}.") from None
    return [tuple(_whole("offsets", value) for value in row) for row in rows]


def _whole(name: str, value: Any) -> int:
    """Return a whole number of any numeric type as an integer; a bool, a string, NaN are none."""
    if type(value) is int:
        return value
    try:
        whole = int(value)
        # a string equals no number; a bool, of any library, compares as one
        if whole == value and "bool" not in f"{type(value)} {getattr(value, 'dtype', None)}":
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"`{name}` must be whole pixels, got {value!r}.")
