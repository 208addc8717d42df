"""Local attention: ``out_i = sum_t softmax_t(scale q_i . k_i+offset_t + bias_t) v_i+offset_t`` with an online softmax.

A program owns a block of queries; their neighbours' keys and values come from the caches. Backward stores the
probabilities and the logits' gradients, K numbers per pixel, and gathers with them: each output row is written once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._launch import block, cdiv, int_table, launch
from hggraph.kernels._tile import load_tile, store_tile

MAX_HEAD = 1024  # channels of keys that a block of queries holds in registers


@triton.jit
def _moved(o, low, high, step, size):
    """Return how far the window of a query at o moves to lie inside."""
    below = tl.maximum(0, -(o + low))
    above = tl.maximum(0, o + high - (size - 1))
    return tl.cdiv(below, step) * step - tl.cdiv(above, step) * step


@triton.jit
def _neighbour(p_offsets, t, y, x, height, width, y_low, y_high, y_step, x_low, x_high, x_step, SHIFT: tl.constexpr):
    """Return the flat pixel of neighbour t, and whether it lies inside."""
    y_t = y + tl.load(p_offsets + 2 * t)
    x_t = x + tl.load(p_offsets + 2 * t + 1)
    if SHIFT:
        y_t += _moved(y, y_low, y_high, y_step, height)
        x_t += _moved(x, x_low, x_high, x_step, width)
    inside = (y < height) & (y_t >= 0) & (y_t < height) & (x_t >= 0) & (x_t < width)
    return y_t * width + x_t, inside


@triton.jit
def _load_at(p_x, pixel, inside, o_c, s_c, s_p, channels):
    """Load x[c, pixel] as (BLOCK_P, BLOCK_C), 0 where the pixel is outside."""
    offsets = pixel[:, None].to(tl.int64) * s_p + o_c[None, :].to(tl.int64) * s_c
    return tl.load(p_x + offsets, mask=inside[:, None] & (o_c < channels)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _local_attention_fwd_kernel(
    p_q, p_k, p_v, p_bias, p_offsets, p_out, p_log_sum, scale, height, width, taps, channels, depth, y_low, y_high,
    y_step, x_low, x_high, x_step, s_qb, s_qc, s_qp, s_kb, s_kc, s_kp, s_vb, s_vd, s_vp, s_bias, s_ob, s_od, s_op,
    BIAS: tl.constexpr, MASK: tl.constexpr, SHIFT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    pixels = height * width
    tiles_d, tiles_p = tl.cdiv(depth, BLOCK_D), tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    tile_d = program % tiles_d
    o_p = program // tiles_d % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_d * tiles_p)).to(tl.int64)
    o_c = tl.arange(0, BLOCK_C)
    o_d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    y, x = o_p // width, o_p % width
    q = load_tile(p_q + batch * s_qb, o_p, o_c, s_qp, s_qc, pixels, channels).to(tl.float32) * scale
    best = tl.full((BLOCK_P,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_P,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    for t in range(0, taps):
        pixel, inside = _neighbour(
            p_offsets, t, y, x, height, width, y_low, y_high, y_step, x_low, x_high, x_step, SHIFT
        )
        k = _load_at(p_k + batch * s_kb, pixel, inside, o_c, s_kc, s_kp, channels)
        logit = tl.sum(q * k, 1)
        if BIAS:
            logit += tl.load(p_bias + batch * s_bias + t).to(tl.float32)
        if MASK:
            logit = tl.where(inside, logit, -float("inf"))
        larger = tl.maximum(best, logit)
        before, now = tl.exp(best - larger), tl.exp(logit - larger)
        v = _load_at(p_v + batch * s_vb, pixel, inside, o_d, s_vd, s_vp, depth)
        acc = acc * before[:, None] + now[:, None] * v
        total = total * before + now
        best = larger
    found = total > 0  # nothing is left where all neighbours are masked
    acc = acc / tl.where(found, total, 1.0)[:, None]
    store_tile(p_out + batch * s_ob, acc, o_p, o_d, s_op, s_od, pixels, depth)
    log_sum = tl.where(found, best + tl.log(tl.where(found, total, 1.0)), -1e30)
    if tile_d == 0:
        tl.store(p_log_sum + batch * pixels + o_p, log_sum, mask=o_p < pixels)


@triton.jit
def _local_attention_bwd_kernel(
    p_q, p_k, p_v, p_bias, p_offsets, p_log_sum, p_grad, p_delta, p_weight, p_grad_logits, scale, height, width, taps,
    channels, depth, y_low, y_high, y_step, x_low, x_high, x_step, s_qb, s_qc, s_qp, s_kb, s_kc, s_kp, s_vb, s_vd,
    s_vp, s_bias, s_gb, s_gd, s_gp, BIAS: tl.constexpr, MASK: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Probabilities anew, and the gradients of the logits ``p (g . v - delta)``, both (B, K, P)."""
    pixels = height * width
    tiles_p = tl.cdiv(pixels, BLOCK_P)
    o_p = tl.program_id(0) % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (tl.program_id(0) // tiles_p).to(tl.int64)
    o_c, o_d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    y, x = o_p // width, o_p % width
    q = load_tile(p_q + batch * s_qb, o_p, o_c, s_qp, s_qc, pixels, channels).to(tl.float32) * scale
    grad = load_tile(p_grad + batch * s_gb, o_p, o_d, s_gp, s_gd, pixels, depth).to(tl.float32)
    log_sum = tl.load(p_log_sum + batch * pixels + o_p, mask=o_p < pixels, other=0.0)
    delta = tl.load(p_delta + batch * pixels + o_p, mask=o_p < pixels, other=0.0)
    for t in range(0, taps):
        pixel, inside = _neighbour(
            p_offsets, t, y, x, height, width, y_low, y_high, y_step, x_low, x_high, x_step, SHIFT
        )
        k = _load_at(p_k + batch * s_kb, pixel, inside, o_c, s_kc, s_kp, channels)
        logit = tl.sum(q * k, 1)
        if BIAS:
            logit += tl.load(p_bias + batch * s_bias + t).to(tl.float32)
        weight = tl.exp(tl.minimum(logit - log_sum, 0.0))  # where all are masked nothing overflows
        if MASK:
            weight = tl.where(inside, weight, 0.0)
        v = _load_at(p_v + batch * s_vb, pixel, inside, o_d, s_vd, s_vp, depth)
        grad_logit = weight * (tl.sum(grad * v, 1) - delta)
        place = (batch * taps + t) * pixels + o_p
        tl.store(p_weight + place, weight, mask=o_p < pixels)
        tl.store(p_grad_logits + place, grad_logit, mask=o_p < pixels)


@triton.jit
def _local_gather_kernel(
    p_weight, p_x, p_offsets, p_ptr, p_entries, p_out, scale, height, width, taps, channels, y_low, y_high, y_step,
    x_low, x_high, x_step, s_xb, s_xc, s_xp, s_ob, s_oc, s_op, SHIFT: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``out_i = scale sum_t w_it x_i+offset_t``; reversed, over the pairs whose neighbour is i, ``sum w_jt x_j``."""
    pixels = height * width
    tiles_c, tiles_p = tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    o_c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    o_p = program // tiles_c % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_c * tiles_p)).to(tl.int64)
    p_x += batch * s_xb
    p_weight += batch * taps * pixels
    y, x = o_p // width, o_p % width
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    if SHIFT and REVERSE:  # near the border a pixel is neighbour t of several others
        start = tl.load(p_ptr + o_p, mask=o_p < pixels, other=0)
        stop = tl.load(p_ptr + o_p + 1, mask=o_p < pixels, other=0)
        for step in range(0, tl.max(stop - start, 0)):
            inside = start + step < stop
            entry = tl.load(p_entries + start + step, mask=inside, other=0)
            pixel = entry // taps
            weight = tl.load(p_weight + entry % taps * pixels + pixel, mask=inside, other=0.0)
            acc += weight[:, None] * _load_at(p_x, pixel, inside, o_c, s_xc, s_xp, channels)
    else:
        for t in range(0, taps):
            if REVERSE:
                y_t = y - tl.load(p_offsets + 2 * t)
                x_t = x - tl.load(p_offsets + 2 * t + 1)
                inside = (y_t >= 0) & (y_t < height) & (x_t >= 0) & (x_t < width)
                pixel = y_t * width + x_t
                place = pixel
            else:
                pixel, inside = _neighbour(
                    p_offsets, t, y, x, height, width, y_low, y_high, y_step, x_low, x_high, x_step, SHIFT
                )
                place = o_p
            weight = tl.load(p_weight + place, mask=inside, other=0.0)
            acc += weight[:, None] * _load_at(p_x, pixel, inside, o_c, s_xc, s_xp, channels)
            p_weight += pixels
    store_tile(p_out + batch * s_ob, acc * scale, o_p, o_c, s_op, s_oc, pixels, channels)


def _window(offsets: list[int], border: str) -> tuple[int, ...]:
    """Return lowest, highest and step of the displacements on each axis."""
    if border != "shift":
        return 0, 0, 1, 0, 0, 1
    out = []
    for axis in (offsets[::2], offsets[1::2]):
        out += [min(axis), max(axis), math.gcd(*(o - axis[0] for o in axis)) or 1]
    return tuple(out)


def _destination(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a result like x, and (B, C, P) to write to: the same memory unless rows do not follow each other."""
    out = torch.empty_like(x)
    return out, out.flatten(2)


def _finish(out: Tensor, flat: Tensor) -> Tensor:
    return out if flat.data_ptr() == out.data_ptr() else out.copy_(flat.view(out.shape))


def _check_head(name: str, channels: int) -> None:
    if channels > MAX_HEAD:
        raise ValueError(
            f"The Triton kernel takes at most {MAX_HEAD} channels of `{name}`, got {channels}. Split them into heads "
            "(fold the heads into the batch), or run this call in `use_backend('torch')`."
        )


def _tile(channels: int, depth: int) -> dict[str, int]:
    """Return blocks that keep queries, keys and values of a block of pixels in registers."""
    block_c, block_d = block(channels, most=MAX_HEAD), block(depth, most=MAX_HEAD)
    widest = max(block_c, block_d)
    return {"BLOCK_P": max(4, min(64, 8192 // widest)), "BLOCK_C": block_c, "BLOCK_D": block_d, "num_warps": 8}


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, offsets: list[int], scale: float, border: str
) -> tuple[Tensor, Tensor]:
    """Compute `hggraph.ops.local_attention` in Triton; the arguments are the operator's."""
    batch, channels, height, width = q.shape
    depth, taps = v.shape[1], len(offsets) // 2
    _check_head("q", channels)
    out, flat = _destination(v)
    log_sum = torch.empty(batch, height, width, device=q.device, dtype=torch.float32)
    meta = _tile(channels, min(depth, 256))
    tiles = cdiv(depth, meta["BLOCK_D"]) * cdiv(height * width, meta["BLOCK_P"])
    q, k, v = q.flatten(2), k.flatten(2), v.flatten(2)
    launch(
        _local_attention_fwd_kernel, batch * tiles, q, k, v, bias, int_table(tuple(offsets), q.device), flat, log_sum,
        scale, height, width, taps, channels, depth, *_window(offsets, border), *q.stride(), *k.stride(), *v.stride(),
        taps if bias is not None and bias.dim() == 2 else 0, *flat.stride(), BIAS=bias is not None,
        MASK=border == "mask", SHIFT=border == "shift", **meta,
    )  # fmt: skip
    return _finish(out, flat), log_sum


def local_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    offsets: list[int],
    scale: float,
    border: str,
    inverse: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`inverse`, needed for "shift": pointer over the keys and the entries ``query * K + tap`` that read each."""
    batch, channels, height, width = q.shape
    depth, taps, pixels = v.shape[1], len(offsets) // 2, height * width
    _check_head("q", channels)
    _check_head("v", depth)
    delta = (grad * out).sum(1, dtype=torch.float32).contiguous()
    weight = torch.empty(batch, taps, pixels, device=q.device, dtype=torch.float32)
    grad_logits = torch.empty_like(weight)
    window, table = _window(offsets, border), int_table(tuple(offsets), q.device)
    meta = _tile(channels, depth)
    results = [_destination(x) for x in (q, k, v)]
    q, k, v, grad = q.flatten(2), k.flatten(2), v.flatten(2), grad.flatten(2)
    launch(
        _local_attention_bwd_kernel, batch * cdiv(pixels, meta["BLOCK_P"]), q, k, v, bias, table,
        log_sum.contiguous(), grad, delta, weight, grad_logits, scale, height, width, taps, channels, depth, *window,
        *q.stride(), *k.stride(), *v.stride(), taps if bias is not None and bias.dim() == 2 else 0, *grad.stride(),
        BIAS=bias is not None, MASK=border == "mask", SHIFT=border == "shift", **meta,
    )  # fmt: skip
    ptr, entries = (None, None) if inverse is None else inverse
    gathers = ((grad_logits, k, scale, False), (grad_logits, q, scale, True), (weight, grad, 1.0, True))
    for (factor, x, by, reverse), (_, flat) in zip(gathers, results, strict=True):
        width_c = x.shape[1]
        block_c = block(width_c, most=64)
        launch(
            _local_gather_kernel, batch * cdiv(width_c, block_c) * cdiv(pixels, 64), factor, x, table, ptr, entries,
            flat, by, height, width, taps, width_c, *window, *x.stride(), *flat.stride(), SHIFT=border == "shift",
            REVERSE=reverse, BLOCK_P=64, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    grads = [_finish(out, flat) for out, flat in results]
    if bias is None:
        return *grads, grad_logits.new_empty(0)
    grad_bias = grad_logits.sum(2)
    return *grads, grad_bias if bias.dim() == 2 else grad_bias.sum(0)
