"""The centre update: ``c'_r = sum_p softmax_p(l_rp) x_p``, softmax attention of centres over pixels.

Flash attention's accumulator (regions times channels in float32) does not fit a multiprocessor at 1,024 channels, so
there are two passes: logits with the log-sum of each tile, then one product whose left operand is the exponential.
Backward computes the logits anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._distance import distance_backward, distance_tile
from hggraph.kernels._launch import block, cdiv, launch, precision, splits
from hggraph.kernels._tile import contract, dot, load_row, load_tile, store_tile


@triton.jit
def _weights(logits, log_sum):
    """Return the softmax over the pixels."""
    return tl.exp(tl.minimum(logits - log_sum[:, None], 0.0))  # past the image, where l is 0, nothing overflows


@triton.jit
def _centre_logits_kernel(
    p_x, p_c, p_logits, p_log_sum, pixels, regions, channels, s_xb, s_xc, s_xp, s_cb, s_cr, s_cc,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_r, tiles_p = tl.cdiv(regions, BLOCK_R), tl.cdiv(pixels, BLOCK_P)
    o_r = program % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    tile_p = program // tiles_r % tiles_p
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_r * tiles_p)).to(tl.int64)
    logits = distance_tile(
        p_c + batch * s_cb, p_x + batch * s_xb, o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION,
        BLOCK_R, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    store_tile(p_logits + batch * regions * pixels, logits, o_r, o_p, pixels, 1, regions, pixels)
    logits = tl.where(o_p[None, :] < pixels, logits, float("-inf"))
    best = tl.max(logits, 1)
    log_sum = best + tl.log(tl.sum(tl.exp(logits - best[:, None]), 1))
    tl.store(p_log_sum + (batch * tiles_p + tile_p) * regions + o_r, log_sum, mask=o_r < regions)


@triton.jit
def _centre_mean_kernel(
    p_logits, p_log_sum, p_x, p_out, regions, channels, pixels, part, parts, batches, s_xb, s_xc, s_xp,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the pixels of ``exp(l_rp - log_sum_r) x_cp``."""
    program = tl.program_id(0)
    tiles_r, tiles_c = tl.cdiv(regions, BLOCK_R), tl.cdiv(channels, BLOCK_C)
    o_r = program % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = program // tiles_r % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    split = (program // (tiles_r * tiles_c) % parts).to(tl.int64)
    batch = (program // (tiles_r * tiles_c * parts)).to(tl.int64)
    log_sum = load_row(p_log_sum + batch * regions, o_r, 1, regions)
    acc = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    start = split.to(tl.int32) * part
    stop = tl.minimum(pixels, start + part)
    for first in range(start, stop, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)
        logits = load_tile(p_logits + batch * regions * pixels, o_r, o_p, pixels, 1, regions, stop)
        x = load_tile(p_x + batch * s_xb, o_p, o_c, s_xp, s_xc, stop, channels)
        acc = dot(_weights(logits, log_sum), x, acc, PRECISION)
    store_tile(p_out + (split * batches + batch) * regions * channels, acc, o_r, o_c, channels, 1, regions, channels)


@triton.jit
def _centre_update_bwd_kernel(
    p_x, p_c, p_grad, p_shift, p_log_sum, p_weight, p_out, pixels, regions, channels, s_xb, s_xc, s_xp, s_cb, s_cr,
    s_cc, PRECISION: tl.constexpr, DOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Weights w anew, and the gradient of the logits ``w_rp (sum_c g_rc x_cp + shift_r)``."""
    program = tl.program_id(0)
    tiles_r, tiles_p = tl.cdiv(regions, BLOCK_R), tl.cdiv(pixels, BLOCK_P)
    o_r = program % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    o_p = program // tiles_r % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_r * tiles_p)).to(tl.int64)
    p_x += batch * s_xb
    logits = distance_tile(
        p_c + batch * s_cb, p_x, o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION, BLOCK_R,
        BLOCK_P, BLOCK_C,
    )  # fmt: skip
    weight = _weights(logits, load_row(p_log_sum + batch * regions, o_r, 1, regions))
    store_tile(p_weight + batch * regions * pixels, weight, o_r, o_p, pixels, 1, regions, pixels)
    grad = tl.zeros((BLOCK_R, BLOCK_P), dtype=tl.float32)
    grad, _ = contract(
        grad, p_grad + batch * regions * channels, p_x, o_r, o_p, 0, channels, channels, 1, s_xc, s_xp, regions,
        pixels, "none", DOT, BLOCK_C,
    )  # fmt: skip
    grad = weight * (grad + load_row(p_shift + batch * regions, o_r, 1, regions)[:, None])
    store_tile(p_out + batch * regions * pixels, grad, o_r, o_p, pixels, 1, regions, pixels)


def centre_update(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `hggraph.ops.centre_update` over all regions in Triton: the centres and the logs of the column sums."""
    batch, channels, pixels = x.shape
    regions = centers.shape[1]
    logits = torch.empty(batch, regions, pixels, device=x.device, dtype=torch.float32)
    block_r, block_p = block(regions), block(pixels, most=64)
    tiles_r, tiles_p = cdiv(regions, block_r), cdiv(pixels, block_p)
    parts_log_sum = torch.empty(batch, tiles_p, regions, device=x.device, dtype=torch.float32)
    launch(
        _centre_logits_kernel, batch * tiles_r * tiles_p, x, centers, logits, parts_log_sum, pixels, regions, channels,
        *x.stride(), *centers.stride(), PRECISION=precision(distances=True), BLOCK_R=block_r, BLOCK_P=block_p,
        BLOCK_C=32 if x.element_size() == 2 else 16, num_warps=4, num_stages=2,
    )  # fmt: skip
    log_sum = parts_log_sum.logsumexp(1)
    block_c = block(channels, most=128 if x.element_size() == 2 else 64)
    tiles = tiles_r * cdiv(channels, block_c)
    parts = splits(batch * tiles, pixels, 512)
    part = cdiv(cdiv(pixels, parts), 32) * 32
    sums = torch.empty(parts, batch, regions, channels, device=x.device, dtype=torch.float32)
    launch(
        _centre_mean_kernel, batch * tiles * parts, logits, log_sum, x, sums, regions, channels, pixels, part, parts,
        batch, *x.stride(), PRECISION=precision(), BLOCK_R=block_r, BLOCK_C=block_c,
        BLOCK_P=32 if x.element_size() == 2 else 16, num_warps=8, num_stages=2,
    )  # fmt: skip
    return sums.sum(0), log_sum


def centre_update_backward(
    grad: Tensor, x: Tensor, centers: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `hggraph.ops.centre_update` over all regions in Triton."""
    batch, channels, pixels = x.shape
    regions = centers.shape[1]
    grad = grad.contiguous()
    shift = -(grad * out).sum(2)
    weight = torch.empty(batch, regions, pixels, device=x.device, dtype=torch.float32)
    grad_logits = torch.empty_like(weight)
    block_r, block_p = block(regions, most=64), block(pixels, most=64)
    launch(
        _centre_update_bwd_kernel, batch * cdiv(regions, block_r) * cdiv(pixels, block_p), x, centers, grad, shift,
        log_sum.contiguous(), weight, grad_logits, pixels, regions, channels, *x.stride(), *centers.stride(),
        PRECISION=precision(distances=True), DOT=precision(), BLOCK_R=block_r, BLOCK_P=block_p,
        BLOCK_C=32 if x.element_size() == 2 else 16, num_warps=8, num_stages=2,
    )  # fmt: skip
    return distance_backward(grad_logits, x, centers, grad, weight)
