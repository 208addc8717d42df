"""Segments of a CSR pointer: gather-scale-reduce, its gradients, the softmax. A program owns its rows: no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._launch import block, cdiv, launch


@triton.jit
def _segment_reduce_kernel(
    p_x, p_ptr, p_index, p_weight, p_left, p_right, p_out, segments, channels, parts, s_xm, s_xc, s_pt, s_ix, s_w,
    s_lm, s_lc, s_rn, s_rc, INDEX: tl.constexpr, WEIGHT: tl.constexpr, MATCH: tl.constexpr, VALUES: tl.constexpr,
    MAXIMUM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Reduce a part of one segment; with MATCH only entries whose row of left equals the segment's row of right."""
    tiles = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    o_c = program % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    part = program // tiles % parts
    segment = (program // (tiles * parts)).to(tl.int64)
    first = tl.load(p_ptr + segment * s_pt)
    length = tl.load(p_ptr + (segment + 1) * s_pt) - first
    step = tl.cdiv(length, parts)
    start = first + part * step
    stop = tl.minimum(first + length, start + step)
    inside_c = o_c[None, :] < channels
    o_c64 = o_c[None, :].to(tl.int64)
    if MAXIMUM:
        acc = tl.full((BLOCK_C,), float("-inf"), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_C,), dtype=tl.float32)
    if MATCH:
        right = tl.load(p_right + segment * s_rn + o_c64 * s_rc, mask=inside_c, other=0.0)
    for entry in range(start, stop, BLOCK_E):
        o_e = entry + tl.arange(0, BLOCK_E).to(tl.int64)
        row = o_e
        if INDEX:
            row = tl.load(p_index + o_e * s_ix, mask=o_e < stop, other=0)
        inside = (o_e[:, None] < stop) & inside_c
        if VALUES:
            value = tl.load(p_x + row[:, None] * s_xm + o_c64 * s_xc, mask=inside, other=0.0).to(tl.float32)
        else:
            value = tl.full((BLOCK_E, BLOCK_C), 1.0, dtype=tl.float32)
        if WEIGHT:
            value *= tl.load(p_weight + o_e * s_w, mask=o_e < stop, other=0.0).to(tl.float32)[:, None]
        if MATCH:
            left = tl.load(p_left + row[:, None] * s_lm + o_c64 * s_lc, mask=inside, other=0.0)
            value = tl.where((left == right) & inside, value, 0.0)
        if MAXIMUM:
            acc = tl.maximum(acc, tl.max(tl.where(inside, value, float("-inf")), 0))
        else:
            acc += tl.sum(value, 0)
    out = (segment * parts + part) * channels + o_c
    tl.store(p_out + out, acc.to(p_out.dtype.element_ty), mask=o_c < channels)


