"""Region loss: how well the pixels' labels can be made again from regions, and how compact these are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_ndim
from hggraph.graph import Assignment
from hggraph.nn._target import INTEGERS, check_ignore_index, check_number, mean_or_zero

__all__ = ["RegionLoss", "region_loss"]


def region_loss(
    assignment: Assignment, target: Tensor, *, ignore_index: int = 255, compactness: float = 1e-5
) -> dict[str, Tensor]:
    r"""Compare a target with what pooling it to regions and bringing it back leaves of it (SSN, Eq. 5 to 7).

    With the row-normalised S of the assignment, one-hot labels T and the column-normalised pooling,

    .. math::
        \hat T = S\, \mathrm{pool}(T), \qquad
        L = -\frac 1 N \sum_p \log \frac{\hat T_{p, t_p}}{\sum_k \hat T_{p, k}}
            + \frac{\lambda}{P} \sum_p \lVert y_p - \mathrm{pool}(y)_{h_p} \rVert^2

    over the N pixels whose label t is not ignored, with h the strongest region of a pixel and y its position in pixels.
    The division leaves ignored pixels out of what regions hold; without any it is one. A target of features, (B, C, H,
    W) floating point, is compared by the sum of absolute differences instead, as the paper does for optical flow.

    Args:
        assignment: Pixels to regions, soft to be trained.
        target: Labels ``(B, H, W)``, whole numbers: classes, or numbers of segments, which mean nothing beyond their
            image. Or features ``(B, C, H, W)``, floating point.
        ignore_index: The label that does not count.
        compactness: The weight λ, of squared pixels; the paper's is 1e-5.

    Returns:
        ``"labels"`` and ``"compactness"``, scalars without weight, and ``"loss"``, the first plus λ times the second.
        In float32, or in float64 if the weights are. Exactly 0 where no pixel counts or there is no image.

    Raises:
        TypeError: if `target` is neither of integers nor floating point.
        ValueError: if its shape does not fit.

    Note:
        O(B K P) memory with the largest number K of labels in an image: labels are numbered anew in each, which waits
        for a GPU. The gradient reaches the weights of S, those of the strongest region's choice excepted, as in the
        paper.

    Example:
        >>> regions = Assignment.from_labels(torch.tensor([[[0, 0, 1, 1]]]), 2)
        >>> region_loss(regions, torch.tensor([[[7, 7, 7, 9]]]))["labels"].item()  # log(2) / 2
        0.3465735912322998
    """
    weight = assignment.weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if not isinstance(target, Tensor) or not (target.dtype in INTEGERS or target.is_floating_point()):
        got = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"`target` must be labels, uint8 or int16 to int64, or features, floating point, got {got}.")
    if target.is_floating_point():
        check_ndim("target", target, 4, shape="(B, C, H, W) as it is floating point")
        _check_size(target, assignment)
        back = assignment.unpool(assignment.pool(target.to(dtype)))
        differences = (back - target.to(dtype)).abs().sum(1)
        labels = mean_or_zero(differences, torch.ones_like(differences))
    else:
        check_ndim("target", target, 3, shape="(B, H, W) as it is of integers")
        _check_size(target, assignment)
        labels = _label_loss(assignment, target, ignore_index, dtype)
    spread = _spread(assignment, dtype)
    return {"loss": labels + compactness * spread, "labels": labels, "compactness": spread}


def _check_size(target: Tensor, assignment: Assignment) -> None:
    if len(target) != assignment.batch_size or tuple(target.shape[-2:]) != tuple(assignment.size):
        raise ValueError(
            f"`target` must have {assignment.batch_size} images of {assignment.size[0]} x {assignment.size[1]} pixels "
            f"as the assignment, got shape {tuple(target.shape)}."
        )


def _label_loss(assignment: Assignment, target: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    counted = target != ignore_index
    number, count = _numbered(target, counted)
    one_hot = F.one_hot(number, count + 1)[..., :count].permute(0, 3, 1, 2).to(dtype)  # ignored pixels: all 0
    back = assignment.unpool(assignment.pool(one_hot))
    own = back.gather(1, number.clamp(max=count - 1)[:, None])[:, 0]
    # a pixel's own label is in its region, so that neither is 0 but by underflow
    tiny = torch.finfo(dtype).tiny
    values = back.sum(1).clamp(min=tiny).log() - own.clamp(min=tiny).log()
    return mean_or_zero(torch.where(counted, values, 0.0), counted.to(dtype))


def _numbered(target: Tensor, counted: Tensor) -> tuple[Tensor, int]:
    """Return labels numbered from 0 in each image, ignored pixels with the number after the last, and how many."""
    target = target.long()
    found = [torch.unique(image[where], return_inverse=True) for image, where in zip(target, counted, strict=True)]
    count = max([1, *(len(values) for values, _ in found)])
    number = torch.full_like(target, count)
    for image, where, (_, inverse) in zip(number, counted, found, strict=True):
        image[where] = inverse
    return number, count


def _spread(assignment: Assignment, dtype: torch.dtype) -> Tensor:
    """Return the mean squared distance of pixels from the middle of their strongest region, pooled softly."""
    height, width = assignment.size
    labels = assignment.labels
    y, x = (torch.arange(side, dtype=dtype, device=labels.device) for side in (height, width))
    position = torch.stack([y[:, None].expand(height, width), x.expand(height, width)])
    position = position.expand(assignment.batch_size, -1, -1, -1)
    middle = assignment.pool(position)  # (B, R, 2)
    own = middle.gather(1, labels.flatten(1)[..., None].expand(-1, -1, 2))
    squared = (position.flatten(2).transpose(1, 2) - own).square().sum(2)
    return mean_or_zero(squared, torch.ones_like(squared))


class RegionLoss(nn.Module):
    """What regions lose of a target, plus how far their pixels lie apart; see `region_loss`, which this calls.

    Args:
        ignore_index: The label that does not count.
        compactness: Weight of the mean squared distance, in pixels, from a region's middle.

    Shapes:
        - **assignment:** an `Assignment`
        - **target:** labels ``(B, H, W)``, integers, or features ``(B, C, H, W)``, floating point
        - **output:** a dict of scalars: ``"loss"``, ``"labels"``, ``"compactness"``

    Raises:
        ValueError: if an option is not as said.

    Example:
        >>> from hggraph import SoftSLIC
        >>> regions = SoftSLIC(num_regions=4, feature_scale="photo")(torch.rand(2, 3, 8, 8))
        >>> sorted(RegionLoss()(regions, torch.randint(3, (2, 8, 8))))
        ['compactness', 'labels', 'loss']
    """

    def __init__(self, ignore_index: int = 255, compactness: float = 1e-5) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index)
        self.compactness = check_number("compactness", compactness, 0)

    def forward(self, assignment: Assignment, target: Tensor) -> dict[str, Tensor]:
        """Return the losses; see `region_loss` for shapes, dtypes and errors."""
        return region_loss(assignment, target, ignore_index=self.ignore_index, compactness=self.compactness)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"ignore_index={self.ignore_index}, compactness={self.compactness:g}"
