"""The soft assignment of pixels to regions and what can be done with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph import ops
from hggraph._check import check_ndim, check_range
from hggraph.graph.adjacency import RegionAdjacency
from hggraph.graph.tile_ops import tile_adjacency, tile_pool, tile_unpool
from hggraph.ops._distance import compute_dtype
from hggraph.ops.tiles import CandidateTiles
from hggraph.stencil import Stencil

__all__ = ["MAX_PAIRS", "Assignment"]

MAX_PAIRS = 1 << 30  # pixel-region pairs of an all-pairs assignment: 4 GiB of float32


class Assignment:
    """The row-normalised matrix S of HG-Conv: a pixel's weights over regions sum to 1.

    Held dense, one weight per pixel and region, or with candidates, T weights per pixel.

    Args:
        weight: Dense: shape ``(B, R, P)``. With `tiles`: the candidates' weights by tile, ``(num_tiles, T, G^2)``.
        size: Height and width of the images, in pixels; P = H * W.
        tiles: The candidates of each pixel, or None for a dense assignment.
        seeds: Flat pixel indices of the sampled centres, shape ``(B, R)``, or None.
        features: The map that was clustered, shape ``(B, C, H, W)``, or None.
        centers: Last centres in the units of `features`, shape ``(B, R, C)``, or None. A region that has lost all
            its pixels pools to its last centre; without this, to 0.

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
        tiles: CandidateTiles | None = None,
        seeds: Tensor | None = None,
        features: Tensor | None = None,
        centers: Tensor | None = None,
    ) -> None:
        check_ndim("weight", weight, 3, shape="(B, R, P)")
        if tiles is None and weight.shape[2] != size[0] * size[1]:
            raise ValueError(f"`weight` must have {size[0]} x {size[1]} pixels, got shape {tuple(weight.shape)}.")
        self.size = (int(size[0]), int(size[1]))
        self.batch_size = weight.shape[0] if tiles is None else tiles.batch_size
        self.num_regions = weight.shape[1] if tiles is None else tiles.num_regions
        self.tiles = tiles
        self.seeds = seeds
        self.features = features
        self.centers = centers
        self._weight = weight
        self._area: Tensor | None = None
        # a map whose centres are known without another pass: (map, centres in its units)
        self.known_centers = None if features is None or centers is None else (features, centers)

    @classmethod
    def from_labels(cls, labels: Tensor, num_regions: int) -> Assignment:
        """Make a hard assignment from labels ``(B, H, W)``, long in [0, num_regions).

        Raises:
            ValueError: if a label is out of range.
        """
        check_ndim("labels", labels, 3, shape="(B, H, W)")
        if not torch.compiler.is_compiling():  # it reads the data
            check_range("labels", labels, num_regions)
        pixels = labels.shape[1] * labels.shape[2]
        weight = torch.zeros(labels.shape[0], num_regions, pixels, device=labels.device)
        return cls(weight.scatter_(1, labels.flatten(1)[:, None], 1), (labels.shape[1], labels.shape[2]))

    @property
    def weight(self) -> Tensor:
        """The weights: dense ``(B, P, R)``, or with candidates ``(B, P, T)`` in the order of `index`."""
        if self.tiles is None:
            return self._weight.transpose(1, 2)
        return self.tiles.merge(self._weight).flatten(2).transpose(1, 2)

    @property
    def index(self) -> Tensor | None:
        """Regions of each pixel's candidates, shape ``(B, P, T)``, long; None when dense."""
        if self.tiles is None:
            return None
        return self.tiles.merge(self.tiles.index()).flatten(2).transpose(1, 2).long() % self.num_regions

    @property
    def labels(self) -> Tensor:
        """The strongest region of each pixel, shape ``(B, H, W)``, long."""
        strongest = self.weight.argmax(2, keepdim=True)
        index = self.index
        if index is not None:
            strongest = index.gather(2, strongest)
        return strongest.view(self.batch_size, *self.size)

    @property
    def area(self) -> Tensor:
        """The sum of the weights of each region, in pixels, shape ``(B, R)``."""
        kept = self._area
        # what was computed without a graph does not serve where one is needed
        needed = torch.is_grad_enabled() and self._weight.requires_grad
        if kept is None or (needed and not kept.requires_grad):
            if self.tiles is None:
                kept = self._weight.sum(2)
            else:
                kept = self._pool_tiles(self._weight.new_zeros(self.batch_size, 1, *self.size))[1]
            self._area = kept
        return kept

    def to_dense(self) -> Tensor:
        """Return S, shape ``(B, P, R)``.

        Raises:
            ValueError: if it is held with candidates and would have more than 2^30 entries.
        """
        if self.tiles is None:
            return self._weight.transpose(1, 2)
        shape = (self.batch_size, self.size[0] * self.size[1], self.num_regions)
        if shape[0] * shape[1] * shape[2] > MAX_PAIRS:
            raise ValueError(f"A dense assignment of shape {shape} is too large; use `index` and `weight`.")
        index, weight = self.index, self.weight
        assert index is not None
        return weight.new_zeros(shape).scatter(2, index, weight)

    def pool(self, x: Tensor) -> Tensor:
        """Average the pixels of each region, column-normalised (HG-Conv Eq. 5).

        Args:
            x: Map, shape ``(B, C, H, W)``, floating point, of the size that was clustered.

        Returns:
            Shape ``(B, R, C)``. A region without pixels gives its last centre: for the clustered map itself the
            centre, for another map the mean under the centre's soft membership.

        Raises:
            ValueError: if the size differs.
        """
        self._check_map(x)
        if self.tiles is None:
            pooled = ops.region_pool(x.flatten(2), self._weight)
        else:
            # a sum over a region may leave a half's range where the mean does not
            total, self._area = self._pool_tiles(x.to(compute_dtype(x)))
            pooled = (total / torch.where(self._area > 0, self._area, 1)[..., None]).to(x.dtype)
        return self._fill_empty(pooled, self.area, x)

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
        if self.tiles is None:
            return ops.region_unpool(z, self._weight).unflatten(2, self.size)
        with self._without_autocast():
            return tile_unpool(self.tiles, self._weight, z)

    def unpool_conv1x1(self, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute ``conv1x1(concat(x, unpool(z)))`` as ``X Wa + S (Z Wb) + b``, without the concatenation.

        Args:
            x: Map, shape ``(B, C, H, W)``.
            z: Region features, shape ``(B, R, D)``.
            weight: Shape ``(O, C + D)`` or ``(O, C + D, 1, 1)``.
            bias: Shape ``(O,)`` or None.

        Returns:
            Shape ``(B, O, H, W)``, channels_last for a dense assignment.
        """
        self._check_map(x)
        self._check_regions(z)
        weight = weight.flatten(1)
        if self.tiles is None:
            return ops.unpool_conv1x1(x.flatten(2), z, self._weight, weight, bias).unflatten(2, self.size)
        if weight.shape[1] != x.shape[1] + z.shape[2]:
            raise ValueError(f"`weight` must have shape (O, {x.shape[1] + z.shape[2]}), got {tuple(weight.shape)}.")
        on_pixels, on_regions = weight.split([x.shape[1], z.shape[2]], 1)
        return F.conv2d(x, on_pixels[..., None, None], bias) + self.unpool(z @ on_regions.t())

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
            ValueError: if shapes disagree, or S is held with candidates and too large to be made dense.
        """
        check_ndim("weight", weight, 4, shape="(O, C + D, k, k)")
        if weight.shape[2] == 1:
            return self.unpool_conv1x1(x, z, weight, bias)
        self._check_map(x)
        self._check_regions(z)
        out_channels, _, side, _ = weight.shape
        if weight.shape[1:] != (x.shape[1] + z.shape[2], side, side) or side % 2 == 0:
            expected = f"(O, {x.shape[1] + z.shape[2]}, k, k) with odd k"
            raise ValueError(f"`weight` must have shape {expected}, got {tuple(weight.shape)}.")
        on_pixels, on_regions = weight.split([x.shape[1], z.shape[2]], 1)
        taps = z @ on_regions.permute(1, 0, 2, 3).flatten(1)  # (B, R, O k k)
        taps = taps.view(*z.shape[:2], out_channels, side, side).transpose(1, 2)
        spread = self.to_dense().transpose(1, 2).reshape(1, -1, *self.size)  # one convolution for each image
        shifted = F.conv2d(spread.to(taps.dtype), taps.flatten(0, 1), padding=side // 2, groups=self.batch_size)
        return F.conv2d(x, on_pixels, bias, padding=side // 2) + shifted.view(-1, out_channels, *self.size)

    def adjacency(
        self, stencil: Stencil | None = None, *, noise_cancel: bool = True, max_direction: bool = True
    ) -> RegionAdjacency:
        """Return how strongly regions touch in each direction (HG-Conv Eq. 4, 7 and appendix B).

        Args:
            stencil: Directions; ``Stencil.square(3)`` when None.
            noise_cancel: Subtract the opposite direction.
            max_direction: Keep only the strongest direction of each pair.

        Returns:
            Dense matrices for a dense assignment, edges for one with candidates.
        """
        stencil = Stencil.square(3) if stencil is None else stencil
        if stencil.ndim != 2:
            raise ValueError(f"`stencil` must have 2 axes for images, got {stencil!r}.")
        if self.tiles is None:
            dense, degree = ops.region_adjacency(
                self._weight,
                self.size,
                stencil.offsets,
                noise_cancel=noise_cancel,
                max_direction=max_direction,
                return_degree=True,
            )
            return RegionAdjacency(stencil, dense, degree=degree, max_direction=max_direction)
        with self._without_autocast():
            edges = tile_adjacency(self.tiles, self._weight, stencil, noise_cancel, max_direction)
        return RegionAdjacency(
            stencil,
            edges=edges,
            batch_size=self.batch_size,
            num_regions=self.num_regions,
            max_direction=max_direction,
        )

    def _without_autocast(self) -> torch.autocast:
        return torch.autocast(self._weight.device.type, enabled=False)

    def _pool_tiles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.tiles is not None
        with self._without_autocast():
            return tile_pool(self.tiles, self._weight, x)

    def _fill_empty(self, pooled: Tensor, mass: Tensor, x: Tensor) -> Tensor:
        if self.features is None or self.centers is None or self.known_centers is None:
            return pooled
        known_map, known_centers = self.known_centers
        if x is known_map:
            return torch.where(mass[..., None] > 0, pooled, known_centers.to(pooled.dtype))
        # one more pass gives the centres' values in another map; where reading the masses is free, only if needed
        eager = mass.device.type == "cpu" and not torch.compiler.is_compiling()
        if eager and bool((mass > 0).all()):
            return pooled
        last = ops.centre_update(self.features.flatten(2), self.centers, values=x.flatten(2))[0]
        return torch.where(mass[..., None] > 0, pooled, last.to(pooled.dtype))

    def _check_map(self, x: Tensor) -> None:
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
        form = "dense" if self.tiles is None else f"candidates={self.tiles.num_candidates}"
        return f"Assignment(batch_size={self.batch_size}, size={self.size}, regions={self.num_regions}, {form})"
