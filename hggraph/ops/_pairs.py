"""Products of pixels and regions over the entries of an assignment: all pairs, or those that an index names.

With ``index`` None an assignment's weights ``(B, R, P)`` are matrices, and each function is one batched matrix product.
With an index ``(B, T, P)`` entry t of a pixel belongs to region ``index[b, t, p]``, and each function is a gather or a
sum over segments: O(P T C), nothing of size P x R is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_range
from hggraph.ops import fast
from hggraph.ops._distance import compute_dtype, squared_norm
from hggraph.ops.segment import csr_pointer, gather_scale_sum, gathered_dot

__all__ = [
    "check_index",
    "collect",
    "collect_with_masses",
    "densify",
    "like",
    "masses",
    "negative_distance",
    "new_weight",
    "pair_dot",
    "rows",
    "spread",
]

_FEW = 40  # channels up to which differences are taken one by one: a narrow map and its position among them
_ALIGN = 32  # weights of one region are stored in rows of a multiple of this, so that a kernel loads 16 bytes at once


def check_index(index: Tensor | None, shape: tuple[int, ...], num_regions: int | None) -> None:
    """Raise unless an index ``(B, T, P)`` fits weights of `shape` and, on a CPU, names regions that exist."""
    if index is None:
        return
    if num_regions is None:
        raise ValueError("`num_regions` must be given with `index`: the largest region may have no pixel.")
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`index` must be int32 or int64, got {index.dtype}.")
    if index.shape != shape:
        raise ValueError(f"`index` must have the shape of the weights, {tuple(shape)}, got {tuple(index.shape)}.")
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        check_range("index", index, num_regions)


def new_weight(x: Tensor, entries: int, pixels: int) -> Tensor:
    """Return room for weights ``(B, entries, P)`` in the precision of distances, rows padded in memory."""
    padded = -(-pixels // _ALIGN) * _ALIGN
    return x.new_empty(x.shape[0], entries, padded, dtype=compute_dtype(x))[..., :pixels]


def like(grad: Tensor, x: Tensor) -> Tensor:
    """Return a gradient with the dtype and the strides of a new tensor like `x`, without a copy where it has them."""
    grad = grad.to(x.dtype)
    wanted = torch.empty_like(x, device="meta")
    return grad if grad.stride() == wanted.stride() else torch.empty_like(x).copy_(grad)


def rows(x: Tensor) -> Tensor:
    """Return a map ``(B, C, P)`` as rows ``(B P, C)``, a view for channels_last."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], x.shape[1])


def densify(weight: Tensor, index: Tensor, num_regions: int) -> Tensor:
    """Return weights ``(B, T, P)`` with an index as matrices ``(B, R, P)``."""
    out = weight.new_zeros(weight.shape[0], num_regions, weight.shape[2])
    return out.scatter_add(1, index.long(), weight)


def spread(z: Tensor, weight: Tensor, index: Tensor | None) -> Tensor:
    """Return ``sum_t weight[t, p] z[index[t, p]]``, shape ``(B, C, P)``, of region features ``z (B, R, C)``."""
    if index is not None and torch.compiler.is_exporting():
        weight, index = densify(weight, index, z.shape[1]), None
    if index is None:
        return torch.bmm(z.transpose(1, 2), weight)
    batch, entries, pixels = weight.shape
    ptr = torch.arange(0, batch * pixels * entries + 1, max(entries, 1), device=z.device)
    out = gather_scale_sum(z.flatten(0, 1), ptr, _regions(index, z.shape[1]), _flat(weight))
    return out.view(batch, pixels, z.shape[2]).transpose(1, 2)


def collect_with_masses(x: Tensor, weight: Tensor, index: Tensor | None, num_regions: int) -> tuple[Tensor, Tensor]:
    """Return `collect` and `masses`, in one pass where there is one."""
    if index is not None and x.shape[1] <= _FEW and len(x) and fast.takes(x, weight):
        found = [fast.pool(*one, num_regions) for one in zip(x, weight, index.int(), strict=True)]
        sums, mass = (torch.stack(parts) for parts in zip(*found, strict=True))
        return sums, mass
    return collect(x, weight, index, num_regions), masses(weight, index, num_regions)


