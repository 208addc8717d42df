"""The pixel graph of an image: on it, graph convolution is convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data

from hggraph._check import check_positive
from hggraph.stencil import Stencil

__all__ = ["grid_graph"]


def grid_graph(
    size: Sequence[int],
    stencil: Stencil,
    *,
    stride: int | Sequence[int] = 1,
    batch_size: int = 1,
    device: torch.device | str | None = None,
) -> Data:
    """Return the graph on which HGConv equals a convolution (HG-Conv Eq. 1 and 2).

    Args:
        size: (H, W), or (T, H, W) for video, in pixels, each at least 1.
        stencil: Directions; the same number of axes as `size`.
        stride: Step between targets, one number or one per axis. With more than 1 the targets are the nodes of
            the smaller grid of ``ceil(size / stride)``, target t standing at pixel ``t * stride``.
        batch_size: Number of images; image b has the nodes ``b * P ... b * P + P - 1``, row by row.
        device: Where the tensors live.

    Returns:
        A `Data` with ``edge_index`` (2, E) sorted by target, then type, ``edge_type`` (E,), ``pos`` (N, ndim) in
        pixels, float, ``batch`` (N,), ``num_nodes`` and ``num_targets``. A displacement that leaves the image
        makes no edge.

    Raises:
        ValueError: if a number is below 1 or the axes do not fit.

    Example:
        >>> graph = grid_graph((2, 2), Stencil.square(3))
        >>> graph.num_nodes, graph.edge_index.shape[1]
        (4, 16)
    """
    size = tuple(int(length) for length in size)
    strides = tuple(stride) if isinstance(stride, Sequence) else (stride,) * len(size)
    if len(size) != stencil.ndim or len(strides) != stencil.ndim:
        raise ValueError(
            f"`size` {size} and `stride` {strides} must have one number for each of the {stencil.ndim} axes of "
            f"{stencil!r}."
        )
    for name, values in (("size", size), ("stride", strides)):
        for value in values:
            check_positive(name, value)
    check_positive("batch_size", batch_size)

    inside, flat = torch.ones(1, 1, dtype=torch.bool, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
    offsets = torch.tensor(stencil.offsets, device=device)  # (K, ndim)
    for axis, (length, step) in enumerate(zip(size, strides, strict=True)):
        reads = torch.arange(0, length, step, device=device)[:, None] + offsets[:, axis]  # (targets, K)
        inside = (inside[:, None] & ((reads >= 0) & (reads < length))[None]).flatten(0, 1)
        flat = (flat[:, None] * length + reads[None]).flatten(0, 1)
    target, edge_type = inside.nonzero(as_tuple=True)
    source = flat[target, edge_type]

    num_nodes, num_targets = int(torch.tensor(size).prod()), inside.shape[0]
    image = torch.arange(batch_size, device=device)[:, None]
    edge_index = torch.stack([(source + image * num_nodes).flatten(), (target + image * num_targets).flatten()])
    return Data(
        edge_index=edge_index,
        edge_type=edge_type.repeat(batch_size),
        pos=_positions(size, device).repeat(batch_size, 1),
        batch=image.expand(-1, num_nodes).flatten(),
        num_nodes=batch_size * num_nodes,
        num_targets=batch_size * num_targets,
    )


def _positions(size: Sequence[int], device: torch.device | str | None) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(length, device=device) for length in size), indexing="ij")
    return torch.stack(axes, -1).flatten(0, -2).float()
