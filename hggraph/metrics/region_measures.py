"""How good the regions of one image are: against segmentations that people drew, and by themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hggraph._check import check_ndim

__all__ = ["compare_regions", "describe_regions", "majority_labels"]


def compare_regions(
    labels: Tensor, truth: Tensor, *, ignore_index: int | None = None, tolerance: float = 0.0025
) -> dict[str, Tensor]:
    r"""Measure how well the borders of regions lie on those of segmentations by people.

    With :math:`S_j` the regions and :math:`G_i` the segments of an annotator, P pixels (Stutz, Hermans, Leibe,
    "Superpixels: an evaluation of the state of the art", 2018):

    .. math::
        \text{ASA} = \frac{1}{P} \sum_j \max_i |S_j \cap G_i|, \qquad
        \text{UE} = \frac{1}{P} \sum_j \sum_{i: S_j \cap G_i \ne \emptyset}
                    \min(|S_j \cap G_i|, |S_j \setminus G_i|)

    the achievable segmentation accuracy and the undersegmentation error of Neubert and Protzel. A border pixel is one
    that differs from one of its 4 neighbours; it is met if there is one of the other map in the square of 2 r + 1
    pixels around it. Recall is the share of the segments' border pixels that are met. Precision is
    ``met / (met + false)``, where "false" are the border pixels of regions that are not met: counted as in the
    program of that paper, so that thick borders do not raise it.

    Args:
        labels: Number of the region of each pixel, shape ``(H, W)``, any integers.
        truth: Number of the segment of each pixel by each annotator, shape ``(A, H, W)`` or ``(H, W)``, integers.
        ignore_index: A number in `truth` whose pixels do not count: regions and segments are cut to the others, and
            these pixels are of no border of `truth`.
        tolerance: The radius r as a share of the image's diagonal, rounded to whole pixels, at least 1 (so 1 pixel for
            321 x 481).

    Returns:
        ``"asa"`` and ``"boundary_recall"``, ``"boundary_precision"`` (higher is better), ``"ue"`` (lower is better),
        float64 in [0, 1], shape ``(A,)``. NaN where nothing counts: no pixel, or no border in `truth` (recall), or in
        neither (precision).

    Raises:
        TypeError: if a map is not of integers.
        ValueError: if the sizes differ, or `tolerance` is negative.

    Note:
        O(H W) and a sort of the pairs that occur; about 10 ms for five annotators of 321 x 481 on a CPU. Exact counts;
        not differentiable.

    Example:
        >>> labels = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
        >>> truth = torch.tensor([[5, 5, 5, 7], [5, 5, 5, 7]])
        >>> {name: value.tolist() for name, value in compare_regions(labels, truth).items()}
        {'asa': [0.75], 'ue': [0.5], 'boundary_recall': [1.0], 'boundary_precision': [1.0]}
    """
    labels, truth = _integers("labels", labels), _integers("truth", truth, 2, 3)
    truth = truth[None] if truth.dim() == 2 else truth
    if truth.shape[1:] != labels.shape:
        raise ValueError(
            f"`truth` must be of the size of `labels`, (A, {labels.shape[0]}, {labels.shape[1]}), got "
            f"{tuple(truth.shape)}."
        )
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be a share of the diagonal, at least 0, got {tolerance}.")
    radius = max(1, math.floor(tolerance * math.hypot(*labels.shape) + 0.5))
    region, _ = _numbered(labels)
    ours = _border(labels)
    near_ours = _widen(ours, radius)
    rows = []
    for segments in truth:
        counted = None if ignore_index is None else segments != ignore_index
        both = (region, segments) if counted is None else (region[counted], segments[counted])
        theirs = _border(segments, counted)
        met = torch.count_nonzero(theirs & near_ours).double()
        wrong = ours & ~_widen(theirs, radius)
        wrong = torch.count_nonzero(wrong if counted is None else wrong & counted)
        rows.append(torch.stack([*_overlap(*both), met / torch.count_nonzero(theirs), met / (met + wrong)]))
    table = torch.stack(rows, 1) if rows else labels.new_zeros((4, 0), dtype=torch.float64)
    return dict(zip(("asa", "ue", "boundary_recall", "boundary_precision"), table, strict=True))


def describe_regions(labels: Tensor, image: Tensor | None = None) -> dict[str, Tensor]:
    r"""Measure regions by themselves: how many, whether in one piece, how round, and how much of the image they hold.

    Of Stutz, Hermans, Leibe (2018), with the area A and the perimeter :math:`L_j` of a region, which counts the sides
    of pixels that another region or the end of the image lies behind, and the mean colour :math:`\mu`:

    .. math::
        \text{CO} = \frac{1}{P} \sum_j A_j \frac{4 \pi A_j}{L_j^2}, \qquad
        \text{EV} = \frac{\sum_j A_j (\mu_j - \mu)^2}{\sum_p (x_p - \mu)^2}

    compactness (:math:`\pi / 4` for squares) and explained variation.

    Args:
        labels: Number of the region of each pixel, shape ``(H, W)``, any integers.
        image: Colours, shape ``(C, H, W)``, bytes or floating point of any scale.

    Returns:
        A number each: ``"regions"``, how many numbers occur; ``"pieces"``, the 4-connected components of equal
        numbers; ``"edges_per_node"``, to how many others a region is next along a pixel's side, in the mean (each
        pair is two edges, without self edges); ``"compactness"``; with an image ``"explained_variation"``. The first
        two int64, the others float64. Without pixels 0, 0 and NaN; for an image of one colour the variation is NaN.

    Raises:
        TypeError: if `labels` are not integers.
        ValueError: if the sizes differ.

    Note:
        O(H W) and a sort of border pixels; about 10 ms for 321 x 481 on a CPU. Not differentiable.

    Example:
        >>> found = describe_regions(torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]))
        >>> {name: round(value.item(), 3) for name, value in found.items()}
        {'regions': 2, 'pieces': 3, 'edges_per_node': 1.0, 'compactness': 0.475}
    """
    labels = _integers("labels", labels)
    if image is not None and (image.dim() != 3 or image.shape[1:] != labels.shape):
        raise ValueError(
            f"`image` must have the size of `labels`, (C, {labels.shape[0]}, {labels.shape[1]}), got "
            f"{tuple(image.shape)}."
        )
    region, area = _numbered(labels)
    down, across = region[1:] != region[:-1], region[:, 1:] != region[:, :-1]
    sides = torch.full(labels.shape, 4, dtype=torch.int8, device=labels.device)
    sides[1:] -= (~down).to(torch.int8)
    sides[:-1] -= (~down).to(torch.int8)
    sides[:, 1:] -= (~across).to(torch.int8)
    sides[:, :-1] -= (~across).to(torch.int8)
    perimeter = torch.bincount(region.flatten(), sides.flatten().double(), minlength=len(area))
    first = torch.cat([region[1:][down], region[:, 1:][across]])
    second = torch.cat([region[:-1][down], region[:, :-1][across]])
    pairs = torch.unique(torch.minimum(first, second) * len(area) + torch.maximum(first, second))
    count = torch.tensor(len(area), device=labels.device)
    found = {
        "regions": count,
        "pieces": _pieces(region),
        "edges_per_node": 2 * len(pairs) / count.double(),
        "compactness": (4 * math.pi * area.double().square() / perimeter.square()).sum() / labels.numel(),
    }
    return found if image is None else found | {"explained_variation": _explained(region, area, image)}


def majority_labels(labels: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Give each region the class that most of its pixels have: the best that a network on these regions can predict.

    Summed over a data set, `MeanIoU` of it against the target is the best possible mean IoU.

    Args:
        labels: Number of the region of each pixel, shape ``(H, W)``, any integers.
        target: Class of each pixel, shape ``(H, W)``, integers.
        ignore_index: The class of pixels that do not count.

    Returns:
        Classes, int64 ``(H, W)``; of two classes as frequent the smaller number. A region none of whose pixels count
        has `ignore_index`.

    Raises:
        TypeError: if a map is not of integers.
        ValueError: if the sizes differ.

    Example:
        >>> majority_labels(torch.tensor([[3, 3, 3, 8]]), torch.tensor([[1, 0, 1, 255]])).tolist()
        [[1, 1, 1, 255]]
    """
    labels, target = _integers("labels", labels), _integers("target", target)
    if labels.shape != target.shape:
        raise ValueError(f"`target` must have the shape of `labels`, {tuple(labels.shape)}, got {tuple(target.shape)}.")
    region, area = _numbered(labels)
    counted = target != ignore_index
    pair_region, pair_class, count = _pairs(region[counted], target[counted])
    best = torch.zeros_like(area).scatter_reduce(0, pair_region, count, "amax")
    largest = torch.iinfo(torch.int64).max
    candidate = torch.where(count == best[pair_region], pair_class, largest)
    majority = torch.full_like(area, largest).scatter_reduce(0, pair_region, candidate, "amin")
    return torch.where(best > 0, majority, ignore_index)[region]


