"""The typed adjacency of regions, dense or as edges."""

from __future__ import annotations

import torch
from torch import Tensor

from hggraph.ops.region_adjacency import strongest_direction, tie
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
        max_direction: Whether only the strongest direction of each pair is there.

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
        max_direction: bool = False,
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
        self.max_direction = max_direction
        self._dense = dense
        self._degree = degree
        self._edges = edges
        self._normalized: Tensor | None = None
        self._restricted: dict[tuple[Stencil, bool], RegionAdjacency] = {}

    @property
    def is_dense(self) -> bool:
        """Whether the weights are held as matrices."""
        return self._dense is not None

    @property
    def _weight(self) -> Tensor:
        if self._dense is not None:
            return self._dense
        assert self._edges is not None
        return self._edges[2]

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
        kept, weight = self._normalized, self._weight
        # what was computed without a graph does not serve where one is needed
        needed = torch.is_grad_enabled() and weight.requires_grad
        if kept is None or (needed and not kept.requires_grad):
            dense = self.to_dense()
            degree = dense.sum(-1) if self._degree is None else self._degree
            kept = dense / degree.unsqueeze(-1).clamp(min=EPSILON)
            self._normalized = None if weight.requires_grad and weight.is_leaf else kept
        return kept

    def restrict(self, stencil: Stencil, *, max_direction: bool = True) -> RegionAdjacency:
        """Return the adjacency in some of the directions, as `Assignment.adjacency` of them would be.

        A pyramid of stencils so has one adjacency, of the largest, computed once.

        Args:
            stencil: Displacements that are all among these.
            max_direction: Keep only the strongest of them for each pair; likewise.

        Returns:
            In the form of this one; kept, so that layers share it. Differentiable.

        Raises:
            ValueError: if a displacement is missing here, or this has the strongest direction of each pair only, which
                may be another than the strongest of fewer.

        Note:
            O(K R^2) for dense weights, a sort for edges. Deterministic.

        Example:
            >>> a = RegionAdjacency(Stencil([(0, -1), (0, 1)]), torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]] * 2]))
            >>> a.restrict(Stencil([(0, 1)])).to_dense()
            tensor([[[[0., 2.],
                      [1., 0.]]]])
        """
        missing = [offset for offset in stencil if offset not in self.stencil.offsets]
        if missing:
            raise ValueError(f"`stencil` must lie in {self.stencil!r}, which lacks {missing[:3]}.")
        if stencil == self.stencil and max_direction == self.max_direction:
            return self
        if self.max_direction:
            raise ValueError(
                f"This adjacency has the strongest of {len(self.stencil)} directions only; to choose among "
                f"{len(stencil)} of them make it with max_direction=False."
            )
        weight, kept = self._weight, self._restricted.get((stencil, max_direction))
        # what was computed without a graph does not serve where one is needed
        needed = torch.is_grad_enabled() and weight.requires_grad
        if kept is None or (needed and not kept._weight.requires_grad):
            kept = self._restrict(stencil, max_direction)
            if not (weight.requires_grad and weight.is_leaf):
                self._restricted[stencil, max_direction] = kept
        return kept

    def _restrict(self, stencil: Stencil, max_direction: bool) -> RegionAdjacency:
        if self._dense is not None:
            dense = self._dense[:, [self.stencil.offsets.index(offset) for offset in stencil]]
            dense = dense * strongest_direction(dense) if max_direction else dense
            return RegionAdjacency(stencil, dense, max_direction=max_direction)
        assert self._edges is not None
        edge_index, edge_type, edge_weight = self._edges
        edge_type = retype(edge_type, self.stencil, stencil)
        nodes = self.batch_size * self.num_regions
        edges = _chosen(edge_type >= 0, edge_index, edge_type, edge_weight)
        if max_direction:
            edges = _chosen(_strongest_edges(*edges[:2], edges[2].detach(), nodes), *edges)
        return RegionAdjacency(
            stencil,
            edges=_sorted(*edges, len(stencil), nodes),
            batch_size=self.batch_size,
            num_regions=self.num_regions,
            max_direction=max_direction,
        )

    def __repr__(self) -> str:
        """Show sizes."""
        form = "dense" if self.is_dense else "edges"
        return f"RegionAdjacency({self.stencil!r}, batch_size={self.batch_size}, regions={self.num_regions}, {form})"


def retype(edge_type: Tensor, stencil: Stencil, fewer: Stencil) -> Tensor:
    """Return the types of edges by a stencil as those by another; -1 for a displacement that it lacks.

    Example:
        >>> retype(torch.tensor([0, 4, 5]), Stencil.square(3), Stencil([(0, 1), (0, 0)])).tolist()
        [-1, 1, 0]
    """
    index = {offset: k for k, offset in enumerate(fewer)}
    return edge_type.new_tensor([index.get(offset, -1) for offset in stencil])[edge_type]


def _strongest_edges(edge_index: Tensor, edge_type: Tensor, weight: Tensor, num_nodes: int) -> Tensor:
    """Mark the strongest edge of each pair of regions; of those equal up to rounding the first type."""
    pairs, pair = torch.unique(edge_index[1] * num_nodes + edge_index[0], return_inverse=True)
    most = weight.new_zeros(len(pairs)).scatter_reduce(0, pair, weight, "amax")
    near = weight >= most[pair] * tie(weight.dtype)
    types = torch.where(near, edge_type, edge_type.new_full((), torch.iinfo(edge_type.dtype).max))
    first = types.new_full((len(pairs),), torch.iinfo(types.dtype).max).scatter_reduce(0, pair, types, "amin")
    return types == first[pair]


def _chosen(mask: Tensor, edge_index: Tensor, edge_type: Tensor, edge_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return edge_index[:, mask], edge_type[mask], edge_weight[mask]


def _sorted(
    edge_index: Tensor, edge_type: Tensor, edge_weight: Tensor, types: int, num_nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return edges by target, then type, then source."""
    source, target = edge_index
    order = torch.argsort((target * types + edge_type) * num_nodes + source)
    return edge_index[:, order], edge_type[order], edge_weight[order]
