"""The centre update: ``c'_r = sum_p softmax_p(l_rp) v_p``, softmax attention of centres over pixels.

Flash attention's accumulator (regions times channels in float32) does not fit a multiprocessor at 1,024 channels, so
there are two passes: logits with the log-sum of each tile, then one product whose left operand is the exponential.
Backward computes the logits anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._distance import EXCLUDED, considered, distance_backward, distance_tile
from hggraph.kernels._launch import block, cdiv, launch, precision, splits
from hggraph.kernels._matmul import matmul
from hggraph.kernels._tile import contract, dot, load_row, load_tile, store_tile


@triton.jit
def _logits_tile(
    p_c, p_x, p_index, o_r, o_p, s_cr, s_cc, s_xc, s_xp, s_it, s_ip, regions, pixels, channels, entries,
    CANDIDATES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    logits = distance_tile(
        p_c, p_x, o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION, BLOCK_R, BLOCK_P, BLOCK_C
    )
    if CANDIDATES:
        found = considered(p_index, o_r, o_p, s_it, s_ip, entries, pixels, BLOCK_R, BLOCK_P)
        logits = tl.where(found, logits, EXCLUDED)
    return logits


@triton.jit
def _weights(logits, log_sum, pixels, CANDIDATES: tl.constexpr):
    """Return the softmax over the pixels; a centre that no pixel considers weighs all the same."""
    weight = tl.exp(tl.minimum(logits - log_sum[:, None], 0.0))  # past the image, where l is 0, nothing overflows
    if CANDIDATES:
        weight = tl.where(log_sum[:, None] > EXCLUDED, weight, 1.0 / pixels)
    return weight


@triton.jit
def _centre_logits_kernel(
    p_x, p_c, p_index, p_logits, p_log_sum, pixels, regions, channels, entries, s_xb, s_xc, s_xp, s_cb, s_cr, s_cc,
    s_ib, s_it, s_ip, CANDIDATES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_r, tiles_p = tl.cdiv(regions, BLOCK_R), tl.cdiv(pixels, BLOCK_P)
    o_r = program % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    tile_p = program // tiles_r % tiles_p
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_r * tiles_p)).to(tl.int64)
    logits = _logits_tile(
        p_c + batch * s_cb, p_x + batch * s_xb, p_index + batch * s_ib if CANDIDATES else p_index, o_r, o_p, s_cr,
        s_cc, s_xc, s_xp, s_it, s_ip, regions, pixels, channels, entries, CANDIDATES, PRECISION, BLOCK_R, BLOCK_P,
        BLOCK_C,
    )  # fmt: skip
    store_tile(p_logits + batch * regions * pixels, logits, o_r, o_p, pixels, 1, regions, pixels)
    logits = tl.where(o_p[None, :] < pixels, logits, float("-inf"))
    best = tl.max(logits, 1)
    log_sum = best + tl.log(tl.sum(tl.exp(logits - best[:, None]), 1))
    tl.store(p_log_sum + (batch * tiles_p + tile_p) * regions + o_r, log_sum, mask=o_r < regions)


@triton.jit
def _centre_mean_kernel(
    p_logits, p_log_sum, p_v, p_out, regions, depth, pixels, part, parts, batches, s_vb, s_vd, s_vp,
    CANDIDATES: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the pixels of ``exp(l_rp - log_sum_r) v_dp``."""
    program = tl.program_id(0)
    tiles_r, tiles_d = tl.cdiv(regions, BLOCK_R), tl.cdiv(depth, BLOCK_D)
    o_r = program % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = program // tiles_r % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    split = (program // (tiles_r * tiles_d) % parts).to(tl.int64)
    batch = (program // (tiles_r * tiles_d * parts)).to(tl.int64)
    log_sum = load_row(p_log_sum + batch * regions, o_r, 1, regions)
    acc = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    start = split.to(tl.int32) * part
    stop = tl.minimum(pixels, start + part)
    for first in range(start, stop, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)
        logits = load_tile(p_logits + batch * regions * pixels, o_r, o_p, pixels, 1, regions, stop)
        weight = _weights(logits, log_sum, pixels, CANDIDATES)
        v = load_tile(p_v + batch * s_vb, o_p, o_d, s_vp, s_vd, stop, depth)
        acc = dot(weight, v, acc, PRECISION)
    store_tile(p_out + (split * batches + batch) * regions * depth, acc, o_r, o_d, depth, 1, regions, depth)


@triton.jit
def _centre_update_bwd_kernel(
    p_x, p_c, p_index, p_v, p_grad, p_shift, p_log_sum, p_weight, p_out, pixels, regions, channels, depth, entries,
    s_xb, s_xc, s_xp, s_cb, s_cr, s_cc, s_ib, s_it, s_ip, s_vb, s_vd, s_vp, CANDIDATES: tl.constexpr,
    PRECISION: tl.constexpr, DOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Weights w anew, and the gradient of the logits ``w_rp (sum_d g_rd v_dp + shift_r)``."""
    program = tl.program_id(0)
    tiles_r, tiles_p = tl.cdiv(regions, BLOCK_R), tl.cdiv(pixels, BLOCK_P)
    o_r = program % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    o_p = program // tiles_r % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_r * tiles_p)).to(tl.int64)
    logits = _logits_tile(
        p_c + batch * s_cb, p_x + batch * s_xb, p_index + batch * s_ib if CANDIDATES else p_index, o_r, o_p, s_cr,
        s_cc, s_xc, s_xp, s_it, s_ip, regions, pixels, channels, entries, CANDIDATES, PRECISION, BLOCK_R, BLOCK_P,
        BLOCK_C,
    )  # fmt: skip
    log_sum = load_row(p_log_sum + batch * regions, o_r, 1, regions)
    weight = _weights(logits, log_sum, pixels, CANDIDATES)
    store_tile(p_weight + batch * regions * pixels, weight, o_r, o_p, pixels, 1, regions, pixels)
    grad = tl.zeros((BLOCK_R, BLOCK_P), dtype=tl.float32)
    grad, _ = contract(
        grad, p_grad + batch * regions * depth, p_v + batch * s_vb, o_r, o_p, 0, depth, depth, 1, s_vd, s_vp, regions,
        pixels, "none", DOT, BLOCK_C,
    )  # fmt: skip
    grad = weight * (grad + load_row(p_shift + batch * regions, o_r, 1, regions)[:, None])
    if CANDIDATES:  # a pair that is left out is a constant, also where nothing else is left
        grad = tl.where(logits > EXCLUDED, grad, 0.0)
    store_tile(p_out + batch * regions * pixels, grad, o_r, o_p, pixels, 1, regions, pixels)


def _strides(candidates: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if candidates is None else candidates.stride()


def centre_update(
    x: Tensor, centers: Tensor, candidates: Tensor | None, values: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `hggraph.ops.centre_update` in Triton; the arguments are the operator's."""
    batch, channels, pixels = x.shape
    regions = centers.shape[1]
    values = x if values is None else values
    depth = values.shape[1]
    logits = torch.empty(batch, regions, pixels, device=x.device, dtype=torch.float32)
    block_r, block_p = block(regions), block(pixels, most=64)
    tiles_r, tiles_p = cdiv(regions, block_r), cdiv(pixels, block_p)
    parts_log_sum = torch.empty(batch, tiles_p, regions, device=x.device, dtype=torch.float32)
    launch(
        _centre_logits_kernel, batch * tiles_r * tiles_p, x, centers, candidates, logits, parts_log_sum, pixels,
        regions, channels, 0 if candidates is None else candidates.shape[1], *x.stride(), *centers.stride(),
        *_strides(candidates), CANDIDATES=candidates is not None, PRECISION=precision(distances=True),
        BLOCK_R=block_r, BLOCK_P=block_p, BLOCK_C=32 if x.element_size() == 2 else 16, num_warps=4, num_stages=2,
    )  # fmt: skip
    log_sum = parts_log_sum.logsumexp(1)
    block_d = block(depth, most=128 if x.element_size() == 2 else 64)
    tiles = tiles_r * cdiv(depth, block_d)
    parts = splits(batch * tiles, pixels, 512)
    part = cdiv(cdiv(pixels, parts), 32) * 32
    sums = torch.empty(parts, batch, regions, depth, device=x.device, dtype=torch.float32)
    launch(
        _centre_mean_kernel, batch * tiles * parts, logits, log_sum, values, sums, regions, depth, pixels, part, parts,
        batch, *values.stride(), CANDIDATES=candidates is not None, PRECISION=precision(), BLOCK_R=block_r,
        BLOCK_D=block_d, BLOCK_P=32 if x.element_size() == 2 else 16, num_warps=8, num_stages=2,
    )  # fmt: skip
    return sums.sum(0), log_sum


def centre_update_backward(
    grad: Tensor,
    grad_log_sum: Tensor,
    x: Tensor,
    centers: Tensor,
    candidates: Tensor | None,
    values: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `hggraph.ops.centre_update` in Triton; the arguments are the operator's."""
    batch, channels, pixels = x.shape
    regions = centers.shape[1]
    averaged = x if values is None else values
    grad = grad.contiguous()
    shift = grad_log_sum - (grad * out).sum(2)
    weight = torch.empty(batch, regions, pixels, device=x.device, dtype=torch.float32)
    grad_logits = torch.empty_like(weight)
    block_r, block_p = block(regions, most=64), block(pixels, most=64)
    launch(
        _centre_update_bwd_kernel, batch * cdiv(regions, block_r) * cdiv(pixels, block_p), x, centers, candidates,
        averaged, grad, shift, log_sum.contiguous(), weight, grad_logits, pixels, regions, channels,
        averaged.shape[1], 0 if candidates is None else candidates.shape[1], *x.stride(), *centers.stride(),
        *_strides(candidates), *averaged.stride(), CANDIDATES=candidates is not None,
        PRECISION=precision(distances=True), DOT=precision(), BLOCK_R=block_r, BLOCK_P=block_p,
        BLOCK_C=32 if x.element_size() == 2 else 16, num_warps=8, num_stages=2,
    )  # fmt: skip
    if values is None:
        return *distance_backward(grad_logits, x, centers, grad, weight), x.new_empty(0)
    grad_values, _ = matmul(grad.mT, weight, dtype=values.dtype)
    return *distance_backward(grad_logits, x, centers), grad_values
