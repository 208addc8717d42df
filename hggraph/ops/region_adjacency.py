"""Direction-typed adjacency of regions, HG-Conv Eq. 4, 7 and appendix B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import kernel, operator
from hggraph.ops._window import flat_offsets

__all__ = ["FILTER", "region_adjacency"]

FILTER = 1e-7  # smaller connections are dropped, HG-Conv appendix B


def region_adjacency(
    assignment: Tensor,
    size: tuple[int, int],
    offsets: Sequence[Sequence[int]],
    *,
    noise_cancel: bool = True,
    max_direction: bool = True,
    return_degree: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Count how strongly regions touch in each direction (HG-Conv Eq. 4, 7 and appendix B).

    ``A_k = S^T Shift_k S``, that is ``A_k[i, j] = sum_p S_ip S_j,p+offset_k`` over the pixels p whose neighbour
    lies inside the image. Then in this order: noise cancelling ``max(0, A_k - A_opposite(k))``, where the
    opposite direction's matrix is the transpose of ``A_k``; entries under 1e-7 to 0; the diagonal to 0; with
    `max_direction`, for each pair only the strongest direction stays (of those equal up to rounding the first).
    The direction of offset 0 is the identity.

    Args:
        assignment: Weights S, shape ``(B, R, H * W)``.
        size: Height and width of the images, in pixels.
        offsets: K displacements (dy, dx), source minus target.
        noise_cancel: Subtract the opposite direction.
        max_direction: Keep one direction per pair.
        return_degree: Return the sums over j too.

    Returns:
        Shape ``(B, K, R, R)``, target i before source j, dtype of `assignment`, not negative; with `return_degree`
        also their sums over j, shape ``(B, K, R)``. Differentiable in `assignment` through the entries that stay.

    Raises:
        ValueError: if shapes disagree.

    Note:
        One product of 2 B R^2 P operations per pair of opposite directions. Deterministic, static shapes. Half
        precision is multiplied, cleaned up and summed in float32 and rounded at the end.

    Example:
        >>> left_right = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # two pixels side by side, two regions
        >>> region_adjacency(left_right, (1, 2), [(0, -1), (0, 1)])[0, 1]
        tensor([[0., 1.],
                [0., 0.]])
    """
    check_ndim("assignment", assignment, 3, shape="(B, R, P)")
    if len(size) != 2 or size[0] * size[1] != assignment.shape[2]:
        raise ValueError(f"`size` {tuple(size)} must multiply to the {assignment.shape[2]} pixels of `assignment`.")
    flat = flat_offsets(offsets)
    out = torch.ops.hggraph.region_adjacency(assignment, list(size), flat, noise_cancel, max_direction)
    return out if return_degree else out[0]


def region_adjacency_reference(
    assignment: Tensor, size: Sequence[int], offsets: Sequence[Sequence[int]], noise_cancel: bool, max_direction: bool
) -> Tensor:
    """Return `region_adjacency` with the pixel adjacency written out and every clean-up step in its order."""
    (height, width), regions, dtype = size, assignment.shape[1], assignment.dtype
    assignment = assignment.to(compute_dtype(assignment))
    raw = []
    for dy, dx in offsets:
        shift = assignment.new_zeros(height * width, height * width)
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    shift[y * width + x, (y + dy) * width + x + dx] = 1
        raw.append(assignment @ shift @ assignment.transpose(1, 2))
    opposite = [matrix.transpose(1, 2) for matrix in raw]
    clean = [(a - b).clamp(min=0) if noise_cancel else a for a, b in zip(raw, opposite, strict=True)]
    clean = [torch.where(matrix < FILTER, 0, matrix) for matrix in clean]
    eye = torch.eye(regions, dtype=assignment.dtype, device=assignment.device)
    clean = [matrix * (1 - eye) for matrix in clean]
    centers = [k for k, offset in enumerate(offsets) if not any(offset)]
    for k in centers:
        clean[k] = clean[k] * 0
    out = torch.stack(clean, 1)
    if max_direction:
        out = out * strongest_direction(out)
    for k in centers:
        out[:, k] = eye
    return out.to(dtype)


def opposite_pairs(offsets: Sequence[int]) -> list[tuple[int, int | None]]:
    """Return (k, opposite of k or None) for one direction of each pair; the zero displacement is left out."""
    pairs = list(zip(offsets[::2], offsets[1::2], strict=True))
    index = {pair: k for k, pair in enumerate(pairs)}
    out = []
    for k, (dy, dx) in enumerate(pairs):
        other = index.get((-dy, -dx))
        if other is None or k < other:
            out.append((k, other))
    return out


def cleaned(weight: Tensor, reverse: Tensor, noise_cancel: bool, max_direction: bool) -> Tensor:
    """Return products ``A_k[i, j]``, directions in dimension 1, as cancelled, filtered and chosen strengths.

    What is no connection, diagonals and the centre direction, is 0 before.

    Args:
        weight: Shape ``(n, K, ...)``, float32 or float64.
        reverse: ``A_k[j, i]``, the opposite directions, likewise.
        noise_cancel: Subtract `reverse`.
        max_direction: Keep the strongest direction alone.
    """
    if noise_cancel:
        weight = (weight - reverse).clamp_(min=0)
    weight = torch.where(weight < FILTER, 0, weight)
    return weight * strongest_direction(weight) if max_direction else weight


