"""Overlapping windows along an axis, with weights that blend what is predicted in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hggraph._check import check_positive

__all__ = ["LIMIT", "Windows", "blend", "cut"]

LIMIT = 512 << 20  # bytes of unfinished rows that `blend` keeps


class Windows(NamedTuple):
    """Where windows begin along one axis, and how much of each counts: ``(n, length of a window)``, float32."""

    starts: list[int]
    weights: Tensor

    @property
    def ends(self) -> list[int]:
        """Where windows end."""
        return [start + self.weights.shape[1] for start in self.starts]

    def finished(self, align: int) -> list[int]:
        """Return up to where, in multiples of `align`, no window after each one counts."""
        return [start // align * align for start in self.starts[1:]] + self.ends[-1:]

    def within(self, first: int, last: int) -> Windows:
        """Return the windows that count between two pixels."""
        picked = [
            i
            for i, start in enumerate(self.starts)
            if start < last and self.weights[i, max(first - start, 0) : last - start].any()
        ]
        return Windows([self.starts[i] for i in picked], self.weights[picked])


def cut(length: int, window: int, overlap: int | float, margin: int | None = None) -> Windows:
    """Cut an axis into equally long windows that cover it, with weights that sum to 1 in each pixel.

    As few windows as the overlap allows, spread evenly, none reaching beyond the axis. Where a window ends inside it,
    its weight is 0 for `margin` pixels, rises as half a Hann window over the rest of the overlap but another
    `margin`, and is then 1, all before weights are divided by their sum. The weight of a window in the plane is the
    product of those of its axes, and sums to 1 as well.

    Args:
        length: Pixels along the axis.
        window: Pixels of a window; an axis shorter than that is one window.
        overlap: Least overlap of neighbours: pixels if it is an int, a fraction of the window if it is a float.
        margin: Pixels at a window's inner ends that do not count, at most half the overlap; a quarter of it when None.
            A network that sees `margin` pixels far gives in windows what it gives on the whole image.

    Returns:
        The `Windows`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> windows = cut(20, 8, 4)
        >>> windows.starts, windows.weights[1]
        ([0, 4, 8, 12], tensor([0.0000, 0.1464, 0.8536, 1.0000, 1.0000, 0.8536, 0.1464, 0.0000]))
    """
    check_positive("length", length)
    check_positive("window", window)
    shared = _pixels(overlap, window)
    margin = shared // 4 if margin is None else margin
    if isinstance(margin, bool) or not isinstance(margin, int) or not 0 <= 2 * margin <= shared:
        raise ValueError(
            f"`margin` must be a whole number from 0 to half the overlap of {shared} pixels, got {margin!r}."
        )
    if length <= window:
        return Windows([0], torch.ones(1, length))
    count = math.ceil((length - shared) / (window - shared))
    starts = [i * (length - window) // (count - 1) for i in range(count)]
    steps = torch.arange(window, dtype=torch.float64) - margin + 0.5
    rise = (steps / max(shared - 2 * margin, 1)).clamp(0, 1).mul(math.pi / 2).sin().square()
    weights = (rise * rise.flip(0)).repeat(count, 1)
    weights[0], weights[-1] = rise.flip(0), rise  # the axis' own ends are no seams
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + window] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + window]
    return Windows(starts, weights.float())


def blend(
    rows: Windows,
    columns: Windows,
    predict: Callable[[Sequence[tuple[int, int]]], Tensor],
    *,
    batch_size: int = 1,
    align: int = 1,
    limit: int = LIMIT,
) -> Iterator[tuple[int, int, Tensor]]:
    """Blend the windows of a plane of any size, handing out each part of it once it is finished.

    Args:
        rows: Windows along y.
        columns: Windows along x.
        predict: Maps places (top, left) of windows to values ``(n, K, window height, window width)``.
        batch_size: Most places per call.
        align: Blocks begin and end at multiples of this, and at the end of the plane.
        limit: Bytes of unfinished rows to keep. A plane that is wider than this allows is done in strips side by side;
            windows that reach into two strips are predicted twice.

    Yields:
        ``top, left, block``: the weighted sum of all windows there, ``(K, height, width)``. Blocks do not overlap and
        cover the plane. A block is valid until the next one is asked for.

    Note:
        Memory: `limit`, and a few windows; the same whatever the plane's size.

    Example:
        >>> windows = cut(20, 8, 4)
        >>> ones = torch.ones(1, 1, 8, 8)
        >>> sum(block.sum().item() for _, _, block in blend(windows, windows, lambda places: ones))
        400.0
    """

    def predicted(places: list[tuple[int, int]]) -> Iterator[Tensor]:
        left = iter(places)
        while some := list(islice(left, batch_size)):
            yield from predict(some)

    first = predict([(rows.starts[0], columns.starts[0])])[0]
    kept = max((end - done for end, done in zip(rows.ends, rows.finished(align), strict=True)), default=0)
    most = limit // (first.shape[0] * first.element_size() * max(kept, 1))
    for left, right in _strips(columns, most, align):
        inside = columns.within(left, right)
        places = [(y, x) for y in rows.starts for x in inside.starts]
        values = predicted(places) if left else chain([first], predicted(places[1:]))
        carry = first.new_zeros(first.shape[0], kept, right - left)
        yield from _strip(rows, inside, values, left, right, carry, align)


def _strip(
    rows: Windows, columns: Windows, values: Iterator[Tensor], left: int, right: int, carry: Tensor, align: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Blend what lies between two columns, row of windows by row; `carry` holds the rows still unfinished."""
    height, width = rows.weights.shape[1], columns.weights.shape[1]
    top, carried = 0, 0
    for y, row_weight, bottom in zip(rows.starts, rows.weights, rows.finished(align), strict=True):
        done, side = left, carry[:, :0, :0]
        for x, weight, until in zip(columns.starts, columns.weights, columns.finished(align), strict=True):
            until = min(max(until, left), right)
            begin = max(x, left)
            part = carry.new_zeros(carry.shape[0], y + height - top, x + width - done)
            part[:, : side.shape[1], : side.shape[2]] = side
            area = row_weight[:, None] * weight[begin - x :]
            part[:, y - top :, begin - done :].addcmul_(next(values)[:, :, begin - x :], area)
            side, part = part[:, :, until - done :], part[:, :, : until - done]
            above = carry[:, :, done - left : until - left]
            part[:, :carried] += above[:, :carried]
            above[:, : y + height - bottom] = part[:, bottom - top :]
            if bottom > top and until > done:
                yield top, done, part[:, : bottom - top]
            done = until
        top, carried = bottom, y + height - bottom


def _strips(columns: Windows, most: int, align: int) -> Iterator[tuple[int, int]]:
    """Cut the columns into strips of at most `most` pixels if windows allow it, in the middle of windows."""
    width, end = columns.weights.shape[1], columns.ends[-1]
    middles = sorted({(x + width // 2) // align * align for x in columns.starts[1:]})
    last = 0
    for here, after in pairwise([*middles, end]):
        if after - last > most and last < here < end:
            yield last, here
            last = here
    yield last, end


def _pixels(overlap: int | float, window: int) -> int:
    """Return the overlap of windows in pixels."""
    if isinstance(overlap, int) and not isinstance(overlap, bool) and 0 <= overlap < window:
        return overlap
    if isinstance(overlap, float) and 0 <= overlap < 1:
        return min(round(overlap * window), window - 1)
    raise ValueError(
        f"`overlap` must be a whole number of pixels below the window of {window}, or a fraction (a float) in [0, 1), "
        f"got {overlap!r}."
    )
