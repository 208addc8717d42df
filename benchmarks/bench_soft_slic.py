"""The graph part of a stage: three steps of soft SLIC, pooling and adjacency.

    python -m hggraph.benchmarks.bench_soft_slic [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Each operator against the plain reference that reads like its equation, run by PyTorch: distances of all pairs, an
exponential, a division, a product. The whole part in one row, with its share of the roofline: the map is read once for
each pass. Then clustering as training needs it, forward and backward: the default against the paper's form, and a
quarter of the pixels as regions against one for 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hggraph import SoftSLIC, Stencil, ops
from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._roofline import Work, size_of
from hggraph.benchmarks._setting import options

# isort: split
import torch
from torch import Tensor

TITLE = "Soft SLIC and the region graph of a feature map"
STEPS = 3


def eager_assign(x: Tensor, centers: Tensor, threshold: float) -> Tensor:
    """Return the soft assignment as the algorithm prints it, distances by `torch.cdist`."""
    distance = torch.cdist(centers, x.mT).square()  # (B, R, P)
    weight = torch.exp(-distance)
    weight = weight * (weight > threshold)
    nearest = torch.zeros_like(weight).scatter(1, distance.argmin(1, keepdim=True), 1)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, nearest)
    return weight / weight.sum(1, keepdim=True)


def eager_update(x: Tensor, centers: Tensor) -> Tensor:
    """Return the centres' weighted means as the algorithm prints it."""
    weight = torch.exp(-torch.cdist(centers, x.mT).square())
    return (weight / weight.sum(2, keepdim=True)) @ x.mT


def measure(report: Report) -> None:
    """Time the two operators against eager PyTorch, and the whole graph part."""
    setting = report.setting
    batch, side, channels = (16, 90, 1024) if setting.on_gpu else (1, 90, 1024)
    if setting.quick:
        batch, side, channels = 2, 12, 8
    generator = torch.Generator().manual_seed(0)
    regions = side * side // 64 + 1
    x = torch.randn(batch, channels, side, side, generator=generator).to(setting.device, setting.dtype)
    pixels = x.flatten(2) / (2 * channels) ** 0.5  # distances about 1
    seeds = torch.randperm(side * side, generator=generator)[:regions].to(setting.device)
    centers = pixels[:, :, seeds].mT.float().contiguous()
    wide = pixels.float()
    slic = SoftSLIC(num_regions=regions, iterations=STEPS).to(setting.device).eval()

    def graph_part() -> Tensor:
        assignment = slic(x)
        assignment.pool(x)
        return assignment.adjacency(Stencil.square(3)).to_dense()

    contenders = {
        "soft_assign": lambda: ops.soft_assign(pixels, centers),
        "soft_assign, eager": lambda: eager_assign(wide, centers, 1e-3),
        "centre_update": lambda: ops.centre_update(pixels, centers),
        "centre_update, eager": lambda: eager_update(wide, centers),
        "graph part": graph_part,
    }
    with torch.inference_mode():
        for name in ("soft_assign, eager", "centre_update, eager"):
            run = report.compiled(f"{name}, compiled", contenders[name])
            contenders |= {} if run is None else {f"{name}, compiled": run}
    product = 2 * batch * regions * side**2 * channels
    assignment = 4 * batch * regions * side**2
    entries = min(regions, slic.candidates or regions)
    near = 2 * batch * entries * side**2 * channels
    graph = near // entries + 2 * STEPS * near + 8 * batch * side**2 * regions**2
    work = {
        "soft_assign": Work(size_of(pixels, centers) + assignment, product),
        "centre_update": Work(size_of(pixels, centers, centers), 2 * product),
        # the scale, first means, two updates, an assignment and the pooling; four products of assignments
        "graph part": Work(size_of(x) * (STEPS + 3) + 8 * batch * entries * side**2, graph),
    }
    with torch.inference_mode():
        results = {name: run() for name, run in contenders.items()}
        times = report.time(contenders, work=work)
    tolerance = 1e-3 if setting.dtype == torch.float32 else 3e-2  # cdist squares a root
    for name in ("soft_assign", "centre_update"):
        for peer in (f"{name}, eager", f"{name}, eager, compiled"):
            if peer in times:
                same = agree(f"{name} = {peer}", results[name], results[peer], tolerance)
                report.ratio(f"{peer} / {name}", times[peer], times[name], same)
    if setting.on_gpu:
        report.bound("graph part, ms a batch of 16", 1e3 * times["graph part"].median, at_most=1.2)
    if "graph part" in report.shares:
        least = 0.6 if setting.on_gpu else None
        report.bound("graph part, share of the roofline", report.shares["graph part"], at_least=least)


def training(report: Report) -> None:
    """Time clustering with its gradient inside an HG stage: what there was before, what there is, and many regions."""
    setting = report.setting
    batch, side, channels = (16, 90, 1024) if setting.on_gpu else (1, 90, 1024)
    few, many = 127, 2025
    if setting.quick:
        batch, side, channels, few, many = 1, 24, 8, 9, 144
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, side, side, generator=generator).to(setting.device, setting.dtype)
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2).requires_grad_()  # neighbours are alike
    cotangent = torch.randn(batch, 1, side * side, generator=generator).to(setting.device)
    forms = {
        f"clustering, the paper's form, {few} regions": SoftSLIC.paper(num_regions=few, feature_scale="auto"),
        f"clustering, {few} regions": SoftSLIC(num_regions=few),
        f"clustering, {many} regions": SoftSLIC(num_regions=many),
    }

    def both_ways(slic: SoftSLIC) -> Callable[[], Tensor]:
        def run() -> Tensor:
            weight = slic(x).weight
            share = torch.linspace(0, 1, weight.shape[1], device=weight.device)[:, None]
            return torch.autograd.grad((weight * share * cotangent).sum(), x)[0]

        return run

    contenders = {name: both_ways(slic.to(setting.device).eval()) for name, slic in forms.items()}
    same = all_listed_is_all(x.detach()[:, :, :12, :12])
    paper, ours, fine = report.time(contenders, warmup=1).values()
    names = list(contenders)
    report.ratio(f"{names[0]} / {names[1]}, forward and backward", paper, ours, same, at_least=2)
    report.ratio(f"{names[2]} / {few}, forward and backward", fine, ours, same, at_most=1.5)
    if names[1] in report.memory and names[2] in report.memory:
        share = report.memory[names[2]] / report.memory[names[1]]
        report.bound(f"{names[2]} / {few}, memory forward and backward", share, at_most=1.5)


def all_listed_is_all(x: Tensor) -> Agreement:
    """Compare lists of all regions with the matrices of all pairs, gradients too."""
    found = []
    for candidates in (9, None):
        given = x.double().requires_grad_()
        slic = SoftSLIC(num_regions=9, candidates=candidates, position=0.0).eval()
        s = slic(given).to_dense()
        found.append([s, *torch.autograd.grad(s.square().sum(), given)])
    return agree("clustering, all regions listed = matrices, gradients too", *found, 1e-9)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=9)
    report = Report("soft_slic", TITLE, args.setting, args.roofline)
    measure(report)
    training(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
