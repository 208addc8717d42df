"""The typed adjacency of regions, dense or as edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_ndim, check_range
from hggraph.graph._bundle import Bundle
from hggraph.graph.grid_graph import grid_graph
from hggraph.ops._distance import compute_dtype
from hggraph.ops.region_adjacency import strongest_direction, tie
from hggraph.ops.typed_aggregate import EPSILON
from hggraph.stencil import Stencil

__all__ = ["RegionAdjacency"]

_DENSE_LIMIT = 1 << 30  # entries of a dense form made from edges: 4 GiB of float32


class RegionAdjacency(Bundle):
    """How strongly regions touch in each direction of a stencil (HG-Conv Eq. 4, 7 and appendix B).

    ``A_k[i, j]`` is the strength with which region j lies in direction k of region i. The weights are raw; layers
    divide each row by its degree ``max(sum_j A_k[i, j], 1e-7)`` when they use them. It can be pickled, loaded with
    ``torch.load(weights_only=True)`` once hggraph is imported, and is a pytree of its tensors.

    Args:
        stencil: The K directions.
        dense: Weights, shape ``(B, K, R, R)``, target before source; or None when `edges` is given.
        degree: Sums of `dense` over the sources, shape ``(B, K, R)``; computed when needed if None.
        edges: ``(edge_index (2, E), edge_type (E,), edge_weight (E,))`` over the flat node index ``b * R + r``.
        grid: Rows and columns of nodes that are the neighbours of a grid, region ``row * columns + column``: the
            adjacency of `grid_graph`, of which nothing is stored; a layer on it is a convolution over the nodes.
        like: A tensor that says device and floating-point type, needed with `grid`.
        batch_size: B, needed with `edges` and `grid`.
        num_regions: R, needed with `edges`.
        max_direction: Whether only the strongest direction of each pair is there.

    Raises:
        ValueError: if shapes disagree or, on the CPU, an edge has a type or a region that does not exist, or joins
            two images.

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
        grid: tuple[int, int] | None = None,
        like: Tensor | None = None,
        batch_size: int = 0,
        num_regions: int = 0,
        max_direction: bool = False,
    ) -> None:
        if (dense is not None) + (edges is not None) + (grid is not None) != 1:
            raise ValueError("Give one of `dense`, `edges` and `grid`.")
        if dense is not None:
            if dense.dim() != 4 or dense.shape[1] != len(stencil) or dense.shape[2] != dense.shape[3]:
                raise ValueError(
                    f"`dense` must have shape (B, K, R, R) with K = {len(stencil)}, got {tuple(dense.shape)}."
                )
            batch_size, num_regions = dense.shape[0], dense.shape[2]
            if degree is not None and degree.shape != dense.shape[:3]:
                raise ValueError(f"`degree` must have shape {tuple(dense.shape[:3])}, got {tuple(degree.shape)}.")
        if edges is not None:
            _check_edges(edges, batch_size, len(stencil), num_regions)
        parts: tuple[Tensor | None, ...] = (dense, degree) if edges is None else edges
        if grid is not None:
            if like is None or stencil.ndim != 2:
                raise ValueError(f"A `grid` needs `like` and a stencil of two axes, got {like} and {stencil!r}.")
            parts, num_regions, max_direction = (like.new_empty(0),), grid[0] * grid[1], True
        rest = (stencil, batch_size, num_regions, max_direction, grid)
        self._fill([part for part in parts if part is not None], rest)

    def _fill(self, tensors: list[Any], rest: tuple[Stencil, int, int, bool, Any]) -> RegionAdjacency:
        """Set what is stored of one of the three forms, and what is no tensor; nothing is checked."""
        self.stencil, self.batch_size, self.num_regions, self.max_direction, self.grid = rest
        self._edges = (tensors[0], tensors[1], tensors[2]) if len(tensors) == 3 else None
        self._dense, self._degree = (None, None)
        self._like = tensors[0] if self.grid is not None else None  # empty
        if self._edges is None and self._like is None:
            self._dense, self._degree = (*tensors, None)[:2]
        self._normalized: Tensor | None = None
        self._restricted: dict[tuple[Stencil, bool], RegionAdjacency] = {}
        return self

    def _parts(self) -> tuple[list[Any], tuple[Stencil, int, int, bool, Any]]:
        """Return what `_fill` takes."""
        tensors = (self._dense, self._degree, self._like) if self._edges is None else self._edges
        rest = (self.stencil, self.batch_size, self.num_regions, self.max_direction, self.grid)
        return [tensor for tensor in tensors if tensor is not None], rest

    @property
    def is_dense(self) -> bool:
        """Whether the weights are held as matrices."""
        return self._dense is not None

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        if self._dense is not None:
            return self._dense
        return self._like if self._edges is None else self._edges[2]  # type: ignore[return-value]

    def to_dense(self) -> Tensor:
        """Return the raw weights A_k[i, j], shape ``(B, K, R, R)``, target i before source j.

        Raises:
            ValueError: if they are held as edges and the matrices would have more than 2^30 entries.
        """
        if self._dense is not None:
            return self._dense
        shape = (self.batch_size, len(self.stencil), self.num_regions, self.num_regions)
        if shape[0] * shape[1] * shape[2] * shape[3] > _DENSE_LIMIT:
            raise ValueError(f"Dense adjacency matrices of shape {shape} are too large; use `to_edges()`.")
        (source, target), edge_type, edge_weight = self.to_edges()
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
        if self.grid is not None:
            graph = grid_graph(self.grid, self.stencil, batch_size=max(1, self.batch_size), device=self._weight.device)
            count = len(graph.edge_type) if self.batch_size else 0  # no images, no edges
            return graph.edge_index[:, :count], graph.edge_type[:count], self._weight.new_ones(count)
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
        if kept is None or not self._serves(kept):
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
        if self.grid is not None:
            return RegionAdjacency(stencil, grid=self.grid, like=self._like, batch_size=self.batch_size)
        if self.max_direction:
            raise ValueError(
                f"This adjacency has the strongest of {len(self.stencil)} directions only; to choose among "
                f"{len(stencil)} of them make it with max_direction=False."
            )
        weight, kept = self._weight, self._restricted.get((stencil, max_direction))
        if kept is None or not self._serves(kept._weight):
            kept = self._restrict(stencil, max_direction)
            if not (weight.requires_grad and weight.is_leaf):
                self._restricted[stencil, max_direction] = kept
        return kept

    def _serves(self, kept: Tensor) -> bool:
        """Say whether what was computed before can be differentiated where it is used now."""
        needed = torch.is_grad_enabled() and self._weight.requires_grad
        if needed and not kept.requires_grad:
            return False
        # torch.compile cannot ask; what one graph computes and uses is of one mode
        return torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not kept.is_inference()

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
        form = "dense" if self.is_dense else "edges" if self.grid is None else f"grid={self.grid}"
        return f"RegionAdjacency({self.stencil!r}, batch_size={self.batch_size}, regions={self.num_regions}, {form})"


