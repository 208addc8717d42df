"""Reductions over contiguous segments of a CSR pointer, with an optional gather and scale before them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph._check import check_dtype, check_ndim, check_one_device, check_one_dtype, check_range
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import kernel, operator

__all__ = ["csr_pointer", "segment_ids", "segment_reduce", "segment_softmax"]

REDUCTIONS = ("sum", "mean", "max")


def segment_reduce(
    x: Tensor, ptr: Tensor, index: Tensor | None = None, weight: Tensor | None = None, *, reduce: str = "sum"
) -> Tensor:
    """Reduce the rows of each segment: ``out[n] = reduce_{ptr[n] <= e < ptr[n+1]} weight[e] * x[index[e]]``.

    Gather, scale and reduction in one pass: the (E, C) tensor of gathered rows is not made.

    Args:
        x: Rows, shape ``(M, C)`` or ``(M,)``, floating point.
        ptr: Non-decreasing segment bounds, shape ``(N + 1,)``, long, from 0 to E.
        index: Row of `x` for each entry e, shape ``(E,)``, long; None stands for ``0, 1, ..., M - 1``.
        weight: Factor of each entry, shape ``(E,)``, dtype of `x`; not with ``reduce="max"``.
        reduce: ``"sum"``, ``"mean"`` (the sum over the number of entries) or ``"max"``.

    Returns:
        Shape ``(N, C)`` or ``(N,)``. An empty segment gives 0. Differentiable in `x` and `weight`; the gradient
        of a maximum is shared equally by the entries that reach it.

    Raises:
        ValueError: if a shape or `reduce` is not as said; on the CPU also if `ptr` decreases, does not start at 0 or
            end at E, or `index` names no row.
        TypeError: if `ptr` or `index` is not long.

    Note:
        Cost O(E C). Deterministic: no atomics, forward or backward. A GPU is not made to wait: there a wrong `ptr`
        or `index` is undefined.

    Example:
        >>> segment_reduce(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2, 3]))
        tensor([3., 0., 4.])
    """
    check_ndim("x", x, 1, 2, shape="(M, C) or (M,)")
    check_ndim("ptr", ptr, 1, shape="(N + 1,)")
    check_dtype("x", x)
    if reduce not in REDUCTIONS:
        raise ValueError(f"`reduce` must be one of {REDUCTIONS}, got {reduce!r}.")
    if reduce == "max" and weight is not None:
        raise ValueError("`weight` cannot be used with reduce='max'; scale `x` before.")
    if index is not None:
        check_ndim("index", index, 1, shape="(E,)")
    entries = x.shape[0] if index is None else index.shape[0]
    if weight is not None:
        check_ndim("weight", weight, 1, shape="(E,)")
        check_one_dtype(x=x, weight=weight)
        if weight.shape[0] != entries:
            name = "x" if index is None else "index"
            raise ValueError(
                f"`weight` must have shape ({entries},), one for each of `{name}`, got {tuple(weight.shape)}."
            )
    check_one_device(x=x, ptr=ptr, index=index, weight=weight)
    rows = x.unsqueeze(1) if x.dim() == 1 else x
    out = torch.ops.hggraph.segment_reduce(rows, ptr, index, weight, reduce)
    return out.squeeze(1) if x.dim() == 1 else out


def segment_softmax(x: Tensor, ptr: Tensor) -> Tensor:
    """Return the softmax of `x` within each segment: ``exp(x_e) / sum_{f in segment of e} exp(x_f)``.

    Args:
        x: Logits, shape ``(E,)`` or ``(E, H)``, floating point.
        ptr: Non-decreasing segment bounds, shape ``(N + 1,)``, long, from 0 to E.

    Returns:
        The shape of `x`; each non-empty segment sums to 1. Computed relative to each segment's maximum, so it
        does not overflow. Differentiable, deterministic, O(E H).

    Raises:
        ValueError: if a shape is not as said; on the CPU also if `ptr` decreases, does not start at 0 or end at E.
        TypeError: if `ptr` is not long.

    Example:
        >>> segment_softmax(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([0, 2, 3]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    check_ndim("x", x, 1, 2, shape="(E, H) or (E,)")
    check_ndim("ptr", ptr, 1, shape="(N + 1,)")
    check_dtype("x", x)
    check_one_device(x=x, ptr=ptr)
    return torch.ops.hggraph.segment_softmax(x, ptr)


def csr_pointer(index: Tensor, num_segments: int) -> Tensor:
    """Return the bounds of equal runs in a sorted index, for example in PyG's `batch` vector.

    Args:
        index: Segment of each entry in ascending order, shape ``(E,)``, long in [0, num_segments).
        num_segments: N.

    Returns:
        Shape ``(N + 1,)``, long, from 0 to E.

    Raises:
        ValueError: if `index` is not sorted (checked on the CPU).

    Example:
        >>> csr_pointer(torch.tensor([0, 0, 2]), 3)
        tensor([0, 2, 2, 3])
    """
    check_ndim("index", index, 1, shape="(E,)")
    check_dtype("index", index, "integers")
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and index.shape[0] > 0:
        falls = index[1:] < index[:-1]
        if bool(falls.any()):
            at = int(falls.to(torch.uint8).argmax())
            raise ValueError(
                f"`index` (a `batch` vector, for example) must be sorted in ascending order, got "
                f"{int(index[at])} before {int(index[at + 1])} at position {at}. Sort it and its rows first."
            )
        if int(index[0]) < 0 or int(index[-1]) >= num_segments:
            raise ValueError(
                f"`index` must be in [0, {num_segments}), got values from {int(index[0])} to {int(index[-1])}."
            )
    bounds = torch.arange(num_segments + 1, device=index.device)
    return torch.searchsorted(index, bounds)


def segment_ids(ptr: Tensor, entries: int) -> Tensor:
    """Return the segment of each of the `entries` entries, the inverse of `csr_pointer`.

    Example:
        >>> segment_ids(torch.tensor([0, 2, 2, 3]), 3)
        tensor([0, 0, 2])
    """
    segments = torch.arange(ptr.shape[0] - 1, device=ptr.device)
    return segments.repeat_interleave(ptr.diff(), output_size=entries)


def segment_reduce_reference(
    x: Tensor, ptr: Tensor, index: Tensor | None, weight: Tensor | None, reduce: str
) -> Tensor:
    """Return `segment_reduce` of ``(M, C)`` rows, one segment after the other."""
    index = torch.arange(x.shape[0], device=x.device) if index is None else index
    out = []
    for start, end in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        rows = x[index[start:end]]
        if weight is not None:
            rows = weight[start:end, None] * rows
        if start == end:
            out.append(x.new_zeros(x.shape[1]))
        else:
            out.append(rows.amax(0) if reduce == "max" else getattr(rows, reduce)(0))
    return torch.stack(out) if out else x.new_zeros(0, x.shape[1])


def _check_entries(ptr: Tensor, entries: int, index: Tensor | None = None, rows: int = 0) -> None:
    """Raise unless pointer and index lead nowhere but into the rows; reads them on the CPU only."""
    for name, tensor in (("ptr", ptr), ("index", index)):
        if tensor is not None and tensor.dtype != torch.long:
            raise TypeError(f"`{name}` must be long (torch.int64), got {tensor.dtype}. Convert it with `.long()`.")
    if ptr.device.type != "cpu":
        return
    if ptr.shape[0] == 0 or int(ptr[0]) != 0 or int(ptr[-1]) != entries:
        ends = f"from {int(ptr[0])} to {int(ptr[-1])}" if ptr.shape[0] else "no bound"
        raise ValueError(f"`ptr` must start at 0 and end at the number of entries, {entries}, got {ends} for `x`.")
    falls = ptr[1:] < ptr[:-1]
    if bool(falls.any()):
        at = int(falls.to(torch.uint8).argmax())
        raise ValueError(
            f"`ptr` must not decrease, got {int(ptr[at])} before {int(ptr[at + 1])} at position {at}. "
            "`csr_pointer` of a sorted index makes one."
        )
    if index is not None and index.device.type == "cpu":
        check_range("index", index, rows, "It must index the rows of `x`.")


def gather_scale_sum(x: Tensor, ptr: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """Sum ``weight[e] * x[index[e]]`` over each segment in one pass; the fast path of the whole project."""
    if (triton := kernel("segment", x, weight)) is not None:
        return triton.gather_reduce(x, ptr, index, weight, x.shape[1], x.dtype)
    if x.shape[0] == 0 or x.shape[1] == 0 or index.shape[0] == 0:
        return x.new_zeros(ptr.shape[0] - 1, x.shape[1])
    # an embedding bag is this sum, and PyTorch's is vectorised and threaded over the segments
    return F.embedding_bag(index, x.contiguous(), ptr, mode="sum", per_sample_weights=weight, include_last_offset=True)


def transpose_csr(ptr: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pointer over rows, segment of each entry and the entries' order, for the adjoint of a gather-sum."""
    order = torch.argsort(index, stable=True)
    return csr_pointer(index[order], num_rows), segment_ids(ptr, index.shape[0])[order], order


def _arange_if_none(x: Tensor, index: Tensor | None) -> Tensor:
    return torch.arange(x.shape[0], device=x.device) if index is None else index


def _segment_reduce_fake(x: Tensor, ptr: Tensor, index: Any, weight: Any, reduce: str) -> Tensor:
    return x.new_empty(ptr.shape[0] - 1, x.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ptr, index, weight, reduce = inputs
    ctx.save_for_backward(x, ptr, index, weight, output if reduce == "max" else None)
    ctx.reduce = reduce


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, ptr, index, weight, out = ctx.saved_tensors
    grad_x, grad_weight = torch.ops.hggraph.segment_reduce_backward(grad, x, ptr, index, weight, out, ctx.reduce)
    return grad_x, None, None, None if weight is None else grad_weight, None


def _reduced(x: Tensor, ptr: Tensor, index: Tensor | None, weight: Tensor | None, reduce: str) -> Tensor:
    """Return `segment_reduce` of ``(M, C)`` rows by a pointer and an index that are known to be right."""
    if (triton := kernel("segment", x, weight)) is not None:
        return triton.segment_reduce(x, ptr, index, weight, reduce)
    if reduce == "max":
        rows = x if index is None else x[index]
        if rows.shape[0] == 0:
            return x.new_zeros(ptr.shape[0] - 1, x.shape[1])
        out = torch.segment_reduce(rows.contiguous(), "max", offsets=ptr, axis=0)
        return out.masked_fill_((ptr.diff() == 0)[:, None], 0)
    if reduce == "sum":
        return gather_scale_sum(x, ptr, _arange_if_none(x, index), weight)
    dtype = compute_dtype(x)  # the sum may leave a half's range where the mean does not
    out = gather_scale_sum(x.to(dtype), ptr, _arange_if_none(x, index), None if weight is None else weight.to(dtype))
    return out.div_(ptr.diff().clamp(min=1)[:, None]).to(x.dtype)


@operator(
    "segment_reduce",
    fake=_segment_reduce_fake,
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, ptr, index, weight, reduce, **_: (x if index is None else index)[0] * x[1] * 2,
    opened=_reduced,
)
def _segment_reduce(x: Tensor, ptr: Tensor, index: Tensor | None, weight: Tensor | None, reduce: str) -> Tensor:
    _check_entries(ptr, x.shape[0] if index is None else index.shape[0], index, x.shape[0])
    return _reduced(x, ptr, index, weight, reduce)


def _segment_reduce_backward_fake(
    grad: Tensor, x: Tensor, ptr: Tensor, index: Any, weight: Any, out: Any, reduce: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        0 if weight is None else weight.shape[0]
    )


@operator(
    "segment_reduce_backward",
    fake=_segment_reduce_backward_fake,
    flops=lambda grad, x, ptr, index, weight, *_, **__: (
        (x if index is None else index)[0] * x[1] * (2 if weight is None else 4)
    ),
)
def _segment_reduce_backward(
    grad: Tensor,
    x: Tensor,
    ptr: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    out: Tensor | None,
    reduce: str,
) -> tuple[Tensor, Tensor]:
    entry = _arange_if_none(x, index)
    segment = segment_ids(ptr, entry.shape[0])
    if (triton := kernel("segment", grad, x, weight)) is not None:
        transposed = transpose_csr(ptr, entry, x.shape[0])
        return triton.segment_reduce_backward(grad, x, ptr, index, weight, out, reduce, segment, transposed)
    grad_weight = x.new_empty(0)
    if reduce == "max":
        assert out is not None
        winner = (x[entry] == out[segment]).to(x.dtype)
        share = winner / gather_scale_sum(winner, ptr, torch.arange(len(entry), device=x.device), None)[segment]
        return torch.zeros_like(x, memory_format=torch.contiguous_format).index_add_(
            0, entry, share * grad[segment]
        ), grad_weight
    if reduce == "mean":
        grad = grad / ptr.diff().clamp(min=1)[:, None]
    if weight is not None:
        grad_weight = gathered_dot(grad, segment, x, entry)
    row_ptr, row_segment, order = transpose_csr(ptr, entry, x.shape[0])
    factor = None if weight is None else weight[order]
    return gather_scale_sum(grad, row_ptr, row_segment, factor), grad_weight


def gathered_dot(a: Tensor, a_index: Tensor, b: Tensor, b_index: Tensor) -> Tensor:
    """Return ``sum_c a[a_index[e], c] * b[b_index[e], c]`` for each e; a row of -1 in `b_index` gives 0."""
    if (triton := kernel("segment", a, b)) is not None:
        return triton.segment_dot(a, a_index, b, b_index, a.dtype)
    # The gradient of an embedding bag's factors is this product of rows, vectorised and threaded, with nothing
    # gathered; the last argument names the index to leave out.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return dots(a.contiguous(), b.contiguous(), b_index, a_index, a_index, 0, -1)


def segment_softmax_reference(x: Tensor, ptr: Tensor) -> Tensor:
    """Return `segment_softmax`, one segment after the other."""
    parts = [x[start:end].softmax(0) for start, end in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True)]
    return torch.cat(parts) if parts else x.clone()


def _softmax_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, inputs[1])


def _softmax_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.hggraph.segment_softmax_backward(grad, *ctx.saved_tensors), None


def _softmax(x: Tensor, ptr: Tensor) -> Tensor:
    """Return `segment_softmax` by a pointer that is known to be right."""
    if (triton := kernel("segment", x)) is not None:
        return triton.segment_softmax(x, ptr)
    rows, segment = x.unsqueeze(1) if x.dim() == 1 else x, segment_ids(ptr, x.shape[0])
    exponent = (rows - _reduced(rows, ptr, None, None, "max")[segment]).exp()
    return (exponent / _reduced(exponent, ptr, None, None, "sum")[segment]).contiguous().view(x.shape)


@operator(
    "segment_softmax",
    fake=lambda x, ptr: torch.empty_like(x, memory_format=torch.contiguous_format),
    setup_context=_softmax_setup,
    backward=_softmax_backward,
    flops=lambda x, ptr, **_: 4 * x[0] * (x[1] if len(x) > 1 else 1),
    opened=_softmax,
)
def _segment_softmax(x: Tensor, ptr: Tensor) -> Tensor:
    _check_entries(ptr, x.shape[0])
    return _softmax(x, ptr)


@operator(
    "segment_softmax_backward",
    fake=lambda grad, out, ptr: torch.empty_like(out, memory_format=torch.contiguous_format),
    flops=lambda grad, out, ptr, **_: 4 * out[0] * (out[1] if len(out) > 1 else 1),
)
def _segment_softmax_backward(grad: Tensor, out: Tensor, ptr: Tensor) -> Tensor:
    if (triton := kernel("segment", grad, out)) is not None:
        return triton.segment_softmax_backward(grad, out, ptr)
    weighted = out * grad
    rows = weighted.unsqueeze(1) if out.dim() == 1 else weighted
    total = _reduced(rows, ptr, None, None, "sum")[segment_ids(ptr, out.shape[0])]
    return (weighted - out * total.view(out.shape)).contiguous()
