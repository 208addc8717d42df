"""What SplineConv and GMMConv share: PyG's bipartite input, its checks, the mean of messages."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_one_device, check_positive, check_range
from hggraph.ops.typed_aggregate import check_edge_index, typed_aggregate

__all__ = ["AGGREGATIONS", "channels", "check_aggr", "endpoints", "soft_typed_aggregate"]

AGGREGATIONS = ("mean", "add")


def check_aggr(aggr: str, layer: str) -> None:
    """Raise unless `aggr` is one that a typed aggregation computes."""
    if aggr not in AGGREGATIONS:
        raise ValueError(
            f"`aggr` must be one of {AGGREGATIONS}, got {aggr!r}. "
            f"torch_geometric.nn.{layer} has others, and the same state_dict."
        )


def channels(in_channels: int | tuple[int, int], out_channels: int) -> tuple[int, int]:
    """Return the channels of sources and targets; raise unless all numbers are at least 1."""
    if isinstance(in_channels, tuple) and len(in_channels) != 2:
        raise ValueError(f"`in_channels` must be a number or a pair, got {in_channels!r}.")
    pair = in_channels if isinstance(in_channels, tuple) else (in_channels, in_channels)
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
    """Return the sources' features, the targets' or None, and the number of targets, all checked.

    Args:
        x: Features ``(N, C)``, or a pair: sources ``(N_s, C_s)``, targets ``(N_t, C_t)`` or None.
        edge_index: Sources and targets, shape ``(2, E)``, long.
        edge_attr: Pseudo-coordinates, shape ``(E, dim)``, floating point.
        size: Numbers of sources and of targets, as PyG's layers take them.
        in_channels: Channels of sources and of targets.
        dim: Number of pseudo-coordinates.

    Raises:
        ValueError: if anything is missing, does not fit or is out of range; the text names it.
    """
    if not isinstance(x, Tensor) and not (isinstance(x, tuple | list) and len(x) == 2):
        raise TypeError(f"`x` must be a torch.Tensor or a pair of them, got {type(x).__name__}.")
    x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
    num_sources, num_targets = (None, None) if size is None else size
    names = ("x", "x") if isinstance(x, Tensor) else ("x[0]", "x[1]")
    _check_rows(names[0], x_src, in_channels[0], num_sources)
    if x_dst is not None:
        _check_rows(names[1], x_dst, in_channels[1], num_targets)
        num_targets = x_dst.shape[0]
    elif num_targets is None:
        num_targets = x_src.shape[0]

    check_edge_index(edge_index)
    check_one_device(x=x_src, targets=x_dst, edge_index=edge_index)
    check_range("edge_index[0]", edge_index[0], x_src.shape[0], "It must index the sources in `x`.")
    hint = "It must index the targets in `x`, or fit `size`."
    check_range("edge_index[1]", edge_index[1], num_targets, hint)

    expected = (edge_index.shape[1], dim)
    if edge_attr is None:
        raise ValueError(f"`edge_attr` must hold pseudo-coordinates of shape (E, dim) = {expected}, got None.")
    check_ndim("edge_attr", edge_attr, 1, 2, shape=f"(E, dim) = {expected}")
    if not edge_attr.is_floating_point() or edge_attr.shape != expected:
        raise ValueError(
            f"`edge_attr` must be floating point of shape (E, dim) = {expected}, "
            f"got {edge_attr.dtype} {tuple(edge_attr.shape)} for `edge_index` {tuple(edge_index.shape)}."
        )
    check_one_device(x=x_src, edge_attr=edge_attr)
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
    """Return ``out_i = (1 / n_i) sum_{e = (j, i)} sum_s a_es x_j W_(type of e and s)``.

    With n_i the number of edges into i for the mean and 1 for the sum; a target without an edge
    gets 0. Shapes as in `typed_aggregate` with soft types ``(E, S)``.
    """
    if aggr == "mean":
        target = edge_index[1].long()
        count = torch.bincount(target, minlength=num_targets)  # edges, not edges times types
        edge_weight = edge_weight / count[target].unsqueeze(1)
    return typed_aggregate(x, weight, edge_index, edge_type, edge_weight, num_targets=num_targets, normalize=False)


def _check_rows(name: str, x: Tensor, in_channels: int, num: int | None) -> None:
    check_ndim(name, x, 2, shape=f"(N, in_channels) = (N, {in_channels})")
    if not x.is_floating_point() or x.shape[1] != in_channels:
        raise ValueError(
            f"`{name}` must be floating point of shape (N, in_channels) = (N, {in_channels}), "
            f"got {x.dtype} {tuple(x.shape)}."
        )
    if num is not None and num != x.shape[0]:
        raise ValueError(f"`size` must fit `{name}` with {x.shape[0]} rows, got {num}.")
