"""Local attention in PyTorch: products and sums over the rows of pixels that a table of neighbours names.

Both primitives read the rows where they lie: no tensor holds the K neighbours of every pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.ops._distance import EXCLUDED, compute_dtype
from hggraph.ops._window import neighbours, readers
from hggraph.ops.segment import gather_scale_sum, gathered_dot

__all__ = ["affinity", "attend", "attend_backward", "attend_opened", "neighbour_dots", "neighbour_sum"]

_PIECE = 3 << 16  # numbers of a piece of queries: 768 KiB of float32


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, offsets: list[int], scale: float, border: str
) -> tuple[Tensor, Tensor]:
    """Return the operator's output and the logarithm of each query's softmax denominator."""
    batch, _, height, width = q.shape
    dtype, taps = compute_dtype(q), len(offsets) // 2
    bias = None if bias is None else bias.to(dtype).expand(batch, taps)
    out, log_sum = torch.empty_like(v), q.new_empty(batch, height, width, dtype=dtype)
    widest = width * max(q.shape[1], v.shape[1], taps)
    for images in _pieces(batch, height * widest):
        pieces = list(_pieces(height, (images.stop - images.start) * widest))
        weights = []
        rows = _rows(k[images], dtype)
        for lines in pieces:
            near = _near(q, offsets, border, images, lines)
            logits = _logits(_rows(q[images, :, lines], dtype), rows, near, bias, images, scale, border)
            best = logits.amax(1, keepdim=True)
            weight = logits.sub_(best).exp_()
            total = weight.sum(1, keepdim=True)
            log_sum[images, lines] = (best + total.log()).view(-1, lines.stop - lines.start, width)
            weights.append(weight.div_(total))
        del rows  # the keys' copy goes before the values' comes
        rows = _rows(v[images], dtype)
        for lines, weight in zip(pieces, weights, strict=True):
            near = _near(q, offsets, border, images, lines)
            _store(out[images, :, lines], neighbour_sum(weight, rows, near))
    return out, log_sum


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    offsets: list[int],
    scale: float,
    border: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and bias; the weights are computed again, K numbers for each query are kept."""
    batch, _, height, width = q.shape
    dtype, taps = compute_dtype(q), len(offsets) // 2
    logit_bias = None if bias is None else bias.to(dtype).expand(batch, taps)
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grad_bias = q.new_zeros(batch, taps, dtype=dtype)
    widest = width * max(q.shape[1], v.shape[1], taps)
    for images in _pieces(batch, height * widest):
        queries, keys, values, incoming = (_rows(x[images], dtype) for x in (q, k, v, grad))
        count = images.stop - images.start
        weight = q.new_empty(count * height * width, taps, dtype=dtype)
        grad_logits = torch.empty_like(weight)
        for lines in _pieces(height, count * widest):
            # several images only where all their lines are one piece, so the rows of a piece follow each other
            first = lines.start * width
            rows = slice(first, first + count * (lines.stop - lines.start) * width)
            near = _near(q, offsets, border, images, lines)
            part = _logits(queries[rows], keys, near, logit_bias, images, scale, border).softmax(1)
            grad_part = neighbour_dots(incoming[rows], values, near).mul_(part)
            grad_part -= part * grad_part.sum(1, keepdim=True)
            _store(grad_q[images, :, lines], neighbour_sum(grad_part, keys, near).mul_(scale))
            weight[rows], grad_logits[rows] = part, grad_part
        del keys, values, near
        grad_bias[images] = grad_logits.view(count, -1, taps).sum(1)
        ptr, entries = _readers(q, offsets, border, count)
        query = entries // taps
        grad_keys = gather_scale_sum(queries, ptr, query, grad_logits.view(-1)[entries]).mul_(scale)
        _store(grad_k[images], grad_keys)
        _store(grad_v[images], gather_scale_sum(incoming, ptr, query, weight.view(-1)[entries]))
    if bias is None:
        return grad_q, grad_k, grad_v, grad_bias.new_empty(0)
    return grad_q, grad_k, grad_v, grad_bias if bias.dim() == 2 else grad_bias.sum(0)


