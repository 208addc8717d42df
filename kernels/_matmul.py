"""Batched products ``out_b = a_b b_b`` over any strides, two dtypes, long sums cut into parts.

What cuBLAS does not: a float32 assignment times half-precision features without a converted copy, the row sums of a in
the same pass (the regions' masses), results in any layout, and a shift of whole rows.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._launch import block, cdiv, launch, precision, splits
from hggraph.kernels._tile import contract, load_row, store_tile


@triton.jit
def _matmul_kernel(
    p_a, p_b, p_out, p_sum, p_shift, num_m, num_n, num_k, part, parts, inner, s_ab, s_ag, s_am, s_ak, s_bb, s_bg, s_bk,
    s_bn, s_os, s_ob, s_og, s_om, s_on, SUM: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # neighbouring programs share the larger operand's tile
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(num_m, BLOCK_M), tl.cdiv(num_n, BLOCK_N)
    tile_m = program % tiles_m
    tile_n = program // tiles_m % tiles_n
    split = program // (tiles_m * tiles_n) % parts
    batch = (program // (tiles_m * tiles_n * parts)).to(tl.int64)
    outer, group = batch // inner, batch % inner
    o_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    start = split * part
    stop = tl.minimum(num_k, start + part)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc, total = contract(
        acc, p_a + outer * s_ab + group * s_ag, p_b + outer * s_bb + group * s_bg, o_m, o_n, start, stop, s_am, s_ak,
        s_bk, s_bn, num_m, num_n, SUM, PRECISION, BLOCK_K,
    )  # fmt: skip
    if SHIFT:
        acc -= load_row(p_shift + batch * num_m, o_m, 1, num_m)[:, None]
    p_out += split.to(tl.int64) * s_os + outer * s_ob + group * s_og
    store_tile(p_out, acc, o_m, o_n, s_om, s_on, num_m, num_n)
    if SUM == "rows":
        if tile_n == 0:
            tl.store(p_sum + (batch * parts + split) * num_m + o_m, total, mask=o_m < num_m)


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    dtype: torch.dtype,
    out: Tensor | None = None,
    row_shift: Tensor | None = None,
    row_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """Multiply a (B, M, K) by b (B, K, N), accumulated in float32; (B, G, M, K) by (B, G, K, N) too.

    Args:
        a: Any strides, 0 among them for a factor that several batches share.
        b: Likewise.
        dtype: Of the result.
        out: Where to write, shape (B, M, N), any strides; allocated contiguous when None.
        row_shift: Shape (B, M), contiguous, subtracted from each row.
        row_sum: Return the sums over K of a too.

    Returns:
        The product, and the sums of a's rows, shape (B, M) float32, empty unless asked for.
    """
    *batches, num_m, num_k = a.shape
    num_n = b.shape[-1]
    if out is None:
        out = torch.empty(*batches, num_m, num_n, device=a.device, dtype=dtype)
    batch, inner = math.prod(batches), 1 if len(batches) == 1 else batches[1]
    half = min(a.element_size(), b.element_size()) == 2
    most = 128 if half else 64  # a larger tile of float32 products does not fit the registers
    block_m, block_n, block_k = block(num_m, most=most), block(num_n, most=most if half else 32), 32 if half else 16
    tiles = cdiv(num_m, block_m) * cdiv(num_n, block_n)
    parts = 1 if row_shift is not None else splits(batch * tiles, num_k, 512)
    part = cdiv(cdiv(num_k, parts), block_k) * block_k
    sums = torch.empty(*batches, parts, num_m if row_sum else 0, device=a.device, dtype=torch.float32)
    target = out.unsqueeze(0)
    if parts > 1:
        target = torch.empty(parts, *out.shape, device=a.device, dtype=torch.float32)
    strides = (stride for x, at in ((a, 1), (b, 1), (target, 2)) for stride in _strides(x, at, len(batches)))
    launch(
        _matmul_kernel, batch * parts * tiles, a, b, target, sums, row_shift, num_m, num_n, num_k, part, parts, inner,
        *strides, SUM="rows" if row_sum else "none", SHIFT=row_shift is not None, PRECISION=precision(),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=8 if block_m * block_n > 64 * 128 else 4,
        num_stages=3, registers=255,
    )  # fmt: skip
    if parts > 1:  # a fixed order of few terms: the same bits each time
        out.copy_(target.sum(0))
    return out, sums.sum(-2)


def _strides(x: Tensor, at: int, batches: int) -> tuple[int, ...]:
    """Return the strides with one for a second batch dimension, which is in front of `at`'s place or absent."""
    return x.stride() if batches == 2 else (*x.stride()[:at], 0, *x.stride()[at:])
