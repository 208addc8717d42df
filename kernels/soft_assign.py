"""Soft assignment: ``S_rp = exp(l_rp) / sum_r exp(l_rp)`` over the entries kept, ``l = -||x_p - c_r||^2``.

A program owns a block of pixels and all their entries: its logits stay in registers where the regions fit into one
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
    p_x, p_c, p_out, least, pixels, regions, channels, s_xb, s_xc, s_xp, s_cb, s_cr, s_cc, PRECISION: tl.constexpr,
    ONE_BLOCK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tiles_p = tl.cdiv(pixels, BLOCK_P)
    o_p = tl.program_id(0) % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (tl.program_id(0) // tiles_p).to(tl.int64)
    p_x += batch * s_xb
    p_c += batch * s_cb
    p_out += batch * regions * pixels
    o_r = tl.arange(0, BLOCK_R)
    if ONE_BLOCK:
        logits = distance_tile(
            p_c, p_x, o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION, BLOCK_R, BLOCK_P, BLOCK_C
        )
        logits = tl.where(o_r[:, None] < regions, logits, LOWEST)
        best, nearest = _best(logits, o_r)
        weight = _kept(logits, o_r, best, nearest, least)
        weight = weight / tl.sum(weight, 0)[None, :]
        store_tile(p_out, weight, o_r, o_p, pixels, 1, regions, pixels)
    else:
        best = tl.full((BLOCK_P,), LOWEST, dtype=tl.float32)
        nearest = tl.zeros((BLOCK_P,), dtype=tl.int32)
        for start in range(0, regions, BLOCK_R):
            logits = distance_tile(
                p_c, p_x, start + o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION, BLOCK_R,
                BLOCK_P, BLOCK_C,
            )  # fmt: skip
            store_tile(p_out, logits, start + o_r, o_p, pixels, 1, regions, pixels)
            logits = tl.where((start + o_r)[:, None] < regions, logits, LOWEST)
            here, first = _best(logits, start + o_r)
            nearest = tl.where(here > best, first, nearest)
            best = tl.maximum(here, best)
        tl.debug_barrier()  # what one thread has written another reads
        total = tl.zeros((BLOCK_P,), dtype=tl.float32)
        for start in range(0, regions, BLOCK_R):
            logits = load_tile(p_out, start + o_r, o_p, pixels, 1, regions, pixels)
            logits = tl.where((start + o_r)[:, None] < regions, logits, LOWEST)
            total += tl.sum(_kept(logits, start + o_r, best, nearest, least), 0)
        for start in range(0, regions, BLOCK_R):
            logits = load_tile(p_out, start + o_r, o_p, pixels, 1, regions, pixels)
            weight = _kept(logits, start + o_r, best, nearest, least) / total[None, :]
            tl.debug_barrier()
            store_tile(p_out, weight, start + o_r, o_p, pixels, 1, regions, pixels)


@triton.jit
def _soft_assign_candidates_fwd_kernel(
    p_x, p_c, p_index, p_out, least, pixels, entries, channels, s_xb, s_xc, s_xp, s_cb, s_cr, s_cc, s_ib, s_it, s_ip,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    tiles_p = tl.cdiv(pixels, BLOCK_P)
    o_p = tl.program_id(0) % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (tl.program_id(0) // tiles_p).to(tl.int64)
    o_t = tl.arange(0, BLOCK_T)
    index = load_tile(p_index + batch * s_ib, o_t, o_p, s_it, s_ip, entries, pixels)
    logits = tl.zeros((BLOCK_T, BLOCK_P), dtype=tl.float32)
    p_x += batch * s_xb
    p_c += batch * s_cb
    for _ in range(0, channels):
        x = tl.load(p_x + o_p.to(tl.int64) * s_xp, mask=o_p < pixels, other=0.0)
        c = tl.load(p_c + index * s_cr)  # past the entries and the pixels that of region 0
        difference = x.to(tl.float32)[None, :] - c.to(tl.float32)
        logits -= difference * difference
        p_x += s_xc
        p_c += s_cc
    logits = tl.where(o_t[:, None] < entries, logits, LOWEST)
    best, nearest = _best(logits, o_t)
    weight = _kept(logits, o_t, best, nearest, least)
    weight = weight / tl.sum(weight, 0)[None, :]
    store_tile(p_out + batch * entries * pixels, weight, o_t, o_p, pixels, 1, entries, pixels)


@triton.jit
def _soft_assign_bwd_kernel(
    p_grad, p_weight, p_index, p_out, pixels, regions, entries, s_gb, s_gt, s_gp, s_ib, s_it, s_ip,
    CANDIDATES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits, ``S (G - sum_r S G)``, spread over all regions."""
    tiles_p = tl.cdiv(pixels, BLOCK_P)
    o_p = tl.program_id(0) % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (tl.program_id(0) // tiles_p).to(tl.int64)
    p_grad += batch * s_gb
    p_weight += batch * entries * pixels
    p_out += batch * regions * pixels
    o_r = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_P,), dtype=tl.float32)
    for start in range(0, entries, BLOCK_R):
        grad = load_tile(p_grad, start + o_r, o_p, s_gt, s_gp, entries, pixels)
        weight = load_tile(p_weight, start + o_r, o_p, pixels, 1, entries, pixels)
        total += tl.sum(grad.to(tl.float32) * weight, 0)
    for start in range(0, regions, BLOCK_R):
        if CANDIDATES:
            value = tl.zeros((BLOCK_R, BLOCK_P), dtype=tl.float32)
            p_i, p_g, p_w = p_index + batch * s_ib, p_grad, p_weight
            for _ in range(0, entries):
                index = tl.load(p_i + o_p.to(tl.int64) * s_ip, mask=o_p < pixels, other=-1)
                grad = tl.load(p_g + o_p.to(tl.int64) * s_gp, mask=o_p < pixels, other=0.0)
                weight = tl.load(p_w + o_p, mask=o_p < pixels, other=0.0)
                entry = weight * (grad.to(tl.float32) - total)
                value += tl.where(index[None, :] == (start + o_r)[:, None], entry[None, :], 0.0)
                p_i += s_it
                p_g += s_gt
                p_w += pixels
        else:
            grad = load_tile(p_grad, start + o_r, o_p, s_gt, s_gp, entries, pixels)
            weight = load_tile(p_weight, start + o_r, o_p, pixels, 1, entries, pixels)
            value = weight * (grad.to(tl.float32) - total[None, :])
        store_tile(p_out, value, start + o_r, o_p, pixels, 1, regions, pixels)


