"""Object detectors of torchvision on an HG-ResNet."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.cluster import region_graph
from hggraph.cluster.importance import check_attention
from hggraph.models._network import Clustered, Regions
from hggraph.models._targets import check_targets
from hggraph.models.fold import fold_batch_norm
from hggraph.models.hg_resnet import HGResNet, ResNetTrunk, resnet_trunk

__all__ = ["HGDetector", "hg_detector"]

KINDS = ("faster_rcnn", "mask_rcnn")
PYRAMID_CHANNELS = 256
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Pyramid(nn.Module):
    """A trunk with a feature pyramid over its stages, as torchvision's detectors call it."""

    def __init__(self, trunk: ResNetTrunk) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        self.trunk = trunk
        self.fpn = FeaturePyramidNetwork(trunk.channels, PYRAMID_CHANNELS, extra_blocks=LastLevelMaxPool())
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, x: Tensor, attention: Tensor | None = None) -> tuple[OrderedDict[str, Tensor], list[Clustered]]:
        maps, clustered = self.trunk(x, attention)
        features: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), y) for i, y in enumerate(maps)))
        return features, clustered


class HGDetector(nn.Module):
    """One of torchvision's detectors whose backbone has regions; see `hg_detector`."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self,
        images: Sequence[Tensor],
        targets: list[dict[str, Tensor]] | None = None,
        attention: Sequence[Tensor] | None = None,
        return_regions: bool = False,
    ) -> Any:
        """Detect objects, as torchvision's detectors do.

        Args:
            images: Images ``(C, H, W)`` in [0, 1], of any sizes.
            targets: In training: for each image ``boxes`` (N, 4), ``labels`` (N,) and, for masks, ``masks`` (N, H, W).
            attention: For each image where regions should crowd, ``(H, W)`` in [0, 1]; or None.
            return_regions: Return what was clustered too: a pair of the result and a list of `Regions`.

        Returns:
            In training a dict of losses; else for each image a dict of ``boxes``, ``labels``, ``scores`` and, for
            masks, ``masks``.

        Raises:
            ValueError: if there is no image, targets are missing in training, a target does not fit its image (a box
                without area or with NaN, a label outside the classes, masks of another size), or an attention map is
                of another size or outside [0, 1].
        """
        detector = self.detector
        if self.training and targets is None:
            raise ValueError("`targets` must be given in training mode; call `.eval()` to detect.")
        if not images:
            raise ValueError("`images` must hold at least one image, got none.")
        if targets is not None:
            classes = detector.roi_heads.box_predictor.cls_score.out_features
            check_targets(images, targets, classes, masks=detector.roi_heads.has_mask())
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = detector.transform(list(images), targets)
        steering = None if attention is None else _batch_attention(attention, sizes, batch)
        features, clustered = detector.backbone(batch.tensors, steering)
        proposals, losses = detector.rpn(batch, features, targets)
        found, more = detector.roi_heads(features, proposals, batch.image_sizes, targets)
        out = losses | more if self.training else detector.transform.postprocess(found, batch.image_sizes, sizes)
        if not return_regions:
            return out
        return out, [Regions(name, s, region_graph(x, s)) for name, x, s in clustered]

    def fold(self) -> Self:
        """Return an inference form: batch normalisations become part of the convolutions before them."""
        folded = copy.deepcopy(self).eval()
        fold_batch_norm(folded)
        return folded.requires_grad_(False)


def hg_detector(
    kind: str = "faster_rcnn",
    backbone: ResNetTrunk | HGResNet | None = None,
    num_classes: int = 91,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    image_mean: Sequence[float] = IMAGENET_MEAN,
    image_std: Sequence[float] = IMAGENET_STD,
) -> HGDetector:
    """Make a Faster R-CNN or Mask R-CNN of torchvision, with a feature pyramid, on an HG-ResNet (HG-Conv Table 9).

    The pyramid has the maps of the stages. On regions stage 4 has no stride: its map has the size of stage 3's.

    Args:
        kind: ``"faster_rcnn"`` or ``"mask_rcnn"``.
        backbone: An `hg_resnet` (its head is left out) or its trunk; with ``hg_stages=()`` the dense one. None: depth
            50 with stage 3 at stride 16.
        num_classes: Classes with the background, at least 2.
        min_size: Images are resized to this shorter side, in pixels.
        max_size: As far as their longer side then has at most so many.
        score_threshold: Least score of a detection, in [0, 1].
        max_detections: Most detections in an image.
        image_mean: Mean of the images' channels, as many as the backbone takes.
        image_std: Standard deviation of the images' channels.

    Returns:
        The detector; called as torchvision's, with attention maps beside the images if wanted.

    Raises:
        ValueError: if an argument is not as said.

    Example:
        >>> detector = hg_detector(backbone=resnet_trunk(18), num_classes=3, min_size=96, max_size=128).eval()
        >>> sorted(detector([torch.rand(3, 96, 128)])[0])
        ['boxes', 'labels', 'scores']
    """
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}.")
    check_positive("num_classes", num_classes, 2)  # the background is one
    for name, value in (("min_size", min_size), ("max_size", max_size), ("max_detections", max_detections)):
        check_positive(name, value)
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"`score_threshold` must be in [0, 1], got {score_threshold!r}.")
    trunk = resnet_trunk(50, output_stride=16) if backbone is None else backbone
    trunk = trunk.trunk if isinstance(trunk, HGResNet) else trunk
    if not isinstance(trunk, ResNetTrunk):
        raise ValueError(f"`backbone` must be an HGResNet or a ResNetTrunk, got {type(trunk).__name__}.")
    channels = next(part.in_channels for part in trunk.stem.modules() if isinstance(part, nn.Conv2d))
    if len(image_mean) != channels or len(image_std) != channels:
        raise ValueError(
            f"`image_mean` and `image_std` must have a value for each of the backbone's {channels} channels, got "
            f"{len(image_mean)} and {len(image_std)}."
        )
    pyramid = _Pyramid(trunk)
    levels = len(trunk.channels) + 1
    anchors = AnchorGenerator(tuple((32 * 2**i,) for i in range(levels)), ((0.5, 1.0, 2.0),) * levels)
    names = [str(i) for i in range(levels - 1)]
    pool = {"box_roi_pool": MultiScaleRoIAlign(featmap_names=names, output_size=7, sampling_ratio=2)}
    if kind == "mask_rcnn":
        pool["mask_roi_pool"] = MultiScaleRoIAlign(featmap_names=names, output_size=14, sampling_ratio=2)
    detector = (FasterRCNN if kind == "faster_rcnn" else MaskRCNN)(
        pyramid,
        num_classes,
        min_size=min_size,
        max_size=max_size,
        image_mean=list(image_mean),
        image_std=list(image_std),
        rpn_anchor_generator=anchors,
        box_score_thresh=score_threshold,
        box_detections_per_img=max_detections,
        **pool,
    )
    return HGDetector(detector)


def _batch_attention(attention: Sequence[Tensor], sizes: list[tuple[int, int]], batch: Any) -> Tensor:
    """Return attention of the batch's padded size, resized as torchvision resizes the images."""
    if len(attention) != len(sizes):
        raise ValueError(f"`attention` must hold a map for each of {len(sizes)} images, got {len(attention)}.")
    height, width = batch.tensors.shape[-2:]
    out = batch.tensors.new_zeros(len(sizes), height, width)
    for i, (one, size) in enumerate(zip(attention, sizes, strict=True)):
        check_attention(one[None], (1, *size))
        new = batch.image_sizes[i]
        resized = nn.functional.interpolate(one[None, None], new, mode="bilinear", align_corners=False)
        out[i, : new[0], : new[1]] = resized[0, 0].to(out.dtype)
    return torch.clamp(out, 0, 1)
