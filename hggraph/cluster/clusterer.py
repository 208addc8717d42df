"""The clustering layer: importance, sampling and soft SLIC in one module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.cluster.color import photo_features
from hggraph.cluster.importance import active_focus, check_attention, importance_map
from hggraph.cluster.sampling import check_num_regions, check_sampling, sample_with_noise
from hggraph.cluster.soft_slic import soft_slic
from hggraph.graph import Assignment
from hggraph.ops._distance import compute_dtype, squared_norm

__all__ = ["SoftSLIC"]

FEATURE_SCALES = ("auto", "none", "photo")
SPREAD = 9.0  # mean squared distance of a pixel from the image's mean after the automatic scaling


class SoftSLIC(nn.Module):
    r"""Cluster feature maps into regions around centres sampled by importance (HG-Conv Sec. 4.1, Algorithm 1).

    `feature_scale` maps features to the space in which distances are exponents:

    - ``"auto"``: each image, less its mean, is multiplied by one number, so that the mean squared distance of its
      pixels from their mean is 9. Entries then fall below the threshold for very different pixels and stay for
      similar ones, whatever the number of channels and their size.
    - ``"none"``: features as they are, the paper to the letter.
    - ``"photo"``: CIELAB and scaled positions, for images with values in [0, 1] (see `photo_features`).
    - a number: features times that number.

    Args:
        downsample: Pixels per region; ``max(1, round(H * W / downsample))`` regions.
        num_regions: A fixed number of regions instead; None uses `downsample`.
        iterations: Steps of soft SLIC.
        sampling: ``"topk_random"``, ``"importance"`` or ``"random"`` (see `sample_centers`).
        oversample: Candidates per region for ``"topk_random"``.
        beta: Share of important centres for ``"topk_random"``.
        threshold: Least weight of an assignment.
        candidates: Consider only this many spatially nearest centres for each pixel; None considers all.
        neighbors: 4 or 8, for the importance map.
        alpha: Weight of a given attention map (Eq. 11).
        feature_scale: See above.
        projection: Module applied first, for example ``nn.Conv2d(1024, 64, 1)``: clustering in fewer channels
            costs less. None adds no parameters.
        detach: Cut the gradient through the assignment.

    Shapes:
        - **input:** map ``(B, C, H, W)``, floating point; attention ``(B, H, W)`` in [0, 1] or None
        - **output:** an `Assignment`

    In training mode centres are drawn anew each time; in eval mode from seeded noise, so that the same image
    always gives the same regions, alone or in a batch.

    Example:
        >>> SoftSLIC(num_regions=6).eval()(torch.rand(2, 8, 12, 12))
        Assignment(batch_size=2, size=(12, 12), regions=6, dense)
    """

    def __init__(
        self,
        downsample: float = 64,
        *,
        num_regions: int | None = None,
        iterations: int = 3,
        sampling: str = "topk_random",
        oversample: int = 7,
        beta: float = 0.75,
        threshold: float = 1e-3,
        candidates: int | None = None,
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
        check_positive("iterations", iterations)
        check_sampling(sampling, oversample, beta)
        self.downsample = downsample
        self.num_regions = num_regions
        self.iterations = iterations
        self.sampling = sampling
        self.oversample = oversample
        self.beta = beta
        self.threshold = threshold
        self.candidates = candidates
        self.neighbors = neighbors
        self.alpha = alpha
        self.feature_scale = feature_scale
        self.projection = projection
        self.detach = detach

    def regions_for(self, size: tuple[int, int]) -> int:
        """Return the number of regions of an image of the given height and width (pixels)."""
        if self.num_regions is not None:
            check_num_regions(self.num_regions, *size)
            return self.num_regions
        return max(1, round(size[0] * size[1] / self.downsample))

    def importance(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Return the map, shape ``(B, H, W)``, that centres are drawn from: importance, focused by attention."""
        with torch.no_grad():
            return self._importance(x, self._features(x)[0], attention)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Assignment:
        """Cluster a map; see the class for shapes."""
        check_features("x", x)
        features, affine = self._features(x)
        with torch.no_grad():
            importance = self._importance(x, features, attention)
            num_regions = self.regions_for((x.shape[2], x.shape[3]))
            seeds = sample_with_noise(
                importance, self._noise_for(x), num_regions, self.sampling, self.oversample, self.beta
            )
        assignment = soft_slic(
            features, seeds, iterations=self.iterations, threshold=self.threshold, candidates=self.candidates
        )
        if affine is not None and assignment.centers is not None:
            scale, shift = (value.flatten(2).transpose(1, 2) for value in affine)
            assignment.known_centers = (x, assignment.centers / scale + shift)
        return assignment

    def _features(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return the features to cluster and, where they are ``scale * (x - shift)``, scale and shift."""
        if self.detach:
            x = x.detach()
        if self.feature_scale == "photo":
            # a half's positions are not whole pixels any more beyond 256 (bfloat16) or 2048
            photo = x.to(compute_dtype(x))
            points = photo_features(photo, self.regions_for((x.shape[2], x.shape[3])))
            return points if self.projection is None else self.projection(points), None
        features = x if self.projection is None else self.projection(x)
        features = features.to(compute_dtype(features))
        scale, shift = features.new_ones(len(x), 1, 1, 1), features.new_zeros(len(x), 1, 1, 1)
        if self.feature_scale == "auto":
            # distances are the same without the mean, and lose no digits to it
            scale, shift = spread_scale(features).view(-1, 1, 1, 1), features.mean((2, 3), keepdim=True)
            features = torch.addcmul(-scale * shift, features, scale)
        elif self.feature_scale != "none":
            scale = scale * float(self.feature_scale)
            features = features * scale
        return features, (scale, shift) if self.projection is None else None

    def _importance(self, x: Tensor, features: Tensor, attention: Tensor | None) -> Tensor:
        # a photo's positions differ by the same step everywhere and would only flatten the map
        importance = importance_map(features[:, :3] if self.feature_scale == "photo" else x, neighbors=self.neighbors)
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
        return f"{regions}, iterations={self.iterations}, sampling={self.sampling!r}, " + (
            f"candidates={self.candidates}, feature_scale={self.feature_scale!r}"
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
