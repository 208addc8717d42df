"""DeepLabV3+: pyramid pooling of the last map and a decoder, on a ResNet or an HG-ResNet."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.models._network import Clustered, SegmentationNetwork
from hggraph.models.heads import fcn_head
from hggraph.models.hg_resnet import ResNetTrunk, resnet_trunk
from hggraph.nn import ASPP
from hggraph.nn._conv import conv_norm_relu, resize

__all__ = ["DeepLabV3Plus", "DeepLabV3PlusDecoder", "deeplab_v3_plus"]


class DeepLabV3PlusDecoder(nn.Module):
    """Pool a coarse map over pyramids and refine it beside a fine one (DeepLabV3+, Chen et al. 2018, Fig. 2).

    `ASPP` on the coarse map, upsampled; a 1x1 on the fine map, narrow so that it does not outweigh the other; two 3x3
    over both.

    Args:
        low_in_channels: Channels of the fine map.
        in_channels: Channels of the coarse map.
        channels: Channels of the output, of ASPP and its branches.
        low_channels: Channels that the fine map is reduced to.
        stride: Image pixels per pixel of the coarse map, 32 at most: ASPP dilates by 6, 12 and 18 pixels at stride 16,
            and so that it sees as much of the image at another.
        dropout: Share of ASPP's channels dropped in training.

    Shapes:
        - **low:** the fine map ``(B, low_in_channels, H, W)``
        - **x:** the coarse map ``(B, in_channels, h, w)``
        - **output:** map ``(B, channels, H, W)``; an empty batch gives an empty map

    Raises:
        ValueError: if a number is not as said; in a call, if a map is empty, or is one image in training: batch
            normalisation has one value per channel of its mean.

    Note:
        The two 3x3 at the fine size have most of the operations. Deterministic on a CPU; upsampling's gradient adds in
        any order on a GPU.

    Example:
        >>> decoder = DeepLabV3PlusDecoder(8, 16, 6, low_channels=4)
        >>> decoder(torch.rand(2, 8, 12, 16), torch.rand(2, 16, 3, 4)).shape
        torch.Size([2, 6, 12, 16])
    """

    def __init__(
        self,
        low_in_channels: int,
        in_channels: int,
        channels: int = 256,
        *,
        low_channels: int = 48,
        stride: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        names = {"low_in_channels": low_in_channels, "in_channels": in_channels, "channels": channels}
        for name, value in {**names, "low_channels": low_channels, "stride": stride}.items():
            check_positive(name, value)
        if stride > 32:
            raise ValueError(f"`stride` must be 32 at most, got {stride}.")
        dilations = [96 * factor // stride for factor in (1, 2, 3)]
        self.channels = channels
        self.aspp = ASPP(in_channels, channels, dilations=dilations, branch_channels=channels, dropout=dropout)
        self.low = conv_norm_relu(low_in_channels, low_channels)
        self.refine = nn.Sequential(
            conv_norm_relu(channels + low_channels, channels, 3), conv_norm_relu(channels, channels, 3)
        )

    def forward(self, low: Tensor, x: Tensor) -> Tensor:
        """Return the features at the fine map's size; see the class for shapes."""
        coarse = resize(self.aspp(x), (low.shape[2], low.shape[3]))
        out: Tensor = self.refine(torch.cat([coarse, self.low(low)], 1))
        return out


class DeepLabV3Plus(SegmentationNetwork):
    """A trunk and a `DeepLabV3PlusDecoder`; see `deeplab_v3_plus`."""

    def __init__(
        self,
        trunk: ResNetTrunk,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 256,
        low_channels: int = 48,
        stride: int = 16,
        aux: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        low, *_, before, features = trunk.channels
        self.trunk = trunk
        self.decoder = DeepLabV3PlusDecoder(
            low, features, channels, low_channels=low_channels, stride=stride, dropout=dropout
        )
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.aux_head = fcn_head(before, num_classes, dropout=dropout) if aux else None

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the first stage's size, a quarter of the image's."""
        maps, clustered = self.trunk(x, attention)
        logits = {"out": self.classify(self.decoder(maps[0], maps[-1]))}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(maps[-2])
        return logits, clustered

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head."""
        self.aux_head = None


def deeplab_v3_plus(
    backbone: str = "resnet50",
    num_classes: int = 19,
    *,
    in_channels: int = 3,
    output_stride: int = 16,
    channels: int = 256,
    low_channels: int = 48,
    stem: str | None = "plain",
    clusterer: nn.Module | None = None,
    aux: bool = True,
    dropout: float = 0.1,
    pretrained: bool | str | Path = False,
) -> DeepLabV3Plus:
    """Make a DeepLabV3+ (Chen et al. 2018, *Encoder-Decoder with Atrous Separable Convolution*) on a ResNet.

    Its convolutions are whole, not separable, as on the ResNets of the paper's ablations. Called with images it returns
    what `SegmentationNetwork.forward` says; ``fold()`` gives a faster form for inference.

    Args:
        backbone: ``"resnet50"``, also 18, 34, 101 and 152; with ``"hg_"`` before it, stage 4 is on regions
            (`hg_resnet`).
        num_classes: Channels of the logits, at least 1.
        in_channels: Channels of the images.
        output_stride: Image pixels per pixel of the last map: 8, 16 or 32; on regions 16 at most, since stage 4 has no
            stride there.
        channels: Width of the decoder.
        low_channels: Channels that the first stage's map is reduced to.
        stem: See `hg_resnet`; the paper's is plain.
        clusterer: What clusters, for ``"hg_..."``; ``SoftSLIC()`` when None.
        aux: Have an auxiliary head on stage 3.
        dropout: Share of channels dropped after ASPP and in the auxiliary head in training.
        pretrained: True for timm's ImageNet weights of the backbone, a path for a file of them.

    Returns:
        The network.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's; in training, if it gets a
            single image.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Note:
        Without auxiliary head, 19 classes: 40.35 M parameters on ResNet-50 and 59.34 M on ResNet-101, 69.2 and 88.6
        billion multiply-adds at 512 x 512 and output stride 16.

    Example:
        >>> net = deeplab_v3_plus("resnet18", num_classes=5, channels=32).eval()
        >>> net(torch.rand(1, 3, 64, 80))["out"].shape
        torch.Size([1, 5, 64, 80])
    """
    found = re.fullmatch(r"(hg_)?resnet(\d+)", backbone)
    if found is None:
        raise ValueError(f"`backbone` must be a name such as 'resnet50' or 'hg_resnet50', got {backbone!r}.")
    on_regions = found[1] is not None
    trunk = resnet_trunk(
        int(found[2]),
        hg_stages=(4,) if on_regions else (),
        in_channels=in_channels,
        stem=stem,
        output_stride=output_stride,
        clusterer=clusterer,
        pretrained=pretrained,
    )
    return DeepLabV3Plus(
        trunk,
        in_channels,
        num_classes,
        channels=channels,
        low_channels=low_channels,
        stride=min(output_stride, 16) if on_regions else output_stride,
        aux=aux,
        dropout=dropout,
    )
