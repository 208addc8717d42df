"""The losses of roads: soft intersection over union, and where the road leads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.nn._target import check_ignore_index, check_logits, mean_or_zero, two_logits
from hggraph.nn.losses import cross_entropy

__all__ = ["OrientationLoss", "SoftIoU"]

EPSILON = 1e-8  # of the source; a normal number in float32, in which the sums are


class SoftIoU(nn.Module):
    r"""Minus the mean soft intersection over union, between -1 and 0.

    .. math::
        - \frac{1}{B K} \sum_{b, k} \frac{\sum_p p_k \, t_k}{\sum_p (p_k + t_k - p_k t_k) + 10^{-8}}

    with the softmax p and the one-hot label t of each pixel that counts, per image and class, and the mean over the
    images that have such a pixel. As Batra et al., "Improved Road Connectivity by Joint Learning of Orientation and
    Segmentation", 2019, train roads; a class that an image lacks counts as 0, without a gradient.

    Args:
        ignore_index: The label that does not count.

    Shapes:
        - **logits:** ``(B, K, H, W)``; one channel x, a sigmoid's, stands for the two logits 0 and x. Computed in
          float32, or in float64 if given so
        - **target:** ``(B, H, W)``, labels in [0, K) (0 and 1 for one channel) or `ignore_index`, uint8 or int16 to
          int64
        - **output:** a scalar; exactly 0, with gradients 0, if every pixel is ignored or there is none

    Raises:
        TypeError: in a call, if `logits` is not floating point, or `target` not of integers.
        ValueError: if `ignore_index` is no whole number; in a call, if shapes do not fit, or a label lies outside
            (looked at on the CPU alone).

    Note:
        O(B K H W). Nothing waits for the device; deterministic on a GPU too.

    Example:
        >>> logits = torch.tensor([[[[50.0, -50.0, 50.0]]]])
        >>> SoftIoU()(logits, torch.tensor([[[1, 0, 255]]])), SoftIoU()(logits, torch.tensor([[[1, 1, 255]]]))
        (tensor(-1.), tensor(-0.2500))
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see the class for shapes and dtypes."""
        one = isinstance(logits, Tensor) and logits.dim() > 1 and logits.shape[1] == 1
        logits, target = check_logits(logits, target, self.ignore_index, num_classes=2 if one else 0)
        logits = two_logits(logits) if one else logits
        counted = target != self.ignore_index
        weights = counted[:, None].to(logits.dtype)
        probability = logits.softmax(1) * weights  # (B, K, ...)
        label = torch.zeros_like(logits).scatter(1, torch.where(counted, target, 0)[:, None], weights)
        common = (probability * label).flatten(2).sum(2)
        union = probability.flatten(2).sum(2) + label.flatten(2).sum(2) - common
        images = counted.flatten(1).any(1).to(common.dtype)
        return -mean_or_zero((common / (union + EPSILON)).mean(1) * images, images)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"ignore_index={self.ignore_index}"


class OrientationLoss(nn.Module):
    """Mean cross-entropy of the direction in which a road leads, as a class.

    As Batra et al. (see `SoftIoU`): 36 bins of 10 degrees, and the last class for pixels without road.

    Args:
        num_orientations: Bins and background, at least 2.
        ignore_index: The label that does not count.

    Shapes:
        - **logits:** ``(B, num_orientations, H, W)``
        - **target:** ``(B, H, W)``, labels in [0, num_orientations) or `ignore_index`
        - **output:** a scalar; exactly 0, with gradients 0, if every pixel is ignored or there is none

    Raises:
        TypeError: in a call, if `logits` is not floating point, or `target` not of integers.
        ValueError: if an option is not as said; in a call, if the number of channels is another one, shapes do not
            fit, or a label lies outside (looked at on the CPU alone).

    Note:
        The cost of `cross_entropy`, which this calls.

    Example:
        >>> OrientationLoss()(torch.zeros(1, 37, 2, 2), torch.full((1, 2, 2), 36))  # log 37
        tensor(3.6109)
    """

    def __init__(self, num_orientations: int = 37, ignore_index: int = 255) -> None:
        super().__init__()
        check_positive("num_orientations", num_orientations, 2)
        self.num_orientations = num_orientations
        self.ignore_index = check_ignore_index(ignore_index)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see the class for shapes and dtypes."""
        if isinstance(logits, Tensor) and logits.dim() > 1 and logits.shape[1] != self.num_orientations:
            raise ValueError(
                f"`logits` must have {self.num_orientations} channels, one for each orientation and the background, "
                f"got shape {tuple(logits.shape)}. Give the network or this loss another `num_orientations`."
            )
        return cross_entropy(logits, target, ignore_index=self.ignore_index)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"num_orientations={self.num_orientations}, ignore_index={self.ignore_index}"
