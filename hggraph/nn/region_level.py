"""One level of regions inside a network: what a stride is when the cells it makes may bend."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph.graph import Assignment, RegionAdjacency
from hggraph.graph.directions import check_born, check_directions, directed
from hggraph.stencil import Stencil

__all__ = ["BACK", "POOLING", "RegionLevel"]

POOLING = ("mean", "sample")
BACK = ("soft", "nearest", "bilinear")


class RegionLevel(nn.Module):
    """A partition of a map, or of the nodes of a finer level, into regions; nodes are laid out as a map again.

    Args:
        clusterer: Makes the `Assignment` of a map, for example `SoftSLIC` or `Cells`; the level takes a copy.
        pooling: ``"mean"``: the mean of a region, weighted by how much of each pixel is in it and by the pixel's own
            area. ``"sample"``: the pixel of the region's seed, as a strided convolution takes it.
        directions: How edges are typed, see `directed`.
        back: The way back: ``"soft"``, by S (HG-Conv Eq. 6); ``"nearest"``, the value of the strongest region;
            ``"bilinear"``, between the nodes of a grid as if they stood regularly.
        nested: Regions of the finer level's regions, which have to stand on a grid; False: regions of the map that
            the first level is made of.
        noise_cancel: See `Assignment.adjacency`, for ``"borders"``.
        max_direction: Likewise.

    `enter` makes the regions of one forward pass, which then serve all layers of the level; `leave` forgets them.

    Shapes:
        - **enter, pool:** map ``(B, C, H, W)`` of the finer level; `pool` gives ``(B, C, rows, columns)``, or
          ``(B, C, 1, R)`` for regions without a grid
        - **unpool:** the reverse

    Example:
        >>> from hggraph.cluster import Cells
        >>> level = RegionLevel(Cells(2))
        >>> x = torch.arange(8.0).view(1, 1, 2, 4)
        >>> _ = level.enter(x)
        >>> level.pool(x), level.unpool(level.pool(x)).shape
        (tensor([[[[2.5000, 4.5000]]]]), torch.Size([1, 1, 2, 4]))
    """

    def __init__(
        self,
        clusterer: nn.Module,
        *,
        pooling: str = "mean",
        directions: str = "birth",
        back: str = "soft",
        nested: bool = True,
        noise_cancel: bool = True,
        max_direction: bool = True,
    ) -> None:
        super().__init__()
        check_directions(directions)
        for name, value, known in (("pooling", pooling, POOLING), ("back", back, BACK)):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}, got {value!r}.")
        self.clusterer = copy.deepcopy(clusterer)  # it may be another level's or network's too
        self.pooling = pooling
        self.directions = directions
        self.back = back
        self.nested = nested
        self.noise_cancel = noise_cancel
        self.max_direction = max_direction
        self.leave()

    def leave(self) -> None:
        """Forget the regions."""
        self.assignment: Assignment | None = None
        self.finer: RegionLevel | None = None
        self._means: Assignment | None = None
        self._area: Tensor | None = None
        self._adjacency: dict[Stencil, RegionAdjacency] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: no regions."""
        forgotten: dict[str, Any] = {"assignment": None, "finer": None, "_means": None, "_area": None, "_adjacency": {}}
        return self.__dict__ | forgotten

    def enter(
        self,
        x: Tensor,
        attention: Tensor | None = None,
        assignment: Assignment | None = None,
        finer: RegionLevel | None = None,
    ) -> Assignment:
        """Make the regions of a map, or take those given; see the class for shapes.

        Args:
            x: The map that is clustered.
            attention: Attention of the map's size, for the clusterer.
            assignment: Regions to take instead.
            finer: The level whose nodes the map is made of.

        Raises:
            ValueError: if directions by birth, or regions of these regions, are asked for of regions without a grid.
        """
        self.leave()
        if assignment is None:
            assignment = self.clusterer(x) if attention is None else self.clusterer(x, attention)
        assert assignment is not None
        if self.directions in ("birth", "shuffled"):
            check_born(assignment, f'directions="{self.directions}"')
        if self.back == "bilinear":
            check_born(assignment, 'back="bilinear"')
        self.assignment = assignment
        self.finer = finer
        if finer is not None and finer.pooling == "mean" and self.nested:
            area = finer.area
            self._means = Assignment._trusted(
                assignment.weight * area.unsqueeze(1).to(assignment.weight.dtype),
                assignment.size,
                assignment.index,
                assignment.num_regions,
                assignment.seeds,
                None,
                assignment.grid,
            )
        return assignment

    @property
    def regions(self) -> Assignment:
        """The regions of this pass."""
        if self.assignment is None:
            raise RuntimeError("The level has no regions yet; call `enter` with the map first.")
        return self.assignment

    @property
    def _of_pixels(self) -> Assignment:
        """The regions with each entry weighted by the area of its node in the finer level."""
        return self.regions if self._means is None else self._means

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the nodes laid out as a map."""
        return self.regions.grid or (1, self.regions.num_regions)

    @property
    def area(self) -> Tensor:
        """Pixels of each region, those of its finer regions summed; shape ``(B, R)``."""
        if self._area is None:
            self._area = self._of_pixels.area
        return self._area

    def pool(self, x: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Bring a map to the regions.

        Args:
            x: Map of the finer level.
            offset: For ``"sample"`` from regular cells: where in a cell, from its first pixel, the window of the
                strided layer has its middle.
        """
        if self.finer is not None and not self.nested:
            x = self.finer.unpool(x)
        rows = self._of_pixels.pool(x) if self.pooling == "mean" else self._sample(x, offset)
        out = rows.mT.unflatten(2, self.shape)
        like = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        return out.contiguous(memory_format=like)

    def unpool(self, z: Tensor) -> Tensor:
        """Bring nodes back to the map that was clustered, ``(B, C, H, W)``."""
        if self.back == "bilinear":
            return F.interpolate(z, self.regions.size, mode="bilinear", align_corners=False)
        regions = self.regions.harden() if self.back == "nearest" else self.regions
        return regions.unpool(z.flatten(2).mT)

    def to_map(self, z: Tensor) -> Tensor:
        """Bring nodes back to the map of the first level."""
        z = self.unpool(z)
        return z if self.finer is None or not self.nested else self.finer.to_map(z)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all nodes ``(B, C, rows, columns)``, counted by area; shape ``(B, C, 1, 1)``."""
        area = self.area.double()  # whole numbers for hard regions, of which no digit is lost
        share = (area / area.sum(1, keepdim=True).clamp(min=1e-12)).to(x.dtype)
        return (x.flatten(2) @ share.unsqueeze(2)).unsqueeze(3)

    def adjacency(self, stencil: Stencil) -> RegionAdjacency:
        """Return the typed edges, made once for each stencil."""
        if stencil not in self._adjacency:
            self._adjacency[stencil] = directed(
                self.regions,
                self.directions,
                stencil,
                noise_cancel=self.noise_cancel,
                max_direction=self.max_direction,
            )
        return self._adjacency[stencil]

    def _sample(self, x: Tensor, offset: tuple[int, int]) -> Tensor:
        regions, (height, width) = self.regions, x.shape[2:]
        if regions.seeds is None:
            raise ValueError(f'pooling="sample" needs regions with seeds, got {regions} without. Take pooling="mean".')
        # regular cells start at their first pixel, other seeds in the middle
        shift = offset if hasattr(self.clusterer, "side") else (0, 0)
        y = (regions.seeds // width + shift[0]).clamp(max=height - 1)
        x_ = (regions.seeds % width + shift[1]).clamp(max=width - 1)
        return x.flatten(2).gather(2, (y * width + x_).unsqueeze(1).expand(-1, x.shape[1], -1)).mT

    def extra_repr(self) -> str:
        """Show the options."""
        return f"pooling={self.pooling!r}, directions={self.directions!r}, back={self.back!r}"


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
