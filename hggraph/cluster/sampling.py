"""Where regions start: by importance (HG-Conv Sec. 4.1 and appendix C), on a grid, by density, or on a warped grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_ndim, check_positive
from hggraph.cluster._blur import blur
from hggraph.cluster._density import distinct, distinct_near, relative_density
from hggraph.cluster.warp import warp_grid
from hggraph.ops.nearest_regions import block_side, expand_blocks, nearest_regions

__all__ = ["METHODS", "grid_of", "grid_size", "sample_centers", "sample_with_noise"]

METHODS = ("topk_random", "importance", "random", "grid", "density", "warp")
_CELLS = 5  # density is sampled this often per spacing of regions
_BLUR = 0.5  # deviation of the blur of importance, in spacings
_STEPS = 2  # of Lloyd's algorithm
_ROOM = 4.0  # pixels of spacing under which a grid without attention is left as it is


def sample_centers(
    importance: Tensor,
    num_regions: int,
    *,
    method: str = "topk_random",
    oversample: int = 7,
    beta: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample the pixels where regions start, more of them where importance is high (HG-Conv Sec. 4.1).

    - ``"topk_random"``: of ``oversample * R`` random pixels the ``beta * R`` most important, filled up with random
      others.
    - ``"importance"``: drawn without replacement, with probabilities proportional to importance.
    - ``"random"``: drawn uniformly.
    - ``"grid"``: in even rows of even numbers, whatever the importance; without randomness.
    - ``"density"``: that grid moved by Lloyd's algorithm on importance blurred at the scale of a region (a weighted
      centroidal Voronoi partition): even where nothing happens, closer where much does; without randomness.
    - ``"warp"``: that grid, full, bent by `warp_grid` and rounded to whole pixels (of those on one pixel all but one
      move to free ones nearby): closer where much happens, each in its row and column; without randomness.

    Args:
        importance: Importance map, not negative, finite (checked on the CPU), shape ``(B, H, W)``, floating point.
        num_regions: R, at least 1 and at most H * W.
        method: One of the six above.
        oversample: Candidates per region for ``"topk_random"``, at least 1.
        beta: Share of important centres for ``"topk_random"``, in [0, 1].
        generator: Source of randomness, on the device of `importance`; the global one when None.

    Returns:
        Flat pixel indices ``y * W + x``, shape ``(B, R)``, long, without duplicates; ascending for the random methods,
        in the order of the grid for the others. Not differentiable (`warp_grid` is). No host synchronisation.

    Raises:
        ValueError: if an argument is out of range, there are fewer pixels than regions, or they fill no grid to warp.

    Example:
        >>> sample_centers(torch.tensor([[[0.0, 9.0, 0.0]]]), 1, beta=1.0)
        tensor([[1]])
    """
    check_ndim("importance", importance, 3, shape="(B, H, W)")
    pixels = importance.shape[1] * importance.shape[2]
    noise = torch.rand(importance.shape[0], pixels, generator=generator, device=importance.device)
    return sample_with_noise(importance, noise, num_regions, method, oversample, beta)


def sample_with_noise(
    importance: Tensor, noise: Tensor | None, num_regions: int, method: str, oversample: int, beta: float
) -> Tensor:
    """Sample centres as `sample_centers` does, from noise in [0, 1), ``(B, P)`` or ``(1, P)``, where it is random."""
    check_sampling(method, oversample, beta)
    batch, height, width = importance.shape
    check_num_regions(num_regions, height, width)
    if method == "grid":
        grid = grid_of((height, width), num_regions)
        rows = _num_rows((height, width), num_regions) if grid is None else grid[0]
        return grid_centers((height, width), num_regions, rows, importance.device).expand(batch, -1)
    weight = importance.detach().float().flatten(1)
    eager = weight.device.type == "cpu" and not torch.compiler.is_compiling()  # where reading is free
    if method != "random" and eager and not (torch.isfinite(weight) & (weight >= 0)).all():
        raise ValueError("`importance` must be finite and not negative. Check the map it was made of.")
    if method == "density":
        return density_centers(weight.view_as(importance), num_regions)
    if method == "warp":
        return warp_centers(weight.view_as(importance), num_regions)
    assert noise is not None
    noise = noise.expand(batch, -1)
    if method == "random":
        chosen = noise.topk(num_regions, sorted=False).indices
    elif method == "importance":
        # the R largest of log(weight) + Gumbel noise are such a draw
        tiny = torch.finfo(torch.float32).tiny
        gumbel = -(-noise.clamp(min=tiny).log()).clamp(min=tiny).log()
        chosen = (weight.clamp(min=tiny).log() + gumbel).topk(num_regions, sorted=False).indices
    else:
        num_important = int(beta * num_regions)
        drawn = noise.topk(min(oversample * num_regions, noise.shape[1]), sorted=False).indices
        best = weight.gather(1, drawn).topk(num_important, sorted=False).indices
        chosen = drawn.gather(1, best)
        # the smallest noise is as random as the largest, and belongs to other pixels
        rest = noise.scatter(1, chosen, 2.0).topk(num_regions - num_important, largest=False, sorted=False).indices
        chosen = torch.cat([chosen, rest], 1)
    return chosen.sort(1).values


