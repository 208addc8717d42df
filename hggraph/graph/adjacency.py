"""The typed adjacency of regions, dense or as edges."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph.ops.typed_aggregate import EPSILON
from hggraph.stencil import Stencil

__all__ = ["RegionAdjacency"]

_DENSE_LIMIT = 1 << 30  # entries of a dense form made from edges: 4 GiB of float32


class RegionAdjacency:
    """How strongly regions touch in each direction of a stencil (HG-Conv Eq. 4, 7 and appendix B).

    ``A_k[i, j]`` is the strength with which region j lies in direction k of region i. The weights are raw; layers
    divide each row by its degree ``max(sum_j A_k[i, j], 1e-7)`` when they use them.

    Args:
        stencil: The K directions.
        dense: Weights, shape ``(B, K, R, R)``, target before source; or None when `edges` is given.
        degree: Sums of `dense` over the sources, shape ``(B, K, R)``; computed when needed if None.
        edges: ``(edge_index (2, E), edge_type (E,), edge_weight (E,))`` over the flat node index ``b * R + r``.
        batch_size: B, needed with `edges`.
        num_regions: R, needed with `edges`.

    Example:
        >>> a = RegionAdjacency(Stencil([(0, 1)]), torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]]))
        >>> a.to_edges()
        (tensor([[1],
                [0]]), tensor([0]), tensor([2.]))
    """

    def __init__(
        self,
        stencil: Stencil,
        dense: Tensor | None = None,
        *,
        degree: Tensor | None = None,
        edges: tuple[Tensor, Tensor, Tensor] | None = None,
        batch_size: int = 0,
        num_regions: int = 0,
    ) -> None:
        if (dense is None) == (edges is None):
            raise ValueError("Give either `dense` or `edges`.")
        if dense is not None:
            if dense.dim() != 4 or dense.shape[1] != len(stencil) or dense.shape[2] != dense.shape[3]:
                raise ValueError(
                    f"`dense` must have shape (B, K, R, R) with K = {len(stencil)}, got {tuple(dense.shape)}."
                )
            batch_size, num_regions = dense.shape[0], dense.shape[2]
        self.stencil = stencil
        self.batch_size = batch_size
        self.num_regions = num_regions
        self._dense = dense
        self._degree = degree
        self._edges = edges
        self._normalized: Tensor | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the weights are held as matrices."""
        return self._dense is not None

    def to_dense(self) -> Tensor:
        """Return the raw weights A_k[i, j], shape ``(B, K, R, R)``, target i before source j.

        Raises:
            ValueError: if they are held as edges and the matrices would have more than 2^30 entries.
        """
        if self._dense is not None:
            return self._dense
        assert self._edges is not None
        shape = (self.batch_size, len(self.stencil), self.num_regions, self.num_regions)
        if shape[0] * shape[1] * shape[2] * shape[3] > _DENSE_LIMIT:
            raise ValueError(f"Dense adjacency matrices of shape {shape} are too large; use `to_edges()`.")
        (source, target), edge_type, edge_weight = self._edges
        regions = self.num_regions
        index = (target // regions, edge_type, target % regions, source % regions)
        return edge_weight.new_zeros(shape).index_put(index, edge_weight)

    def to_edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the connections as edges.

        Returns:
            ``edge_index`` (2, E), ``edge_type`` (E,) and ``edge_weight`` (E,), sorted by target, then type, over
            the flat node index ``b * R + r``; the edges of the centre direction (each region to itself) are
            among them. Differentiable in the weights. Synchronises a GPU.
        """
        if self._edges is not None:
            return self._edges
        assert self._dense is not None
        by_target = self._dense.transpose(1, 2)  # (B, R, K, R)
        image, target, edge_type, source = by_target.nonzero(as_tuple=True)
        edge_index = torch.stack([source, target]) + image * self.num_regions
        return edge_index, edge_type, by_target[image, target, edge_type, source]

    def normalized(self) -> Tensor:
        """Return ``D_k^-1 A_k``, shape ``(B, K, R, R)``; a row without a neighbour stays 0.

        Computed once, unless the weights are a parameter, which may change and be differentiated again.
        """
        kept, weight = self._normalized, self._dense if self._edges is None else self._edges[2]
        assert weight is not None
        # what was computed without a graph does not serve where one is needed
        needed = torch.is_grad_enabled() and weight.requires_grad
        if kept is None or (needed and not kept.requires_grad):
            dense = self.to_dense()
            degree = dense.sum(-1) if self._degree is None else self._degree
            kept = dense / degree.unsqueeze(-1).clamp(min=EPSILON)
            self._normalized = None if weight.requires_grad and weight.is_leaf else kept
        return kept

    def __repr__(self) -> str:
        """Show sizes."""
        form = "dense" if self.is_dense else "edges"
        return f"RegionAdjacency({self.stencil!r}, batch_size={self.batch_size}, regions={self.num_regions}, {form})"
