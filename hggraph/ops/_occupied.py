"""Products of only those directions in which a target has neighbours.

One product over all K directions multiplies rows of zeros too: with 8 edges in 9 directions two fifths of them. On a
CPU, K products over the rows that are there and one more sum are less work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hggraph.ops.segment import csr_pointer, gather_scale_sum

__all__ = ["Occupied"]

_WORTH = 0.8  # share of the pairs with an edge above which one product over all is as quick


@dataclass(frozen=True)
class Occupied:
    """The pairs of direction and target that have an edge, direction by direction.

    Args:
        edges: The edges in the order of the pairs, shape ``(E,)``, long.
        ptr: Bounds of each pair's edges among them, shape ``(M + 1,)``.
        target: Target of each pair, shape ``(M,)``.
        bounds: The pairs of direction k are those from ``bounds[k]`` to ``bounds[k + 1]``.
        num_targets: N.
    """

    edges: Tensor
    ptr: Tensor
    target: Tensor
    bounds: list[int]
    num_targets: int

    @classmethod
    def of(cls, ptr: Tensor, num_directions: int, num_edges: int) -> Occupied | None:
        """Return the pairs of a pointer over targets and directions; None where that would not pay."""
        if ptr.device.type != "cpu" or ptr.shape[0] == 1:
            return None
        counts = ptr.diff().view(-1, num_directions).t()
        present = counts > 0
        pairs = int(present.sum())
        if pairs > _WORTH * counts.numel():
            return None
        target = present.nonzero()[:, 1]
        length = counts[present]
        start = ptr[:-1].view(-1, num_directions).t()[present]
        bounds = F.pad(length.cumsum(0), (1, 0))
        shift = (start - bounds[:-1]).repeat_interleave(length, output_size=num_edges)
        edges = torch.arange(num_edges) + shift
        return cls(edges, bounds, target, [0, *present.sum(1).cumsum(0).tolist()], counts.shape[1])

    def multiply(self, gathered: Tensor, weight: Tensor, product: Callable[..., Tensor], groups: int) -> Tensor:
        """Multiply the pairs' aggregates (M, C) by their direction's matrix and add those of a target."""
        rows = gathered.new_empty(len(self.target), weight.shape[2])
        for k, part in self._parts():
            rows[part] = product(gathered[part, None], weight[k : k + 1], groups)
        order = torch.argsort(self.target, stable=True)
        return gather_scale_sum(rows, csr_pointer(self.target[order], self.num_targets), order, None)

    def multiply_backward(
        self, grad: Tensor, gathered: Tensor, weight: Tensor, product: Callable[..., tuple[Tensor, Tensor]], groups: int
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of `multiply` for aggregates and weight."""
        grad_gathered, grad_weight = torch.empty_like(gathered), torch.zeros_like(weight)
        for k, part in self._parts():
            rows = grad[self.target[part]]
            some, grad_weight[k : k + 1] = product(rows, gathered[part, None], weight[k : k + 1], groups)
            grad_gathered[part] = some.squeeze(1)
        return grad_gathered, grad_weight

    def _parts(self) -> Iterator[tuple[int, slice]]:
        for k, (start, stop) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            if start < stop:
                yield k, slice(start, stop)
