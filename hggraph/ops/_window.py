"""Which pixels a query's window reads under each border rule, and which queries read a pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.stencil import whole_offsets

__all__ = ["BORDERS", "check_window", "flat_offsets", "neighbours", "readers"]

BORDERS = ("zero", "mask", "shift")


def flat_offsets(offsets: Sequence[Sequence[int]]) -> list[int]:
    """Return displacements (dy, dx) as one list ``dy, dx, dy, dx, ...``.

    Raises:
        ValueError: if there is none, or one is not a pair of whole numbers.

    Example:
        >>> flat_offsets([(0, -1), (2, 3)])
        [0, -1, 2, 3]
    """
    rows = whole_offsets(offsets)
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError(f"`offsets` must be at least one displacement (dy, dx), got {list(offsets)}.")
    return [value for row in rows for value in row]


def check_window(size: Sequence[int], offsets: Sequence[int], border: str) -> None:
    """Raise unless `border` is a rule's name and, where the window moves, it fits the image."""
    if border not in BORDERS:
        raise ValueError(f"`border` must be one of {BORDERS}, got {border!r}.")
    if border != "shift" or 0 in size:
        return
    for axis, name in enumerate(("height", "width")):
        low, high, step = _extent(offsets[axis::2])
        taps = (high - low) // step + 1
        if taps > size[axis] // step:
            raise ValueError(
                f"`offsets` must fit the image with border='shift': {taps} taps times dilation {step} must be at most "
                f"the {name}, {size[axis]} pixels, got {taps * step}. Take a smaller window, or border='mask'."
            )


def neighbours(
    size: Sequence[int],
    offsets: Sequence[int],
    border: str,
    device: torch.device | str | None = None,
    lines: slice | None = None,
) -> Tensor:
    """Return the flat pixel that each tap of each query's window reads, -1 outside the image.

    Args:
        size: (H, W) in pixels.
        offsets: K displacements as ``dy, dx, dy, dx, ...``, source minus target.
        border: With ``"shift"`` the window moves inward by multiples of its dilation until it lies in the image.
        device: Where the result lives.
        lines: The image rows whose queries are asked for; all when None.

    Returns:
        Shape ``(H * W, K)``, long. No host synchronisation.

    Example:
        >>> neighbours((1, 3), [0, -1, 0, 1], "mask").tolist()
        [[-1, 1], [0, 2], [1, -1]]
        >>> neighbours((1, 3), [0, -1, 0, 0], "shift").tolist()
        [[0, 1], [0, 1], [1, 2]]
    """
    lines = slice(0, size[0]) if lines is None else lines
    y, x = (
        _reads(part, length, offsets[axis::2], border, device)
        for axis, (part, length) in enumerate(zip((lines, slice(0, size[1])), size, strict=True))
    )
    flat = (y * size[1])[:, None] + x
    if border != "shift":
        inside = ((y >= 0) & (y < size[0]))[:, None] & (x >= 0) & (x < size[1])
        flat = flat.masked_fill_(~inside, -1)
    return flat.flatten(0, 1)


def readers(
    size: Sequence[int], offsets: Sequence[int], border: str, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Return the inverse of `neighbours` as a CSR over the pixels that are read.

    Returns:
        Pointer, shape ``(H * W + 1,)``, and entries ``query * K + tap``, both long: entries ``ptr[j]`` to
        ``ptr[j + 1]`` read pixel j. With ``"shift"`` there are H W K entries and no host synchronisation.

    Example:
        >>> ptr, entries = readers((1, 3), [0, -1, 0, 1], "mask")
        >>> ptr.tolist(), entries.tolist()  # pixel 0 is read by tap 0 of query 1
        ([0, 1, 3, 4], [2, 4, 1, 3])
    """
    taps = len(offsets) // 2
    if border == "shift":
        read, entries = neighbours(size, offsets, border, device).flatten().sort(stable=True)
        return torch.searchsorted(read, torch.arange(size[0] * size[1] + 1, device=device)), entries
    # pixel j is read by tap t of query j - offset_t
    query = neighbours(size, [-value for value in offsets], "mask", device)
    inside = query >= 0
    ptr = F.pad(inside.sum(1).cumsum(0), (1, 0))
    return ptr, (query * taps + torch.arange(taps, device=device))[inside]


def _extent(offsets: Sequence[int]) -> tuple[int, int, int]:
    """Return the lowest and highest displacement on one axis, and the window's dilation."""
    low = min(offsets)
    return low, max(offsets), math.gcd(*(value - low for value in offsets)) or 1


def _reads(part: slice, length: int, offsets: Sequence[int], border: str, device: torch.device | str | None) -> Tensor:
    """Return the coordinate that each tap reads on one axis, shape (queries, K)."""
    query = torch.arange(part.start, part.stop, device=device)
    if border == "shift":
        low, high, step = _extent(offsets)
        below, above = (-low - query).clamp_(min=0), (query + (high - length + 1)).clamp_(min=0)
        query = query + (below + step - 1) // step * step - (above + step - 1) // step * step
    return query[:, None] + torch.tensor(offsets, device=device)
