"""Specialize and Fuse: a pyramid of logits, of which each pixel takes the coarsest level that covers one class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.models._network import Clustered, SegmentationNetwork, training_outputs
from hggraph.models.hg_resnet import ResNetTrunk, resnet_trunk
from hggraph.models.hrnet_trunk import WIDTHS, HRNetTrunk, hrnet_trunk
from hggraph.models.resnet_decoder import ResNetDecoder
from hggraph.nn import SemanticHead, UnityHead
from hggraph.schemes.specialize.fuse import check_threshold, fuse, levels_used

__all__ = ["Pyramids", "SpecializeFuse", "specialize_fuse"]

STRIDE = 4  # of both backbones' features


class Pyramids(NamedTuple):
    """What a network says of one image, coarse to fine: logits ``(C, h, w)`` and probabilities of unity ``(h, w)``."""

    semantic: list[Tensor]
    unity: list[Tensor]

    def at_pixels(self, threshold: float, size: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        """Return the classes of each level and the levels that decide, ``(1, H, W)`` each, on the CPU."""
        height, width = size

        def repeat(cells: Tensor) -> Tensor:
            side = STRIDE * self.semantic[-1].shape[1] // cells.shape[0]
            pixels = cells.repeat_interleave(side, 0).repeat_interleave(side, 1)
            return pixels[None, :height, :width].cpu()

        decided = levels_used([u[None] for u in self.unity], threshold)[0]
        return [repeat(y.argmax(0)) for y in self.semantic], repeat(decided)


class SpecializeFuse(SegmentationNetwork):
    """A trunk with features of stride 4, a `UnityHead` and a `SemanticHead`; see `specialize_fuse`.

    Args:
        trunk: What makes feature maps of images.
        in_channels: Channels of the images.
        num_classes: Channels of the logits.
        decoder: What makes the features, of the trunk's maps. None: they are its last map.
        levels: Levels of the pyramid.
        channels: Width of the semantic head, its keys half as wide.
        unity_channels: Width of the unity head.
        context: See `SemanticHead`.
        threshold: See `fuse`; it may be set between calls.
    """

    def __init__(
        self,
        trunk: HRNetTrunk | ResNetTrunk,
        in_channels: int,
        num_classes: int,
        *,
        decoder: ResNetDecoder | None = None,
        levels: int = 4,
        channels: int = 512,
        unity_channels: int = 64,
        context: str = "coarse_to_fine",
        threshold: float = 0.9,
    ) -> None:
        super().__init__(in_channels, num_classes)
        check_positive("levels", levels)
        check_positive("channels", channels, 2)
        self.threshold = check_threshold(threshold)
        self.strides = tuple(STRIDE * 2**level for level in reversed(range(levels)))
        self.multiple = max(32, self.strides[0])  # the backbones' lowest resolution has a pixel for 32 x 32
        self.trunk = trunk
        self.decoder = decoder
        features = trunk.channels[-1] if decoder is None else decoder.channels
        self.unity_head = UnityHead(features, levels, channels=unity_channels) if levels > 1 else None
        self.semantic_head = SemanticHead(
            features, num_classes, levels, channels=channels, key_channels=channels // 2, context=context
        )

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Any], list[Clustered]]:
        """Return the fused logits at a quarter of the images' size, in training the pyramids too."""
        maps, clustered = self.trunk(x, attention)
        features = maps[-1] if self.decoder is None else self.decoder(maps)
        semantic = self.semantic_head(features)
        unity = [] if self.unity_head is None else self.unity_head(features)
        logits: dict[str, Any] = {"out": fuse(semantic, [u.sigmoid() for u in unity], self.threshold)}
        if self.training:
            logits |= {"semantic": semantic, "unity": unity}
        return logits, clustered

    @torch.no_grad()
    def inspect(self, x: Tensor) -> list[Pyramids]:
        """Return the pyramids of images ``(B, in_channels, H, W)``, for pictures; they may reach beyond the images.

        Raises:
            ValueError: if the network is in training mode, and as a call does.
        """
        if self.training:  # a call would change the statistics of its normalisations
            raise ValueError("The network must be in eval mode to be looked at; call `.eval()` first.")
        with training_outputs(self):
            out = self(x)
        semantic, unity = out["semantic"], out["unity"]
        return [Pyramids([y[i] for y in semantic], [u[i].sigmoid() for u in unity]) for i in range(len(x))]

    def compose(self) -> None:
        """Compose what is linear in the heads."""
        self.semantic_head.compose()


