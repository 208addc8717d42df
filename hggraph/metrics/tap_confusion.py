"""What the taps of a network confuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph.metrics.confusion import ConfusionMatrix
from hggraph.models._network import training_outputs
from hggraph.schemes.hs3.region_tap import RegionLogits, class_shares

__all__ = ["Analysis", "analyse"]


class Analysis(NamedTuple):
    """What a network and its taps make of images: confusion matrices by name, and mean features of classes."""

    confusions: dict[str, Tensor]
    features: dict[str, Tensor]
    images: int


def analyse(
    net: nn.Module, samples: Any, num_classes: int, *, ignore_index: int = 255, features: bool = False
) -> Analysis:
    """Count what a network with taps confuses.

    Args:
        net: Gives ``"tap_..."`` beside ``"out"`` in training, each with all classes, as `hggraph.schemes.hs3.tapped`
            and `hggraph.models.hs3_fuse` make it. It is run in eval mode, and left in the mode it was in.
        samples: Batches with ``"image"`` and ``"mask"``.
        num_classes: K.
        ignore_index: The label that does not count.
        features: Take the mean features of the classes, too, before each tap's classifier.

    Returns:
        Confusion matrices ``(K, K)``, int64, of ``"out"`` and the taps; mean features ``(K, D)`` of the taps, NaN
        for classes that do not occur.

    Raises:
        ValueError: if the network has no taps, or one has other classes; with `features`, if it is not of `tapped`.

    Note:
        As long as a validation: one forward pass. Only sums are kept.
    """
    device = next(net.parameters()).device
    counts: dict[str, ConfusionMatrix] = {}
    sums: dict[str, Tensor] = {}
    images = 0
    with training_outputs(net), torch.inference_mode(), _features(net, features) as seen:
        for batch in samples:
            target = batch["mask"].to(device)
            out = net(batch["image"].to(device))
            taps = {name: value for name, value in out.items() if name.startswith("tap_")}
            if not taps:
                raise ValueError("The network has no taps; make it with hggraph.schemes.hs3.tapped.")
            for name, value in ({"out": out["out"]} | taps).items():
                classes = (value.logits if isinstance(value, RegionLogits) else value).shape[1]
                if classes != num_classes:
                    raise ValueError(f"{name} has {classes} classes; the first phase has all of them, {num_classes}.")
                matrix = counts.setdefault(name, ConfusionMatrix(num_classes, ignore_index).to(device))
                matrix.update(_pixel_labels(value, target) if isinstance(value, RegionLogits) else value, target)
            for name, found in seen.items():
                part = _class_sums(found, taps[name], target, num_classes, ignore_index)
                sums[name] = part if name not in sums else sums[name] + part
            images += len(target)
    means = {name: total[:, 1:] / total[:, :1] for name, total in sums.items()}
    return Analysis({name: matrix.compute().cpu() for name, matrix in counts.items()}, means, images)


@contextmanager
def _features(net: nn.Module, wanted: bool) -> Iterator[dict[str, Tensor]]:
    """Fill a dict with what enters the last layer of each tap."""
    seen: dict[str, Tensor] = {}
    heads: Any = getattr(net, "heads", None)
    if wanted and not isinstance(heads, nn.ModuleDict):
        raise ValueError("k-means needs the taps' features: a network of hggraph.schemes.hs3.tapped.")
    handles = []
    for name, head in heads.items() if wanted else ():
        last = [part for part in head.modules() if isinstance(part, nn.Conv2d)][-1]
        handles.append(last.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]})))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pixel_labels(found: RegionLogits, target: Tensor) -> Tensor:
    """Return the classes ``(B, H, W)`` of pixels whose regions were classified."""
    regions = found.logits.argmax(1)
    labels = regions.gather(1, found.assignment.labels.flatten(1)).view(len(regions), 1, *found.assignment.size)
    full = F.interpolate(labels.float(), found.size, mode="nearest-exact")[:, 0].long()
    return full[:, : target.shape[1], : target.shape[2]]


def _class_sums(features: Tensor, tap: Any, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return for each class how many features it has, regions in part, and their sum: ``(K, 1 + D)``, float64."""
    points = features.flatten(2).transpose(1, 2).flatten(0, 1).double()
    points = torch.cat([torch.ones_like(points[:, :1]), points], 1)
    if isinstance(tap, RegionLogits):
        shares = class_shares(target, tap.assignment, num_classes, size=tap.size, ignore_index=ignore_index)
        return (shares.flatten(0, 1).double().mT @ points).cpu()
    labels = F.interpolate(target[:, None].float(), features.shape[2:], mode="nearest-exact").long().flatten()
    counted = labels != ignore_index
    sums = points.new_zeros(num_classes, points.shape[1])
    return sums.index_add_(0, labels[counted], points[counted]).cpu()