def grid_of(size: tuple[int, int], num_regions: int) -> tuple[int, int] | None:
    """Return rows and columns of the grid of ``"grid"``, None where its rows have different numbers of seeds.

    Example:
        >>> grid_of((90, 90), 132), grid_of((90, 90), 127)
        ((11, 12), None)
    """
    wanted = _num_rows(size, num_regions)
    for rows in (wanted, wanted - 1, wanted + 1):
        if not 1 <= rows <= size[0] or num_regions % rows or num_regions // rows > size[1]:
            continue
        sides = size[0] / rows, size[1] * rows / num_regions
        if rows == wanted or wanted >= 4 or max(sides) <= 2 * min(sides):  # regions stay about square
            return rows, num_regions // rows
    return None


def grid_size(size: tuple[int, int], num_regions: float) -> int:
    """Return the number of regions nearest to `num_regions` that fill a grid.

    Example:
        >>> grid_size((90, 90), 8100 / 64)
        132
    """
    rows = _num_rows(size, max(1, round(num_regions)))
    count = rows * max(1, min(size[1], round(num_regions / rows)))
    while grid_of(size, count) is None:  # of narrow maps not every number that rows and columns make is one of theirs
        count -= 1
    return count


def grid_centers(
    size: tuple[int, int], num_regions: int, rows: int, device: torch.device | str | None = None
) -> Tensor:
    """Return the seeds of ``"grid"``, shape ``(1, R)``: even rows, each with its share of the regions."""
    region = torch.arange(num_regions, device=device)
    row = ((region + 1) * rows - 1) // num_regions  # region lies in [row R // rows, (row + 1) R // rows)
    first, last = row * num_regions // rows, (row + 1) * num_regions // rows
    y = (2 * row + 1) * size[0] // (2 * rows)
    x = (2 * (region - first) + 1) * size[1] // (2 * (last - first))
    return (y * size[1] + x)[None]


