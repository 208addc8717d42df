"""What SplineConv and GMMConv share: PyG's bipartite input, its checks, and the sum or mean over neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_positive, check_range
from hggraph.ops.typed_aggregate import typed_aggregate

__all__ = ["AGGREGATIONS", "check_aggr", "channels", "endpoints", "soft_typed_aggregate"]

AGGREGATIONS = ("mean", "add")


def check_aggr(aggr: str, layer: str) -> None:
    """Raise unless `aggr` is one that a typed aggregation computes."""
    if aggr not in AGGREGATIONS:
        raise ValueError(
            f"`aggr` must be one of {AGGREGATIONS}, got {aggr!r}. "
            f"torch_geometric.nn.{layer} has other aggregations and the same state_dict."
        )


def channels(in_channels: int | tuple[int, int], out_channels: int) -> tuple[int, int]:
    """Return the channels of sources and targets; raise unless all numbers are at least 1."""
    pair = in_channels if isinstance(in_channels, tuple) else (in_channels, in_channels)
    if len(pair) != 2:
        raise ValueError(f"`in_channels` must be a number or a pair, got {in_channels!r}.")
    for value in pair:
        check_positive("in_channels", value)
    check_positive("out_channels", out_channels)
    return pair


def endpoints(
    x: Tensor | tuple[Tensor, Tensor | None],
    edge_index: Tensor,
    edge_attr: Tensor | None,
    size: tuple[int | None, int | None] | None,
    in_channels: tuple[int, int],
    dim: int,
) -> tuple[Tensor, Tensor | None, int]:
    """Return the features of the sources, those of the targets or None, and the number of targets.

    Args:
        x: Features ``(N, C)``, or a pair of sources ``(N_s, C_s)`` and targets ``(N_t, C_t)`` or None.
        edge_index: Sources and targets, shape ``(2, E)``, long.
        edge_attr: Pseudo-coordinates, shape ``(E, dim)``, floating point.
        size: Numbers of sources and of targets, as PyG's layers take them.
        in_channels: Channels of sources and of targets.
        dim: Number of pseudo-coordinates.

    Raises:
        ValueError: if anything is missing, out of range or does not fit; the text names the argument.
    """
    x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
    num_sources, num_targets = (None, None) if size is None else size
    for name, rows, wanted, num in (
        ("x" if x_src is x_dst else "x[0]", x_src, in_channels[0], num_sources),
        ("x" if x_src is x_dst else "x[1]", x_dst, in_channels[1], num_targets),
    ):
        if rows is None and name == "x[1]":
            continue
        check_ndim(name, rows, 2, shape=f"(N, {wanted})")
        if not rows.is_floating_point() or rows.shape[1] != wanted:
            raise ValueError(
                f"`{name}` must be floating point of shape (N, in_channels) = (N, {wanted}), "
                f"got {rows.dtype} {tuple(rows.shape)}."
            )
        if num is not None and num != rows.shape[0]:
            raise ValueError(f"`size` {size} does not fit `{name}` with {rows.shape[0]} rows.")
    if x_dst is not None:
        num_targets = x_dst.shape[0]
    elif num_targets is None:
        num_targets = x_src.shape[0]

    check_ndim("edge_index", edge_index, 2, shape="(2, E)")
    if edge_index.shape[0] != 2:
        raise ValueError(f"`edge_index` must have shape (2, E), got {tuple(edge_index.shape)}.")
    hint = "It must index the rows of `x` (or `size`)."
    check_range("edge_index[0]", edge_index[0], x_src.shape[0], hint)
    check_range("edge_index[1]", edge_index[1], num_targets, hint)
    expected = (edge_index.shape[1], dim)
    if edge_attr is None:
        raise ValueError(
            f"`edge_attr` must hold pseudo-coordinates of shape (E, dim) = {expected}, got None."
        )
    check_ndim("edge_attr", edge_attr, 2, shape=f"(E, dim) = {expected}")
    if not edge_attr.is_floating_point() or edge_attr.shape != expected:
        raise ValueError(
            f"`edge_attr` must be floating point of shape (E, dim) = {expected}, "
            f"got {edge_attr.dtype} {tuple(edge_attr.shape)}."
        )
    return x_src, x_dst, num_targets


def soft_typed_aggregate(
    x: Tensor,
    weight: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    edge_weight: Tensor,
    num_targets: int,
    aggr: str,
) -> Tensor:
    """Return ``out_i = 1 / n_i sum_{e = (j, i)} sum_s a_es x_j W_(type es)``, n_i = 1 or the neighbours of i.

    A target without a neighbour gets 0. Shapes as in `typed_aggregate` with soft types ``(E, S)``.
    """
    if aggr == "mean":
        target = edge_index[1]
        count = torch.bincount(
            target, minlength=num_targets
        )  # an edge counts once, however many its types
        edge_weight = edge_weight / count[target].unsqueeze(1)
    return typed_aggregate(
        x, weight, edge_index, edge_type, edge_weight, num_targets=num_targets, normalize=False
    )
