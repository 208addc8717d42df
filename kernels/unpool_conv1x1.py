"""Unpool, concatenate, 1x1 convolution: ``out_po = sum_c x_cp Wa_oc + sum_r S_rp (z Wb)_ro + b_o`` in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._launch import block, cdiv, launch, precision
from hggraph.kernels._matmul import matmul
from hggraph.kernels._tile import contract, load_row, store_tile


@triton.jit
def _unpool_conv1x1_fwd_kernel(
    p_x, p_weight, p_assignment, p_product, p_bias, p_out, pixels, num_out, channels, regions, s_xb, s_xc, s_xp, s_wo,
    s_wc, s_ab, s_ar, s_ap, BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    # programs of one block of pixels follow each other: x is read from memory once
    program = tl.program_id(0)
    tiles_o, tiles_p = tl.cdiv(num_out, BLOCK_O), tl.cdiv(pixels, BLOCK_P)
    o_o = program % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    o_p = program // tiles_o % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_o * tiles_p)).to(tl.int64)
    acc = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    acc, _ = contract(
        acc, p_x + batch * s_xb, p_weight, o_p, o_o, 0, channels, s_xp, s_xc, s_wc, s_wo, pixels, num_out, "none",
        PRECISION, BLOCK_K,
    )  # fmt: skip
    acc, _ = contract(
        acc, p_assignment + batch * s_ab, p_product + batch * regions * num_out, o_p, o_o, 0, regions, s_ap, s_ar,
        num_out, 1, pixels, num_out, "none", PRECISION, BLOCK_K,
    )  # fmt: skip
    if BIAS:
        acc += load_row(p_bias, o_o, 1, num_out)[None, :]
    store_tile(p_out + batch * pixels * num_out, acc, o_p, o_o, num_out, 1, pixels, num_out)


def unpool_conv1x1(x: Tensor, z: Tensor, assignment: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `hggraph.ops.unpool_conv1x1` in Triton; the arguments are the operator's."""
    batch, channels, pixels = x.shape
    num_out, regions = weight.shape[0], z.shape[1]
    on_pixels, on_regions = weight[:, :channels], weight[:, channels:]
    product = torch.matmul(z, on_regions.t())  # (B, R, O)
    out = torch.empty(batch, pixels, num_out, device=x.device, dtype=x.dtype)
    block_p, block_o = block(pixels), block(num_out)
    launch(
        _unpool_conv1x1_fwd_kernel, batch * cdiv(pixels, block_p) * cdiv(num_out, block_o), x, on_pixels, assignment,
        product.contiguous(), None if bias is None else bias.contiguous(), out, pixels, num_out, channels, regions,
        *x.stride(), *on_pixels.stride(), *assignment.stride(), BIAS=bias is not None, PRECISION=precision(),
        BLOCK_P=block_p, BLOCK_O=block_o, BLOCK_K=32 if x.element_size() == 2 else 16, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out.mT


def assignment_gradients(grad: Tensor, product: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients for `product` = Z Wb (B, R, O), float32, and for the assignment, from the result's."""
    grad_product, _ = matmul(assignment, grad.mT, dtype=torch.float32)
    grad_assignment, _ = matmul(product, grad, dtype=assignment.dtype)
    return grad_product, grad_assignment