def strongest_direction(weight: Tensor) -> Tensor:
    """Mark the largest of the directions in dimension 1; of those equal up to rounding the first."""
    near = weight >= weight.amax(1, keepdim=True) * tie(weight.dtype)
    first = near.to(torch.uint8).argmax(1, keepdim=True)
    return torch.zeros_like(near).scatter_(1, first, True)


def tie(dtype: torch.dtype) -> float:
    """Return the share of the strongest direction from which another counts as equal up to rounding.

    Strengths are sums in float32, also those that are kept in half precision.
    """
    return 1 - 1024 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _padded(assignment: Tensor, size: Sequence[int], offsets: Sequence[int]) -> tuple[Tensor, int]:
    """Return rows padded with zeros on the right, so that every displacement is one shift of the flat image."""
    pad = max(abs(dx) for dx in offsets[1::2])
    padded = F.pad(assignment.reshape(*assignment.shape[:2], *size), (0, pad))
    return padded.flatten(2), size[1] + pad


def _shifted(flat: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Return the views of targets p and of sources p + shift."""
    num = max(0, flat.shape[2] - abs(shift))
    return flat.narrow(2, max(0, -shift) if num else 0, num), flat.narrow(2, max(0, shift) if num else 0, num)


def _center(offsets: Sequence[int]) -> int | None:
    pairs = list(zip(offsets[::2], offsets[1::2], strict=True))
    return pairs.index((0, 0)) if (0, 0) in pairs else None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    assignment, ctx.size, ctx.offsets, ctx.noise_cancel, _ = inputs
    ctx.save_for_backward(assignment, output[0])


def _backward(ctx: Any, grad: Tensor, grad_degree: Tensor) -> tuple[Any, ...]:
    assignment, out = ctx.saved_tensors
    grad = grad.to(compute_dtype(assignment)) + grad_degree.unsqueeze(-1)
    grad = torch.ops.hggraph.region_adjacency_backward(grad, assignment, out, ctx.size, ctx.offsets, ctx.noise_cancel)
    return grad, None, None, None, None


def _fake(
    assignment: Tensor, size: Any, offsets: Any, noise_cancel: bool, max_direction: bool
) -> tuple[Tensor, Tensor]:
    batch, regions = assignment.shape[:2]
    directions = len(offsets) // 2
    return (
        assignment.new_empty(batch, directions, regions, regions),
        assignment.new_empty(batch, directions, regions),
    )


@operator(
    "region_adjacency",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda assignment, size, offsets, *_, **__: (
        2 * assignment[0] * assignment[1] ** 2 * assignment[2] * len(opposite_pairs(offsets))
    ),
)
def _region_adjacency(
    assignment: Tensor, size: list[int], offsets: list[int], noise_cancel: bool, max_direction: bool
) -> tuple[Tensor, Tensor]:
    if (triton := kernel("region_adjacency", assignment)) is not None:
        share = tie(torch.float32)
        return triton.region_adjacency(assignment, size, offsets, noise_cancel, max_direction, FILTER, share)
    flat, width = _padded(assignment.to(compute_dtype(assignment)), size, offsets)
    batch, regions = assignment.shape[:2]
    raw = flat.new_zeros(batch, len(offsets) // 2, regions, regions)
    for k, other in opposite_pairs(offsets):
        target, source = _shifted(flat, offsets[2 * k] * width + offsets[2 * k + 1])
        raw[:, k] = torch.bmm(target, source.transpose(1, 2))
        if other is not None:
            raw[:, other] = raw[:, k].transpose(1, 2)
    own = torch.eye(regions, dtype=torch.bool, device=raw.device)
    raw.masked_fill_(own, 0)  # not through a view of the diagonal, which export cannot trace
    out = cleaned(raw, raw.transpose(2, 3), noise_cancel, max_direction)
    if (center := _center(offsets)) is not None:
        out[:, center] = own.to(out.dtype)
    return out.to(assignment.dtype), out.sum(-1).to(assignment.dtype)


@operator(
    "region_adjacency_backward",
    fake=lambda grad, assignment, *_: assignment.new_empty(assignment.shape),
    flops=lambda grad, assignment, out, size, offsets, *_, **__: (
        4 * assignment[0] * assignment[1] ** 2 * assignment[2] * len(opposite_pairs(offsets))
    ),
)
def _region_adjacency_backward(
    grad: Tensor,
    assignment: Tensor,
    out: Tensor,
    size: list[int],
    offsets: list[int],
    noise_cancel: bool,
) -> Tensor:
    if (triton := kernel("region_adjacency", grad, assignment)) is not None:
        return triton.region_adjacency_backward(grad, assignment, out, size, offsets, noise_cancel)
    dtype = compute_dtype(assignment)
    grad = torch.where(out > 0, grad.to(dtype), 0)
    if noise_cancel:
        grad = grad - grad.transpose(2, 3)
    flat, width = _padded(assignment.to(dtype), size, offsets)
    grad_flat = torch.zeros_like(flat)
    for k, other in opposite_pairs(offsets):
        grad_k = grad[:, k] if other is None else grad[:, k] + grad[:, other].transpose(1, 2)
        shift = offsets[2 * k] * width + offsets[2 * k + 1]
        (target, source), (grad_target, grad_source) = _shifted(flat, shift), _shifted(grad_flat, shift)
        grad_target += torch.bmm(grad_k, source)
        grad_source += torch.bmm(grad_k.transpose(1, 2), target)
    grad = grad_flat.view(*assignment.shape[:2], size[0], width)[..., : size[1]]
    return grad.reshape(assignment.shape).to(assignment.dtype)
