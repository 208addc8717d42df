"""Negative squared distances ``l_rp = -||x_p - c_r||^2`` as a tile, and their gradients for pixels and centres."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._launch import block, cdiv, launch, precision
from hggraph.kernels._matmul import matmul
from hggraph.kernels._tile import contract, dot, load_tile, store_tile


@triton.jit
def distance_tile(
    p_c, p_x, o_r, o_p, s_cr, s_cc, s_xc, s_xp, regions, pixels, channels, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return l (BLOCK_R, BLOCK_P): norms and products of centres and pixels in one pass over the channels."""
    product = tl.zeros((BLOCK_R, BLOCK_P), dtype=tl.float32)
    centre_norm = tl.zeros((BLOCK_R,), dtype=tl.float32)
    pixel_norm = tl.zeros((BLOCK_P,), dtype=tl.float32)
    for start in range(0, channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        c = load_tile(p_c, o_r, o_c, s_cr, s_cc, regions, channels)
        x = load_tile(p_x, o_c, o_p, s_xc, s_xp, channels, pixels)
        product = dot(c, x, product, PRECISION)
        centre_norm += tl.sum(c.to(tl.float32) * c.to(tl.float32), 1)
        pixel_norm += tl.sum(x.to(tl.float32) * x.to(tl.float32), 0)
    # rounding can make the expanded square slightly negative
    return tl.minimum(2 * product - centre_norm[:, None] - pixel_norm[None, :], 0.0)


@triton.jit
def _distance_bwd_kernel(
    p_grad, p_c, p_x, p_other, p_weight, p_out, regions, pixels, channels, s_cb, s_cr, s_cc, s_xb, s_xc, s_xp, s_ob,
    s_or, s_oc, OTHER: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_c, tiles_p = tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    o_c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    o_p = program // tiles_c % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_c * tiles_p)).to(tl.int64)
    p_grad += batch * regions * pixels
    acc = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    acc, column = contract(
        acc, p_c + batch * s_cb, p_grad, o_c, o_p, 0, regions, s_cc, s_cr, pixels, 1, channels, pixels, "columns",
        PRECISION, BLOCK_R,
    )  # fmt: skip
    x = load_tile(p_x + batch * s_xb, o_c, o_p, s_xc, s_xp, channels, pixels)
    acc = 2 * (acc - x.to(tl.float32) * column[None, :])
    if OTHER:  # the averaged values are the pixels themselves
        acc, _ = contract(
            acc, p_other + batch * s_ob, p_weight + batch * regions * pixels, o_c, o_p, 0, regions, s_oc, s_or,
            pixels, 1, channels, pixels, "none", PRECISION, BLOCK_R,
        )  # fmt: skip
    store_tile(p_out + batch * channels * pixels, acc, o_c, o_p, pixels, 1, channels, pixels)


def distance_backward(
    grad: Tensor, x: Tensor, centers: Tensor, other: Tensor | None = None, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradients for x (B, C, P) and centers (B, R, C) from that of l, (B, R, P) contiguous float32.

    With `other` (B, R, C) and `weight` (B, R, P) the gradient for x has ``sum_r weight_rp other_rc`` added.
    """
    batch, channels, pixels = x.shape
    regions = centers.shape[1]
    grad_x = torch.empty(batch, channels, pixels, device=x.device, dtype=x.dtype)
    block_c, block_p = block(channels, most=64), block(pixels, most=128 if x.element_size() == 2 else 64)
    launch(
        _distance_bwd_kernel, batch * cdiv(channels, block_c) * cdiv(pixels, block_p), grad, centers, x, other, weight,
        grad_x, regions, pixels, channels, *centers.stride(), *x.stride(),
        *((0, 0, 0) if other is None else other.stride()), OTHER=other is not None, PRECISION=precision(),
        BLOCK_C=block_c, BLOCK_P=block_p, BLOCK_R=16, num_warps=8, num_stages=2,
    )  # fmt: skip
    product, row = matmul(grad, x.mT, dtype=torch.float32, row_sum=True)
    grad_centers = product.sub_(centers * row[..., None]).mul_(2)
    return grad_x, grad_centers.to(centers.dtype)