def affinity(q: Tensor, k: Tensor, bias: Tensor | None, offsets: list[int], scale: float, border: str) -> Tensor:
    """Return the weights of the taps, shape ``(B, K, H, W)``, in PyTorch's own differentiable operations."""
    batch, _, height, width = q.shape
    dtype, taps = compute_dtype(q), len(offsets) // 2
    near = neighbours((height, width), offsets, border, q.device).mT  # (K, H W)
    queries, padded = q.flatten(2).to(dtype), F.pad(k.flatten(2), (0, 1)).to(dtype)
    logits = torch.stack([(queries * padded[:, :, read]).sum(1) for read in near], 1) * scale
    if bias is not None:
        logits = logits + bias.to(dtype).expand(batch, taps)[:, :, None]
    if border == "mask":
        logits = logits.masked_fill(near < 0, EXCLUDED)
    return logits.softmax(1).view(batch, taps, height, width)


def attend_opened(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, offsets: list[int], scale: float, border: str
) -> tuple[Tensor, Tensor]:
    """Return `attend`'s output for exporters, tap by tap; its second result, which only training needs, is empty."""
    weight = affinity(q, k, bias, offsets, scale, border).flatten(2)
    near = neighbours(q.shape[2:], offsets, border, q.device).mT
    padded = F.pad(v.flatten(2), (0, 1)).to(weight.dtype)  # a neighbour of -1 is the zero that is padded
    taps = [weight[:, t, None] * padded[:, :, read] for t, read in enumerate(near)]
    return torch.stack(taps).sum(0).view_as(v).to(v.dtype), weight.new_empty(0)


def neighbour_dots(a: Tensor, b: Tensor, near: Tensor) -> Tensor:
    """Return ``sum_c a[n, c] b[near[n, t], c]``, shape of `near`; 0 where that is -1."""
    bag = torch.arange(near.shape[0], device=near.device).repeat_interleave(near.shape[1])
    return gathered_dot(a, bag, b, near.flatten()).view(near.shape)


def neighbour_sum(weight: Tensor, x: Tensor, near: Tensor) -> Tensor:
    """Return ``sum_t weight[n, t] x[near[n, t]]``, shape (N, C), over the neighbours that are not -1."""
    inside = near >= 0
    ptr = F.pad(inside.sum(1).cumsum(0), (1, 0))
    return gather_scale_sum(x, ptr, near[inside], weight[inside])


def _logits(
    queries: Tensor, keys: Tensor, near: Tensor, bias: Tensor | None, images: slice, scale: float, border: str
) -> Tensor:
    logits = neighbour_dots(queries, keys, near).mul_(scale)
    if bias is not None:
        logits.view(images.stop - images.start, -1, near.shape[1]).add_(bias[images, None])
    return logits.masked_fill_(near < 0, EXCLUDED) if border == "mask" else logits


def _near(q: Tensor, offsets: list[int], border: str, images: slice, lines: slice) -> Tensor:
    """Return the table of neighbours of some images' lines, over the rows of these images."""
    height, width = q.shape[2:]
    near = neighbours((height, width), offsets, border, q.device, lines)
    first = torch.arange(images.stop - images.start, device=q.device)[:, None, None] * (height * width)
    return near if len(first) == 1 else torch.where(near >= 0, near + first, -1).flatten(0, 1)


def _readers(q: Tensor, offsets: list[int], border: str, count: int) -> tuple[Tensor, Tensor]:
    """Return the inverse table for `count` images."""
    height, width = q.shape[2:]
    ptr, entries = readers((height, width), offsets, border, q.device)
    image = torch.arange(count, device=q.device)[:, None]
    last = ptr.new_full((1,), count * entries.shape[0])
    ptr = torch.cat([(ptr[:-1] + image * entries.shape[0]).flatten(), last])
    return ptr, (entries + image * (height * width * len(offsets) // 2)).flatten()


def _pieces(length: int, numbers: int) -> Iterator[slice]:
    """Cut `length` items of `numbers` numbers each into pieces of few numbers; empty items make none."""
    step = max(1, _PIECE // max(1, numbers))
    for start in range(0, length if numbers else 0, step):
        yield slice(start, min(start + step, length))


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, C, H, W) as rows (B * H * W, C), without a copy of channels_last memory."""
    rows = x.permute(0, 2, 3, 1)
    if rows.is_contiguous():
        return rows.to(dtype).flatten(0, 2)
    out = rows.new_empty(rows.shape, dtype=dtype)
    for image, row in zip(out.flatten(1, 2), x.flatten(2), strict=True):
        image.copy_(row.to(dtype).t())  # a matrix is transposed in tiles, four axes are not
    return out.flatten(0, 2)


def _store(out: Tensor, rows: Tensor) -> None:
    """Write rows (B * H * W, C) to a part of an image (B, C, H, W)."""
    out.copy_(rows.view(out.shape[0], *out.shape[2:], out.shape[1]).permute(0, 3, 1, 2))
