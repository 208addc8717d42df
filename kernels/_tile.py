"""Tiles of matrices: the masked load and the product that all kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(p_x, o_m, o_n, s_m, s_n, num_m, num_n):
    """Load x[m, n], 0 outside."""
    mask = (o_m[:, None] < num_m) & (o_n[None, :] < num_n)
    offsets = o_m[:, None].to(tl.int64) * s_m + o_n[None, :].to(tl.int64) * s_n
    return tl.load(p_x + offsets, mask=mask, other=0.0)


@triton.jit
def store_tile(p_x, value, o_m, o_n, s_m, s_n, num_m, num_n):
    """Store x[m, n] inside, in the pointer's dtype."""
    mask = (o_m[:, None] < num_m) & (o_n[None, :] < num_n)
    offsets = o_m[:, None].to(tl.int64) * s_m + o_n[None, :].to(tl.int64) * s_n
    tl.store(p_x + offsets, value.to(p_x.dtype.element_ty), mask=mask)


@triton.jit
def load_row(p_x, o_n, s_n, num_n):
    """Load x[n] in float32, 0 outside."""
    return tl.load(p_x + o_n.to(tl.int64) * s_n, mask=o_n < num_n, other=0.0).to(tl.float32)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return acc + a b; operands of two dtypes meet without losing the wider one's digits."""
    if a.dtype == b.dtype:
        return tl.dot(a, b, acc, input_precision=PRECISION)
    if a.dtype == tl.bfloat16:  # a float32 is two bfloat16 up to 16 bits: two fast products instead of a slow one
        high = b.to(tl.bfloat16)
        low = (b.to(tl.float32) - high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(a, low, tl.dot(a, high, acc))
    if b.dtype == tl.bfloat16:
        high = a.to(tl.bfloat16)
        low = (a.to(tl.float32) - high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(low, b, tl.dot(high, b, acc))
    # float16 has not the range to be split
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)


@triton.jit
def contract(
    acc, p_a, p_b, o_m, o_n, start, stop, s_am, s_ak, s_bk, s_bn, num_m, num_n, SUM: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add ``sum_{start <= k < stop} a[m, k] b[k, n]`` to acc; with it the sums of a's rows or of b's columns."""
    if SUM == "columns":
        total = tl.zeros((acc.shape[1],), dtype=tl.float32)
    else:
        total = tl.zeros((acc.shape[0],), dtype=tl.float32)
    for k in range(start, stop, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        a = load_tile(p_a, o_m, o_k, s_am, s_ak, num_m, stop)
        b = load_tile(p_b, o_k, o_n, s_bk, s_bn, stop, num_n)
        acc = dot(a, b, acc, PRECISION)
        if SUM == "rows":
            total += tl.sum(a.to(tl.float32), 1)
        if SUM == "columns":
            total += tl.sum(b.to(tl.float32), 0)
    return acc, total
