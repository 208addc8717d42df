"""The loss of saliency maps: each pixel for itself, and the object as a whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hggraph.nn._target import check_ignore_index, check_logits, check_number, mean_or_zero, two_logits
from hggraph.nn.losses import BinaryCrossEntropy

__all__ = ["SaliencyLoss"]


class SaliencyLoss(nn.Module):
    r"""Binary cross-entropy plus one minus the object's soft intersection over union.

    .. math::
        \mathrm{BCE} + \frac{1}{B} \sum_b \left( 1 - \frac{\sum_p p \, t + s}{\sum_p (p + t - p \, t) + s} \right)

    with the probability p and the label t of each pixel that counts, and the mean over the images that have one. The
    two parts that Qin et al., "BASNet: Boundary-Aware Salient Object Detection", 2019, add up, without the third
    (structural similarity).

    Args:
        ignore_index: The label that does not count.
        bce_weight: Weight of the cross-entropy, see `BinaryCrossEntropy`.
        iou_weight: Weight of the intersection over union.
        smooth: The number s of pixels added above and below, above 0: an image without object asks for an empty map
            instead of dividing by 0.

    Shapes:
        - **logits:** ``(B, 1, H, W)`` for a sigmoid or ``(B, 2, H, W)`` for a softmax; computed in float32, or in
          float64 if given so
        - **target:** ``(B, H, W)``, labels 0, 1 or `ignore_index`, uint8 or int16 to int64
        - **output:** a scalar; exactly 0, with gradients 0, if every pixel is ignored or there is none

    Raises:
        TypeError: in a call, if `logits` is not floating point, or `target` not of integers.
        ValueError: if an option is not as said; in a call, if shapes do not fit, or a label is another one (looked at
            on the CPU alone).

    Note:
        O(B H W). Nothing waits for the device; deterministic on a GPU too.

    Example:
        >>> logits = torch.tensor([[[[50.0, -50.0]]]])
        >>> SaliencyLoss()(logits, torch.tensor([[[1, 0]]]))  # all right
        tensor(0.)
        >>> SaliencyLoss(bce_weight=0)(logits, torch.tensor([[[0, 1]]]))  # none in common, 2 in the union
        tensor(0.6667)
    """

    def __init__(
        self, ignore_index: int = 255, bce_weight: float = 1.0, iou_weight: float = 1.0, smooth: float = 1.0
    ) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index)
        self.bce_weight = check_number("bce_weight", bce_weight, 0)
        self.iou_weight = check_number("iou_weight", iou_weight, 0)
        self.smooth = check_number("smooth", smooth, 1e-6)
        self.bce = BinaryCrossEntropy(ignore_index)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see the class for shapes and dtypes."""
        cross_entropy: Tensor = self.bce(logits, target)
        logits, target = check_logits(logits, target, self.ignore_index, num_classes=2)
        counted = target != self.ignore_index
        probability = torch.where(counted, two_logits(logits).softmax(1)[:, 1], 0.0).flatten(1)  # (B, P)
        label = (target == 1).to(probability.dtype).flatten(1)
        common = (probability * label).sum(1)
        union = (probability + label - probability * label).sum(1)
        images = counted.flatten(1).any(1).to(common.dtype)
        loss = (1 - (common + self.smooth) / (union + self.smooth)) * images
        return self.bce_weight * cross_entropy + self.iou_weight * mean_or_zero(loss, images)

    def extra_repr(self) -> str:
        """Return the options."""
        return (
            f"ignore_index={self.ignore_index}, bce_weight={self.bce_weight:g}, iou_weight={self.iou_weight:g}, "
            f"smooth={self.smooth:g}"
        )