def _integers(name: str, labels: Tensor, *ndims: int) -> Tensor:
    """Return a map of integers of a type that can be computed with; raise if it is none."""
    check_ndim(name, labels, *(ndims or (2,)), shape="(A, H, W) or (H, W)" if ndims else "(H, W)")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"`{name}` must hold integers, got {labels.dtype}.")
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def _numbered(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same map with the numbers 0 ... K - 1, none missing, int64, and how often each occurs ``(K,)``."""
    flat = labels.flatten().long()
    if not flat.numel():
        return flat.view(labels.shape), flat
    low, high = (int(end) for end in torch.aminmax(flat))
    if high - low >= 4 * flat.numel() + 1024:  # a table would be larger than sorting is slow
        _, number, area = torch.unique(flat, return_inverse=True, return_counts=True)
        return number.view(labels.shape), area
    flat = flat - low if low else flat
    count = torch.bincount(flat)
    there = count > 0
    if not there.all():
        flat = (there.cumsum(0) - 1)[flat]
    return flat.view(labels.shape), count[there]


def _pairs(region: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs (region, other) that occur in two lists of numbers, and how often each: three ``(E,)``."""
    region, other = region.flatten(), other.flatten()
    if not region.numel():
        return region, other.long(), region
    low, high = (int(end) for end in torch.aminmax(other))
    if high - low > 2**31:  # the products would not fit
        values, number = torch.unique(other, return_inverse=True)
        pair_region, pair_number, count = _pairs(region, number)
        return pair_region, values[pair_number], count
    width = high - low + 1
    key = region * width
    key.add_(other).sub_(low)  # in place: at this size memory costs more than sums
    if (int(region.max()) + 1) * width < 4 * len(key) + 1024:
        table = torch.bincount(key)
        key = table.nonzero()[:, 0]
        count = table[key]
    else:  # a table would be larger than sorting is slow
        key, count = torch.unique(key, return_counts=True)
    return key // width, key % width + low, count


def _overlap(region: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Return ASA and UE of the pixels that count, float64."""
    pair_region, _, count = _pairs(region, segments)
    pixels = count.sum().double()
    regions = int(pair_region.max()) + 1 if len(pair_region) else 0
    area = count.new_zeros(regions).scatter_add(0, pair_region, count)
    largest = count.new_zeros(regions).scatter_reduce(0, pair_region, count, "amax")
    return largest.sum() / pixels, torch.minimum(count, area[pair_region] - count).sum() / pixels


def _border(labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the pixels that differ from one of their 4 neighbours, both of which count, bool ``(H, W)``."""
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    if counted is not None:
        down, across = down & counted[1:] & counted[:-1], across & counted[:, 1:] & counted[:, :-1]
    border = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    return border


def _widen(border: Tensor, radius: int) -> Tensor:
    """Return the pixels with a border pixel in the square of 2 radius + 1 pixels around them."""
    for axis in (0, 1):
        for _ in range(min(radius, border.shape[axis] - 1)):
            rest = border.shape[axis] - 1
            wide = border.clone()
            wide.narrow(axis, 1, rest).logical_or_(border.narrow(axis, 0, rest))
            wide.narrow(axis, 0, rest).logical_or_(border.narrow(axis, 1, rest))
            border = wide
    return border


def _explained(region: Tensor, area: Tensor, image: Tensor) -> Tensor:
    colors = image.reshape(image.shape[0], -1).double()
    colors = colors - colors.mean(1, keepdim=True)
    sums = torch.stack([torch.bincount(region.flatten(), color, minlength=len(area)) for color in colors])
    return (sums.square() / area).sum() / colors.square().sum()


def _pieces(labels: Tensor) -> Tensor:
    """Count the 4-connected components of equal labels: runs of rows are joined until none that touch differ."""
    if not labels.numel():
        return torch.zeros((), dtype=torch.int64, device=labels.device)
    start = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
    start[:, 1:] = labels[:, 1:] != labels[:, :-1]
    run = start.flatten().cumsum(0).view(labels.shape) - 1
    touch = (labels[1:] == labels[:-1]) & (start[1:] | start[:-1])  # where two runs begin to touch
    above, below = run[:-1][touch], run[1:][touch]
    root = torch.arange(int(run[-1, -1]) + 1, device=labels.device)
    while len(above):
        first, second = root[above], root[below]
        differ = first != second
        above, below, first, second = above[differ], below[differ], first[differ], second[differ]
        root.scatter_reduce_(0, torch.maximum(first, second), torch.minimum(first, second), "amin")
        while not torch.equal(root, up := root[root]):
            root = up
    return (root == torch.arange(len(root), device=labels.device)).sum()
