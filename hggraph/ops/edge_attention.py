"""Softmax attention of each node over its incoming edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_dtype, check_ndim, check_one_device, check_range
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import autocast, operator
from hggraph.ops.segment import csr_pointer, gather_scale_sum, gathered_dot, segment_reduce, segment_softmax
from hggraph.ops.typed_aggregate import check_edge_index

__all__ = ["edge_attention"]


def edge_attention(
    q: Tensor, k: Tensor, v: Tensor, edge_index: Tensor, *, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Attend from each node to the sources of its edges: `local_attention` on any graph.

    ``out_i = sum_e w_e v_{j(e)}`` over the edges e from j to i, with ``w = softmax(scale q_i . k_{j(e)} + bias_e)``
    over the same edges (GALD, Li et al. 2021, Eq. 8, where they come from the k x k neighbours). Heads are folded into
    the nodes.

    Args:
        q: Queries of the targets, shape ``(N, C)``, floating point, C >= 1.
        k: Keys of the sources, shape ``(M, C)``; M = N unless the graph is bipartite.
        v: Values of the sources, shape ``(M, D)``.
        edge_index: Sources and targets, shape ``(2, E)``, long, in any order; an edge that is there twice counts twice.
        scale: Factor of the products; ``C ** -0.5`` when None.
        bias: Logit that is added for each edge, shape ``(E,)``.

    Returns:
        Shape ``(N, D)``, dtype of `v`; a node without an incoming edge gives 0, no edges give zeros. Differentiable in
        `q`, `k`, `v` and `bias`. Logits and softmax are float32 (float64 for float64), in half precision and under
        autocast too.

    Raises:
        ValueError: if shapes disagree, or an index is out of range (checked on the CPU).
        TypeError: if a tensor is not floating point.

    Note:
        O(E (C + D)) time, and a stable sort of the targets; keys and values are read where they lie, no (E, C) tensor
        is made. Deterministic.

    Example:
        >>> q, k, v = torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [6.0]])
        >>> edge_attention(q, k, v, torch.tensor([[1, 2, 0], [0, 0, 2]])).squeeze(1)
        tensor([4., 0., 1.])
    """
    _check(q, k, v, edge_index, bias)
    q, k, v = autocast(q, k, v)
    scale = q.shape[1] ** -0.5 if scale is None else float(scale)
    source, target = edge_index.long()
    order = torch.argsort(target, stable=True)
    source, target = source[order], target[order]
    ptr = csr_pointer(target, q.shape[0])
    dtype = compute_dtype(q)
    logits = torch.ops.hggraph.edge_dot(q.to(dtype), k.to(dtype), target, source) * scale
    if bias is not None:
        logits = logits + bias.to(dtype)[order]
    weight = segment_softmax(logits, ptr)
    return segment_reduce(v.to(dtype), ptr, source, weight).to(v.dtype)


def edge_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, edge_index: Tensor, scale: float, bias: Tensor | None
) -> Tensor:
    """Return `edge_attention` node by node, as the equation says it."""
    rows = []
    for i in range(q.shape[0]):
        edges = (edge_index[1] == i).nonzero().squeeze(1)
        sources = edge_index[0, edges]
        logits = scale * k[sources] @ q[i]
        weight = (logits if bias is None else logits + bias[edges]).softmax(0)
        rows.append(weight @ v[sources])
    return torch.stack(rows)


def _check(q: Tensor, k: Tensor, v: Tensor, edge_index: Tensor, bias: Tensor | None) -> None:
    for name, x, shape in (
        ("q", q, "(N, C)"),
        ("k", k, "(M, C)"),
        ("v", v, "(M, D)"),
        ("edge_index", edge_index, "(2, E)"),
    ):
        check_ndim(name, x, 2, shape=shape)
    if bias is not None:
        check_ndim("bias", bias, 1, shape="(E,)")
    check_edge_index(edge_index)
    for name, given in (("q", q), ("k", k), ("v", v), ("bias", bias)):
        if given is not None:
            check_dtype(name, given)
    if q.shape[1] == 0 or k.shape[1] != q.shape[1] or v.shape[0] != k.shape[0]:
        raise ValueError(
            f"`q`, `k` and `v` must have shapes (N, C), (M, C) and (M, D) with C >= 1, got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}."
        )
    check_one_device(q=q, k=k, v=v, edge_index=edge_index, bias=bias)
    if bias is not None and bias.shape != edge_index.shape[1:]:
        raise ValueError(
            f"`bias` must have shape ({edge_index.shape[1]},), one for each edge, got {tuple(bias.shape)} "
            f"for `edge_index` {tuple(edge_index.shape)}."
        )
    if edge_index.device.type == "cpu" and not torch.compiler.is_compiling():
        check_range("edge_index[0]", edge_index[0], k.shape[0], "Sources must be rows of `k`.")
        check_range("edge_index[1]", edge_index[1], q.shape[0], "Targets must be rows of `q`.")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b, a_index, b_index = ctx.saved_tensors
    return *torch.ops.hggraph.edge_dot_backward(grad, a, b, a_index, b_index), None, None


@operator(
    "edge_dot",
    fake=lambda a, b, a_index, b_index: a.new_empty(a_index.shape[0]),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda a, b, a_index, b_index, **_: 2 * a_index[0] * a[1],
)
def _edge_dot(a: Tensor, b: Tensor, a_index: Tensor, b_index: Tensor) -> Tensor:
    """Return ``sum_c a[a_index[e], c] b[b_index[e], c]`` for each edge e; `a_index` ascends."""
    if a_index.shape[0] == 0:
        return a.new_zeros(0)
    return gathered_dot(a, a_index, b, b_index)


@operator(
    "edge_dot_backward",
    fake=lambda grad, a, b, a_index, b_index: (
        torch.empty_like(a, memory_format=torch.contiguous_format),
        torch.empty_like(b, memory_format=torch.contiguous_format),
    ),
    flops=lambda grad, a, b, a_index, b_index, **_: 4 * a_index[0] * a[1],
)
def _edge_dot_backward(grad: Tensor, a: Tensor, b: Tensor, a_index: Tensor, b_index: Tensor) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous()
    grad_a = gather_scale_sum(b, csr_pointer(a_index, a.shape[0]), b_index, grad)
    order = torch.argsort(b_index, stable=True)
    grad_b = gather_scale_sum(a, csr_pointer(b_index[order], b.shape[0]), a_index[order], grad[order])
    return grad_a, grad_b