def soft_assign(x: Tensor, centers: Tensor, candidates: Tensor | None, threshold: float) -> Tensor:
    """Compute `hggraph.ops.soft_assign` in Triton; the arguments are the operator's."""
    batch, channels, pixels = x.shape
    regions = centers.shape[1]
    least = math.log(threshold) if threshold > 0 else -math.inf
    entries = regions if candidates is None else candidates.shape[1]
    out = torch.empty(batch, entries, pixels, device=x.device, dtype=torch.float32)
    if candidates is None:
        block_r = block(regions)
        block_p = block(pixels, most=64)
        launch(
            _soft_assign_fwd_kernel, batch * cdiv(pixels, block_p), x, centers, out, least, pixels, regions, channels,
            *x.stride(), *centers.stride(), PRECISION=precision(distances=True), ONE_BLOCK=regions <= block_r,
            BLOCK_R=block_r, BLOCK_P=block_p, BLOCK_C=32 if x.element_size() == 2 else 16, num_warps=8, num_stages=2,
        )  # fmt: skip
        return out
    if entries > 256:
        raise ValueError(f"The Triton kernel takes at most 256 candidates, got {entries}. Use fewer, or None for all.")
    block_t = block(entries, least=2, most=256)
    block_p = max(16, min(128, 4096 // block_t))
    launch(
        _soft_assign_candidates_fwd_kernel, batch * cdiv(pixels, block_p), x, centers, candidates, out, least, pixels,
        entries, channels, *x.stride(), *centers.stride(), *candidates.stride(), BLOCK_T=block_t, BLOCK_P=block_p,
        num_warps=4,
    )  # fmt: skip
    return out


def soft_assign_backward(
    grad: Tensor, x: Tensor, centers: Tensor, candidates: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `hggraph.ops.soft_assign` in Triton; the arguments are the operator's."""
    batch, _, pixels = x.shape
    regions, entries = centers.shape[1], weight.shape[1]
    grad_logits = torch.empty(batch, regions, pixels, device=x.device, dtype=torch.float32)
    block_r, block_p = block(regions, most=32), block(pixels, most=128)
    launch(
        _soft_assign_bwd_kernel, batch * cdiv(pixels, block_p), grad, weight.contiguous(), candidates, grad_logits,
        pixels, regions, entries, *grad.stride(), *((0, 0, 0) if candidates is None else candidates.stride()),
        CANDIDATES=candidates is not None, BLOCK_R=block_r, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
    return distance_backward(grad_logits, x, centers)
