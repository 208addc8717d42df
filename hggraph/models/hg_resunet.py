"""HG-ResUNet: a residual encoder and decoder that meet on regions, steered by a coarse prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hggraph.cluster import SoftSLIC, object_attention, uncertainty_attention
from hggraph.models._network import Clustered, SegmentationNetwork, assign
from hggraph.models.heads import fcn_head
from hggraph.models.hg_resnet import DEPTHS, out_channels, stages_of
from hggraph.models.weights import create_backbone
from hggraph.nn import HGStage
from hggraph.nn._conv import resize

__all__ = ["ATTENTIONS", "HGResUNet", "check_focus", "focus", "hg_resunet", "residual_unit"]

ATTENTIONS = (None, "object", "uncertainty")
DECODER_CHANNELS = (256, 128, 64, 64, 64)


class HGResUNet(SegmentationNetwork):
    """A ResNet encoder with a residual decoder; see `hg_resunet`."""

    def __init__(
        self,
        resnet: Any,
        in_channels: int,
        num_classes: int,
        *,
        clusterer: nn.Module | None,
        attention: str | None = None,
        attention_class: int | None = None,
        aux: bool = False,
        plus: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.attention = attention
        self.attention_class = check_focus(attention, attention_class, num_classes)
        *stages, (*blocks, last) = stages_of(resnet)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1)
        self.pool = nn.Identity() if plus else resnet.maxpool
        self.stages = nn.ModuleList([*stages, nn.Sequential(*blocks)])
        channels = [out_channels(stage) for stage in self.stages]
        deep, wide = channels[3], DECODER_CHANNELS[0]

        bridge = residual_unit(deep, wide)
        self.encoder_last: nn.Module = last
        self.decoder_first: nn.Module = bridge
        if clusterer is not None:
            self.encoder_last = HGStage.from_stage([last], clusterer, fuse=nn.Conv2d(2 * deep, deep, 1, bias=False))
            self.decoder_first = HGStage.from_stage(bridge, None, fuse=nn.Conv2d(deep + wide, wide, 1, bias=False))
        skips = channels[2::-1] if plus else [*channels[2::-1], out_channels(self.stem)]
        grow = zip(DECODER_CHANNELS, skips, DECODER_CHANNELS[1:], strict=False)
        self.decoder = nn.ModuleList([residual_unit(below + skip, width) for below, skip, width in grow])
        width = DECODER_CHANNELS[len(skips)]
        self.head = fcn_head(width, num_classes, channels=width, dropout=0.0)
        self.coarse_head = fcn_head(deep, num_classes) if aux or attention is not None else None

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the size of the decoder's last map."""
        x = self.stem(x)
        skips = [x]
        x = self.pool(x)
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        coarse = None
        if self.coarse_head is not None and (self.training or (self.attention is not None and attention is None)):
            coarse = self.coarse_head(x)
        clustered: list[Clustered] = []
        if isinstance(self.encoder_last, HGStage):
            if attention is None and coarse is not None:
                attention = focus(coarse, self.attention, self.attention_class)
            assignment = assign(self.encoder_last, x, attention)
            clustered.append(Clustered("hg", x, assignment))
            y = self.encoder_last(x, assignment=assignment)
            y = self.decoder_first(y, assignment=assignment, skip=x)
        else:
            y = self.decoder_first(self.encoder_last(x))
        for block, skip in zip(self.decoder, skips[3::-1], strict=False):
            y = resize(y, (skip.shape[2], skip.shape[3]))
            y = block(torch.cat([y, skip], 1))
        logits = {"out": self.head(y)}
        if self.training and coarse is not None:
            logits["aux"] = coarse
        return logits, clustered

    def drop_training_parts(self) -> None:
        """Remove the coarse head where it does not steer."""
        if self.attention is None:
            self.coarse_head = None