def collect(x: Tensor, weight: Tensor, index: Tensor | None, num_regions: int) -> Tensor:
    """Return ``sum_p weight[r, p] x_p``, shape ``(B, R, C)``, of a map ``(B, C, P)``."""
    if index is not None and torch.compiler.is_exporting():
        weight, index = densify(weight, index, num_regions), None
    if index is None:
        return torch.bmm(weight, x.transpose(1, 2))
    if x.shape[1] <= _FEW and len(x) and fast.takes(x, weight):
        return fast.each(lambda x, w, i: fast.pool(x, w, i, num_regions)[0], x, weight, index.int())
    if x.device.type == "cpu" and x.shape[1] <= _FEW:  # one after the other: the same sum every time
        out = x.new_zeros(*x.shape[:2], num_regions)
        for region, part in zip(index.long().unbind(1), weight.unbind(1), strict=True):
            out.scatter_add_(2, region.unsqueeze(1).expand(x.shape), part.unsqueeze(1) * x)
        return out.transpose(1, 2)
    regions, order = torch.sort(_regions(index, num_regions), stable=True)
    ptr = csr_pointer(regions, x.shape[0] * num_regions)
    out = gather_scale_sum(rows(x), ptr, order // index.shape[1], _flat(weight)[order])
    return out.view(x.shape[0], num_regions, x.shape[1])


def masses(weight: Tensor, index: Tensor | None, num_regions: int) -> Tensor:
    """Return the sums of the weights of each region, shape ``(B, R)``, not in a half's precision."""
    weight = weight.to(compute_dtype(weight))
    if index is None:
        return weight.sum(2)
    if torch.compiler.is_exporting():
        return densify(weight, index, num_regions).sum(2)
    if len(weight) and fast.takes(weight):
        none = weight.new_empty(len(weight), 0, weight.shape[2])
        return fast.each(lambda x, w, i: fast.pool(x, w, i, num_regions)[1], none, weight, index.int())
    if weight.device.type == "cpu":  # one after the other: the same sum every time
        flat = weight.new_zeros(weight.shape[0], num_regions)
        return flat.scatter_add_(1, index.flatten(1).long(), weight.flatten(1))
    return collect(weight.new_ones(weight.shape[0], 1, weight.shape[2]), weight, index, num_regions).squeeze(2)


def pair_dot(z: Tensor, x: Tensor, index: Tensor | None) -> Tensor:
    """Return ``z[index[t, p]] . x_p``, shape ``(B, T, P)``, of regions ``z (B, R, C)`` and a map ``(B, C, P)``."""
    if index is not None and torch.compiler.is_exporting():
        return torch.bmm(z, x).gather(1, index.long())
    if index is None:
        return torch.bmm(z, x)
    batch, entries, pixels = index.shape
    pixel = torch.arange(batch * pixels, device=x.device).repeat_interleave(entries)
    dots = gathered_dot(rows(x), pixel, z.flatten(0, 1), _regions(index, z.shape[1]))
    return dots.view(batch, pixels, entries).transpose(1, 2)


def of_region(values: Tensor, index: Tensor | None) -> Tensor:
    """Return a number of each region ``(B, R)`` for each entry, shape ``(B, T, P)`` or ``(B, R, 1)``."""
    if index is None:
        return values.unsqueeze(2)
    return values.gather(1, index.flatten(1).long()).view(index.shape)


def negative_distance(x: Tensor, centers: Tensor, index: Tensor | None) -> Tensor:
    """Return ``-||x_p - c_r||^2`` of each entry, for ``x (B, C, P)`` and ``centers (B, R, C)``."""
    if index is None:
        # rounding can make the expanded square slightly positive, hence the clamp
        logits = torch.baddbmm(-centers.square().sum(-1, keepdim=True), centers, x, alpha=2)
        return logits.sub_(squared_norm(x).unsqueeze(1)).clamp_(max=0)
    # positions, the last two channels, are large beside distances: their squares would lose the digits
    split = 0 if x.shape[1] <= _FEW else x.shape[1] - 2
    logits = _by_difference(x[:, split:], centers[..., split:], index)
    if split:
        deep, far = x[:, :split], centers[..., :split]
        square = of_region(far.square().sum(2), index) + squared_norm(deep).unsqueeze(1)
        logits += pair_dot(far, deep, index).mul_(2).sub_(square).clamp_(max=0)
    return logits


def negative_distance_backward(grad: Tensor, x: Tensor, centers: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradients of `negative_distance` for `x` and `centers`."""
    grad_x = spread(centers, grad, index).sub(x * grad.sum(1, keepdim=True)).mul_(2)
    total = masses(grad, index, centers.shape[1]).unsqueeze(2)
    grad_centers = collect(x, grad, index, centers.shape[1]).sub(centers * total).mul_(2)
    return grad_x, grad_centers


def _by_difference(x: Tensor, centers: Tensor, index: Tensor) -> Tensor:
    pixels, regions = rows(x), centers.flatten(0, 1)
    flat = _regions(index, centers.shape[1]).view(pixels.shape[0], index.shape[1])
    parts = [(pixels - regions.index_select(0, entry)).square_().sum(1).neg_() for entry in flat.unbind(1)]
    return torch.stack(parts, 1).view(x.shape[0], x.shape[2], index.shape[1]).transpose(1, 2)


def _regions(index: Tensor, num_regions: int) -> Tensor:
    """Return the flat region ``b R + r`` of each entry, pixel after pixel."""
    image = torch.arange(index.shape[0], device=index.device, dtype=index.dtype).view(-1, 1, 1)
    return (index + image * num_regions).transpose(1, 2).flatten().long()


def _flat(weight: Tensor) -> Tensor:
    return weight.transpose(1, 2).flatten()
