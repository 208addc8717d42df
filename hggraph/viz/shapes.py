"""The shapes that a figure draws, as arrays: arrows, borders, the strongest neighbours."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hggraph.graph import Assignment, RegionAdjacency
from hggraph.stencil import Stencil

__all__ = [
    "arrow_polygons",
    "border_segments",
    "direction_colors",
    "majority",
    "mean_positions",
    "seed_positions",
    "shown_directions",
    "side_by_side",
    "spread_regions",
    "strongest_neighbors",
]

Floats = NDArray[np.floating[Any]]

# Okabe and Ito's colours, which stay apart for colour-blind eyes
_PALETTE = {(-1, 0): "#0072b2", (0, 1): "#d55e00", (1, 0): "#009e73", (0, -1): "#b0468c"}
_PALETTE |= {(-1, 1): "#56b4e9", (1, 1): "#e69f00", (1, -1): "#8bbf3f", (-1, -1): "#6a51a3"}


def shown_directions(stencil: Stencil) -> list[int]:
    """Return the directions to draw: all but the centre, or of more than eight those to the nearest neighbours."""
    away = [k for k, offset in enumerate(stencil) if any(offset)]
    near = [k for k in away if max(map(abs, stencil.offsets[k])) == 1]
    return near if len(away) > 8 and near else away


def direction_colors(stencil: Stencil) -> list[str]:
    """Return one colour per direction of the stencil: equal angles have equal colours."""
    colors = []
    for dy, dx in stencil:
        steps = max(abs(dy), abs(dx), 1)
        unit = (dy // steps, dx // steps) if dy % steps == dx % steps == 0 else None
        if unit in _PALETTE:
            colors.append(_PALETTE[unit])
        else:
            red, green, blue = colorsys.hsv_to_rgb(math.atan2(dy, dx) / math.tau % 1, 0.8, 0.75)
            colors.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colors


def mean_positions(assignment: Assignment) -> Floats:
    """Return the mean (x, y) of each region of one image, shape ``(R, 2)``, in pixels of what was clustered."""
    area = assignment.area
    y, x = torch.meshgrid(*(torch.arange(n, device=area.device) for n in assignment.size), indexing="ij")
    return assignment.pool(torch.stack([x, y])[None].to(area.dtype))[0].cpu().numpy()


def seed_positions(assignment: Assignment) -> Floats:
    """Return (x, y) of the pixels where the regions of one image began, shape ``(R, 2)``."""
    assert assignment.seeds is not None
    flat, width = assignment.seeds[0].cpu(), assignment.size[1]
    return torch.stack([flat % width, flat // width], 1).numpy()


def strongest_neighbors(adjacency: RegionAdjacency, directions: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of each region and direction the neighbour with the largest weight.

    Args:
        adjacency: Of one image.
        directions: Indices of the stencil's directions to look at.

    Returns:
        ``target, source, edge_type, weight``, each ``(E,)`` on the CPU: region `target` has region
        `source` in direction `edge_type`. A region is no neighbour of itself.
    """
    (source, target), edge_type, weight = (part.cpu() for part in adjacency.to_edges())
    keep = (source != target) & torch.isin(edge_type, torch.tensor(directions))
    source, target, edge_type, weight = source[keep], target[keep], edge_type[keep], weight[keep]
    order = weight.argsort(descending=True, stable=True)
    slot = (target * len(adjacency.stencil) + edge_type)[order]
    order = order[slot.argsort(stable=True)]
    slot = (target * len(adjacency.stencil) + edge_type)[order]
    first = torch.ones_like(slot, dtype=torch.bool)
    first[1:] = slot[1:] != slot[:-1]
    order = order[first]
    return target[order], source[order], edge_type[order], weight[order]


def spread_regions(positions: Floats, strength: Floats, size: tuple[int, int], count: int = 18) -> NDArray[np.int64]:
    """Return regions that lie apart, the strongest in its part of the image: not more than can be told apart.

    Args:
        positions: Region centres (x, y), shape ``(R, 2)``, in pixels.
        strength: Of each region, shape ``(R,)``; regions of strength 0 are left out.
        size: Height and width of the image, in pixels.
        count: How many at most.

    Returns:
        Indices, the strongest first, none closer to another than 0.92 of the distance that `count` of them would have
        in an even spread.
    """
    apart = max(0.92 * (size[0] * size[1] / count) ** 0.5, 0.75 * max(size) / count)
    chosen: list[int] = []
    for region in np.argsort(-strength, kind="stable"):
        gaps = np.hypot(*(positions[chosen] - positions[region]).T)
        if len(chosen) < count and strength[region] > 0 and not (gaps < apart).any():
            chosen.append(int(region))
    return np.array(chosen, dtype=np.int64)


