"""Adjacency of regions per direction: ``A_k[i, j] = sum_p S_ip S_j,p+offset_k``, then its clean-up.

One launch computes the products of all pairs of opposite directions; a second adds their parts, cancels, filters,
chooses the strongest direction and sums the degrees, up to 128 directions of a few pairs (i, j) in one tile; of more,
each program looks through all blocks of directions for the strongest and writes one of them. A table says which
product a direction reads, and whether transposed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hggraph.kernels._launch import block, cdiv, int_table, launch, precision, splits
from hggraph.kernels._tile import dot, load_tile, store_tile

CENTER = -1  # product of the zero displacement


def _table(offsets: list[int]) -> tuple[list[int], list[int]]:
    """Return the products' displacements (dy, dx, ...) and the directions' (product, transposed, ...)."""
    displacements: list[int] = []
    directions: list[int] = []
    first = {(0, 0): CENTER}
    for dy, dx in zip(offsets[::2], offsets[1::2], strict=True):
        transposed = (-dy, -dx) in first
        if not transposed:
            first[dy, dx] = len(displacements) // 2
            displacements += [dy, dx]
        directions += [first[-dy, -dx] if transposed else first[dy, dx], int(transposed)]
    return displacements, directions


@triton.jit
def _load_shifted(p_s, o_r, o_p, dy, dx, s_r, s_p, regions, height, width):
    """Load S[r, p + offset], 0 where the neighbour lies outside the image."""
    y, x = o_p // width + dy, o_p % width + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    offsets = o_r[:, None].to(tl.int64) * s_r + (y * width + x)[None, :].to(tl.int64) * s_p
    return tl.load(p_s + offsets, mask=(o_r[:, None] < regions) & inside[None, :], other=0.0)


@triton.jit
def _region_adjacency_fwd_kernel(
    p_s, p_products, p_out, products, regions, height, width, part, parts, batches, s_b, s_r, s_p,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles = tl.cdiv(regions, BLOCK_R)
    o_i = program % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    o_j = program // tiles % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    product = program // (tiles * tiles) % products
    split = program // (tiles * tiles * products) % parts
    batch = (program // (tiles * tiles * products * parts)).to(tl.int64)
    dy, dx = tl.load(p_products + 2 * product), tl.load(p_products + 2 * product + 1)
    p_s += batch * s_b
    stop = tl.minimum(height * width, (split + 1) * part)
    acc = tl.zeros((BLOCK_R, BLOCK_R), dtype=tl.float32)
    for start in range(split * part, stop, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        target = load_tile(p_s, o_i, o_p, s_r, s_p, regions, stop)
        source = _load_shifted(p_s, o_j, o_p, dy, dx, s_r, s_p, regions, height, width)
        acc = dot(target, tl.trans(source), acc, PRECISION)
    place = (split.to(tl.int64) * batches + batch) * products + product
    store_tile(p_out + place * regions * regions, acc, o_i, o_j, regions, 1, regions, regions)


@triton.jit
def _raw(p_raw, product, transposed, o_i, o_j, inside, regions, parts, s_part):
    """Add the parts of A_k[i, j] (BLOCK_K, BLOCK_I, BLOCK_J); an opposite direction reads the other's transpose."""
    s_i = tl.where(transposed == 1, 1, regions)[:, None, None]
    s_j = tl.where(transposed == 1, regions, 1)[:, None, None]
    offsets = product.to(tl.int64)[:, None, None] * regions * regions + o_i[None, :, None] * s_i + o_j[None, None] * s_j
    total = tl.load(p_raw + offsets, mask=inside, other=0.0)
    for part in range(1, parts):
        total += tl.load(p_raw + part * s_part + offsets, mask=inside, other=0.0)
    return total


@triton.jit
def _cleaned(
    p_raw, product, transposed, o_i, o_j, inside, regions, parts, s_part, FILTER: tl.constexpr,
    NOISE_CANCEL: tl.constexpr,
):  # fmt: skip
    """Return the strengths of connections (BLOCK_K, BLOCK_I, BLOCK_J), 0 in the centre direction."""
    touches = inside & (product >= 0)[:, None, None]
    value = _raw(p_raw, product, transposed, o_i, o_j, touches, regions, parts, s_part)
    if NOISE_CANCEL:
        value -= _raw(p_raw, product, 1 - transposed, o_i, o_j, touches, regions, parts, s_part)
    diagonal = o_i[None, :, None] == o_j[None, None]
    return tl.where((value >= FILTER) & (diagonal == 0), value, 0.0)


