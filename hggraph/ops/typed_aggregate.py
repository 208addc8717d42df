"""The typed aggregation, the one formula of the project: out_i = sum_k W_k (sum_{j in N_k(i)} a_ij x_j)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hggraph._check import (
    check_dtype,
    check_ndim,
    check_one_device,
    check_one_dtype,
    check_positive,
    check_range,
    check_strengths,
)
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import autocast, kernel, operator
from hggraph.ops._occupied import Occupied
from hggraph.ops.segment import (
    csr_pointer,
    gather_scale_sum,
    gathered_dot,
    segment_ids,
    segment_reduce,
    transpose_csr,
)

__all__ = ["EPSILON", "typed_aggregate"]

EPSILON = 1e-7  # least degree, HG-Conv Sec. 3
_BUFFER = 1 << 23  # numbers in the (targets, K * C) buffer of the CPU path: 32 MiB of float32


def typed_aggregate(
    x: Tensor,
    weight: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    edge_weight: Tensor | None = None,
    *,
    num_targets: int | None = None,
    groups: int = 1,
    normalize: bool = True,
) -> Tensor:
    """Aggregate neighbours per direction and multiply by that direction's matrix (HG-Conv Eq. 2 and 3).

    ``out_i = sum_k (1 / D_ik) (sum_{e = (j, i) of type k} a_e x_j) W_k``, with the degree
    ``D_ik = max(sum of a_e over the edges of type k into i, 1e-7)``.

    Args:
        x: Source features, shape ``(N, C)``, floating point.
        weight: One matrix per direction, shape ``(K, C // groups, O)``.
        edge_index: Sources and targets, shape ``(2, E)``, long, in any order.
        edge_type: Direction of each edge, shape ``(E,)``, long in [0, K); or ``(E, S)`` for soft types, where an
            edge belongs to S directions at once (spline and Gaussian-mixture convolution).
        edge_weight: Strength a_e, the shape of `edge_type`, not negative when normalised; None stands for 1.
        num_targets: Number of rows of the result; N when None.
        groups: As in ``Conv2d``: group g of the outputs reads group g of the inputs.
        normalize: Divide by the degree; False takes `edge_weight` as it is.

    Returns:
        Shape ``(num_targets, O)``. A direction without a neighbour adds exactly 0. Differentiable in `x`,
        `weight` and `edge_weight`, through the degree.

    Raises:
        ValueError: if shapes disagree, or an index or type is out of range.

    Note:
        O(E C + M C O / groups) time for M <= N K pairs of target and direction with an edge (all N K on a GPU); the
        CPU path keeps 32 MiB of aggregates at once. Deterministic.

    Example:
        >>> x, eye = torch.tensor([[1.0], [2.0], [4.0]]), torch.ones(1, 1, 1)
        >>> typed_aggregate(x, eye, torch.tensor([[1, 2], [0, 0]]), torch.tensor([0, 0])).flatten()
        tensor([3., 0., 0.])
    """
    num_targets = check_arguments(x, weight, edge_index, edge_type, edge_weight, num_targets, groups)
    if normalize and edge_weight is not None:
        check_strengths("edge_weight", edge_weight)
    source, target = edge_index.long()
    if edge_type.dim() == 2:
        source, target = (end.repeat_interleave(edge_type.shape[1]) for end in (source, target))
        edge_type = edge_type.flatten()
        edge_weight = None if edge_weight is None else edge_weight.flatten()

    key = target * weight.shape[0] + edge_type.long()
    if not bool((key.diff() >= 0).all()):
        order = torch.argsort(key, stable=True)
        key, source = key[order], source[order]
        edge_weight = None if edge_weight is None else edge_weight[order]
    ptr = csr_pointer(key, num_targets * weight.shape[0])
    dtype = compute_dtype(x)  # strengths and degrees may leave a half's range where their ratio does not
    coefficient = torch.ones_like(key, dtype=dtype) if edge_weight is None else edge_weight.to(dtype)
    if normalize:
        degree = segment_reduce(coefficient, ptr).clamp(min=EPSILON)
        coefficient = coefficient / degree[key]
    x, weight = autocast(x, weight)
    return torch.ops.hggraph.typed_aggregate(x, weight, coefficient.to(x.dtype), ptr, source.contiguous(), groups)


def typed_aggregate_reference(
    x: Tensor, weight: Tensor, coefficient: Tensor, ptr: Tensor, source: Tensor, groups: int
) -> Tensor:
    """Return the sum over targets, directions and edges as the equation says it."""
    num_directions, size = weight.shape[0], x.shape[1] // groups
    rows = []
    for i in range((ptr.shape[0] - 1) // num_directions):
        row = weight.new_zeros(weight.shape[2])
        for k in range(num_directions):
            for e in range(int(ptr[i * num_directions + k]), int(ptr[i * num_directions + k + 1])):
                message = coefficient[e] * x[source[e]]
                parts = [message[g * size : (g + 1) * size] @ w for g, w in enumerate(weight[k].chunk(groups, 1))]
                row = row + torch.cat(parts)
        rows.append(row)
    return torch.stack(rows) if rows else weight.new_zeros(0, weight.shape[2])


def check_arguments(
    x: Tensor,
    weight: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    edge_weight: Tensor | None,
    num_targets: int | None,
    groups: int,
) -> int:
    """Raise unless the arguments of `typed_aggregate` are as it says; return the number of targets."""
    check_ndim("x", x, 2, shape="(N, C)")
    check_dtype("x", x)
    check_weight(x, weight, groups)
    check_edge_index(edge_index)
    check_ndim("edge_type", edge_type, 1, 2, shape="(E,) or (E, S)")
    if edge_type.shape[0] != edge_index.shape[1]:
        raise ValueError(
            f"`edge_type` must have shape (E,) or (E, S) with E = {edge_index.shape[1]} of `edge_index`, "
            f"got {tuple(edge_type.shape)}."
        )
    if edge_weight is not None:
        check_ndim("edge_weight", edge_weight, 1, 2, shape="(E,) or (E, S)")
        check_dtype("edge_weight", edge_weight, "real numbers")
        if edge_weight.shape != edge_type.shape:
            raise ValueError(
                f"`edge_weight` must have the shape of `edge_type`, {tuple(edge_type.shape)}, "
                f"got {tuple(edge_weight.shape)}."
            )
    check_one_device(x=x, weight=weight, edge_index=edge_index, edge_type=edge_type, edge_weight=edge_weight)
    if num_targets is None:
        num_targets = x.shape[0]
    else:
        check_positive("num_targets", num_targets, least=0)
    check_range(
        "edge_type", edge_type, weight.shape[0], "Was the graph built with another stencil? Types index `weight`."
    )
    check_range("edge_index[0]", edge_index[0], x.shape[0], "It must index the rows of `x`.")
    hint = "It must index the rows of `x`. Give `num_targets` for a graph with a stride."
    check_range("edge_index[1]", edge_index[1], num_targets, hint)
    return num_targets


def check_edge_index(edge_index: Tensor) -> None:
    """Raise unless `edge_index` holds integers in the shape ``(2, E)``."""
    check_ndim("edge_index", edge_index, 2, shape="(2, E)")
    check_dtype("edge_index", edge_index, "integers")
    if edge_index.shape[0] != 2:
        raise ValueError(f"`edge_index` must have shape (2, E), got {tuple(edge_index.shape)}.")


def check_weight(x: Tensor, weight: Tensor, groups: int) -> None:
    """Raise unless the weight fits the channels and dtype of `x`, and the groups divide both sides."""
    check_ndim("weight", weight, 3, shape="(K, C // groups, O)")
    check_positive("groups", groups)
    if weight.shape[1] * groups != x.shape[-1] or weight.shape[2] % groups:
        raise ValueError(
            f"`weight` {tuple(weight.shape)} does not fit {x.shape[-1]} channels in {groups} groups of `x`: "
            "expected (K, C // groups, O) with C and O divisible by `groups`."
        )
    check_dtype("weight", weight)
    check_one_dtype(x=x, weight=weight)


def multiply(gathered: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Multiply aggregates (N, K, C) by weight (K, C // groups, O) and sum over K: one GEMM per group."""
    num, num_directions, channels = gathered.shape
    if groups == 1:
        return gathered.reshape(num, num_directions * channels) @ weight.flatten(0, 1)
    if groups == channels == weight.shape[2]:  # depthwise: a number for each, not a matrix
        return (gathered * weight.squeeze(1)).sum(1)
    a, w = _by_group(gathered, weight, groups)
    out = torch.bmm(a, w)  # (groups, N, O // groups)
    return out.transpose(0, 1).reshape(num, weight.shape[2])


def _by_group(gathered: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return aggregates (groups, N, K * C // groups) and weight (groups, K * C // groups, O // groups)."""
    num, num_directions, channels = gathered.shape
    size, out_size = channels // groups, weight.shape[2] // groups
    a = gathered.view(num, num_directions, groups, size).permute(2, 0, 1, 3)
    w = weight.reshape(num_directions, size, groups, out_size).permute(2, 0, 1, 3)
    return (
        a.reshape(groups, num, num_directions * size),
        w.reshape(groups, num_directions * size, out_size),
    )


def multiply_backward(grad: Tensor, gathered: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of `multiply` for aggregates and weight."""
    num, num_directions, channels = gathered.shape
    if groups == 1:
        flat = gathered.reshape(num, num_directions * channels)
        grad_gathered = (grad @ weight.flatten(0, 1).t()).view(num, num_directions, channels)
        return grad_gathered, (flat.t() @ grad).view_as(weight)
    if groups == channels == weight.shape[2]:
        grad = grad.unsqueeze(1)
        return grad * weight.squeeze(1), (gathered * grad).sum(0).unsqueeze(1)
    a, w = _by_group(gathered, weight, groups)
    g = grad.reshape(num, groups, w.shape[2]).transpose(0, 1)
    grad_a = torch.bmm(g, w.transpose(1, 2)).view(groups, num, num_directions, channels // groups)
    grad_w = torch.bmm(a.transpose(1, 2), g).view(groups, num_directions, channels // groups, w.shape[2])
    return (
        grad_a.permute(1, 2, 0, 3).reshape(num, num_directions, channels),
        grad_w.permute(1, 2, 0, 3).reshape(weight.shape),
    )


@dataclass(frozen=True)
class _Piece:
    """Some targets, their edges and the pointer over these alone; with `pairs`, edges in the order of these."""

    targets: slice
    edges: slice
    ptr: Tensor
    pairs: Occupied | None

    @classmethod
    def of(cls, targets: slice, edges: slice, ptr: Tensor, num_directions: int) -> _Piece:
        pairs = Occupied.of(ptr, num_directions, edges.stop - edges.start)
        return cls(targets, edges, ptr if pairs is None else pairs.ptr, pairs)

    def take(self, x: Tensor) -> Tensor:
        """Return the piece's entries of what has one for each edge."""
        return x[self.edges] if self.pairs is None else x[self.edges][self.pairs.edges]

    def put(self, x: Tensor, value: Tensor) -> None:
        """Write the piece's entries of what has one for each edge."""
        if self.pairs is None:
            x[self.edges] = value
        else:
            x[self.edges.start + self.pairs.edges] = value

    def multiply(self, gathered: Tensor, weight: Tensor, groups: int) -> Tensor:
        if self.pairs is not None:
            return self.pairs.multiply(gathered, weight, multiply, groups)
        return multiply(gathered.view(self.length, len(weight), gathered.shape[1]), weight, groups)

    def multiply_backward(self, grad: Tensor, gathered: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        if self.pairs is not None:
            return self.pairs.multiply_backward(grad, gathered, weight, multiply_backward, groups)
        gathered = gathered.view(self.length, len(weight), gathered.shape[1])
        grad_gathered, grad_weight = multiply_backward(grad, gathered, weight, groups)
        return grad_gathered.flatten(0, 1), grad_weight

    @property
    def length(self) -> int:
        return self.targets.stop - self.targets.start


def _pieces(x: Tensor, ptr: Tensor, num_directions: int, num_edges: int) -> Iterator[_Piece]:
    """Cut the targets so that the aggregates of a piece fit the buffer; a GPU gets one and is not waited for."""
    targets = (ptr.shape[0] - 1) // num_directions
    step = max(1, _BUFFER // max(1, num_directions * x.shape[1]))
    if x.is_cuda or step >= targets:
        yield _Piece.of(slice(0, targets), slice(0, num_edges), ptr, num_directions)
        return
    for start in range(0, targets, step):
        end = min(start + step, targets)
        part = ptr[start * num_directions : end * num_directions + 1]
        edges = slice(int(part[0]), int(part[-1]))
        yield _Piece.of(slice(start, end), edges, part - edges.start, num_directions)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.groups = inputs[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    strengths = ctx.needs_input_grad[2]
    grads = torch.ops.hggraph.typed_aggregate_backward(grad, *ctx.saved_tensors, ctx.groups, strengths)
    return grads[0], grads[1], grads[2] if strengths else None, None, None, None


@operator(
    "typed_aggregate",
    fake=lambda x, weight, coefficient, ptr, source, groups: x.new_empty(
        (ptr.shape[0] - 1) // weight.shape[0], weight.shape[2]
    ),
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda x, weight, coefficient, ptr, source, groups, **_: (
        2 * source[0] * x[1] + 2 * (ptr[0] - 1) * weight[1] * weight[2]
    ),
)
def _typed_aggregate(
    x: Tensor, weight: Tensor, coefficient: Tensor, ptr: Tensor, source: Tensor, groups: int
) -> Tensor:
    triton = kernel("typed_aggregate", x, weight, coefficient)
    if triton is not None and triton.fuses(weight, ptr, source, groups):
        return triton.typed_aggregate(x, weight, coefficient, ptr, source, groups)
    num_directions = weight.shape[0]
    out = x.new_empty((ptr.shape[0] - 1) // num_directions, weight.shape[2])
    for piece in _pieces(x, ptr, num_directions, source.shape[0]):
        gathered = gather_scale_sum(x, piece.ptr, piece.take(source), piece.take(coefficient))
        out[piece.targets] = piece.multiply(gathered, weight, groups)
    return out


def _typed_aggregate_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    coefficient: Tensor,
    ptr: Tensor,
    source: Tensor,
    groups: int,
    strengths: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    edges = coefficient.shape[0] if strengths else 0
    return x.new_empty(x.shape), weight.new_empty(weight.shape), coefficient.new_empty(edges)


@operator(
    "typed_aggregate_backward",
    fake=_typed_aggregate_backward_fake,
    flops=lambda grad, x, weight, coefficient, ptr, source, groups, strengths, **_: (
        (6 if strengths else 4) * source[0] * x[1] + 4 * (ptr[0] - 1) * weight[1] * weight[2]
    ),
)
def _typed_aggregate_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    coefficient: Tensor,
    ptr: Tensor,
    source: Tensor,
    groups: int,
    strengths: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_directions = weight.shape[0]
    # the first piece is taken as it is: mostly there is one
    grad_x, grad_weight = None, None
    grad_coefficient = coefficient.new_zeros(coefficient.shape[0] if strengths else 0)
    for piece in _pieces(x, ptr, num_directions, source.shape[0]):
        rows, strength = piece.take(source), piece.take(coefficient)
        gathered = gather_scale_sum(x, piece.ptr, rows, strength)
        grad_gathered, part = piece.multiply_backward(grad[piece.targets], gathered, weight, groups)
        grad_weight = part if grad_weight is None else grad_weight.add_(part)
        row_ptr, row_segment, order = transpose_csr(piece.ptr, rows, x.shape[0])
        part = gather_scale_sum(grad_gathered, row_ptr, row_segment, strength[order])
        grad_x = part if grad_x is None else grad_x.add_(part)
        if strengths:
            piece.put(grad_coefficient, gathered_dot(grad_gathered, segment_ids(piece.ptr, len(rows)), x, rows))
    grad_x = x.new_zeros(x.shape) if grad_x is None else grad_x
    grad_weight = weight.new_zeros(weight.shape) if grad_weight is None else grad_weight
    return grad_x, grad_weight, grad_coefficient