torch.serialization.add_safe_globals([Stencil])  # what it is saved with


def _check_edges(edges: Any, batch_size: int, directions: int, num_regions: int) -> None:
    if len(edges) != 3:
        raise ValueError(f"`edges` must be (edge_index, edge_type, edge_weight), got {len(edges)} parts.")
    edge_index, edge_type, edge_weight = edges
    check_ndim("edge_index", edge_index, 2, shape="(2, E)")
    count = edge_index.shape[1]
    for name, part, shape in (
        ("edge_index", edge_index, (2, count)),
        ("edge_type", edge_type, (count,)),
        ("edge_weight", edge_weight, (count,)),
    ):
        if part.shape != shape:
            raise ValueError(f"`{name}` of `edges` must have shape {shape}, got {tuple(part.shape)}.")
    if edge_index.device.type != "cpu" or torch.compiler.is_compiling():
        return
    check_range("edge_type", edge_type, directions, "Were the edges made with another stencil?")
    check_range("edge_index", edge_index, batch_size * num_regions, "Do `batch_size` and `num_regions` fit the edges?")
    if count and bool((edge_index[0] // num_regions != edge_index[1] // num_regions).any()):
        raise ValueError(f"`edges` must stay in an image of {num_regions} regions, got one that joins two images.")


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
    weight = weight.to(compute_dtype(weight))
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