@triton.jit
def _strongest(
    p_raw, p_directions, o_i, o_j, inside, regions, directions, parts, s_part, FILTER: tl.constexpr, TIE: tl.constexpr,
    NOISE_CANCEL: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Return the first of the directions that are strongest up to rounding (BLOCK_I, BLOCK_J), of all blocks."""
    most = tl.zeros((BLOCK_I, BLOCK_J), dtype=tl.float32)
    first = tl.full((BLOCK_I, BLOCK_J), BLOCKS * BLOCK_K, dtype=tl.int32)
    for step in range(0, 2 * BLOCKS):  # the largest first, then where it stands
        o_k = step % BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
        product = tl.load(p_directions + 2 * o_k, mask=o_k < directions, other=-1)
        transposed = tl.load(p_directions + 2 * o_k + 1, mask=o_k < directions, other=0)
        value = _cleaned(p_raw, product, transposed, o_i, o_j, inside, regions, parts, s_part, FILTER, NOISE_CANCEL)
        most = tl.maximum(most, tl.max(value, 0))
        near = (value >= most[None] * TIE) & (step >= BLOCKS)
        first = tl.minimum(first, tl.min(tl.where(near, o_k[:, None, None], BLOCKS * BLOCK_K), 0))
    return first


@triton.jit
def _region_adjacency_clean_kernel(
    p_raw, p_directions, p_out, p_degree, regions, directions, parts, s_part, s_batch, FILTER: tl.constexpr,
    TIE: tl.constexpr, NOISE_CANCEL: tl.constexpr, MAX_DIRECTION: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(regions, BLOCK_I)
    o_i = tl.program_id(0) % tiles * BLOCK_I + tl.arange(0, BLOCK_I)
    o_k = tl.program_id(0) // tiles % BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    batch = (tl.program_id(0) // (tiles * BLOCKS)).to(tl.int64)
    product = tl.load(p_directions + 2 * o_k, mask=o_k < directions, other=-1)
    transposed = tl.load(p_directions + 2 * o_k + 1, mask=o_k < directions, other=0)
    center = (product < 0)[:, None, None]
    p_raw += batch * s_batch
    degree = tl.zeros((BLOCK_K, BLOCK_I), dtype=tl.float32)
    for start in range(0, regions, BLOCK_J):
        o_j = start + tl.arange(0, BLOCK_J)
        inside = (o_i[None, :, None] < regions) & (o_j[None, None] < regions)
        value = _cleaned(p_raw, product, transposed, o_i, o_j, inside, regions, parts, s_part, FILTER, NOISE_CANCEL)
        if MAX_DIRECTION:  # of those equal up to rounding the first
            if BLOCKS == 1:
                near = value >= tl.max(value, 0)[None] * TIE
                first = tl.min(tl.where(near, o_k[:, None, None], BLOCK_K), 0)
            else:
                first = _strongest(
                    p_raw, p_directions, o_i, o_j, inside, regions, directions, parts, s_part, FILTER, TIE,
                    NOISE_CANCEL, BLOCKS, BLOCK_K, BLOCK_I, BLOCK_J,
                )  # fmt: skip
            value = tl.where(o_k[:, None, None] == first[None], value, 0.0)
        diagonal = o_i[None, :, None] == o_j[None, None]
        value = tl.where(center & diagonal & inside, 1.0, value)
        degree += tl.sum(value, 2)
        rows = (batch * directions + o_k)[:, None, None] * regions + o_i[None, :, None]
        mask = inside & (o_k < directions)[:, None, None]
        tl.store(p_out + rows * regions + o_j[None, None], value.to(p_out.dtype.element_ty), mask=mask)
    place = (batch * directions + o_k)[:, None] * regions + o_i[None, :]
    mask = (o_k < directions)[:, None] & (o_i < regions)[None, :]
    tl.store(p_degree + place, degree.to(p_degree.dtype.element_ty), mask=mask)


@triton.jit
def _region_adjacency_bwd_kernel(
    p_grad, p_s, p_offsets, p_out, directions, regions, height, width, s_b, s_r, s_p, PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Sum ``G_k S_p+offset + G_k^T S_p-offset`` over the directions."""
    pixels = height * width
    tiles_i, tiles_p = tl.cdiv(regions, BLOCK_I), tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    o_i = program % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    o_p = program // tiles_i % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch = (program // (tiles_i * tiles_p)).to(tl.int64)
    p_s += batch * s_b
    acc = tl.zeros((BLOCK_I, BLOCK_P), dtype=tl.float32)
    for k in range(0, directions):
        dy, dx = tl.load(p_offsets + 2 * k), tl.load(p_offsets + 2 * k + 1)
        p_k = p_grad + (batch * directions + k) * regions * regions
        for start in range(0, regions, BLOCK_R):
            o_j = start + tl.arange(0, BLOCK_R)
            grad = load_tile(p_k, o_i, o_j, regions, 1, regions, regions)
            source = _load_shifted(p_s, o_j, o_p, dy, dx, s_r, s_p, regions, height, width)
            acc = dot(grad, source, acc, PRECISION)
            grad = load_tile(p_k, o_i, o_j, 1, regions, regions, regions)
            target = _load_shifted(p_s, o_j, o_p, -dy, -dx, s_r, s_p, regions, height, width)
            acc = dot(grad, target, acc, PRECISION)
    store_tile(p_out + batch * regions * pixels, acc, o_i, o_p, pixels, 1, regions, pixels)


def region_adjacency(
    assignment: Tensor,
    size: list[int],
    offsets: list[int],
    noise_cancel: bool,
    max_direction: bool,
    filter_below: float,
    tie: float,
) -> tuple[Tensor, Tensor]:
    """Compute `hggraph.ops.region_adjacency` in Triton; the arguments are the operator's."""
    batch, regions, pixels = assignment.shape
    displacements, directions = _table(offsets)
    products, num = len(displacements) // 2, len(directions) // 2
    block_r = block(regions, most=64)
    tiles = cdiv(regions, block_r) ** 2
    parts = splits(batch * tiles * max(1, products), pixels, 512)
    part = cdiv(cdiv(pixels, parts), 32) * 32
    raw = torch.empty(parts, batch, products, regions, regions, device=assignment.device, dtype=torch.float32)
    launch(
        _region_adjacency_fwd_kernel, batch * parts * products * tiles, assignment,
        int_table(tuple(displacements), assignment.device), raw, products, regions, *size, part, parts, batch,
        *assignment.stride(), PRECISION=precision(), BLOCK_R=block_r, BLOCK_P=32, num_warps=4, num_stages=3,
    )  # fmt: skip
    out = torch.empty(batch, num, regions, regions, device=assignment.device, dtype=assignment.dtype)
    degree = torch.empty(batch, num, regions, device=assignment.device, dtype=assignment.dtype)
    block_k = block(num, least=2) if num <= 128 else 64
    block_j = max(1, min(32, 2048 // block_k // 8)) if num <= 128 else 2
    blocks = cdiv(num, block_k)
    launch(
        _region_adjacency_clean_kernel, batch * cdiv(regions, 8) * blocks, raw,
        int_table(tuple(directions), assignment.device), out, degree, regions, num, parts, *raw.stride()[:2],
        FILTER=filter_below, TIE=tie, NOISE_CANCEL=noise_cancel, MAX_DIRECTION=max_direction, BLOCKS=blocks,
        BLOCK_K=block_k, BLOCK_I=8, BLOCK_J=block_j, num_warps=8,
    )  # fmt: skip
    return out, degree


def region_adjacency_backward(
    grad: Tensor, assignment: Tensor, out: Tensor, size: list[int], offsets: list[int], noise_cancel: bool
) -> Tensor:
    """Compute the gradients of `hggraph.ops.region_adjacency` in Triton; the arguments are the operator's."""
    batch, regions, pixels = assignment.shape
    grad = torch.where(out > 0, grad, 0)
    if noise_cancel:
        grad = grad - grad.mT
    for k in range(len(offsets) // 2):
        if offsets[2 * k] == offsets[2 * k + 1] == 0:  # the identity whatever S is
            grad[:, k] = 0
    grad_assignment = torch.empty(batch, regions, pixels, device=assignment.device, dtype=assignment.dtype)
    most = 128 if assignment.element_size() == 2 else 64
    block_i, block_p = block(regions, most=most), block(pixels, most=most)
    launch(
        _region_adjacency_bwd_kernel, batch * cdiv(regions, block_i) * cdiv(pixels, block_p),
        grad.to(assignment.dtype).contiguous(), assignment, int_table(tuple(offsets), assignment.device),
        grad_assignment, len(offsets) // 2, regions, *size, *assignment.stride(), PRECISION=precision(),
        BLOCK_I=block_i, BLOCK_P=block_p, BLOCK_R=16, num_warps=8, num_stages=2,
    )  # fmt: skip
    return grad_assignment
