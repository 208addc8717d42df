"""The clustering layer: importance, sampling and soft SLIC in one module."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.cluster.color import as_points, photo_colors
from hggraph.cluster.connect import connect
from hggraph.cluster.importance import active_focus, check_attention, importance_map
from hggraph.cluster.sampling import (
    check_num_regions,
    check_sampling,
    density_centers,
    grid_of,
    grid_size,
    sample_with_noise,
)
from hggraph.cluster.soft_slic import check_update, soft_slic
from hggraph.graph import Assignment
from hggraph.ops import fast
from hggraph.ops._distance import compute_dtype, squared_norm

__all__ = ["SoftSLIC"]

FEATURE_SCALES = ("auto", "none", "photo")
SPREAD = 9.0  # mean squared distance of a pixel from the image's mean after the automatic scaling


class _Form(NamedTuple):
    iterations: int
    sampling: str
    candidates: int
    position: float
    threshold: float
    smooth: float
    connected: bool


# what measures best (docs/clustering.md)
_PHOTO = _Form(iterations=4, sampling="density", candidates=6, position=2.0, threshold=0.03, smooth=1.0, connected=True)
_MAP = _Form(iterations=3, sampling="grid", candidates=9, position=2.5, threshold=1e-3, smooth=0.0, connected=False)


class SoftSLIC(nn.Module):
    r"""Cluster photos or feature maps into regions that have a place (HG-Conv Sec. 4.1, Algorithm 1, mended).

    Arguments that are None or ``"auto"`` take what measures best for photos (``feature_scale="photo"``) or for maps:

    ============  =====================  ==========================
    argument      photos                 maps
    ============  =====================  ==========================
    iterations    4                      3
    sampling      density                grid; with attention density
    candidates    6                      9
    position      2                      2.5
    threshold     0.03                   0.001
    smooth        1 pixel                none
    connected     yes                    no
    ============  =====================  ==========================

    `SoftSLIC.paper` is the paper's form. `feature_scale` maps features to the space in which distances are exponents:

    - ``"auto"``: each image, less its mean, is multiplied by one number, so that the mean squared distance of its
      pixels from their mean is 9. Entries then fall below the threshold for very different pixels and stay for
      similar ones, whatever the number of channels and their size.
    - ``"none"``: features as they are.
    - ``"photo"``: CIELAB, for images with values in [0, 1] (see `photo_colors`).
    - a number: features times that number.

    Args:
        downsample: Pixels per region; ``H * W / downsample`` regions, on a grid the nearest number that fills its rows.
        num_regions: A fixed number of regions instead; None uses `downsample`.
        iterations: Steps of soft SLIC.
        sampling: How seeds are chosen, see `sample_centers`. Seeds on a full grid, warped or not, keep their row and
            column (`Assignment.grid`).
        update: ``"softmax"`` or ``"column"``, see `soft_slic`.
        candidates: Consider only this many spatially nearest centres for each pixel; None considers all.
        position: How far apart two pixels at one spacing of regions are in the space of clustering; 2.5 is Superpixel
            Sampling Networks'. 0: regions have no place.
        threshold: Least weight of an assignment.
        smooth: Deviation of the Gaussian by which photos are blurred before all else, in pixels.
        connected: Give exactly the regions asked for, each of one 4-connected piece, none empty (see `connect`). Reads
            the data.
        hard: Give each pixel to its strongest region alone: one entry a pixel, no gradient through the weights.
        oversample: Candidates per region for ``"topk_random"``.
        beta: Share of important centres for ``"topk_random"``.
        neighbors: 4 or 8, for the importance map.
        alpha: Weight of a given attention map (Eq. 11).
        feature_scale: See above.
        projection: Module applied to a map first, for example ``nn.Conv2d(1024, 64, 1)``, or to the five channels of
            `photo_features`, whose last two channels of output are the position then (`hggraph.nn.RegionEmbedding`).
        detach: Cut the gradient through the assignment.

    Shapes:
        - **input:** map ``(B, C, H, W)``, floating point; attention ``(B, H, W)`` in [0, 1] or None
        - **output:** an `Assignment`

    With random sampling, centres are drawn anew each time in training mode; in eval mode from seeded noise, so that the
    same image always gives the same regions, alone or in a batch. On a grid, warped or not, and by density nothing is
    random.

    Example:
        >>> SoftSLIC(num_regions=6)(torch.rand(2, 8, 12, 12))
        Assignment(batch_size=2, size=(12, 12), regions=6, entries=6)
    """

    def __init__(
        self,
        downsample: float = 64,
        *,
        num_regions: int | None = None,
        iterations: int | None = None,
        sampling: str | None = None,
        update: str = "softmax",
        candidates: int | str | None = "auto",
        position: float | None = None,
        threshold: float | None = None,
        smooth: float | None = None,
        connected: bool | None = None,
        hard: bool = False,
        oversample: int = 7,
        beta: float = 0.75,
        neighbors: int = 4,
        alpha: float = 10.0,
        feature_scale: str | float = "auto",
        projection: nn.Module | None = None,
        detach: bool = False,
    ) -> None:
        super().__init__()
        if not downsample >= 1:
            raise ValueError(f"`downsample` must be at least 1 pixel per region, got {downsample}.")
        if num_regions is not None:
            check_positive("num_regions", num_regions)
        known = feature_scale in FEATURE_SCALES
        if not known and (isinstance(feature_scale, str) or not 0 < feature_scale < math.inf):
            raise ValueError(f"`feature_scale` must be a number > 0 or one of {FEATURE_SCALES}, got {feature_scale!r}.")
        form = _PHOTO if feature_scale == "photo" else _MAP
        if isinstance(candidates, str) and candidates != "auto":
            raise ValueError(f'`candidates` must be a whole number, "auto", or None for all, got {candidates!r}.')
        self.downsample = downsample
        self.num_regions = num_regions
        self.iterations = form.iterations if iterations is None else iterations
        self.sampling = sampling
        self.update = update
        self.candidates = form.candidates if isinstance(candidates, str) else candidates
        self.position = form.position if position is None else position
        self.threshold = form.threshold if threshold is None else threshold
        self.smooth = form.smooth if smooth is None else smooth
        self.connected = form.connected if connected is None else connected
        self.hard = hard
        self.oversample = oversample
        self.beta = beta
        self.neighbors = neighbors
        self.alpha = alpha
        self.feature_scale = feature_scale
        self.projection = projection
        self.detach = detach
        check_positive("iterations", self.iterations)
        if self.candidates is not None:
            check_positive("candidates", self.candidates)
        check_update(update, self.position)
        check_sampling(form.sampling if sampling is None else sampling, oversample, beta)
        if not 0 <= self.smooth < math.inf:
            raise ValueError(f"`smooth` must be pixels >= 0, got {smooth}.")
        if self.smooth and feature_scale != "photo":
            raise ValueError(f'`smooth` blurs photos, feature_scale="photo"; for a map leave it out, got {smooth}.')

    @classmethod
    def paper(
        cls,
        downsample: float = 64,
        *,
        num_regions: int | None = None,
        iterations: int = 3,
        sampling: str = "topk_random",
        candidates: int | None = None,
        feature_scale: str | float = "none",
        projection: nn.Module | None = None,
    ) -> SoftSLIC:
        """Return the paper's form (Algorithm 1): seeds by importance, all regions for each pixel, no positions.

        Weights are normalised over the pixels of a region before the means. The paper names no scale of the features;
        ``feature_scale="auto"`` gives a sensible mixture on any map.

        Example:
            >>> SoftSLIC.paper(num_regions=6).eval()(torch.rand(2, 8, 12, 12))
            Assignment(batch_size=2, size=(12, 12), regions=6, entries=all)
        """
        return cls(
            downsample,
            num_regions=num_regions,
            iterations=iterations,
            sampling=sampling,
            update="column",
            candidates=candidates,
            position=0.0,
            smooth=0.0,
            connected=False,
            feature_scale=feature_scale,
            projection=projection,
        )

    def sampling_for(self, attention: Tensor | None) -> str:
        """Return how seeds are chosen; a grid cannot follow attention.

        Raises:
            ValueError: if a grid was asked for and there is attention.
        """
        if self.sampling == "grid" and attention is not None:
            raise ValueError(
                'Seeds on a grid cannot follow `attention`; take sampling="density" or "warp", or leave it out.'
            )
        if self.sampling is not None:
            return self.sampling
        return "grid" if attention is None and self.feature_scale != "photo" else "density"

    def regions_for(self, size: tuple[int, int], attention: Tensor | None = None) -> int:
        """Return the number of regions of an image of the given height and width (pixels)."""
        if self.num_regions is not None:
            check_num_regions(self.num_regions, *size)
            return self.num_regions
        wanted = size[0] * size[1] / self.downsample
        full = self.sampling_for(attention) in ("grid", "warp")
        return grid_size(size, wanted) if full else max(1, round(wanted))

    def importance(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Return the map, shape ``(B, H, W)``, that centres are drawn from: importance, focused by attention."""
        with torch.no_grad():
            seen = self._photo(x) if self.feature_scale == "photo" else x
            return self._importance(seen, attention)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Cluster a map; see the class for shapes."""
        check_features("x", x)
        size = (x.shape[2], x.shape[3])
        num_regions, sampling = self.regions_for(size, attention), self.sampling_for(attention)
        if self.detach:
            x = x.detach()
        photo = self.feature_scale == "photo"
        seen = self._photo(x) if photo else x
        with torch.no_grad():
            seeds = self._seeds(seen, attention, num_regions, sampling)
        features = self._embedded(seen, num_regions) if photo else self._scaled(x)
        spacing = (size[0] * size[1] / num_regions) ** 0.5
        assignment = soft_slic(
            features,
            seeds,
            iterations=self.iterations,
            threshold=self.threshold,
            candidates=self.candidates,
            update=self.update,
            position=self.position / spacing,
            hard=self.hard,
        )
        assignment.grid = grid_of(size, num_regions) if sampling in ("grid", "warp") else None
        # learned features guide no better than colours, which are few enough for the fast path
        return connect(assignment, seen if photo else features, inplace=True) if self.connected else assignment

    def _seeds(self, seen: Tensor, attention: Tensor | None, num_regions: int, sampling: str) -> Tensor:
        plain = sampling == "density" and attention is None and self.neighbors == 4 and seen.shape[1] == 3
        if plain and len(seen) and fast.takes(seen.detach()):
            return fast.each(lambda image: fast.density_seeds(image, num_regions), seen.detach())
        # a grid looks at nothing
        importance = seen[:, 0].detach() if sampling == "grid" else self._importance(seen, attention)
        if sampling == "density" and attention is not None:
            return density_centers(importance.float(), num_regions, spread=True)
        noise = None if sampling in ("grid", "density", "warp") else self._noise_for(seen)
        return sample_with_noise(importance, noise, num_regions, sampling, self.oversample, self.beta)

    def _photo(self, x: Tensor) -> Tensor:
        # a half's colours are coarse
        return photo_colors(x.to(compute_dtype(x)), self.smooth)

    def _embedded(self, colors: Tensor, num_regions: int) -> Tensor:
        """Return the features of a photo's colours, without the position."""
        if self.projection is None:
            return colors
        out = self.projection(as_points(colors, num_regions))
        return out[:, :-2].to(compute_dtype(out))

    def _scaled(self, x: Tensor) -> Tensor:
        features = x if self.projection is None else self.projection(x)
        features = features.to(compute_dtype(features))
        if self.feature_scale == "auto":
            # distances are the same without the mean, and lose no digits to it
            scale, shift = spread_scale(features).view(-1, 1, 1, 1), features.mean((2, 3), keepdim=True)
            return torch.addcmul(-scale * shift, features, scale)
        return features if self.feature_scale == "none" else features * float(self.feature_scale)

    def _importance(self, seen: Tensor, attention: Tensor | None) -> Tensor:
        importance = importance_map(seen, neighbors=self.neighbors)
        if attention is None:
            return importance
        check_attention(attention, importance.shape)
        return active_focus(importance, attention, self.alpha)

    def _noise_for(self, x: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        if self.training:
            return torch.rand(x.shape[0], pixels, device=x.device)
        return fixed_noise(pixels, x.device)

    def extra_repr(self) -> str:
        """Show what sets the number of regions and the space of clustering."""
        regions = f"downsample={self.downsample}" if self.num_regions is None else f"num_regions={self.num_regions}"
        return f"{regions}, iterations={self.iterations}, sampling={self.sampling!r}, update={self.update!r}, " + (
            f"candidates={self.candidates}, position={self.position}, feature_scale={self.feature_scale!r}"
        )


def fixed_noise(pixels: int, device: torch.device | str | None = None) -> Tensor:
    """Return noise in [0, 1), shape ``(1, pixels)``, the same every time and on every device.

    A hash of the pixel's number: unlike a seeded generator it can be compiled and captured, and keeps no state.

    Example:
        >>> bool((fixed_noise(1000) < 0.5).float().mean().sub(0.5).abs() < 0.05)
        True
    """
    state = torch.arange(1, pixels + 1, device=device)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x046CA68B), (16, 1)):
        state = (state ^ (state >> shift)) * factor & 0x7FFFFFFF  # products stay within int64
    return ((state >> 7).float() / 2**24)[None]


def spread_scale(x: Tensor) -> Tensor:
    """Return the factor per image that makes the mean squared distance from the mean 9, shape ``(B,)``.

    A constant image gets 1.

    Example:
        >>> spread_scale(torch.tensor([[[[-1.0, 1.0]]]]))
        tensor([3.])
    """
    power = squared_norm(x.flatten(2)).double().mean(1)
    variance = power - x.mean((2, 3)).double().square().sum(1)
    # a spread of rounding errors only must not be blown up
    usable = variance > 16 * torch.finfo(x.dtype).eps * power
    return torch.where(usable, (SPREAD / torch.where(usable, variance, 1)).sqrt(), 1).to(x.dtype)
