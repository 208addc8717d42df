"""GALD: global aggregation, then local distribution, on a ResNet or an HG-ResNet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.cluster import SoftSLIC
from hggraph.models._network import Clustered, SegmentationNetwork, assign
from hggraph.models.heads import fcn_head
from hggraph.models.hg_resnet import ResNetTrunk, resnet_trunk
from hggraph.nn import (
    ASPP,
    CGNL,
    HGBasicBlock,
    HGStage,
    LocalDistributionV1,
    LocalDistributionV2,
    NonLocal,
    PyramidPooling,
)
from hggraph.nn._conv import conv_norm_relu
from hggraph.nn.local_distribution import Downsample, Residual, Source

__all__ = ["GALD", "gald"]

Aggregation = Literal["aspp", "psp", "non_local", "cgnl", "hg"]
Distribution = Literal["v1", "v2"]
Arrangement = Literal["ga_ld", "ld_ga", "parallel"]


class GALD(SegmentationNetwork):
    """A trunk, global aggregation and local distribution in one of three arrangements, and a head; see `gald`.

    Args:
        trunk: What makes feature maps of images.
        in_channels: Channels of the images.
        num_classes: Channels of the logits.
        aggregation: Maps ``(B, channels, h, w)`` to the same shape; an `HGStage` among others. None: there is none.
        distribution: `LocalDistributionV1` or `LocalDistributionV2`, with `channels` local channels where global
            features are distributed beside local ones. None: there is none.
        arrangement: ``"ga_ld"``, ``"ld_ga"`` or ``"parallel"``.
        channels: Width of the head.
        aux: Have an auxiliary head on stage 3.
        dropout: Share of channels dropped in the auxiliary head in training.
    """

    def __init__(
        self,
        trunk: ResNetTrunk,
        in_channels: int,
        num_classes: int,
        aggregation: nn.Module | None,
        distribution: LocalDistributionV1 | LocalDistributionV2 | None,
        *,
        arrangement: Arrangement = "ga_ld",
        channels: int = 512,
        aux: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        before, features = trunk.channels[-2:]
        self.trunk = trunk
        self.reduce = conv_norm_relu(features, channels, 3)
        self.aggregation = aggregation
        self.distribution = distribution
        self.arrangement = arrangement
        self.project = conv_norm_relu(2 * channels if arrangement == "parallel" else channels, channels, 3)
        self.fuse = conv_norm_relu(features + channels, channels, 3)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.aux_head = fcn_head(before, num_classes, channels=before // 2, dropout=dropout) if aux else None

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the last map's size."""
        maps, clustered = self.trunk(x, attention)
        local = self.reduce(maps[-1])
        if self.arrangement == "ld_ga":
            y = self._aggregate(self._distribute(local, None), attention, clustered)
        else:
            y = self._aggregate(local, attention, clustered)
            if self.arrangement == "parallel":
                y = torch.cat([y, self._distribute(local, None)], 1)
            else:
                y = self._distribute(y, None if self.aggregation is None else local)
        logits = {"out": self.classify(self.fuse(torch.cat([maps[-1], self.project(y)], 1)))}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(maps[-2])
        return logits, clustered

    @torch.no_grad()
    def inspect(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Return what distributes, for pictures.

        Args:
            x: Images, as for a call.
            attention: Likewise.

        Returns:
            Of the first version the masks M ``(B, channels, h, w)``; of the second the affinities of each pixel's
            neighbours ``(B, heads, K, h, w)``.

        Raises:
            ValueError: if the network is in training mode or has no local distribution, and as a call does.
        """
        if self.training:  # a call would change the statistics of its normalisations
            raise ValueError("The network must be in eval mode to be looked at; call `.eval()` first.")
        distribution = self.distribution
        if distribution is None:
            raise ValueError(
                "This network has no local distribution to look at; make it with distribution='v1' or 'v2'."
            )
        given: list[Any] = []
        handle = distribution.register_forward_pre_hook(lambda _, args: given.extend(args))
        try:
            self(x, attention)
        finally:
            handle.remove()
        look = distribution.mask if isinstance(distribution, LocalDistributionV1) else distribution.affinity
        return look(*given)

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head."""
        self.aux_head = None

    def _aggregate(self, x: Tensor, attention: Tensor | None, clustered: list[Clustered]) -> Tensor:
        stage = self.aggregation
        if stage is None:
            return x
        if not isinstance(stage, HGStage):
            out: Tensor = stage(x)
            return out
        assignment = assign(stage, x, attention)
        clustered.append(Clustered("context", x, assignment))
        return stage(x, assignment=assignment)  # type: ignore[no-any-return]

    def _distribute(self, x: Tensor, local: Tensor | None) -> Tensor:
        if self.distribution is None:
            return x
        both = local is not None and isinstance(self.distribution, LocalDistributionV2)
        out: Tensor = self.distribution(x, local) if both else self.distribution(x)
        return out


def gald(
    backbone: str = "resnet50",
    aggregation: Aggregation | None = "aspp",
    distribution: Distribution | None = "v2",
    arrangement: Arrangement = "ga_ld",
    num_classes: int = 19,
    *,
    in_channels: int = 3,
    channels: int = 512,
    kernel_size: int = 5,
    dilation: int = 3,
    key_channels: int | None = None,
    query: Source = "both",
    key: Source = "both",
    downsample: Downsample = "conv",
    residual: Residual = "paper",
    multi_grid: Sequence[int] | None = None,
    stem: str | None = None,
    output_stride: int = 8,
    clusterer: nn.Module | None = None,
    aux: bool = True,
    dropout: float = 0.1,
    pretrained: bool | str | Path = False,
) -> GALD:
    """Make a GALD network (Li et al. 2021, *Global Aggregation then Local Distribution for Scene Parsing*).

    With X the backbone's map and X_l its reduction to `channels` by a 3x3, the arrangements of Fig. 6 are

    ============== ======================================
    ``"ga_ld"``    ``Y = LD(GA(X_l), X_l)``
    ``"ld_ga"``    ``Y = GA(LD(X_l))``
    ``"parallel"`` ``Y = concat(GA(X_l), LD(X_l))``
    ============== ======================================

    and the logits are those of ``concat(X, conv3x3(Y))`` (Eq. 3): a 3x3 and a 1x1. Shapes and widths are those of the
    published code of the first version, for every configuration. Called with images it returns what
    `SegmentationNetwork.forward` says; `inspect` shows masks and affinities; ``fold()`` gives a faster form for
    inference.

    Args:
        backbone: ``"resnet50"`` or ``"resnet101"``, also 18, 34 and 152; with ``"hg_"`` before it, stage 4 is on
            regions (`hg_resnet`).
        aggregation: ``"aspp"``, ``"psp"``, ``"non_local"`` or ``"cgnl"``; ``"hg"``: two basic blocks on regions, which
            the paper does not have and which need a tenth of ASPP's operations; None for the paper's FCN + LD. The
            paper has CGNL with its first distribution and ASPP with its second.
        distribution: ``"v1"``: `LocalDistributionV1`; ``"v2"``: `LocalDistributionV2`; None for aggregation alone. For
            neither see ``hg_resnet(depth, hg_stages=())``, the paper's FCN.
        arrangement: As above; needs both.
        num_classes: Channels of the logits, at least 1.
        in_channels: Channels of the images.
        channels: Width of the head.
        kernel_size: Of ``"v2"``: k, odd.
        dilation: Of ``"v2"``: r, in pixels of the map. The paper's best is 6 (Table II(b)), its text uses 3.
        key_channels: Of ``"v2"``; `channels` when None.
        query: Of ``"v2"``: what queries are made of (Table II(c)); ``"both"`` is the global features alone where
            there are no others.
        key: Likewise keys.
        downsample: Of ``"v1"``: how masks are made small (Table II(a)).
        residual: Of ``"v1"``: ``"paper"`` or ``"code"``, two readings of Eq. 2.
        multi_grid: Factors of the dilations of stage 4's blocks, ``(1, 2, 4)`` in Table III; None for the backbone's.
        stem: See `hg_resnet`.
        output_stride: Image pixels per pixel of the map: 8, 16 or 32.
        clusterer: What clusters, in the backbone and in ``"hg"``; ``SoftSLIC()`` when None.
        aux: Have an auxiliary head on stage 3, half as wide as it.
        dropout: Share of channels dropped there in training.
        pretrained: True for timm's ImageNet weights of the backbone, a path for a file of them.

    Returns:
        The network.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's; in a call, if images are so
            small that a window or a mask does not fit their map.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Note:
        Millions of parameters with a ResNet-50, 19 classes and no auxiliary head, in brackets Table IV's: ASPP 51.7
        (47.5), with ``"v1"`` +0.02 (+0.4), with ``"v2"`` +1.6 (+2.3); CGNL with ``"v1"`` 47.7, and 66.7 with a
        ResNet-101 (65.3 in Table VI). Table IV cannot be had from the published code: three depthwise convolutions of
        512 channels have 0.02 M parameters, 0.4 M is its CGNL; and the paper says neither on which map ASPP stands nor
        how wide queries, keys and values are. Its own two backbones differ by 17.9 M, ResNet-50 and 101 by 19.0 M.
        ``python -m hggraph.benchmarks.count_gald`` prints every configuration with its operations.

    Example:
        >>> net = gald("resnet18", "aspp", "v2", num_classes=5, channels=32).eval()
        >>> net(torch.rand(1, 3, 104, 128))["out"].shape
        torch.Size([1, 5, 104, 128])
    """
    found = re.fullmatch(r"(hg_)?resnet(\d+)", backbone)
    if found is None:
        raise ValueError(f"`backbone` must be a name such as 'resnet50' or 'hg_resnet50', got {backbone!r}.")
    _check_parts(aggregation, distribution, arrangement)
    on_regions = found[1] is not None
    if on_regions and multi_grid is not None:
        raise ValueError(f"`multi_grid` must be None for {backbone!r}: stage 4 has no dilation on regions.")
    trunk = resnet_trunk(
        int(found[2]),
        hg_stages=(4,) if on_regions else (),
        in_channels=in_channels,
        stem=stem,
        output_stride=output_stride,
        clusterer=clusterer,
        pretrained=pretrained,
    )
    if multi_grid is not None:
        set_multi_grid(trunk.stages[3], multi_grid)
    distributes: LocalDistributionV1 | LocalDistributionV2 | None = None
    if distribution == "v1":
        distributes = LocalDistributionV1(channels, downsample=downsample, residual=residual)
    elif distribution == "v2":
        beside = channels if aggregation is not None and arrangement == "ga_ld" else 0
        distributes = LocalDistributionV2(
            channels,
            beside,
            kernel_size=kernel_size,
            dilation=dilation,
            key_channels=key_channels,
            query=query,
            key=key,
        )
    return GALD(
        trunk,
        in_channels,
        num_classes,
        make_aggregation(aggregation, channels, clusterer),
        distributes,
        arrangement=arrangement,
        channels=channels,
        aux=aux,
        dropout=dropout,
    )


def make_aggregation(name: Aggregation | None, channels: int, clusterer: nn.Module | None = None) -> nn.Module | None:
    """Return a global aggregation of GALD's Table I, or ``"hg"``, that keeps the number of channels."""
    match name:
        case "aspp":
            return ASPP(channels, channels)
        case "psp":
            return PyramidPooling(channels, channels)
        case "non_local":
            return NonLocal(channels)
        case "cgnl":
            return CGNL(channels)
        case "hg":
            blocks = [HGBasicBlock(channels, channels) for _ in range(2)]
            return HGStage(blocks, SoftSLIC() if clusterer is None else clusterer)
    return None


def set_multi_grid(stage: nn.Module, factors: Sequence[int]) -> None:
    """Dilate the 3x3 convolutions of a stage's blocks by factors of the last block's dilation, in place."""
    blocks: list[Any] = list(stage.children())
    if len(factors) != len(blocks):
        raise ValueError(f"`multi_grid` must be {len(blocks)} factors, one for each block of stage 4, got {factors}.")
    for factor in factors:
        check_positive("multi_grid", factor)
    base = blocks[-1].conv2.dilation[0]
    for block, factor in zip(blocks, factors, strict=True):
        for conv in (block.conv1, block.conv2):
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (base * factor, base * factor)


def _check_parts(aggregation: str | None, distribution: str | None, arrangement: str) -> None:
    for name, value, options in (
        ("aggregation", aggregation, (*get_args(Aggregation), None)),
        ("distribution", distribution, (*get_args(Distribution), None)),
        ("arrangement", arrangement, get_args(Arrangement)),
    ):
        if value not in options:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, options))}, got {value!r}.")
    if aggregation is None and distribution is None:
        raise ValueError(
            "`aggregation` and `distribution` must not both be None. The network without either is "
            "hg_resnet(depth, hg_stages=())."
        )
    if None in (aggregation, distribution) and arrangement != "ga_ld":
        raise ValueError(f"`arrangement` must be 'ga_ld' where only one of the two is there, got {arrangement!r}.")
