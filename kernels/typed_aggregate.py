"""The typed aggregation ``out_i = sum_k (sum_e a_e x_source(e)) W_k`` over edges sorted by target and direction.

Two ways: the aggregates (N, K, C) by `segment`'s gather and one product by cuBLAS, or one kernel that gathers each
tile of aggregates into registers and multiplies it there, for which the buffer is never made.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._launch import block, cdiv, launch, precision
from hggraph.kernels._tile import dot, load_tile, store_tile


@triton.jit
def _typed_aggregate_fwd_kernel(
    p_x, p_weight, p_coefficient, p_ptr, p_source, p_out, targets, directions, channels, num_out, groups, s_xn, s_xc,
    s_wk, s_wc, s_wo, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_o = tl.cdiv(num_out, BLOCK_O)
    o_o = program % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    group = (program // tiles_o % groups).to(tl.int64)
    o_n = (program // (tiles_o * groups)).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = o_n < targets
    p_x += group * channels * s_xc
    p_weight += group * num_out * s_wo
    acc = tl.zeros((BLOCK_N, BLOCK_O), dtype=tl.float32)
    for k in range(0, directions):
        start = tl.load(p_ptr + o_n * directions + k, mask=inside_n, other=0)
        stop = tl.load(p_ptr + o_n * directions + k + 1, mask=inside_n, other=0)
        longest = tl.max(stop - start, 0)
        if longest > 0:
            for first in range(0, channels, BLOCK_C):
                o_c = first + tl.arange(0, BLOCK_C)
                gathered = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
                for step in range(0, longest):
                    edge = start + step
                    exists = edge < stop
                    source = tl.load(p_source + edge, mask=exists, other=0)
                    strength = tl.load(p_coefficient + edge, mask=exists, other=0.0).to(tl.float32)
                    inside = exists[:, None] & (o_c < channels)[None, :]
                    x = tl.load(p_x + source[:, None] * s_xn + o_c[None, :].to(tl.int64) * s_xc, mask=inside, other=0.0)
                    gathered += strength[:, None] * x.to(tl.float32)
                w = load_tile(p_weight, o_c, o_o, s_wc, s_wo, channels, num_out)
                acc = dot(gathered.to(w.dtype), w, acc, PRECISION)
        p_weight += s_wk
    width = groups * num_out
    store_tile(p_out + group * num_out, acc, o_n, o_o, width, 1, targets, num_out)


def fuses(weight: Tensor, ptr: Tensor, source: Tensor, groups: int) -> bool:
    """Say whether the fused kernel moves fewer numbers: each block of outputs gathers anew, but no buffer is made."""
    gathers = cdiv(weight.shape[2] // groups, 128)
    return source.shape[0] * gathers <= 2 * (ptr.shape[0] - 1) + source.shape[0]


def typed_aggregate(x: Tensor, weight: Tensor, coefficient: Tensor, ptr: Tensor, source: Tensor, groups: int) -> Tensor:
    """Compute `hggraph.ops.typed_aggregate` in Triton; the arguments are the operator's."""
    directions, channels, num_out = weight.shape[0], weight.shape[1], weight.shape[2] // groups
    targets = (ptr.shape[0] - 1) // directions
    out = torch.empty(targets, weight.shape[2], device=x.device, dtype=x.dtype)
    block_n, block_o, half = block(targets, most=64), block(num_out), x.element_size() == 2
    launch(
        _typed_aggregate_fwd_kernel, cdiv(targets, block_n) * groups * cdiv(num_out, block_o), x, weight,
        coefficient.contiguous(), ptr.contiguous(), source.contiguous(), out, targets, directions, channels, num_out,
        groups, *x.stride(), *weight.stride(), PRECISION=precision(), BLOCK_N=block_n,
        BLOCK_C=32 if half else 16, BLOCK_O=block_o, num_warps=4 if half else 8, num_stages=2,
    )  # fmt: skip
    return out
