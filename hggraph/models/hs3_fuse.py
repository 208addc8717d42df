"""HS3-Fuse: object-contextual features of a network's stages, fused before the last; and HRNet-OCR, without fusing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.models._network import Clustered, SegmentationNetwork
from hggraph.models.deeplab_v3_plus import DeepLabV3PlusDecoder, deeplab_v3_plus
from hggraph.models.hg_resnet import ResNetTrunk, resnet_trunk
from hggraph.models.hrnet_trunk import WIDTHS, HRNetTrunk, hrnet_trunk, side_by_side
from hggraph.nn import OCR

__all__ = ["HS3Fuse", "hs3_fuse", "ocr_widths"]


class HS3Fuse(SegmentationNetwork):
    """A trunk with an `OCR` on its last map and on the two stages before, whose features join it; see `hs3_fuse`.

    Args:
        trunk: What makes feature maps of images, at least three where stages are fused.
        in_channels: Channels of the images.
        num_classes: Channels of the logits.
        decoder: What makes the last features, of the trunk's first and last map. None: they are its last map.
        tap_classes: Classes of the two stages before the last. None: they are not fused.
        widths: Channels of the OCR blocks, those of the two stages first; keys are half as wide.
        dropout: Share of channels dropped after each OCR block in training.
    """

    def __init__(
        self,
        trunk: HRNetTrunk | ResNetTrunk,
        in_channels: int,
        num_classes: int,
        *,
        decoder: DeepLabV3PlusDecoder | None = None,
        tap_classes: Sequence[int] | None = None,
        widths: Sequence[int] = (128, 256, 512),
        dropout: float = 0.05,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.multiple = trunk.multiple if isinstance(trunk, HRNetTrunk) else 1
        self.trunk = trunk
        self.decoder = decoder
        *tap_widths, width = widths
        features = trunk.channels[-1] if decoder is None else decoder.channels
        self.tap_ocrs = nn.ModuleList()
        if tap_classes is not None:
            taps = zip(trunk.channels[-3:-1], tap_classes, tap_widths, strict=True)
            self.tap_ocrs.extend(OCR(c, k, tap, tap // 2, dropout) for c, k, tap in taps)
            features += sum(tap_widths)
        self.ocr = OCR(features, num_classes, width, width // 2, dropout)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the last features' size, in training the coarse ones of every OCR block too."""
        maps, clustered = self.trunk(x, attention)
        last = maps[-1] if self.decoder is None else self.decoder(maps[0], maps[-1])
        fused = [last]
        coarse: dict[str, Tensor] = {}
        for i, ocr in enumerate(self.tap_ocrs):
            features, coarse[f"tap_{i + 1}"] = ocr(maps[i - 3])
            fused.insert(1, features)  # the last stage first, then the nearest one
        features, coarse["aux"] = self.ocr(side_by_side(fused))
        logits = {"out": self.classify(features)}
        if self.training:
            logits |= coarse
        return logits, clustered