def side_by_side(target: NDArray[np.int64], source: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of each arrow among those between the same two regions, shape ``(E,)``, from 0."""
    seen: dict[tuple[int, int], int] = {}
    numbers = []
    for pair in zip(target.tolist(), source.tolist(), strict=True):
        numbers.append(seen.get(pair, 0))
        seen[pair] = numbers[-1] + 1
    return np.array(numbers, dtype=np.int64)


def majority(labels: NDArray[np.int64], rounds: int = 3) -> NDArray[np.int64]:
    """Give each pixel the label that most of its 3 x 3 neighbours have, so that specks vanish.

    Args:
        labels: Shape ``(H, W)``.
        rounds: How often.

    Returns:
        Shape ``(H, W)``; of equally frequent labels a pixel keeps its own.
    """
    height, width = labels.shape
    taps = [(1, 1), *((y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1))]
    for _ in range(rounds):
        padded = np.pad(labels, 1, mode="edge")
        near = [padded[y : y + height, x : x + width] for y, x in taps]
        most = np.zeros(labels.shape, dtype=np.int8)
        winner = labels
        for candidate in near:
            votes = np.zeros(labels.shape, dtype=np.int8)
            for other in near:
                votes += candidate == other
            winner = np.where(votes > most, candidate, winner)
            most = np.maximum(most, votes)
        labels = winner
    return labels


def border_segments(labels: NDArray[np.int64]) -> Floats:
    """Return the lines between pixels of different labels.

    Args:
        labels: Shape ``(H, W)``.

    Returns:
        Shape ``(S, 2, 2)``: segment, end, (x, y), where the pixel (y, x) covers from x - 0.5 to x +
        0.5.
    """
    across = _runs(labels[:-1] != labels[1:])  # horizontal lines, (line, start, stop)
    down = _runs((labels[:, :-1] != labels[:, 1:]).T)
    horizontal = np.stack([across[:, [1, 0]], across[:, [2, 0]]], 1)
    vertical = np.stack([down[:, [0, 1]], down[:, [0, 2]]], 1)
    shift_horizontal, shift_vertical = np.array([-0.5, 0.5]), np.array([0.5, -0.5])
    return np.concatenate([horizontal + shift_horizontal, vertical + shift_vertical])


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return (row, start, stop) of each run of True in a row."""
    change = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    return np.stack([rows, starts, np.nonzero(change == -1)[1]], 1)


def arrow_polygons(start: Floats, stop: Floats, width: Floats, *, lane: Floats | float = 0.0) -> Floats:
    """Return arrows as polygons of seven corners.

    Args:
        start: Tails, shape ``(E, 2)``, in (x, y).
        stop: Tips, shape ``(E, 2)``.
        width: Widths of the shafts, shape ``(E,)``, in the same unit.
        lane: Every arrow keeps this far to its right, so that two opposite ones run side by side; one number, or one
            of each arrow.

    Returns:
        Shape ``(E, 7, 2)``. An arrow of no length is a point.
    """
    along = stop - start
    length = np.hypot(*along.T)[:, None]
    along = along / np.maximum(length, 1e-9)
    right = np.stack([-along[:, 1], along[:, 0]], 1)  # y points down
    half = np.minimum(width[:, None] / 2, length / 8)
    head = np.minimum(7 * half, 0.5 * length)
    flare = np.minimum(2.6 * half, head)
    shift = right * np.minimum(np.reshape(lane, (-1, 1)), 0.4 * length)
    start, stop = start + shift, stop + shift
    neck = stop - along * head
    corners = [
        start + right * half,
        neck + right * half,
        neck + right * flare,
        stop,
        neck - right * flare,
        neck - right * half,
        start - right * half,
    ]
    return np.stack(corners, 1)
