"""HG-ResNet whose regions follow a unity pyramid: small where labels mix, large where one label fills a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.graph import Assignment
from hggraph.models._network import Clustered, SegmentationNetwork, assign
from hggraph.models.heads import fcn_head
from hggraph.models.hg_resnet import ResNetTrunk, resnet_trunk
from hggraph.nn import HGStage, UnityHead
from hggraph.schemes.specialize import unity_attention, unity_regions
from hggraph.schemes.specialize.fuse import check_threshold

__all__ = ["HGUnity", "hg_unity"]

STEERS = ("importance", "attention", "regions")


class HGUnity(SegmentationNetwork):
    """A `ResNetTrunk` with stage 4 on regions, a unity head on stage 3, and a fully convolutional head; see `hg_unity`.

    Args:
        trunk: With an HG stage.
        in_channels: Channels of the images.
        num_classes: Channels of the logits.
        steer: ``"importance"``, ``"attention"`` or ``"regions"``.
        levels: Levels of the pyramid, the map's own pixels among them.
        stride: Image pixels per pixel of the map that is clustered.
        threshold: See `unity_regions`.
        aux: Have an auxiliary head on stage 3.
        dropout: Share of channels dropped in the heads in training.
    """

    def __init__(
        self,
        trunk: ResNetTrunk,
        in_channels: int,
        num_classes: int,
        *,
        steer: str = "attention",
        levels: int = 4,
        stride: int = 8,
        threshold: float = 0.9,
        aux: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if steer not in STEERS:
            raise ValueError(f"`steer` must be one of {STEERS}, got {steer!r}.")
        check_positive("levels", levels, 3)
        self.steer, self.threshold = steer, check_threshold(threshold)
        self.strides = tuple(stride * 2**level for level in reversed(range(1, levels)))  # of what has unity
        self.multiple = self.strides[0]
        self.trunk = trunk
        before, after = trunk.channels[-2:]
        self.unity_head = UnityHead(before, levels)
        self.head = fcn_head(after, num_classes, dropout=dropout)
        self.aux_head = fcn_head(before, num_classes, dropout=dropout) if aux else None

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Any], list[Clustered]]:
        """Return logits at the last map's size, in training the auxiliary ones and those of unity."""
        maps = self.trunk.on_pixels(x)
        y, stage = maps[-1], self.trunk.hg
        assert stage is not None
        wanted = self.training or (self.steer != "importance" and attention is None)
        unity = self.unity_head(y) if wanted else []
        assignment = self._regions(stage, x, y, unity, attention)
        logits: dict[str, Any] = {"out": self.head(stage(y, assignment=assignment))}
        if self.training:
            logits["unity"] = unity
            if self.aux_head is not None:
                logits["aux"] = self.aux_head(y)
        return logits, [Clustered("hg", y, assignment)]

    def _regions(
        self, stage: HGStage, x: Tensor, y: Tensor, unity: list[Tensor], attention: Tensor | None
    ) -> Assignment:
        """Return the assignment of the map's pixels; an attention map given in the call takes unity's place."""
        if attention is not None or self.steer == "importance":
            return assign(stage, y, attention)
        found = [u.detach().float().sigmoid() for u in unity]
        if self.steer == "attention":
            return assign(stage, y, unity_attention(found, (x.shape[2], x.shape[3])))
        # the smallest have 2 x 2 pixels of the map; a graph that is compiled has room for all of them
        most = y.shape[2] * y.shape[3] // 4 if torch.compiler.is_compiling() else None
        cells = unity_regions(found[:-1], self.threshold, num_regions=most)
        labels = F.interpolate(cells.labels[:, None].float(), (y.shape[2], y.shape[3]), mode="nearest")[:, 0].long()
        return Assignment.from_labels(labels, cells.num_regions)

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head."""
        self.aux_head = None


def hg_unity(
    depth: int | str = 50,
    num_classes: int = 19,
    *,
    steer: str = "attention",
    levels: int = 4,
    threshold: float = 0.9,
    in_channels: int = 3,
    stem: str | None = None,
    clusterer: nn.Module | None = None,
    aux: bool = True,
    dropout: float = 0.1,
    pretrained: bool | str | Path = False,
) -> HGUnity:
    """Make an HG-ResNet of output stride 8 whose regions a unity pyramid steers (no paper has this).

    A `UnityHead` on stage 3 says of cells of the map whether one label fills them (Hsiao et al. 2021, *Specialize and
    Fuse*). To be trained with `UnityOutputLoss`.

    Args:
        depth: See `hg_resnet`.
        num_classes: Channels of the logits.
        steer: ``"attention"``: where cells are mixed, centres crowd, by `unity_attention` as the attention of active
            focus. ``"regions"``: the cells themselves are the regions, by `unity_regions`. ``"importance"``: neither,
            the plain HG-ResNet with the same heads and losses, to compare with.
        levels: Levels of the pyramid with the map's own pixels, at least 3: 4 has cells of 64, 32 and 16 image pixels.
        threshold: A cell has unity if its probability reaches it, for ``"regions"``.
        in_channels: Channels of the images.
        stem: See `hg_resnet`.
        clusterer: What clusters where the regions are not cells; ``SoftSLIC()`` when None.
        aux: Have an auxiliary head on stage 3.
        dropout: Share of channels dropped in the heads in training.
        pretrained: See `hg_resnet`.

    Returns:
        The network. Called with images it returns what `SegmentationNetwork.forward` says, in training ``"unity"`` too:
        logits of unity, coarse to fine, each ``(B, h, w)``. An attention map given in the call takes unity's place.
        Images are padded to multiples of the largest cells.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's.

    Note:
        ``"attention"`` has static shapes, as `hg_resnet`; with ``"regions"`` the number of regions depends on the
        images and is read from the device; compiled and exported there are as many as smallest cells, a quarter of the
        map's pixels. The adjacency costs P R^2.

    Example:
        >>> import torch
        >>> net = hg_unity(18, 5, steer="regions").eval()
        >>> net(torch.rand(1, 3, 64, 128))["out"].shape
        torch.Size([1, 5, 64, 128])
    """
    trunk = resnet_trunk(depth, in_channels=in_channels, stem=stem, clusterer=clusterer, pretrained=pretrained)
    return HGUnity(
        trunk,
        in_channels,
        num_classes,
        steer=steer,
        levels=levels,
        threshold=threshold,
        aux=aux,
        dropout=dropout,
    )