def hs3_fuse(
    backbone: str = "hrnet_w18_small_v2",
    num_classes: int = 19,
    *,
    tap_classes: Sequence[int] | None = None,
    in_channels: int = 3,
    channels: int | None = None,
    divider: float = 1.0,
    clusterer: nn.Module | None = None,
    dropout: float = 0.05,
    pretrained: bool | str | Path = False,
) -> HS3Fuse:
    """Make an HS3-Fuse (Borse et al. 2021, *HS3: Learning with Proper Task Complexity*, Sec. 3.2), or an HRNet-OCR.

    Each of the two stages before the last has an `OCR` block that learns as many classes as it is capable of. The
    features of both, at the last map's size, are concatenated with that map, and the network's own OCR block sees all.
    An OCR block is half as wide as the next.

    Called with images it returns what `SegmentationNetwork.forward` says; in training ``"aux"``, the coarse logits of
    the last OCR block, and ``"tap_1"`` and ``"tap_2"``, those of the two stages, with as many channels as they have
    classes. ``fold()`` gives a faster form for inference.

    Args:
        backbone: ``"hrnet_w18_small_v2"`` (the paper's HRNetv2-w18, by its operation count), ``"hrnet_w18"``,
            ``"hrnet_w32"`` or ``"hrnet_w48"``, with the maps of stages 2, 3 and 4; likewise ``"resnet50"`` and so on
            (`hg_resnet`); ``"deeplab_v3_plus_resnet50"`` and so on (`deeplab_v3_plus`), where the decoder's features
            are the last map. ``"hg_hrnet_w48"``, ``"hg_resnet50"`` and ``"deeplab_v3_plus_hg_resnet50"`` have the end
            of stage 4 on regions.
        num_classes: Channels of the logits, at least 1.
        tap_classes: Classes of stages 2 and 3. None: nothing is fused; on an HRNet that is HRNet-OCR.
        in_channels: Channels of the images.
        channels: Width of the last OCR block, its keys half as wide. None: 192 on an HRNet of width 18, else 512.
        divider: What the widths of all OCR blocks are divided by, at least 1; the results are rounded to multiples of
            8. 1.7 is the paper's lighter variant on ``"hrnet_w18_small_v2"``.
        clusterer: What clusters, for ``"hg_..."``. None: see `hg_hrnet` and `hg_resnet`.
        dropout: Share of channels dropped after each OCR block in training.
        pretrained: True for timm's ImageNet weights of the backbone, a path for a file of them.

    Returns:
        The network. On an HRNet images are padded to multiples of 32 and the logits cropped.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's; in training, if it gets a
            single image and a block has one class.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Note:
        10^9 multiply-adds at 1024 x 2048 pixels on ``"hrnet_w18_small_v2"`` with 19 classes, in brackets the paper's:
        HRNet-OCR 155.1 (154), HS3-Fuse with 9 and 14 classes 226.5 (224), its lighter variant 153.0 (154). Without
        gathering and attention, which are no convolutions, the first two are 154.2 and 225.1. The paper does not state
        the width of HRNet-OCR; 192 is what gives its operations.

    Example:
        >>> import torch
        >>> net = hs3_fuse(num_classes=5, tap_classes=(2, 3), channels=16)
        >>> {name: y.shape[1] for name, y in net(torch.rand(2, 3, 64, 64)).items()}
        {'out': 5, 'tap_1': 2, 'tap_2': 3, 'aux': 5}
    """
    if tap_classes is not None:
        _check_tap_classes(tap_classes)
    found = re.fullmatch(r"(hg_)?hrnet_(\w+)|(deeplab_v3_plus_)?((hg_)?resnet(\d+))", backbone)
    if found is None or (found[2] is not None and found[2] not in WIDTHS):
        raise ValueError(
            f"`backbone` must be 'hrnet_' and one of {', '.join(WIDTHS)}, a ResNet such as 'resnet50', or a DeepLabV3+ "
            f"such as 'deeplab_v3_plus_resnet50', with 'hg_' before 'hrnet' or 'resnet' for regions, got {backbone!r}."
        )
    small = found[2] in ("w18", "w18_small_v2")
    widths = ocr_widths((192 if small else 512) if channels is None else channels, divider)
    options: dict[str, Any] = {"in_channels": in_channels, "clusterer": clusterer, "pretrained": pretrained}
    trunk: HRNetTrunk | ResNetTrunk
    decoder: DeepLabV3PlusDecoder | None = None
    if found[2] is not None:
        trunk = hrnet_trunk(found[2], hg=found[1] is not None, **options)
    elif found[3] is not None:
        whole = deeplab_v3_plus(found[4], aux=False, **options)
        trunk, decoder = whole.trunk, whole.decoder
    else:
        trunk = resnet_trunk(int(found[6]), hg_stages=(4,) if found[5] else (), **options)
    return HS3Fuse(
        trunk, in_channels, num_classes, decoder=decoder, tap_classes=tap_classes, widths=widths, dropout=dropout
    )


def ocr_widths(channels: int, divider: float = 1.0) -> list[int]:
    """Return the widths of the OCR blocks of stages 2, 3 and 4: a quarter, a half and all of `channels`.

    Args:
        channels: Width of the last, at least 8.
        divider: What all are divided by, at least 1; with another number than 1 they are rounded to multiples of 8.

    Raises:
        ValueError: if a number is not as said.

    Example:
        >>> ocr_widths(192), ocr_widths(192, 1.7)
        ([48, 96, 192], [32, 56, 112])
    """
    check_positive("channels", channels, 8)
    if isinstance(divider, bool) or not isinstance(divider, int | float) or not 1 <= divider <= channels:
        raise ValueError(f"`divider` must be a number from 1 to `channels`, got {divider!r} with channels={channels}.")
    if divider == 1:
        return [channels // 4, channels // 2, channels]
    return [max(8, 8 * int(channels / (part * divider) / 8 + 0.5)) for part in (4, 2, 1)]


def _check_tap_classes(tap_classes: Sequence[int]) -> None:
    if isinstance(tap_classes, int | str) or len(tap_classes) != 2:
        raise ValueError(
            f"`tap_classes` must be two numbers of classes, of stages 2 and 3, or None for no fusing, got "
            f"{tap_classes!r}."
        )
    for number in tap_classes:
        check_positive("tap_classes", number)
