"""The loss of pyramidal outputs: each level on what no coarser one has done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_ndim, check_positive
from hggraph.nn._target import INTEGERS
from hggraph.nn.losses import BinaryCrossEntropy, CrossEntropy
from hggraph.schemes.specialize.fuse import check_threshold
from hggraph.schemes.specialize.relabel import IGNORED, check_rule, relabel
from hggraph.schemes.specialize.targets import unity_pyramid

__all__ = ["SpecializeLoss"]

PADDED_TO = 32  # networks with fewer levels still pad images as their backbones need it


class SpecializeLoss(nn.Module):
    r"""The loss of a pyramid of logits and of unity (Hsiao et al. 2021, *Specialize and Fuse*, Eq. 1).

    .. math::
        L = \frac{1}{L} \sum_{l=1}^{L} \mathrm{CE}(\hat Y^l, Y^l_{relabeled}) +
            \frac{1}{L-1} \sum_{l=1}^{L-1} \mathrm{BCE}(\hat U^l, U^l_{relabeled})

    The targets are those of `unity_pyramid`, relabelled by `relabel` with what the network predicts at the moment.

    Args:
        stride: Image pixels per cell and side of the finest level; each coarser level has twice that of the next.
        rule: Which cells finer levels need not learn, see `relabel`.
        threshold: What a probability of unity must reach to count as predicted, see `relabel`.
        semantic_loss: Called as ``loss(logits, labels)`` at each level; `CrossEntropy` when None.
        ignore_index: The label that does not count.

    Raises:
        ValueError: if an option is not as said; in a call, if levels are missing or are not those of the target.

    Note:
        Each level's means are over the cells that count; a level without any, and so an all-ignored batch, adds
        exactly 0. Unity comes as logits, which the sigmoid's rounding does not reach, and is compared in float32 under
        autocast too. Nothing waits for the device; deterministic.

    Example:
        >>> semantic = [torch.rand(2, 5, 1, 2), torch.rand(2, 5, 2, 4)]
        >>> outputs = {"semantic": semantic, "unity": [torch.rand(2, 1, 2)]}
        >>> parts = SpecializeLoss(stride=4)(outputs, torch.zeros(2, 8, 15, dtype=torch.long))
        >>> list(parts), bool(parts["loss"] == parts["semantic"] + parts["unity"])
        (['semantic', 'unity', 'loss'], True)
    """

    def __init__(
        self,
        stride: int = 4,
        rule: str = "true_positives",
        threshold: float = 0.9,
        semantic_loss: nn.Module | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_positive("stride", stride)
        check_rule(rule)
        self.stride = stride
        self.rule = rule
        self.threshold = check_threshold(threshold)
        self.ignore_index = ignore_index
        self.semantic_loss = CrossEntropy(ignore_index) if semantic_loss is None else semantic_loss
        self.unity_loss = BinaryCrossEntropy(IGNORED)

    def forward(self, outputs: Mapping[str, Any], target: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean losses of the levels and their sum.

        Args:
            outputs: Of a network in training: ``"semantic"``, logits coarse to fine, each ``(B, C, h, w)``, and
                ``"unity"``, logits of unity of all levels but the finest, each ``(B, h, w)``.
            target: Labels ``(B, H, W)`` of the images, or a dict that holds them under ``"out"``.

        Returns:
            ``"semantic"``, ``"unity"`` (0 with one level) and their sum ``"loss"``, scalars.

        Raises:
            TypeError: as `CrossEntropy` and `unity_pyramid` do.
            ValueError: see the class.
        """
        semantic, unity = self._levels(outputs)
        if isinstance(target, Mapping) and "out" not in target:
            raise ValueError(f"`target` must hold labels under 'out', got {list(target)}.")
        labels = target["out"] if isinstance(target, Mapping) else target
        strides = self._strides(semantic, labels)
        if labels.dtype in INTEGERS:  # other types are refused below
            labels = labels.long()  # which holds any ignored label
        height, width = (side * strides[-1] for side in semantic[-1].shape[2:])
        labels = F.pad(labels, (0, width - labels.shape[2], 0, height - labels.shape[1]), value=self.ignore_index)
        pyramid = unity_pyramid(labels, strides, self.ignore_index)
        predicted = [u.detach().float().sigmoid() for u in unity]
        targets = relabel(pyramid, predicted, rule=self.rule, threshold=self.threshold, ignore_index=self.ignore_index)
        of_labels = [self.semantic_loss(y, label) for y, (_, label) in zip(semantic, targets, strict=True)]
        of_unity = [self.unity_loss(u[:, None], found) for u, (found, _) in zip(unity, targets[:-1], strict=True)]
        parts = {"semantic": torch.stack(of_labels).mean()}
        parts["unity"] = torch.stack(of_unity).mean() if of_unity else torch.zeros_like(parts["semantic"])
        parts["loss"] = parts["semantic"] + parts["unity"]
        return parts

    def extra_repr(self) -> str:
        """Return the options."""
        return (
            f"stride={self.stride}, rule={self.rule!r}, threshold={self.threshold:g}, ignore_index={self.ignore_index}"
        )

    def _levels(self, outputs: Mapping[str, Any]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        if "semantic" not in outputs or "unity" not in outputs:
            raise ValueError(
                f"`outputs` must hold the pyramids 'semantic' and 'unity', got {list(outputs)}. Networks of "
                f"`specialize_fuse` return them in training mode: call `.train()`."
            )
        semantic, unity = outputs["semantic"], outputs["unity"]
        if not len(semantic) or len(unity) != len(semantic) - 1:
            raise ValueError(
                f"`outputs` must hold logits of at least one level under 'semantic' and of all but the finest under "
                f"'unity', got {len(semantic)} and {len(unity)}."
            )
        return semantic, unity

    def _strides(self, semantic: Sequence[Tensor], labels: Tensor) -> tuple[int, ...]:
        """Return the strides of the levels, once the sizes are those that they give."""
        check_ndim("target", labels, 3, shape="(B, H, W)")
        strides = tuple(self.stride * 2**level for level in reversed(range(len(semantic))))
        coarsest = strides[0]
        sizes = [_padded((labels.shape[1], labels.shape[2]), coarsest)]
        if PADDED_TO % coarsest == 0:
            sizes.append(_padded((labels.shape[1], labels.shape[2]), PADDED_TO))
        for level, (stride, y) in enumerate(zip(strides, semantic, strict=True)):
            fitting = [(labels.shape[0], height // stride, width // stride) for height, width in sizes]
            found = (y.shape[0], *y.shape[2:])
            if y.dim() != 4 or found not in fitting or found[1:] != tuple(n << level for n in semantic[0].shape[2:]):
                wanted = " or ".join(f"({b}, C, {h}, {w})" for b, h, w in dict.fromkeys(fitting))
                raise ValueError(
                    f"The logits of level {level}, of stride {stride}, must have shape {wanted} for a target of shape "
                    f"{tuple(labels.shape)}, got {tuple(y.shape)}. `stride` is that of the finest level, {self.stride}."
                )
        return strides


def _padded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the sides of images padded to multiples."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width