def hg_resunet(
    depth: int = 18,
    plus: bool = False,
    attention: str | None = None,
    num_classes: int = 1,
    *,
    hg: bool = True,
    in_channels: int = 3,
    attention_class: int | None = None,
    clusterer: nn.Module | None = None,
    aux: bool = False,
    pretrained: bool | str | Path = False,
) -> HGResUNet:
    """Make a U-Net on a ResNet whose last encoder and first decoder block run on regions, or the dense network.

    HG-ResUNet of HG-Conv (Sec. 4.4, 5.3, 5.4 and appendix A). The last block of stage 4 and the first block of the
    decoder share one assignment; the output of each is concatenated with the map that was clustered and goes through a
    linear 1x1 convolution. Then the decoder grows: upsample, concatenate the encoder's map, residual block.

    Active focus: with `attention`, a coarse head predicts on the map that is clustered, and what it predicts draws the
    centres (Eq. 11 to 13). An attention map given in the call takes its place.

    Args:
        depth: 18, 34, 50, 101 or 152.
        plus: The first convolution has stride 1 and there is no max-pooling: maps of 1, 1/2, 1/4 and 1/8, for thin
            objects such as roads. False: the ordinary stem and dilation in stages 3 and 4, as for salient objects.
        attention: ``"object"``, ``"uncertainty"`` or None.
        num_classes: Channels of the logits; 1 stands for a probability by a sigmoid.
        hg: False makes the dense network.
        in_channels: Channels of the images.
        attention_class: The class that ``"object"`` attends to; the last when None.
        clusterer: What clusters. None: one iteration, and 16 pixels to a region with `plus`, 4 without.
        aux: Have the coarse head, for an auxiliary loss, without active focus too.
        pretrained: True for timm's ImageNet weights, a path for a file of them, False for random ones.

    Returns:
        The network; called with images it returns what `SegmentationNetwork.forward` says, the coarse logits as
        ``"aux"``.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Note:
        The paper draws this network in a figure only; the widths of the decoder (256, 128, 64, 64, 64) are chosen here.

    Example:
        >>> net = hg_resunet(18, plus=True, attention="object").eval()
        >>> net(torch.rand(1, 3, 50, 64))["out"].shape
        torch.Size([1, 1, 50, 64])
    """
    if not isinstance(depth, int) or depth not in DEPTHS:
        raise ValueError(f"`depth` must be one of {DEPTHS}, got {depth!r}.")
    check_focus(attention, attention_class, num_classes)
    if not hg and attention is not None:
        raise ValueError(f"`attention` steers regions; with hg=False it must be None, got {attention!r}.")
    resnet = create_backbone(
        f"resnet{depth}", pretrained=pretrained, in_channels=in_channels, output_stride=32 if plus else 8
    )
    if plus:
        resnet.conv1.stride = (1, 1)
    if hg and clusterer is None:
        clusterer = SoftSLIC(16, iterations=1) if plus else SoftSLIC(4, iterations=1, oversample=4)
    return HGResUNet(
        resnet,
        in_channels,
        num_classes,
        clusterer=clusterer if hg else None,
        attention=attention,
        attention_class=attention_class,
        aux=aux,
        plus=plus,
    )


def residual_unit(in_channels: int, out_channels: int, blocks: int = 1) -> nn.Sequential:
    """Return basic residual blocks (timm's), the first with a projection where the number of channels changes."""
    from timm.models.resnet import BasicBlock

    projection = None
    if in_channels != out_channels:
        projection = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
    first = BasicBlock(in_channels, out_channels, downsample=projection)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))


def check_focus(attention: str | None, attention_class: int | None, num_classes: int) -> int:
    """Return the class to attend to; raise unless the options of active focus are in range."""
    if attention not in ATTENTIONS:
        raise ValueError(f"`attention` must be one of {ATTENTIONS}, got {attention!r}.")
    attention_class = num_classes - 1 if attention_class is None else attention_class
    if not isinstance(attention_class, int) or not 0 <= attention_class < num_classes:
        raise ValueError(f"`attention_class` must be a class in [0, {num_classes}), got {attention_class}.")
    return attention_class


def focus(logits: Tensor, attention: str | None, attention_class: int) -> Tensor | None:
    """Return the attention map ``(B, h, w)`` that coarse logits ``(B, K, h, w)`` give (HG-Conv Eq. 12, 13)."""
    if attention is None:
        return None
    logits = logits.detach().float()
    prob = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    if attention == "object":
        return object_attention(prob, attention_class)
    return uncertainty_attention(torch.cat([1 - prob, prob], 1) if logits.shape[1] == 1 else prob)
