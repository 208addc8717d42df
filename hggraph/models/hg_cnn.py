"""Any CNN of timm for segmentation, its deep strides as levels of regions, and the forms to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.models._network import Clustered, SegmentationNetwork
from hggraph.models.heads import fcn_head
from hggraph.models.weights import create_backbone
from hggraph.nn import RegionUpsample
from hggraph.nn._conv import grow
from hggraph.nn.on_regions import on_regions

__all__ = ["HGCNN", "Deep", "hg_cnn"]

Deep = Literal["regions", "strided", "upsampled", "dense", "none"]


class HGCNN(SegmentationNetwork):
    """A trunk's map at a fine stride and its last map, side by side before a head; see `hg_cnn`."""

    def __init__(
        self,
        trunk: Any,
        channels: Sequence[int],
        in_channels: int,
        num_classes: int,
        *,
        upsample: nn.Module | None = None,
        stride: int = 8,
        head_channels: int = 256,
        aux: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.multiple = stride
        self.trunk = trunk
        self.upsample = upsample
        fine, *coarser = channels
        self.mix = nn.Conv2d(sum((fine, *coarser[-1:])), head_channels, 1, bias=False)
        self.head = fcn_head(head_channels, num_classes, channels=head_channels // 2, dropout=dropout)
        self.aux_head = fcn_head(fine, num_classes, channels=64, dropout=dropout) if aux else None

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the fine map's size."""
        levels = getattr(self.trunk, "region_levels", None)
        if levels is not None:
            levels.attention = attention
        maps = self.trunk(x)
        fine, last = maps[0], maps[-1]
        if len(maps) == 1:
            mixed = self.mix(fine)
        else:
            # the 1x1 of the concatenation: what is coarse is multiplied before it is brought back
            on_fine, on_last = self.mix.weight.split([fine.shape[1], last.shape[1]], 1)
            last = F.conv2d(last, on_last)
            if levels is not None:
                last = levels.to_map(last)
            elif self.upsample is not None:
                last = self.upsample(maps, last)
            elif last.shape[2:] != fine.shape[2:]:
                last = grow(last, (fine.shape[2], fine.shape[3]))
            mixed = F.conv2d(fine, on_fine) + last
        logits = {"out": self.head(mixed)}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(fine)
        if levels is None:
            return logits, []
        return logits, [Clustered("level1", levels.base, levels[0].regions)]

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head."""
        self.aux_head = None


def hg_cnn(
    trunk: str = "mobilenetv2_100",
    num_classes: int = 19,
    deep: Deep = "regions",
    *,
    in_channels: int = 3,
    from_stride: int = 8,
    clusterer: nn.Module | list[nn.Module] | None = None,
    pooling: str = "mean",
    directions: str = "birth",
    back: str = "soft",
    nested: bool = True,
    steps: bool = True,
    head_channels: int = 256,
    aux: bool = True,
    dropout: float = 0.1,
    pretrained: bool | str | Path = False,
) -> HGCNN:
    """Make a segmentation network of any strided CNN of timm, its blocks beyond `from_stride` on regions, or not.

    The trunk's map of `from_stride` and its last map, brought back to the same size, are concatenated; a linear 1x1
    convolution to 256 channels, a 3x3 to 128 and a classifier follow. What becomes of the blocks between the two maps
    is `deep`; all forms have the same weights.

    Args:
        trunk: timm's name, of a network with ``features_only``.
        num_classes: Channels of the logits, at least 1.
        deep: ``"regions"``: each stride is a level of regions, see `convert`. ``"strided"``: the CNN as it is, its last
            map brought back bilinearly. ``"upsampled"``: as it is, brought back by `RegionUpsample`. ``"dense"``:
            dilated instead of strided, at `from_stride`. ``"none"``: left out.
        in_channels: Channels of the images.
        from_stride: Image pixels per pixel of the fine map.
        clusterer: See `convert`, as for the five that follow; for ``"regions"``.
        pooling: How regions pool.
        directions: How their edges are typed.
        back: Their way back.
        nested: Regions of regions.
        steps: A level for each stride, or one jump.
        head_channels: Channels after the 1x1 convolution; half as many after the 3x3.
        aux: Have an auxiliary head on the fine map.
        dropout: Share of channels dropped in the heads in training.
        pretrained: See `create_backbone`.

    Returns:
        The network; it is called as `SegmentationNetwork.forward` says.

    Raises:
        ValueError: if an argument is not as said, the trunk has no map of `from_stride`, cannot be dilated or
            converted, or the weights are another network's.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Example:
        >>> import torch
        >>> net = hg_cnn("resnet18", num_classes=5).eval()
        >>> net(torch.rand(1, 3, 64, 80))["out"].shape
        torch.Size([1, 5, 64, 80])
    """
    if deep not in get_args(Deep):
        raise ValueError(f"`deep` must be one of {get_args(Deep)}, got {deep!r}.")
    check_positive("from_stride", from_stride)
    output_stride = from_stride if deep == "dense" else 32
    with torch.device("meta"):  # for its strides alone
        whole = create_backbone(trunk, in_channels=in_channels, output_stride=output_stride, features_only=True)
    strides, last = whole.feature_info.reduction(), len(whole.feature_info) - 1
    if from_stride not in strides or (deep != "none" and max(strides) == from_stride and deep != "dense"):
        raise ValueError(f"`from_stride` must be one of the strides of {trunk}'s maps but the last, {strides}.")
    fine = strides.index(from_stride)
    indices = {"none": (fine,), "upsampled": tuple(range(fine, last + 1))}.get(deep, (fine, last))
    net = create_backbone(
        trunk,
        pretrained=pretrained,
        in_channels=in_channels,
        output_stride=output_stride,
        features_only=True,
        out_indices=indices,
    )
    channels = net.feature_info.channels()
    _cut(net, str(net.feature_info.module_name()[-1]))
    if deep == "regions":
        net.region_levels = on_regions(
            net,
            clusterer,
            from_stride=from_stride,
            pooling=pooling,
            directions=directions,
            back=back,
            nested=nested,
            steps=steps,
            restore=False,
        )
    upsample = RegionUpsample(channels) if deep == "upsampled" else None
    return HGCNN(
        net,
        channels,
        in_channels,
        num_classes,
        upsample=upsample,
        stride=from_stride,
        head_channels=head_channels,
        aux=aux,
        dropout=dropout,
    )


def _cut(net: Any, last: str) -> None:
    """Drop the blocks after the last map, which some of timm's networks keep."""
    name, _, number = last.partition(".")
    blocks = getattr(net, name, None)
    if isinstance(blocks, nn.Sequential) and number.isdigit():
        setattr(net, name, blocks[: int(number) + 1])
