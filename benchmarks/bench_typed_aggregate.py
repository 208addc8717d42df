"""The typed aggregation: HGConv against one matrix product, and against PyG's RGCNConv and GMMConv.

    python -m hggraph.benchmarks.bench_typed_aggregate [--rounds N] [--json FILE] [--quick]

A region graph's size in the middle of a network: 504 nodes, 8 edges to each, 9 directions, 512 channels in and out.

- One GEMM of 504 x (9 * 512) x 512 is the work that is left when gathering costs nothing. The two results cannot
  agree; HGConv is checked against its plain reference instead, in float64.
- RGCNConv and FastRGCNConv with 9 relations, mean, no root weight and no bias is HGConv with all weights 1: results and gradients must
  agree.
- SplineConv with 3 x 3 knots has as many matrices and another function, and runs where PyG's operator is installed.
- GMMConv with 9 Gaussians has as many matrices but another function; hggraph's GMMConv is checked against it, and
  timed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hggraph import HGConv
from hggraph.benchmarks._measure import Agreement, Report, agree, options
from hggraph.benchmarks._roofline import Work, size_of
from hggraph.nn import GMMConv
from hggraph.ops.segment import csr_pointer
from hggraph.ops.typed_aggregate import EPSILON, typed_aggregate_reference

# isort: split
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

TITLE = "Typed aggregation"
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

    def to(self, device: torch.device, dtype: torch.dtype) -> Graph:
        place = (x.to(device, dtype if x.is_floating_point() else x.dtype) for x in vars(self).values())
        return Graph(*place)


def against_reference(layer: HGConv, graph: Graph, tolerance: float) -> Agreement:
    """Compare HGConv with the sum over targets, directions and edges, computed one by one in float64."""
    key = graph.edge_index[1] * TYPES + graph.edge_type
    ptr = csr_pointer(key, len(graph.x) * TYPES)
    strength = graph.edge_weight.double()
    degree = strength.new_zeros(len(graph.x) * TYPES).index_add(0, key, strength)
    coefficient = strength / degree.clamp(min=EPSILON)[key]
    with torch.no_grad():
        got = layer(graph.x, graph.edge_index, graph.edge_type, graph.edge_weight)
        x, weight = graph.x.double(), layer.weight.double()
        want = typed_aggregate_reference(x, weight, coefficient, ptr, graph.edge_index[0], 1)
    return agree("HGConv = its reference in float64", got, want, tolerance)


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
    above = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)

    def run() -> list[Tensor]:
        out = layer(x, *inputs)
        return [out, *torch.autograd.grad(out, wanted, above)]

    return run


def measure(report: Report) -> None:
    """Time everything and report the ratios."""
    setting = report.setting
    nodes, edges, channels = (2032 if setting.on_gpu else 504), 8, 512
    if setting.quick:
        nodes, edges, channels = 20, 4, 8
    graph = Graph.random(nodes, edges, channels).to(setting.device, setting.dtype)
    typed = (graph.edge_index, graph.edge_type)
    soft = (graph.edge_index, graph.edge_attr)
    place = {"device": setting.device, "dtype": setting.dtype}
    hg = HGConv(channels, channels, bias=False).to(**place)
    rgcn = pyg.RGCNConv(channels, channels, TYPES, aggr="mean", root_weight=False, bias=False).to(**place)
    fast = pyg.FastRGCNConv(channels, channels, TYPES, aggr="mean", root_weight=False, bias=False).to(**place)
    gmm = GMMConv(channels, channels, dim=2, kernel_size=TYPES).to(**place)
    pyg_gmm = pyg.GMMConv(channels, channels, dim=2, kernel_size=TYPES).to(**place)
    for other in (rgcn, fast):
        other.weight.data.copy_(hg.weight.data)
    gmm.load_state_dict(pyg_gmm.state_dict())
    left, right = torch.randn(nodes, TYPES * channels, **place), torch.randn(TYPES * channels, channels, **place)

    half = setting.dtype != torch.float32
    as_reference = against_reference(hg, graph, 3e-2 if half else 1e-5)
    gemm = f"GEMM {nodes} x {TYPES * channels} x {channels}"
    weighted = "HGConv, edge weights, forward"
    product = 2 * nodes * TYPES * channels**2
    work = {
        gemm: Work(size_of(left, right, graph.x), product),
        weighted: Work(size_of(graph.x, graph.x, right, *typed), product + 2 * len(graph.edge_type) * channels),
    }
    times = report.time(
        {gemm: lambda: left @ right, weighted: forward(hg, graph.x, *typed, graph.edge_weight)}, work=work
    )
    report.ratio("HGConv / GEMM, forward", times[weighted], times[gemm], as_reference, at_most=1.4)

    # float32 sums in another order; in half precision everything is rounded on the way
    tolerance = 5e-2 if half else 1e-4
    for what, runner in (("forward", forward), ("forward + backward", forward_backward)):
        ours, own_gmm = f"HGConv, {what}", f"hggraph GMMConv, {what}"
        peers = {
            f"PyG RGCNConv, {what}": runner(rgcn, graph.x, *typed),
            f"PyG FastRGCNConv, {what}": runner(fast, graph.x, *typed),
            f"PyG GMMConv, {what}": runner(pyg_gmm, graph.x, *soft),
            f"PyG SplineConv, {what}": lambda runner=runner: spline(runner, graph, channels, place),
        }
        if setting.compile:
            peers[f"HGConv compiled, {what}"] = runner(torch.compile(hg), graph.x, *typed)
        contenders = {ours: runner(hg, graph.x, *typed), own_gmm: runner(gmm, graph.x, *soft)}
        for name, run in peers.items():
            made = report.peer(name, run if "Spline" in name else lambda run=run: run)
            contenders |= {} if made is None else {name: made}
        results = {name: run() for name, run in contenders.items()}
        times = report.time(contenders)
        backward = runner is forward_backward
        gradients = ", gradients too" if backward else ""
        for peer, like, least in (
            ("PyG RGCNConv", ours, (3 if backward else None) if setting.on_gpu else 1.3),
            ("PyG FastRGCNConv", ours, None),
            ("PyG GMMConv", own_gmm, (10 if backward else None) if setting.on_gpu else 5),
        ):
            name = f"{peer}, {what}"
            if name not in times:
                continue
            same = agree(f"{like.partition(',')[0]} = {peer}{gradients}", results[like], results[name], tolerance)
            report.ratio(f"{peer} / HGConv, {what}", times[name], times[ours], same, at_least=least)
            if like is own_gmm:
                report.ratio(f"{peer} / hggraph GMMConv, {what}", times[name], times[own_gmm], same)
        name = f"PyG SplineConv, {what}"
        if name in times:  # another function, of which only the time is compared; ours is tested against it
            least = 10 if setting.on_gpu and backward else None
            report.ratio(f"PyG SplineConv / HGConv, {what}", times[name], times[ours], as_reference, at_least=least)


def spline(runner: Callable[..., Any], graph: Graph, channels: int, place: dict[str, Any]) -> Callable[[], object]:
    """Return PyG's SplineConv with as many matrices, where its operator is installed."""
    conv = pyg.SplineConv(channels, channels, dim=2, kernel_size=3, root_weight=False, bias=False).to(**place)
    return runner(conv, graph.x, graph.edge_index, graph.edge_attr)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=25)
    report = Report(TITLE, args.setting)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