def _num_rows(size: tuple[int, int], num_regions: int) -> int:
    wanted = round((num_regions * size[0] / size[1]) ** 0.5 + 1e-9)  # a half goes up; compilers follow it
    return max(1, -(-num_regions // size[1]), min(wanted, num_regions, size[0]))


def density_centers(importance: Tensor, num_regions: int, *, spread: bool = False) -> Tensor:
    """Return the seeds of ``"density"``, shape ``(B, R)``.

    With `spread` the grid it begins with is bent first, so that each row of seeds, and each seed of a row, has the same
    share of the density: for attention, which may lie far from most of a grid's seeds.
    """
    batch, *size = importance.shape
    rows = _num_rows((size[0], size[1]), num_regions)
    seeds = grid_centers((size[0], size[1]), num_regions, rows, importance.device).expand(batch, -1)
    spacing = (size[0] * size[1] / num_regions) ** 0.5
    if spacing < _ROOM and not spread:
        return seeds
    side = max(1, int(spacing / _CELLS))
    density, place = _density(importance, side, _BLUR * spacing / side)
    at = torch.stack([seeds // size[1], seeds % size[1]], 2).float()
    if spread:
        at = _bent(at, density, (size[0], size[1]))
    here = place.flatten(1).unsqueeze(2)  # (2, cells, 1)
    cells, entries = (density.shape[1], density.shape[2]), min(num_regions, 9)
    block = block_side(cells, num_regions)
    for _ in range(_STEPS):
        index = nearest_regions(at / side, cells, block, entries)
        index = expand_blocks(index, cells, block).mT.long().sort(2).values  # (B, cells, T); of equals the lower
        gap = (at[..., 0].unsqueeze(1).expand(-1, index.shape[1], -1).gather(2, index) - here[0]).square()
        gap += (at[..., 1].unsqueeze(1).expand(-1, index.shape[1], -1).gather(2, index) - here[1]).square()
        nearest = index.gather(2, gap.argmin(2, keepdim=True)).squeeze(2)
        weight = density.flatten(1)
        total = torch.zeros_like(at[..., 0]).scatter_add_(1, nearest, weight)
        sums = [torch.zeros_like(total).scatter_add_(1, nearest, weight * axis.squeeze(1)) for axis in here]
        moved = torch.stack(sums, 2) / total.clamp(min=1e-12).unsqueeze(2)
        at = torch.where(total.unsqueeze(2) > 0, moved, at)
    pixel = (at + 0.499).floor().long()  # halves, which are common, go down on every machine
    flat = pixel[..., 0].clamp(0, size[0] - 1) * size[1] + pixel[..., 1].clamp(0, size[1] - 1)
    pixels = density.repeat_interleave(side, 1)[:, : size[0]].repeat_interleave(side, 2)[..., : size[1]]
    return distinct(flat, pixels.flatten(1))


def warp_centers(importance: Tensor, num_regions: int) -> Tensor:
    """Return the seeds of ``"warp"``, shape ``(B, R)``: region ``row * columns + column`` stands at that point."""
    size = (importance.shape[1], importance.shape[2])
    grid = grid_of(size, num_regions)
    if grid is None:
        below = next(n for n in range(num_regions - 1, 0, -1) if grid_of(size, n))
        above = next(n for n in range(num_regions + 1, size[0] * size[1] + 1) if grid_of(size, n))
        raise ValueError(
            f"`num_regions` must fill a grid on {size[0]} x {size[1]} pixels to be warped, got {num_regions}; take "
            f"{below} or {above}."
        )
    at = warp_grid(importance, grid).flatten(1, 2)
    pixel = (at + 0.501).floor().long()  # halves, which are common, go up as on a grid
    y, x = pixel[..., 0].clamp(0, size[0] - 1), pixel[..., 1].clamp(0, size[1] - 1)
    return distinct_near(y * size[1] + x, size)


def _bent(at: Tensor, density: Tensor, size: tuple[int, int]) -> Tensor:
    """Move seeds ``(B, R, 2)`` of a grid to where as much of the density lies before them as of the area did."""
    across = density.sum(2).cumsum(1)  # (B, h)
    y = _quantile(across / across[:, -1:], (at[..., 0] + 0.5) / size[0])
    row = (y * density.shape[1]).long().clamp(max=density.shape[1] - 1)
    along = density.cumsum(2)
    along = (along / along[..., -1:]).gather(1, row.unsqueeze(2).expand(-1, -1, density.shape[2]))  # (B, R, w)
    x = _quantile(along, (at[..., 1:] + 0.5) / size[1]).squeeze(2)
    return torch.stack([y * size[0], x * size[1]], 2) - 0.5


def _quantile(cumulative: Tensor, share: Tensor) -> Tensor:
    """Return where, in [0, 1], sums that rise to 1 along the last dimension reach `share`, linear in between."""
    cell = torch.searchsorted(cumulative, share.contiguous()).clamp(max=cumulative.shape[-1] - 1)
    below = torch.where(cell > 0, cumulative.gather(-1, (cell - 1).clamp(min=0)), 0)
    inside = (share - below) / (cumulative.gather(-1, cell) - below).clamp(min=1e-12)
    return (cell + inside.clamp(0, 1)) / cumulative.shape[-1]


def _density(importance: Tensor, side: int, deviation: float) -> tuple[Tensor, Tensor]:
    """Return the density of each coarse cell ``(B, h, w)`` times its pixels, and the cells' middles ``(2, h, w)``."""
    height, width = importance.shape[1:]
    rows, columns = -(-height // side), -(-width // side)
    padded = F.pad(importance, (0, columns * side - width, 0, rows * side - height))
    total = F.avg_pool2d(padded.unsqueeze(1), side).squeeze(1) * side**2
    lengths = [
        (torch.arange(1, number + 1, device=importance.device) * side).clamp(max=length)
        - torch.arange(number, device=importance.device) * side
        for number, length in ((rows, height), (columns, width))
    ]
    count = (lengths[0][:, None] * lengths[1]).to(total.dtype)
    mean = blur(total / count, deviation)
    density = relative_density(mean) * count
    middles = [
        torch.arange(len(length), device=importance.device) * side + (length - 1).to(total.dtype) / 2
        for length in lengths
    ]
    return density, torch.stack(torch.meshgrid(*middles, indexing="ij"))


def check_sampling(method: str, oversample: int, beta: float) -> None:
    """Raise unless the options of `sample_centers` are in range."""
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}, got {method!r}.")
    check_positive("oversample", oversample)
    if not 0 <= beta <= 1:
        raise ValueError(f"`beta` must be in [0, 1], got {beta}.")


def check_num_regions(num_regions: int, height: int, width: int) -> None:
    """Raise unless an image of the given size (pixels) has enough pixels for the regions."""
    check_positive("num_regions", num_regions)
    if num_regions > height * width:
        raise ValueError(
            f"`num_regions` must be at most the number of pixels, {height} x {width} = {height * width}, "
            f"got {num_regions}."
        )
