"""Regions to compare against: the cells of a stride, of random centres, of any superpixel program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.cluster.clusterer import fixed_noise
from hggraph.cluster.sampling import check_num_regions, sample_with_noise
from hggraph.graph import Assignment
from hggraph.ops.nearest_regions import nearest_regions

__all__ = ["Cells", "Superpixels", "Voronoi"]


class Cells(nn.Module):
    """Cut maps into the cells of ``side x side`` pixels that a convolution of this stride makes (`Assignment.cells`).

    The control of a stage on regions: the same graph, whatever the map shows. Takes the place of `SoftSLIC`.

    Args:
        side: Side of a cell, in pixels.

    Shapes:
        - **input:** map ``(B, C, H, W)``, floating point; attention must be None
        - **output:** a hard `Assignment` on a grid of ``ceil(H / side) x ceil(W / side)``, without a gradient

    Raises:
        ValueError: if there is attention, or `side` is below 1.

    Deterministic, static shapes, O(B H W).

    Example:
        >>> Cells(2)(torch.rand(1, 8, 2, 4)).labels
        tensor([[[0, 0, 1, 1],
                 [0, 0, 1, 1]]])
    """

    num_regions: int | None = None

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        check_positive("side", side)
        self.side = side
        self.downsample = side * side

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Cut a map; see the class for shapes."""
        check_features("x", x)
        _refuse("Cells", attention)
        return Assignment.cells((x.shape[2], x.shape[3]), self.side, batch_size=x.shape[0], device=x.device)

    def extra_repr(self) -> str:
        """Show the side."""
        return f"side={self.side}"


class _Counted(nn.Module):
    """What has a number of regions, fixed or by the number of pixels."""

    def __init__(self, downsample: float, num_regions: int | None) -> None:
        super().__init__()
        if not downsample >= 1:
            raise ValueError(f"`downsample` must be at least 1 pixel per region, got {downsample}.")
        if num_regions is not None:
            check_positive("num_regions", num_regions)
        self.downsample = downsample
        self.num_regions = num_regions

    def regions_for(self, size: tuple[int, int]) -> int:
        """Return the number of regions of an image of the given height and width (pixels)."""
        if self.num_regions is None:
            return max(1, round(size[0] * size[1] / self.downsample))
        check_num_regions(self.num_regions, *size)
        return self.num_regions

    def extra_repr(self) -> str:
        """Show what sets the number of regions."""
        return f"downsample={self.downsample}" if self.num_regions is None else f"num_regions={self.num_regions}"


class Voronoi(_Counted):
    """Give each pixel to the nearest of random centres: regions with a place that look at nothing.

    The control of what clustering finds: as irregular as regions, and blind. Centres are drawn anew each time in
    training mode, in eval mode from fixed noise, as those of ``SoftSLIC(sampling="random")``.

    Args:
        downsample: Pixels per region; ``H * W / downsample`` regions, rounded.
        num_regions: A fixed number of regions instead; None uses `downsample`.

    Shapes:
        - **input:** map ``(B, C, H, W)``, floating point; attention must be None
        - **output:** a hard `Assignment` with seeds, on no grid, without a gradient; of equally near centres the first

    Raises:
        ValueError: if there is attention, an argument is out of range, or there are fewer pixels than regions.

    Static shapes, no host synchronisation; every pixel looks at every centre, O(B H W R), in pieces of bounded memory.

    Example:
        >>> Voronoi(num_regions=6)(torch.rand(2, 8, 12, 12))
        Assignment(batch_size=2, size=(12, 12), regions=6, entries=1)
    """

    def __init__(self, downsample: float = 4, *, num_regions: int | None = None) -> None:
        super().__init__(downsample, num_regions)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Draw centres and cut a map; see the class for shapes."""
        check_features("x", x)
        _refuse("Voronoi", attention)
        size = (x.shape[2], x.shape[3])
        regions, pixels = self.regions_for(size), size[0] * size[1]
        noise = torch.rand(len(x), pixels, device=x.device) if self.training else fixed_noise(pixels, x.device)
        seeds = sample_with_noise(x[:, 0], noise, regions, "random", 1, 0.0)
        places = torch.stack([seeds // size[1], seeds % size[1]], 2).float()
        labels = nearest_regions(places, size, 1, 1).squeeze(1)
        out = Assignment.from_labels(labels, regions)
        out.seeds = seeds
        return out


class Superpixels(_Counted):
    """Cut maps by any function of an image, for example a superpixel program of scikit-image or OpenCV.

    Args:
        function: Takes an image ``(H, W, C)``, a NumPy array of float32, or float64 of float64, and the number of
            regions R, and returns labels ``(H, W)``, at most R different integers. They are numbered anew from 0 in
            their order; fewer leave empty regions at the end, which pool to 0.
        downsample: Pixels per region; ``R = H * W / downsample``, rounded.
        num_regions: A fixed R instead; None uses `downsample`.

    Shapes:
        - **input:** map ``(B, C, H, W)``, floating point; attention must be None
        - **output:** a hard `Assignment` without seeds, on no grid, without a gradient

    Raises:
        ValueError: if there is attention, an argument is out of range, there are fewer pixels than regions, or the
            labels have another size or are more than R.
        TypeError: if labels are not integers.

    Copies maps to the CPU and labels back, image by image; as deterministic as the function.

    Example:
        >>> def halves(image, regions):
        ...     return np.arange(image.shape[1]) * 2 // image.shape[1] + np.zeros((len(image), 1), dtype=int)
        >>> Superpixels(halves, num_regions=2)(torch.rand(1, 3, 1, 4)).labels
        tensor([[[0, 0, 1, 1]]])
    """

    def __init__(
        self, function: Callable[[Any, int], Any], downsample: float = 4, num_regions: int | None = None
    ) -> None:
        super().__init__(downsample, num_regions)
        self.function = function

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Cut each image of a map; see the class for shapes."""
        check_features("x", x)
        _refuse("Superpixels", attention)
        size = (x.shape[2], x.shape[3])
        regions = self.regions_for(size)
        labels = torch.empty(len(x), *size, dtype=torch.long)
        for out, image in zip(labels, x.detach().cpu(), strict=True):
            image = image if x.dtype == torch.float64 else image.float()
            found = self.function(image.permute(1, 2, 0).contiguous().numpy(), regions)
            out.copy_(_numbered(np.asarray(found), size, regions))
        return Assignment.from_labels(labels.to(x.device), regions)


def _numbered(labels: np.ndarray[Any, Any], size: tuple[int, int], regions: int) -> Tensor:
    """Return labels from 0 as a tensor, if they are of an image of this size and not too many."""
    if labels.shape != size:
        raise ValueError(f"`function` must return labels of {size[0]} x {size[1]} pixels, got shape {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"`function` must return integers, got {labels.dtype}.")
    found, numbered = np.unique(labels, return_inverse=True)
    if len(found) > regions:
        raise ValueError(
            f"`function` must return at most the {regions} labels asked for, got {len(found)}; let it ask its program "
            "for fewer, or take a larger `num_regions`."
        )
    return torch.from_numpy(numbered.reshape(size).astype(np.int64))


def _refuse(name: str, attention: Tensor | None) -> None:
    if attention is not None:
        raise ValueError(f'{name} cannot follow `attention`; take SoftSLIC(sampling="warp") or leave it out.')
