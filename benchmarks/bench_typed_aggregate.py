"""The typed aggregation: HGConv against one matrix product, and against PyG's RGCNConv and GMMConv.

    python -m benchmarks.bench_typed_aggregate [--rounds N] [--json FILE] [--quick]

A region graph's size in the middle of a network: 504 nodes, 8 edges to each, 9 directions, 512 channels in and out.

- One GEMM of 504 x (9 * 512) x 512 is the work that is left when gathering costs nothing. The two results cannot
  agree; HGConv is checked against its plain reference instead, in float64.
- RGCNConv with 9 relations, mean, no root weight and no bias is HGConv with all weights 1: results and gradients must
  agree.
- GMMConv with 9 Gaussians has as many matrices but another function; hggraph's GMMConv is checked against it, and
  timed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks._measure import Agreement, Report, agree, options
from hggraph import HGConv
from hggraph.nn import GMMConv
from hggraph.ops.segment import csr_pointer
from hggraph.ops.typed_aggregate import EPSILON, typed_aggregate_reference

# isort: split
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

TYPES = 9


@dataclass(frozen=True)
class Graph:
    """Random edges, as many into each node; several may share a direction, and directions may be empty."""

    x: Tensor
    edge_index: Tensor
    edge_type: Tensor
    edge_weight: Tensor
    edge_attr: Tensor

    @classmethod
    def random(cls, nodes: int, edges: int, channels: int) -> Graph:
        generator = torch.Generator().manual_seed(0)
        target = torch.arange(nodes).repeat_interleave(edges)
        source = torch.randint(0, nodes, target.shape, generator=generator)
        # by target, then type: the order in which region_graph gives edges
        edge_type = torch.randint(0, TYPES, (nodes, edges), generator=generator).sort(1).values.flatten()
        return cls(
            torch.randn(nodes, channels, generator=generator),
            torch.stack([source, target]),
            edge_type,
            torch.rand(target.shape, generator=generator) + 0.5,
            torch.rand(*target.shape, 2, generator=generator),
        )


def against_reference(layer: HGConv, graph: Graph) -> Agreement:
    """Compare HGConv with the sum over targets, directions and edges, computed one by one in float64."""
    key = graph.edge_index[1] * TYPES + graph.edge_type
    ptr = csr_pointer(key, len(graph.x) * TYPES)
    strength = graph.edge_weight.double()
    degree = torch.zeros(len(graph.x) * TYPES, dtype=torch.float64).index_add(0, key, strength)
    coefficient = strength / degree.clamp(min=EPSILON)[key]
    with torch.no_grad():
        got = layer(graph.x, graph.edge_index, graph.edge_type, graph.edge_weight)
        x, weight = graph.x.double(), layer.weight.double()
        want = typed_aggregate_reference(x, weight, coefficient, ptr, graph.edge_index[0], 1)
    return agree("HGConv = its reference in float64", got, want, 1e-5)


def forward(layer: nn.Module, *inputs: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return layer(*inputs)

    return run


def forward_backward(layer: nn.Module, x: Tensor, *inputs: Tensor) -> Callable[[], list[Tensor]]:
    """Return what computes the result and the gradients of nodes and parameters."""
    x = x.clone().requires_grad_()
    wanted = [x, *layer.parameters()]
    # a fixed direction from above: gradients of a plain sum would hide mistakes
    above = torch.randn(len(x), layer.out_channels, generator=torch.Generator().manual_seed(1))

    def run() -> list[Tensor]:
        out = layer(x, *inputs)
        return [out, *torch.autograd.grad(out, wanted, above)]

    return run


def measure(report: Report, nodes: int = 504, edges: int = 8, channels: int = 512) -> None:
    """Time everything and report the ratios."""
    graph = Graph.random(nodes, edges, channels)
    typed = (graph.edge_index, graph.edge_type)
    soft = (graph.edge_index, graph.edge_attr)
    hg = HGConv(channels, channels, bias=False)
    rgcn = pyg.RGCNConv(channels, channels, TYPES, aggr="mean", root_weight=False, bias=False)
    gmm = GMMConv(channels, channels, dim=2, kernel_size=TYPES)
    pyg_gmm = pyg.GMMConv(channels, channels, dim=2, kernel_size=TYPES)
    rgcn.weight.data.copy_(hg.weight.data)
    gmm.load_state_dict(pyg_gmm.state_dict())
    left, right = torch.randn(nodes, TYPES * channels), torch.randn(TYPES * channels, channels)

    as_reference = against_reference(hg, graph)
    gemm = f"GEMM {nodes} x {TYPES * channels} x {channels}"
    times = report.time(
        {
            gemm: lambda: left @ right,
            "HGConv, edge weights, forward": forward(hg, graph.x, *typed, graph.edge_weight),
        }
    )
    ours = times["HGConv, edge weights, forward"]
    report.ratio("HGConv / GEMM, forward", ours, times[gemm], as_reference, at_most=1.4)

    for what, runner in (("forward", forward), ("forward + backward", forward_backward)):
        contenders = {
            f"HGConv, {what}": runner(hg, graph.x, *typed),
            f"PyG RGCNConv, {what}": runner(rgcn, graph.x, *typed),
            f"PyG GMMConv, {what}": runner(pyg_gmm, graph.x, *soft),
            f"hggraph GMMConv, {what}": runner(gmm, graph.x, *soft),
        }
        results = {name: run() for name, run in contenders.items()}
        hg_result, rgcn_result, pyg_result, gmm_result = results.values()
        gradients = "" if runner is forward else ", gradients too"
        same_rgcn = agree(f"HGConv = PyG RGCNConv{gradients}", hg_result, rgcn_result, 1e-4)
        same_gmm = agree(f"hggraph GMMConv = PyG GMMConv{gradients}", gmm_result, pyg_result, 1e-4)
        hg_time, rgcn_time, pyg_time, gmm_time = report.time(contenders).values()
        report.ratio(f"PyG RGCNConv / HGConv, {what}", rgcn_time, hg_time, same_rgcn, at_least=1.3)
        # other functions: each is checked against its like
        report.ratio(f"PyG GMMConv / HGConv, {what}", pyg_time, hg_time, same_gmm, at_least=5)
        report.ratio(f"PyG GMMConv / hggraph GMMConv, {what}", pyg_time, gmm_time, same_gmm)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=25)
    report = Report("Typed aggregation", args.rounds, args.quick)
    if args.quick:
        measure(report, nodes=20, edges=4, channels=8)
    else:
        measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
