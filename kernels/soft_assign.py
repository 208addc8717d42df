"""Soft assignment: ``S_rp = exp(l_rp) / sum_r exp(l_rp)`` over the entries kept, ``l = -||x_p - c_r||^2``.

A program owns a block of pixels and all their regions: its logits stay in registers where the regions fit into one
block, and pass through the result's own memory where they do not.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._distance import distance_backward, distance_tile
from hggraph.kernels._launch import block, cdiv, launch, precision
from hggraph.kernels._tile import load_tile, store_tile

LOWEST = tl.constexpr(-3e38)


@triton.jit
def _best(logits, o_r):
    """Return the largest logit of each pixel, and the first entry that has it."""
    best = tl.max(logits, 0)
    return best, tl.min(tl.where(logits == best[None, :], o_r[:, None], 1 << 30), 0)


@triton.jit
def _kept(logits, o_r, best, nearest, least):
    """Return the exponentials relative to the best, 0 for entries dropped; the nearest is always kept."""
    keep = (logits > least) | (o_r[:, None] == nearest[None, :])
    return tl.where(keep, tl.exp(logits - best[None, :]), 0.0)


@triton.jit
def _soft_assign_fwd_kernel(
    p_x, p_c, p_out, least, pixels, regions, channels, s_xb, s_xc, s_xp, s_cb, s_cr, s_cc, s_ob, s_or,
    PRECISION: tl.constexpr, ONE_BLOCK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    tiles_p = tl.cdiv(pixels, BLOCK_P)
    o_p = tl.program_id(0) % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (tl.program_id(0) // tiles_p).to(tl.int64)
    p_x += batch * s_xb
    p_c += batch * s_cb
    p_out += batch * s_ob
    o_r = tl.arange(0, BLOCK_R)
    if ONE_BLOCK:
        logits = distance_tile(
            p_c, p_x, o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION, BLOCK_R, BLOCK_P, BLOCK_C
        )
        logits = tl.where(o_r[:, None] < regions, logits, LOWEST)
        best, nearest = _best(logits, o_r)
        weight = _kept(logits, o_r, best, nearest, least)
        weight = weight / tl.sum(weight, 0)[None, :]
        store_tile(p_out, weight, o_r, o_p, s_or, 1, regions, pixels)
    else:
        best = tl.full((BLOCK_P,), LOWEST, dtype=tl.float32)
        nearest = tl.zeros((BLOCK_P,), dtype=tl.int32)
        for start in range(0, regions, BLOCK_R):
            logits = distance_tile(
                p_c, p_x, start + o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION, BLOCK_R,
                BLOCK_P, BLOCK_C,
            )  # fmt: skip
            store_tile(p_out, logits, start + o_r, o_p, s_or, 1, regions, pixels)
            logits = tl.where((start + o_r)[:, None] < regions, logits, LOWEST)
            here, first = _best(logits, start + o_r)
            nearest = tl.where(here > best, first, nearest)
            best = tl.maximum(here, best)
        tl.debug_barrier()  # what one thread has written another reads
        total = tl.zeros((BLOCK_P,), dtype=tl.float32)
        for start in range(0, regions, BLOCK_R):
            logits = load_tile(p_out, start + o_r, o_p, s_or, 1, regions, pixels)
            logits = tl.where((start + o_r)[:, None] < regions, logits, LOWEST)
            total += tl.sum(_kept(logits, start + o_r, best, nearest, least), 0)
        for start in range(0, regions, BLOCK_R):
            logits = load_tile(p_out, start + o_r, o_p, s_or, 1, regions, pixels)
            weight = _kept(logits, start + o_r, best, nearest, least) / total[None, :]
            tl.debug_barrier()
            store_tile(p_out, weight, start + o_r, o_p, s_or, 1, regions, pixels)


@triton.jit
def _soft_assign_bwd_kernel(
    p_grad, p_weight, p_out, pixels, regions, s_gb, s_gr, s_gp, s_wb, s_wr, s_wp, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits, ``S (G - sum_r S G)``."""
    tiles_p = tl.cdiv(pixels, BLOCK_P)
    o_p = tl.program_id(0) % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (tl.program_id(0) // tiles_p).to(tl.int64)
    p_grad += batch * s_gb
    p_weight += batch * s_wb
    p_out += batch * regions * pixels
    o_r = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_P,), dtype=tl.float32)
    for start in range(0, regions, BLOCK_R):
        grad = load_tile(p_grad, start + o_r, o_p, s_gr, s_gp, regions, pixels)
        weight = load_tile(p_weight, start + o_r, o_p, s_wr, s_wp, regions, pixels)
        total += tl.sum(grad.to(tl.float32) * weight, 0)
    for start in range(0, regions, BLOCK_R):
        grad = load_tile(p_grad, start + o_r, o_p, s_gr, s_gp, regions, pixels)
        weight = load_tile(p_weight, start + o_r, o_p, s_wr, s_wp, regions, pixels)
        value = weight * (grad.to(tl.float32) - total[None, :])
        store_tile(p_out, value, start + o_r, o_p, pixels, 1, regions, pixels)


def soft_assign(x: Tensor, centers: Tensor, threshold: float, out: Tensor) -> Tensor:
    """Compute `hggraph.ops.soft_assign` over all regions in Triton, into `out` (B, R, P)."""
    batch, channels, pixels = x.shape
    regions = centers.shape[1]
    least = math.log(threshold) if threshold > 0 else -math.inf
    block_r = block(regions)
    block_p = block(pixels, most=64)
    launch(
        _soft_assign_fwd_kernel, batch * cdiv(pixels, block_p), x, centers, out, least, pixels, regions, channels,
        *x.stride(), *centers.stride(), *out.stride()[:2], PRECISION=precision(distances=True),
        ONE_BLOCK=regions <= block_r, BLOCK_R=block_r, BLOCK_P=block_p, BLOCK_C=32 if x.element_size() == 2 else 16,
        num_warps=8, num_stages=2,
    )  # fmt: skip
    return out


def soft_assign_backward(grad: Tensor, x: Tensor, centers: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `hggraph.ops.soft_assign` over all regions in Triton."""
    batch, _, pixels = x.shape
    regions = centers.shape[1]
    grad_logits = torch.empty(batch, regions, pixels, device=x.device, dtype=torch.float32)
    block_r, block_p = block(regions, most=32), block(pixels, most=128)
    launch(
        _soft_assign_bwd_kernel, batch * cdiv(pixels, block_p), grad, weight, grad_logits, pixels, regions,
        *grad.stride(), *weight.stride(), BLOCK_R=block_r, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
    return distance_backward(grad_logits, x, centers)