def specialize_fuse(
    backbone: str = "hrnet_w48",
    num_classes: int = 150,
    *,
    levels: int = 4,
    in_channels: int = 3,
    channels: int = 512,
    unity_channels: int = 64,
    decoder_channels: int = 48,
    context: str = "coarse_to_fine",
    threshold: float = 0.9,
    clusterer: nn.Module | None = None,
    pretrained: bool | str | Path = False,
) -> SpecializeFuse:
    """Make a network with pyramidal outputs (Hsiao et al. 2021, *Specialize and Fuse*, ICCV).

    A pyramid of logits and one of unity, which says of each cell whether its pixels share a class. Each pixel takes
    the logits of the coarsest cell that does. To be trained with `SpecializeLoss`.

    Called with images it returns what `SegmentationNetwork.forward` says, ``"out"`` being the fused logits; in training
    also two lists, coarse to fine, at their own sizes and for images padded to multiples of the coarsest stride:
    ``"semantic"``, logits ``(B, num_classes, h, w)``, and ``"unity"``, logits of unity ``(B, h, w)`` of all levels but
    the finest. ``fold()`` gives a faster form for inference.

    Args:
        backbone: ``"hrnet_w48"``, ``"hrnet_w32"``, ``"hrnet_w18"`` or ``"hrnet_w18_small_v2"``; ``"resnet101"`` and so
            on, of stride 32 with a `ResNetDecoder`; ``"hg_hrnet_w48"`` and ``"hg_resnet101"`` have the end of stage 4
            on regions, which the paper does not have.
        num_classes: Channels of the logits, at least 2.
        levels: Levels of the pyramid; the finest has stride 4, each other twice that of the next. One level is a
            network with a single output.
        in_channels: Channels of the images.
        channels: Width of the semantic head, its keys half as wide.
        unity_channels: Width of the unity head's embedding.
        decoder_channels: Width of the first branch of a ResNet's decoder; the features have 15 times as many.
        context: ``"coarse_to_fine"``, ``"none"``, ``"anl"`` or ``"multi_anl"``, see `SemanticHead`.
        threshold: A cell counts as a unity-cell if its probability reaches it; 0 gives the coarsest level, above 1 the
            finest, see `fuse`.
        clusterer: What clusters, for ``"hg_..."``. None: see `hg_hrnet` and `hg_resnet`.
        pretrained: True for timm's ImageNet weights of the backbone, a path for a file of them.

    Returns:
        The network. Images are padded to multiples of 32, or of the coarsest stride where that is more, and the
        logits cropped.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Example:
        >>> import torch
        >>> net = specialize_fuse("hrnet_w18_small_v2", 5, levels=3, channels=16)
        >>> out = net(torch.rand(2, 3, 60, 90))
        >>> out["out"].shape, [tuple(u.shape) for u in out["unity"]]
        (torch.Size([2, 5, 60, 90]), [(2, 4, 6), (2, 8, 12)])
    """
    check_positive("num_classes", num_classes, 2)
    found = re.fullmatch(r"(hg_)?(?:hrnet_(\w+)|resnet(\d+))", backbone)
    if found is None or (found[2] is not None and found[2] not in WIDTHS):
        raise ValueError(
            f"`backbone` must be 'hrnet_' and one of {', '.join(WIDTHS)}, or a ResNet such as 'resnet101', with 'hg_' "
            f"before it for regions, got {backbone!r}."
        )
    options: dict[str, Any] = {"in_channels": in_channels, "clusterer": clusterer, "pretrained": pretrained}
    trunk: HRNetTrunk | ResNetTrunk
    decoder: ResNetDecoder | None = None
    if found[2] is not None:
        trunk = hrnet_trunk(found[2], hg=found[1] is not None, **options)
    else:
        trunk = resnet_trunk(int(found[3]), hg_stages=(4,) if found[1] else (), output_stride=32, **options)
        decoder = ResNetDecoder(trunk.channels, decoder_channels)
    return SpecializeFuse(
        trunk,
        in_channels,
        num_classes,
        decoder=decoder,
        levels=levels,
        channels=channels,
        unity_channels=unity_channels,
        context=context,
        threshold=threshold,
    )
