"""PyConvSSD: the single shot detector with pyramids in backbone and extra layers, beside its SSD baseline."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.models._targets import check_targets
from hggraph.models.pyconv_resnet import initialise, make_trunk
from hggraph.models.weights import create_backbone
from hggraph.nn import PyConv2d
from hggraph.nn._conv import conv_norm_relu

__all__ = ["SSDBackbone", "pyconv_ssd"]

SIZE = 300
# of each extra layer: channels inside and out, stride (1: no padding), kernel sizes and groups of the pyramid
EXTRAS: tuple[tuple[int, int, int, tuple[int, ...], tuple[int, ...]], ...] = (
    (256, 512, 2, (3, 5, 7, 9), (1, 4, 8, 16)),
    (256, 512, 2, (3, 5, 7), (1, 4, 8)),
    (128, 256, 2, (3, 5), (1, 4)),
    (128, 256, 1, (3,), (1,)),
    (128, 256, 1, (3,), (1,)),
)
ASPECTS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
STEPS = [8, 16, 32, 64, 100, 300]
SCALES = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class SSDBackbone(nn.Module):
    """A network's first three stages, the third without stride, and five extra layers: six maps.

    Args:
        body: Maps images to the map of its third stage.
        channels: Channels of that map.
        pyramids: The extra layers' 3x3 are `PyConv2d` of 4, 3, 2, 1 and 1 levels.

    Shapes:
        - **input:** images ``(B, 3, 300, 300)``
        - **output:** maps of 38, 19, 10, 5, 3 and 1 pixels along each side
    """

    def __init__(self, body: nn.Module, channels: int, *, pyramids: bool) -> None:
        super().__init__()
        self.body = body
        self.channels = [channels]
        self.extras = nn.ModuleList()
        for inside, out, stride, kernels, groups in EXTRAS:
            conv: nn.Module = nn.Conv2d(inside, out, 3, stride, 1 if stride > 1 else 0, bias=False)
            if pyramids:
                conv = PyConv2d(inside, out, kernels, groups, stride=stride, padding=stride > 1)
            reduce = conv_norm_relu(self.channels[-1], inside)
            self.extras.append(nn.Sequential(*reduce, conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)))
            self.channels.append(out)
        initialise(self.extras)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps by number."""
        maps = [self.body(x)]
        for layer in self.extras:
            maps.append(layer(maps[-1]))
        return OrderedDict((str(i), y) for i, y in enumerate(maps))


def pyconv_ssd(
    depth: int = 50,
    num_classes: int = 81,
    *,
    pyramids: bool = True,
    pretrained: bool | str | Path = False,
    score_threshold: float = 0.01,
    max_detections: int = 200,
) -> nn.Module:
    """Make a PyConvSSD, or its baseline SSD on a ResNet (Duta et al. 2020, supplement, Sec. 1).

    Images are brought to 300 x 300. torchvision's SSD with its boxes, matching, hard negative mining and suppression
    of overlaps, on this backbone: stages 1 to 3, the third without stride, and five extra layers; 8732 boxes.

    Args:
        depth: 50, 101 or 152.
        num_classes: Classes with the background, at least 2.
        pyramids: False makes the baseline.
        pretrained: Weights of the backbone: a file, of a PyConvResNet in this layout or the published one; for the
            baseline also True for timm's.
        score_threshold: Detections below are dropped.
        max_detections: Of an image.

    Returns:
        torchvision's ``SSD``: called with a list of images ``(3, H, W)`` in [0, 1] and, in training, of targets
        (``boxes`` (N, 4), ``labels`` (N,)), it returns a dict of losses or a list of detections.

    Raises:
        ValueError: if an argument is not as said; in training also by the network, for targets that are missing, boxes
            without area or with NaN, and labels outside the classes.

    Note:
        22.89 M parameters at depth 50 without pyramids and 39.01 M at depth 101 with them, as published.

    Example:
        >>> import torch
        >>> net = pyconv_ssd(50, num_classes=3).eval()
        >>> [sorted(found) for found in net([torch.rand(3, 120, 160)])]
        [['boxes', 'labels', 'scores']]
    """
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    if depth not in (50, 101, 152):
        raise ValueError(f"`depth` must be one of (50, 101, 152), got {depth!r}.")
    check_positive("num_classes", num_classes, 2)
    if pyramids:
        net = make_trunk(depth, pretrained=pretrained)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    else:
        net = create_backbone(f"resnet{depth}", pretrained=pretrained)
        stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool)
    drop_strides(net.layer3)
    parts: dict[str, nn.Module] = {"stem": stem, "layer1": net.layer1, "layer2": net.layer2, "layer3": net.layer3}
    ssd = SSD(
        SSDBackbone(nn.Sequential(OrderedDict(parts)), 1024, pyramids=pyramids),
        DefaultBoxGenerator(ASPECTS, scales=SCALES, steps=STEPS),
        (SIZE, SIZE),
        num_classes,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        score_thresh=score_threshold,
        detections_per_img=max_detections,
    )
    ssd.register_forward_pre_hook(partial(_check_call, num_classes=num_classes), with_kwargs=True)
    return ssd


def _check_call(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], num_classes: int) -> None:
    """Look at the targets before torchvision does."""
    call = {**dict(zip(("images", "targets"), args, strict=False)), **kwargs}
    if net.training and call.get("targets") is None:
        raise ValueError("`targets` must be given in training mode; call `.eval()` to detect.")
    if net.training:
        check_targets(call["images"], call["targets"], num_classes)


def drop_strides(stage: nn.Module) -> None:
    """Set all strides of a stage to 1, in place."""
    for part in stage.modules():
        if isinstance(part, PyConv2d | nn.Conv2d):
            part.stride = (1, 1)
        elif isinstance(part, nn.MaxPool2d):
            part.stride = 1