@triton.jit
def _segment_dot_kernel(
    p_a, p_b, p_i, p_j, p_out, entries, channels, s_am, s_ac, s_bm, s_bc, INDEX: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``out_e = sum_c a[i_e, c] b[j_e, c]``."""
    o_e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside_e = o_e < entries
    i = tl.load(p_i + o_e, mask=inside_e, other=0)
    j = o_e
    if INDEX:
        j = tl.load(p_j + o_e, mask=inside_e, other=0)
    acc = tl.zeros((BLOCK_E,), dtype=tl.float32)
    for start in range(0, channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        inside = inside_e[:, None] & (o_c[None, :] < channels)
        o_c64 = o_c[None, :].to(tl.int64)
        a = tl.load(p_a + i[:, None] * s_am + o_c64 * s_ac, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(p_b + j[:, None] * s_bm + o_c64 * s_bc, mask=inside, other=0.0).to(tl.float32)
        acc += tl.sum(a * b, 1)
    tl.store(p_out + o_e, acc.to(p_out.dtype.element_ty), mask=inside_e)


@triton.jit
def _segment_softmax_kernel(
    p_x, p_out, p_ptr, p_grad, channels, s_xe, s_xc, s_pt, s_ge, s_gc, BACKWARD: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Softmax of x within a segment; backward, where x is the softmax: ``x (g - sum x g)``."""
    tiles = tl.cdiv(channels, BLOCK_C)
    o_c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.load(p_ptr + segment * s_pt)
    stop = tl.load(p_ptr + (segment + 1) * s_pt)
    o_c64 = o_c[None, :].to(tl.int64)
    best = tl.full((BLOCK_C,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for entry in range(start, stop, BLOCK_E):
        o_e = entry + tl.arange(0, BLOCK_E).to(tl.int64)
        inside = (o_e[:, None] < stop) & (o_c[None, :] < channels)
        x = tl.load(p_x + o_e[:, None] * s_xe + o_c64 * s_xc, mask=inside, other=0.0).to(tl.float32)
        if BACKWARD:
            grad = tl.load(p_grad + o_e[:, None] * s_ge + o_c64 * s_gc, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(x * grad, 0)
        else:
            x = tl.where(o_e[:, None] < stop, x, float("-inf"))
            larger = tl.maximum(best, tl.max(x, 0))
            total = total * tl.exp(best - larger) + tl.sum(tl.exp(x - larger[None, :]), 0)
            best = larger
    for entry in range(start, stop, BLOCK_E):
        o_e = entry + tl.arange(0, BLOCK_E).to(tl.int64)
        inside = (o_e[:, None] < stop) & (o_c[None, :] < channels)
        x = tl.load(p_x + o_e[:, None] * s_xe + o_c64 * s_xc, mask=inside, other=0.0).to(tl.float32)
        if BACKWARD:
            grad = tl.load(p_grad + o_e[:, None] * s_ge + o_c64 * s_gc, mask=inside, other=0.0).to(tl.float32)
            value = x * (grad - total[None, :])
        else:
            value = tl.exp(x - best[None, :]) / total[None, :]
        tl.store(p_out + o_e[:, None] * channels + o_c64, value.to(p_out.dtype.element_ty), mask=inside)


def gather_reduce(
    x: Tensor | None,
    ptr: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    channels: int,
    dtype: torch.dtype,
    *,
    maximum: bool = False,
    match: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Reduce ``weight[e] * x[index[e]]`` (1 for x None) over each segment, in float32; (N, C) of `dtype`.

    `match` = (left, right) lets only entries through whose element of left[index[e]] equals that of right[n].
    """
    segments = ptr.shape[0] - 1
    some = x if x is not None else match[0]
    entries = some.shape[0] if index is None else index.shape[0]
    # few long segments are cut, by their mean length: reading the true one would wait for the GPU
    mean = entries // max(1, segments)
    parts = max(1, min(64, mean // 256)) if segments < 1024 else 1
    block_c = block(channels)
    block_e = min(64, triton.next_power_of_2(max(1, mean)))
    block_e = max(1, min(block_e, 4096 // block_c))
    left, right = match if match is not None else (None, None)
    out = torch.empty(segments, parts, channels, device=ptr.device, dtype=torch.float32 if parts > 1 else dtype)
    launch(
        _segment_reduce_kernel, segments * parts * cdiv(channels, block_c), x, ptr, index, weight, left, right, out,
        segments, channels, parts, *_strides(x, 2), *ptr.stride(), *_strides(index, 1), *_strides(weight, 1),
        *_strides(left, 2), *_strides(right, 2), INDEX=index is not None, WEIGHT=weight is not None,
        MATCH=match is not None, VALUES=x is not None, MAXIMUM=maximum, BLOCK_E=block_e, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    if parts == 1:
        return out.view(segments, channels)
    return (out.amax(1) if maximum else out.sum(1)).to(dtype)


def segment_dot(a: Tensor, i: Tensor, b: Tensor, j: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return ``sum_c a[i_e, c] b[j_e, c]`` for each e, (E,)."""
    entries, channels = i.shape[0], a.shape[1]
    out = torch.empty(entries, device=a.device, dtype=dtype)
    block_c = block(channels)
    block_e = max(1, 2048 // block_c)
    launch(
        _segment_dot_kernel, cdiv(entries, block_e), a, b, i.contiguous(), None if j is None else j.contiguous(), out,
        entries, channels, *a.stride(), *b.stride(), INDEX=j is not None, BLOCK_E=block_e, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    return out


def segment_reduce(x: Tensor, ptr: Tensor, index: Tensor | None, weight: Tensor | None, reduce: str) -> Tensor:
    """Compute `hggraph.ops.segment_reduce` in Triton; the arguments are the operator's."""
    empty = ptr.diff()[:, None] == 0
    if reduce == "max":
        out = gather_reduce(x, ptr, index, None, x.shape[1], x.dtype, maximum=True)
        return out.masked_fill_(empty, 0)
    dtype = torch.float32 if reduce == "mean" else x.dtype
    out = gather_reduce(x, ptr, index, weight, x.shape[1], dtype)
    return out.div_(ptr.diff().clamp(min=1)[:, None]).to(x.dtype) if reduce == "mean" else out


def segment_reduce_backward(
    grad: Tensor,
    x: Tensor,
    ptr: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    out: Tensor | None,
    reduce: str,
    segment: Tensor,
    transposed: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """`segment` of each entry; `transposed`: the same entries by row of x: pointer, segments, order."""
    row_ptr, row_segment, order = transposed
    channels = x.shape[1]
    if reduce == "max":
        winners = gather_reduce(None, ptr, index, None, channels, torch.float32, match=(x, out))
        share = grad / winners.clamp(min=1)
        grad_x = gather_reduce(share, row_ptr, row_segment, None, channels, x.dtype, match=(out, x))
        return grad_x, x.new_empty(0)
    if reduce == "mean":
        grad = grad.float() / ptr.diff().clamp(min=1)[:, None]
    factor = None if weight is None else weight[order]
    grad_x = gather_reduce(grad, row_ptr, row_segment, factor, channels, x.dtype)
    if weight is None:
        return grad_x, x.new_empty(0)
    return grad_x, segment_dot(grad, segment, x, index, weight.dtype)


def segment_softmax(x: Tensor, ptr: Tensor) -> Tensor:
    """Compute `hggraph.ops.segment_softmax` in Triton; the arguments are the operator's."""
    return _softmax(x, ptr, None)


def segment_softmax_backward(grad: Tensor, out: Tensor, ptr: Tensor) -> Tensor:
    """Compute the gradients of `hggraph.ops.segment_softmax` in Triton; the arguments are the operator's."""
    return _softmax(out, ptr, grad)


def _softmax(x: Tensor, ptr: Tensor, grad: Tensor | None) -> Tensor:
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    rows, segments = x.view(x.shape[0], x.shape[1] if x.dim() == 2 else 1), ptr.shape[0] - 1
    grad = None if grad is None else grad.view(rows.shape)
    channels = rows.shape[1]
    block_c = block(channels, least=1, most=32)
    mean = rows.shape[0] // max(1, segments)
    block_e = max(1, min(triton.next_power_of_2(max(1, mean)), 2048 // block_c))
    launch(
        _segment_softmax_kernel, segments * cdiv(channels, block_c), rows, out, ptr, grad, channels, *rows.stride(),
        *ptr.stride(), *_strides(grad, 2), BACKWARD=grad is not None, BLOCK_E=block_e, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    return out


def _strides(x: Tensor | None, ndim: int) -> tuple[int, ...]:
    return (0,) * ndim if x is None else x.stride()
