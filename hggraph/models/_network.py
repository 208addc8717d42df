"""What every segmentation network does around its own layers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch

from hggraph._check import check_features, check_positive
from hggraph.cluster import region_graph
from hggraph.cluster.importance import check_attention
from hggraph.graph import Assignment
from hggraph.models.fold import fold_batch_norm
from hggraph.nn import HGStage
from hggraph.nn._conv import resize

__all__ = ["Clustered", "Regions", "SegmentationNetwork", "assign", "resize_attention", "training_outputs"]


class Regions(NamedTuple):
    """What a network's HG stage has clustered: for pictures and for PyG."""

    name: str
    assignment: Assignment
    graph: Batch


class Clustered(NamedTuple):
    """A map, and the assignment of its pixels to regions."""

    name: str
    x: Tensor
    assignment: Assignment


class SegmentationNetwork(nn.Module, ABC):
    """A network from images to logits of their size: checks, padding, upsampling, the dict that it returns.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes, at least 1.

    A network says in `predict` what lies between, and in `multiple` to which multiples images are padded.
    """

    multiple = 1

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        check_positive("num_classes", num_classes)
        self.in_channels = in_channels
        self.num_classes = num_classes

    @abstractmethod
    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Any], list[Clustered]]:
        """Return named logits at any size, and what was clustered, of a padded image ``(B, in_channels, H, W)``."""

    def forward(self, x: Tensor, attention: Tensor | None = None, return_regions: bool = False) -> dict[str, Any]:
        """Segment images.

        Args:
            x: Images, shape ``(B, in_channels, H, W)``, floating point, normalised as the weights were trained.
            attention: Where regions should crowd (HG-Conv Eq. 11), shape ``(B, H, W)``, in [0, 1], or None.
            return_regions: Return what was clustered too.

        Returns:
            ``"out"``: logits ``(B, num_classes, H, W)``; in training the auxiliary ones under ``"aux"`` where the
            network has them; with `return_regions` a list of `Regions` under ``"regions"``, one per clustering:
            its name, the `Assignment` of the map that was clustered, and its PyG graph.

        Raises:
            ValueError: if a shape does not fit, attention lies outside [0, 1], or the images are too small.
            TypeError: if `x` or `attention` is not floating point.
        """
        check_features("x", x, f"(B, {self.in_channels}, H, W)")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"`x` must have {self.in_channels} channels, got shape {tuple(x.shape)}.")
        batch, _, height, width = x.shape
        if attention is not None:
            check_attention(attention, (batch, height, width))
        # no remainders: torch.compile cannot mix those of dynamic sizes with the factors of resizing
        bottom, right = (-(-side // self.multiple) * self.multiple - side for side in (height, width))
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
            attention = None if attention is None else F.pad(attention, (0, right, 0, bottom))
        logits, clustered = self.predict(x, attention)
        out: dict[str, Any] = {}
        for name, value in logits.items():
            if not isinstance(value, Tensor):  # of regions, which have no size
                out[name] = value
                continue
            # sizes of 8 n + 1 give maps whose corners lie on the images' corners
            full = resize(value, (x.shape[2], x.shape[3]))
            out[name] = full[:, :, :height, :width]
        if return_regions:
            out["regions"] = [Regions(name, s, region_graph(found, s)) for name, found, s in clustered]
        return out

    def fold(self) -> Self:
        """Return an inference form: the same function (up to rounding) with fewer operations.

        Batch normalisations become part of the convolutions before them; what else can be composed is. The result
        stays in eval mode and has neither auxiliary heads nor gradients.
        """
        folded = copy.deepcopy(self).eval()
        folded.drop_training_parts()
        fold_batch_norm(folded)
        folded.compose()
        return folded.requires_grad_(False)

    def drop_training_parts(self) -> None:
        """Remove what only training uses."""

    def compose(self) -> None:
        """Compose convolutions between which nothing non-linear stands, once their normalisations are folded."""


@contextmanager
def training_outputs(net: nn.Module) -> Iterator[None]:
    """Let a network return what it returns in training, with every layer in eval mode; its modes are kept."""
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    net.training = True  # its own flag alone
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def assign(stage: HGStage, x: Tensor, attention: Tensor | None = None) -> Assignment:
    """Cluster the map that reaches an HG stage.

    Args:
        stage: The stage.
        x: The map, shape ``(B, C, h, w)``.
        attention: Attention of the images' size ``(B, H, W)``, or None.

    Raises:
        ValueError: if the map is smaller than one region or than the stencil reaches.
    """
    height, width = x.shape[2:]
    clusterer: Any = stage.clusterer if stage.levels is None else stage.levels[0].clusterer
    per_region, num_regions = getattr(clusterer, "downsample", 1), getattr(clusterer, "num_regions", None)
    reach = max(stage.stencil.reach)
    least = per_region if num_regions is None else num_regions
    if min(height, width) <= reach or height * width < least:
        raise ValueError(
            f"The images are too small: the map that reaches the HG stage has {height} x {width} pixels, and must have "
            f"more than {reach} along each side, as far as the stencil reaches, and {least:g} in all "
            f"({'one region' if num_regions is None else 'one for each region'}). Use larger images, or a "
            f"`clusterer` with fewer pixels to a region, for example SoftSLIC(downsample=4)."
        )
    return stage.cluster(x, None if attention is None else resize_attention(attention, (height, width)))


def resize_attention(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Return attention maps ``(B, H, W)`` at another size: the mean of what each new pixel covers."""
    return F.interpolate(attention[:, None], size, mode="area")[:, 0]
