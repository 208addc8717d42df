"""The typed aggregation: HGConv against one matrix product, and against PyG's RGCNConv, GMMConv and SplineConv.

    python -m hggraph.benchmarks.bench_typed_aggregate [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Region graphs' size in the middle of a network: 504 nodes (2032 on a GPU), 8 edges to each, 9 directions, 512 channels
in and out.

- One GEMM of 504 x (9 * 512) x 512 is the work that is left when gathering costs nothing, all directions multiplied
  (HGConv may leave out those without a neighbour, and the roofline counts only the others). The two results cannot
  agree; HGConv is checked against its plain reference instead, in float64. DenseHGConv gets the same edges as four
  images (16 on a GPU), those between images left out, and is checked against HGConv on them.
- RGCNConv and FastRGCNConv with 9 relations, mean, no root weight and no bias are HGConv with all weights 1: results
  and gradients must agree.
- GMMConv with 9 Gaussians has as many matrices but another function; hggraph's GMMConv is checked against it, and
  timed beside it. SplineConv with 3 x 3 knots too, where PyG's operator is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hggraph import DenseHGConv, HGConv, RegionAdjacency, Stencil
from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._roofline import Work, size_of
from hggraph.benchmarks._setting import options
from hggraph.nn import GMMConv, SplineConv
from hggraph.ops.segment import csr_pointer
from hggraph.ops.typed_aggregate import EPSILON, typed_aggregate_reference

# isort: split
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

TITLE = "Typed aggregation"
TYPES = 9
RELATIONAL = (pyg.RGCNConv, pyg.FastRGCNConv)


@dataclass(frozen=True)
class Graph:
    """Random edges within images, as many into each node; several may share a direction, some directions are empty."""

    x: Tensor
    edge_index: Tensor
    edge_type: Tensor
    edge_weight: Tensor
    edge_attr: Tensor

    @property
    def occupied(self) -> int:
        """Pairs of a node and a direction in which it has a neighbour: only these rows have to be multiplied."""
        return len((self.edge_index[1] * TYPES + self.edge_type).unique())

    @classmethod
    def random(cls, images: int, regions: int, edges: int, channels: int) -> Graph:
        generator = torch.Generator().manual_seed(0)
        nodes = images * regions
        target = torch.arange(nodes).repeat_interleave(edges)
        source = target - target % regions + torch.randint(0, regions, target.shape, generator=generator)
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
    images, regions, edges, channels = (16, 127, 8, 512) if setting.on_gpu else (4, 126, 8, 512)
    if setting.quick:
        images, regions, edges, channels = 4, 5, 4, 8
    graph = Graph.random(images, regions, edges, channels).to(setting.device, setting.dtype)
    hg = HGConv(channels, channels, bias=False).to(setting.device, setting.dtype)
    as_reference = against_reference(hg, graph, 1e-5 if setting.dtype == torch.float32 else 3e-2)
    against_gemm(report, hg, graph, regions, as_reference)
    for backward in (False, True):
        against_pyg(report, hg, graph, backward)


def against_gemm(report: Report, hg: HGConv, graph: Graph, regions: int, as_reference: Agreement) -> None:
    """Time both layers and the one product that they cannot do without."""
    nodes, channels = graph.x.shape
    left, right = graph.x.repeat(1, TYPES), hg.weight.detach().flatten(0, 1)
    dense = DenseHGConv(channels, channels, bias=False).to(graph.x)
    dense.load_state_dict(hg.state_dict())
    (source, target), image = graph.edge_index, graph.edge_index[0] // regions
    strength = graph.edge_weight.new_zeros(nodes // regions, TYPES, regions, regions)
    place = (image, graph.edge_type, target % regions, source % regions)
    strength.index_put_(place, graph.edge_weight, accumulate=True)
    rows = graph.x.view(-1, regions, channels)

    def run_dense() -> Tensor:
        with torch.no_grad():  # a used adjacency has its normalised form
            return dense(rows, RegionAdjacency(Stencil.square(3), strength)).flatten(0, 1)

    gemm, ours = f"GEMM {nodes} x {TYPES * channels} x {channels}", "HGConv, edge weights, forward"
    contenders = {
        gemm: lambda: left @ right,
        ours: forward(hg, graph.x, graph.edge_index, graph.edge_type, graph.edge_weight),
        "DenseHGConv, forward": run_dense,
    }
    as_sparse = agree("DenseHGConv = HGConv", run_dense(), contenders[ours](), 10 * as_reference.tolerance)
    product, least = (2 * rows * channels**2 for rows in (nodes * TYPES, graph.occupied))
    moved = size_of(graph.x, graph.x, right)
    work = {
        gemm: Work(moved + size_of(left) - size_of(graph.x), product),
        ours: Work(moved + size_of(graph.edge_index, graph.edge_type, graph.edge_weight), least),
        "DenseHGConv, forward": Work(moved + size_of(strength), least),
    }
    times = report.time(contenders, work=work)
    report.ratio("HGConv / GEMM, forward", times[ours], times[gemm], as_reference, at_most=1.4)
    report.ratio("DenseHGConv / GEMM, forward", times["DenseHGConv, forward"], times[gemm], as_sparse)


def against_pyg(report: Report, hg: HGConv, graph: Graph, backward: bool) -> None:
    """Time PyG's layers, each with HGConv, and where it is another function with hggraph's layer of its name."""
    setting, channels = report.setting, graph.x.shape[1]
    runner, what = (forward_backward, "forward + backward") if backward else (forward, "forward")
    typed, soft = (graph.edge_index, graph.edge_type), (graph.edge_index, graph.edge_attr)
    relations = [kind(channels, channels, TYPES, aggr="mean", root_weight=False, bias=False) for kind in RELATIONAL]
    for layer in relations:
        layer.weight.data.copy_(hg.weight.data)
    gmm, pyg_gmm = (kind(channels, channels, dim=2, kernel_size=TYPES) for kind in (GMMConv, pyg.GMMConv))
    gmm.load_state_dict(pyg_gmm.state_dict())
    own_spline = SplineConv(channels, channels, dim=2, kernel_size=3, root_weight=False, bias=False)

    def pyg_spline() -> nn.Module:
        layer = pyg.SplineConv(channels, channels, dim=2, kernel_size=3, root_weight=False, bias=False)
        layer.load_state_dict(own_spline.state_dict())
        return layer

    def run(layer: nn.Module, inputs: tuple[Tensor, Tensor]) -> Callable[[], object]:
        return runner(layer.to(graph.x), graph.x, *inputs)

    makers: dict[str, Callable[[], Callable[[], object]]] = {
        f"PyG {type(layer).__name__}": lambda layer=layer: run(layer, typed) for layer in relations
    }
    makers |= {"PyG GMMConv": lambda: run(pyg_gmm, soft), "PyG SplineConv": lambda: run(pyg_spline(), soft)}
    contenders = {
        "HGConv": run(hg, typed),
        "hggraph GMMConv": run(gmm, soft),
        "hggraph SplineConv": run(own_spline, soft),
    }
    for name, make in makers.items():
        label, before = f"{name}, {what}", f"{name}, forward"
        if before in report.absent:  # what failed or was too slow forward
            report.absent[label] = report.absent[before]
        elif (made := report.peer(label, make)) is not None:
            contenders[name] = made
    for name, layer in (("HGConv", hg), ("PyG RGCNConv", relations[0])):
        made = report.compiled(f"{name} compiled, {what}", layer, lambda layer: run(layer, typed))
        contenders |= {} if made is None else {f"{name} compiled": made}

    results = {name: run() for name, run in contenders.items()}
    # a gradient in x and one in the weights cost as much as the result; soft types occupy all directions
    passes = 3 if backward else 1
    moved, every = passes * size_of(graph.x, graph.x, hg.weight), len(graph.x) * TYPES
    rows = {name: every if "GMM" in name or "Spline" in name else graph.occupied for name in contenders}
    labels = {name: f"{name}, {what}" for name in contenders}
    times = report.time(
        {labels[name]: run for name, run in contenders.items()},
        work={labels[name]: Work(moved, passes * 2 * rows[name] * channels**2) for name in contenders},
    )
    # float32 sums in another order; in half precision everything is rounded on the way
    tolerance = 1e-4 if setting.dtype == torch.float32 else 5e-2
    gradients = ", gradients too" if backward else ""
    for peer, like, on_gpu, on_cpu in (
        ("PyG RGCNConv", "HGConv", 3, 1.3),
        ("PyG FastRGCNConv", "HGConv", None, None),
        ("PyG GMMConv", "hggraph GMMConv", 10, 5),
        ("PyG SplineConv", "hggraph SplineConv", 10, None),
        ("PyG RGCNConv compiled", "HGConv", None, None),
        ("HGConv compiled", "HGConv", None, None),
    ):
        if peer not in contenders:
            continue
        same = agree(f"{like} = {peer}{gradients}", results[like], results[peer], tolerance)
        target = (on_gpu if backward else None) if setting.on_gpu else on_cpu
        time = times[labels[peer]]
        report.ratio(f"{peer} / HGConv, {what}", time, times[labels["HGConv"]], same, at_least=target)
        if like != "HGConv":
            report.ratio(f"{peer} / {like}, {what}", time, times[labels[like]], same)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=25)
    report = Report("typed_aggregate", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
