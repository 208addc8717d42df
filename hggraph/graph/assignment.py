"""The soft assignment of pixels to regions and what can be done with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph import ops
from hggraph._check import check_ndim, check_positive
from hggraph.graph._bundle import Bundle
from hggraph.graph.adjacency import RegionAdjacency
from hggraph.ops import fast
from hggraph.ops._pairs import check_index, densify, masses
from hggraph.stencil import Stencil

__all__ = ["MAX_PAIRS", "Assignment"]

MAX_PAIRS = 1 << 30  # pixel-region pairs of a dense form: 4 GiB of float32
_TENSORS = ("weight", "index", "seeds", "centers")
_MATRICES = 512  # regions up to which adjacency is matrices, of static shape, whatever form S has


class Assignment(Bundle):
    """The row-normalised matrix S of HG-Conv: a pixel's weights over regions sum to 1.

    A pixel has T entries, each a weight and a region; without `index` the T = R entries are all regions in order.

    Args:
        weight: Shape ``(B, T, P)``, floating point, not negative; P = H * W.
        size: Height and width of the images, in pixels.
        index: Region of each entry, shape ``(B, T, P)``, int32 or int64 in [0, R); a region that stands twice counts
            twice. None: all regions.
        num_regions: R, needed with `index`.
        seeds: Flat index of the pixel where each region started, shape ``(B, R)``, or None. A region that has lost all
            its pixels pools to this pixel; without seeds, to 0.
        centers: Last centres in the space of clustering, shape ``(B, R, D)``, or None.
        grid: Rows and columns of the grid on which the seeds stand, region ``row * columns + column``; None: on none.

    Raises:
        ValueError: if shapes disagree, or a region does not exist (checked on a CPU).

    An assignment is a pytree of its tensors, moves with `to`, and loads with ``torch.load(weights_only=True)``.

    Example:
        >>> s = Assignment(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), (1, 2))
        >>> s.labels
        tensor([[[0, 1]]])
        >>> s.pool(torch.tensor([[[[3.0, 5.0]]]]))
        tensor([[[3.],
                 [5.]]])
    """

    def __init__(
        self,
        weight: Tensor,
        size: tuple[int, int],
        *,
        index: Tensor | None = None,
        num_regions: int | None = None,
        seeds: Tensor | None = None,
        centers: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        check_ndim("weight", weight, 3, shape="(B, T, P)")
        if weight.shape[2] != size[0] * size[1]:
            raise ValueError(f"`weight` must have {size[0]} x {size[1]} pixels, got shape {tuple(weight.shape)}.")
        if index is None and num_regions not in (None, weight.shape[1]):
            raise ValueError(f"Without `index`, `weight` must have R = {num_regions} rows, got {weight.shape[1]}.")
        check_index(index, weight.shape, num_regions)
        self.weight = weight
        self.size = (int(size[0]), int(size[1]))
        self.index = index
        self.num_regions = int(weight.shape[1] if num_regions is None else num_regions)
        self.seeds = seeds
        self.centers = centers
        self.grid = grid

    def _parts(self) -> tuple[list[Any], tuple[Any, ...]]:
        held = [name for name in _TENSORS if getattr(self, name) is not None]
        return [getattr(self, name) for name in held], (held, self.size, self.num_regions, self.grid)

    def _fill(self, tensors: list[Any], rest: tuple[Any, ...]) -> Assignment:
        held, self.size, self.num_regions, self.grid = rest
        found = dict(zip(held, tensors, strict=True))
        self.weight, self.index, self.seeds, self.centers = (found.get(name) for name in _TENSORS)  # type: ignore[assignment]
        return self

    @classmethod
    def from_labels(cls, labels: Tensor, num_regions: int | None = None) -> Assignment:
        """Make a hard assignment from labels of any program, O(P) time and memory.

        Args:
            labels: Region of each pixel, shape ``(B, H, W)``, integers in [0, num_regions); a number may be missing.
            num_regions: R; None: the largest label plus 1 (reads the data).

        Raises:
            ValueError: if a label is negative or not below `num_regions` (checked on a CPU).
            TypeError: if labels are not integers.
        """
        check_ndim("labels", labels, 3, shape="(B, H, W)")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
        if num_regions is None:
            num_regions = int(labels.max()) + 1 if labels.numel() else 0
        index = labels.flatten(1).unsqueeze(1)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
            low, high = (int(value) for value in torch.aminmax(labels))
            if low < 0 or high >= num_regions:
                raise ValueError(
                    f"`labels` must be in [0, num_regions) = [0, {num_regions}), got values from {low} to {high}. "
                    "Pixels of no region need a region of their own."
                )
        weight = torch.ones((), device=labels.device).expand(index.shape)
        size = (labels.shape[1], labels.shape[2])
        return cls(weight, size, index=index.to(torch.int32), num_regions=num_regions)

    @classmethod
    def cells(
        cls, size: tuple[int, int], side: int, *, batch_size: int = 1, device: torch.device | str | None = None
    ) -> Assignment:
        """Return the regular cells of ``side x side`` pixels, which a stride of `side` makes; smaller at the border.

        Example:
            >>> Assignment.cells((2, 4), 2).labels
            tensor([[[0, 0, 1, 1],
                     [0, 0, 1, 1]]])
        """
        check_positive("side", side)
        y, x = (torch.arange(length, device=device) // side for length in size)
        grid = (-(-size[0] // side), -(-size[1] // side))
        labels = (y[:, None] * grid[1] + x).expand(batch_size, -1, -1)
        out = cls.from_labels(labels, grid[0] * grid[1])
        # a convolution with this stride and no padding has its first tap there
        rows, columns = (torch.arange(number, device=device) * side for number in grid)
        out.seeds = (rows[:, None] * size[1] + columns).flatten().expand(batch_size, -1)
        out.grid = grid
        return out

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return int(self.weight.shape[0])

    @property
    def is_hard(self) -> bool:
        """Whether each pixel belongs to one region alone by form: one entry with an index."""
        return self.index is not None and self.weight.shape[1] == 1

    @property
    def labels(self) -> Tensor:
        """The strongest region of each pixel, shape ``(B, H, W)``, long; of equally strong ones the first entry."""
        return self._strongest().long().view(self.batch_size, *self.size)

    def _strongest(self) -> Tensor:
        """Return the labels as they are found, shape ``(B, P)``, int32 or long."""
        if self.index is None:
            return self.weight.argmax(1)
        if self.is_hard:
            return self.index.squeeze(1)
        if self.batch_size and fast.takes(self.weight.detach()):
            return fast.each(fast.strongest, self.weight.detach(), self.index.int())
        return self.index.gather(1, self.weight.argmax(1, keepdim=True)).squeeze(1)

    @property
    def area(self) -> Tensor:
        """The sum of the weights of each region, in pixels, shape ``(B, R)``, float32 at least."""
        return masses(self.weight, self.index, self.num_regions)

    def to_dense(self) -> Tensor:
        """Return S, shape ``(B, P, R)``.

        Raises:
            ValueError: if it would have more than 2^30 entries and is not held so.
        """
        return self._dense().transpose(1, 2)

    def harden(self) -> Assignment:
        """Return the assignment of each pixel to its strongest region alone, without a gradient."""
        out = Assignment.from_labels(self.labels, self.num_regions)
        out.seeds, out.centers, out.grid = self.seeds, self.centers, self.grid
        return out

    def compose(self, coarser: Assignment) -> Assignment:
        """Return the assignment of pixels to the regions of these regions: the matrix product S S'.

        Args:
            coarser: An assignment whose pixels are these regions, ``size[0] * size[1] = num_regions``, for example
                of nodes that stand on `grid`.

        Returns:
            T T' entries a pixel, in which a region may stand more than once.

        Raises:
            ValueError: if the numbers of images, or of regions and of pixels, differ.

        Example:
            >>> fine = Assignment.cells((1, 4), 1)
            >>> fine.compose(Assignment.from_labels(torch.tensor([[[0, 1, 1, 1]]]), 2)).labels
            tensor([[[0, 1, 1, 1]]])
        """
        if coarser.batch_size != self.batch_size or coarser.size[0] * coarser.size[1] != self.num_regions:
            raise ValueError(
                f"`coarser` must have {self.batch_size} images of {self.num_regions} pixels, one for each region here, "
                f"got {coarser}."
            )
        index = self._all_index()
        flat = index.flatten(1).long().unsqueeze(1)  # (B, 1, T P)

        def of_pixels(x: Tensor) -> Tensor:  # (B, T', R) to (B, T, T', P)
            return x.gather(2, flat.expand(-1, x.shape[1], -1)).unflatten(2, index.shape[1:]).transpose(1, 2)

        weight = self.weight.unsqueeze(2) * of_pixels(coarser.weight)
        seeds = coarser.seeds
        if seeds is not None:
            seeds = None if self.seeds is None else self.seeds.gather(1, seeds)
        return Assignment(
            weight.flatten(1, 2),
            self.size,
            index=of_pixels(coarser._all_index()).flatten(1, 2),
            num_regions=coarser.num_regions,
            seeds=seeds,
            grid=coarser.grid,
        )

    def pool(self, x: Tensor) -> Tensor:
        """Average the pixels of each region, column-normalised (HG-Conv Eq. 5).

        Args:
            x: Map, shape ``(B, C, H, W)``, floating point, of the size that was clustered.

        Returns:
            Shape ``(B, R, C)``. A region without pixels gives the pixel at its seed.

        Raises:
            ValueError: if the size differs.
        """
        self.check_map(x)
        pixels = x.flatten(2)
        pooled, mass = ops.region_pool(pixels, self.weight, self.index, self.num_regions, return_mass=True)
        return self.fill_empty(pooled, mass, pixels)

    def fill_empty(self, pooled: Tensor, mass: Tensor, pixels: Tensor) -> Tensor:
        """Put the pixels ``(B, C, P)`` at their seeds in the place of regions ``(B, R, C)`` without pixels."""
        if self.seeds is None:
            return pooled
        at_seeds = pixels.gather(2, self.seeds[:, None].expand(-1, pixels.shape[1], -1)).transpose(1, 2)
        return torch.where(mass[..., None] > 0, pooled, at_seeds.to(pooled.dtype))

    def unpool(self, z: Tensor) -> Tensor:
        """Copy region features to the pixels, row-normalised (HG-Conv Eq. 6).

        Args:
            z: Region features, shape ``(B, R, C)``.

        Returns:
            Shape ``(B, C, H, W)``.

        Raises:
            ValueError: if the numbers of images or regions differ.
        """
        self._check_regions(z)
        return ops.region_unpool(z, self.weight, self.index).unflatten(2, self.size)

    def unpool_conv1x1(self, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute ``conv1x1(concat(x, unpool(z)))`` as ``X Wa + S (Z Wb) + b``, without the concatenation.

        Args:
            x: Map, shape ``(B, C, H, W)``.
            z: Region features, shape ``(B, R, D)``.
            weight: Shape ``(O, C + D)`` or ``(O, C + D, 1, 1)``.
            bias: Shape ``(O,)`` or None.

        Returns:
            Shape ``(B, O, H, W)``, channels_last.
        """
        self.check_map(x)
        self._check_regions(z)
        out = ops.unpool_conv1x1(x.flatten(2), z, self.weight, weight.flatten(1), bias, self.index)
        return out.unflatten(2, self.size)

    def unpool_conv(self, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute ``conv(concat(x, unpool(z)))`` for any odd kernel size k, without the concatenation.

        ``conv(X, Wa) + sum_t Shift_t(S) (Z Wb_t) + b`` over the k * k taps t: regions are multiplied first, and their
        products unpooled and shifted by convolving S with them.

        Args:
            x: Map, shape ``(B, C, H, W)``.
            z: Region features, shape ``(B, R, D)``.
            weight: Shape ``(O, C + D, k, k)``; the convolution is padded with zeros by ``k // 2``.
            bias: Shape ``(O,)`` or None.

        Returns:
            Shape ``(B, O, H, W)``.

        Raises:
            ValueError: if shapes disagree.
        """
        check_ndim("weight", weight, 4, shape="(O, C + D, k, k)")
        if weight.shape[2] == 1:
            return self.unpool_conv1x1(x, z, weight, bias)
        self.check_map(x)
        self._check_regions(z)
        out_channels, _, side, _ = weight.shape
        if weight.shape[1:] != (x.shape[1] + z.shape[2], side, side) or side % 2 == 0:
            expected = f"(O, {x.shape[1] + z.shape[2]}, k, k) with odd k"
            raise ValueError(f"`weight` must have shape {expected}, got {tuple(weight.shape)}.")
        on_pixels, on_regions = weight.split([x.shape[1], z.shape[2]], 1)
        from_pixels = F.conv2d(x, on_pixels, bias, padding=side // 2)
        if self.num_regions > _MATRICES:  # S as a map of R channels would be larger than the unpooled one
            return from_pixels + F.conv2d(self.unpool(z), on_regions, padding=side // 2)
        taps = z @ on_regions.permute(1, 0, 2, 3).flatten(1)  # (B, R, O k k)
        taps = taps.view(*z.shape[:2], out_channels, side, side).transpose(1, 2).flatten(0, 1)
        dense = self._dense().reshape(1, -1, *self.size).to(taps.dtype)  # one convolution for each image
        shifted = F.conv2d(dense, taps, padding=side // 2, groups=self.batch_size)
        return from_pixels + shifted.view(-1, out_channels, *self.size)

    def adjacency(
        self, stencil: Stencil | None = None, *, noise_cancel: bool = True, max_direction: bool = True
    ) -> RegionAdjacency:
        """Return how strongly regions touch in each direction (HG-Conv Eq. 4, 7 and appendix B).

        Args:
            stencil: Directions; ``Stencil.square(3)`` when None.
            noise_cancel: Subtract the opposite direction.
            max_direction: Keep only the strongest direction of each pair.

        Returns:
            Matrices of static shape without an index or for at most 512 regions, edges otherwise.
        """
        stencil = Stencil.square(3) if stencil is None else stencil
        _check_axes(stencil)
        if self.index is None or self.num_regions <= _MATRICES or torch.compiler.is_exporting():
            dense, degree = ops.region_adjacency(
                self._dense(),
                self.size,
                stencil.offsets,
                return_degree=True,
                noise_cancel=noise_cancel,
                max_direction=max_direction,
            )
            return RegionAdjacency(stencil, dense, degree=degree, max_direction=max_direction)
        return self.edges(stencil, noise_cancel=noise_cancel, max_direction=max_direction)

    def edges(
        self, stencil: Stencil | None = None, *, noise_cancel: bool = True, max_direction: bool = True
    ) -> RegionAdjacency:
        """Return the adjacency as edges, without a matrix of regions by regions; see `adjacency`."""
        stencil = Stencil.square(3) if stencil is None else stencil
        _check_axes(stencil)
        edges = ops.region_edges(
            self.weight,
            self._all_index(),
            self.size,
            stencil.offsets,
            self.num_regions,
            noise_cancel=noise_cancel,
            max_direction=max_direction,
        )
        return RegionAdjacency(
            stencil,
            edges=edges,
            batch_size=self.batch_size,
            num_regions=self.num_regions,
            max_direction=max_direction,
        )

    def _dense(self) -> Tensor:
        """Return the weights of all regions, shape ``(B, R, P)``."""
        if self.index is None:
            return self.weight
        shape = (self.batch_size, self.num_regions, self.weight.shape[2])
        if shape[0] * shape[1] * shape[2] > MAX_PAIRS:
            raise ValueError(f"A dense assignment of shape {shape} is too large; use `index` and `weight`.")
        return densify(self.weight, self.index, self.num_regions)

    def _all_index(self) -> Tensor:
        """Return the region of each entry also where all regions are entries, shape ``(B, T, P)``."""
        if self.index is not None:
            return self.index
        every = torch.arange(self.num_regions, dtype=torch.int32, device=self.weight.device)
        return every.view(1, -1, 1).expand(self.weight.shape)

    @classmethod
    def _trusted(
        cls,
        weight: Tensor,
        size: tuple[int, int],
        index: Tensor | None,
        num_regions: int,
        seeds: Tensor | None,
        centers: Tensor | None,
        grid: tuple[int, int] | None = None,
    ) -> Assignment:
        """Return an assignment of parts that are known to fit each other: nothing is looked at."""
        out = cls.__new__(cls)
        out.weight, out.size, out.index, out.num_regions = weight, size, index, num_regions
        out.seeds, out.centers, out.grid = seeds, centers, grid
        return out

    def check_map(self, x: Tensor) -> None:
        """Raise unless `x` is a map ``(B, C, H, W)`` of these images."""
        check_ndim("x", x, 4, shape="(B, C, H, W)")
        if x.shape[0] != self.batch_size or tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"`x` must have {self.batch_size} images of {self.size[0]} x {self.size[1]} pixels as the map that "
                f"was clustered, got shape {tuple(x.shape)}."
            )

    def _check_regions(self, z: Tensor) -> None:
        check_ndim("z", z, 3, shape="(B, R, C)")
        if z.shape[:2] != (self.batch_size, self.num_regions):
            raise ValueError(
                f"`z` must have shape (B, R, C) with B = {self.batch_size} and R = {self.num_regions}, "
                f"got {tuple(z.shape)}."
            )

    def __repr__(self) -> str:
        """Show sizes."""
        form = "all" if self.index is None else str(self.weight.shape[1])
        return f"Assignment(batch_size={self.batch_size}, size={self.size}, regions={self.num_regions}, entries={form})"


def _check_axes(stencil: Stencil) -> None:
    if stencil.ndim != 2:
        raise ValueError(f"`stencil` must have 2 axes for images, got {stencil!r}.")
