"""The HG stage against the dense stage that it replaces: stage 4 of a stride-8 ResNet-101 at 713 x 713.

    python -m hggraph.benchmarks.bench_hg_stage [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Inference; one image in float32 on the CPU, sixteen in bfloat16 on a GPU, and there one image by CUDA graphs too. Both
get the same (1, 1024, 90, 90) map: scikit-learn's sample photo, scaled to 713 x 713, through the first three stages.
Weights are random, since nothing is downloaded; the statistics of the batch normalisations are the photo's. The HG
stage is everything that stands in the dense stage's place: scaling, seeds, 3 steps of soft SLIC, pooling, adjacency,
three bottlenecks, unpooling, and the 1x1 convolution over input and result, which the dense stage does not have. Each
side runs in both memory formats, and its fastest way counts.

Before that, one region per pixel on a small map has to give the dense stage with dilation 1: in float64, and on a GPU
in the precision that is timed, so that its kernels are what is compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

from hggraph import HGStage, RegionAdjacency, SoftSLIC
from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._roofline import Work, size_of
from hggraph.benchmarks._setting import Setting, options
from hggraph.cluster import soft_slic
from hggraph.cluster.clusterer import spread_scale
from hggraph.data import sample_photo

# isort: split
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

TITLE = "HG stage against the dense stage 4 of ResNet-101, stride 8, 713 x 713"
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def stage_and_input(model: str, side: int) -> tuple[nn.Sequential, Tensor]:
    """Return stage 4 of a ResNet and what reaches it from a photo of `side` x `side` pixels."""
    import timm

    # timm's blocks start as identities, on which any two stages would agree
    net = timm.create_model(model, output_stride=8, zero_init_last=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one image in training mode sets the statistics
    photo = F.interpolate(sample_photo()[None], (side, side), mode="bilinear", antialias=True)
    with torch.no_grad():
        x = net.train().maxpool(net.act1(net.bn1(net.conv1((photo - 0.45) / 0.225))))
        x = net.layer3(net.layer2(net.layer1(x)))
        net.layer4(x)
    return net.layer4.eval(), x


def fuse_of(stage: nn.Sequential, channels: int) -> nn.Conv2d:
    """Return the 1x1 convolution over a stage's input and output, without a bias."""
    outputs = stage[-1].conv3.out_channels
    return nn.Conv2d(channels + outputs, outputs, 1, bias=False)


def one_region_per_pixel(
    stage: nn.Sequential, channels: int, setting: Setting, size: tuple[int, int] = (6, 7)
) -> Agreement:
    """Compare the HG stage, one region per pixel, with the dense stage with dilation 1 and the 1x1 convolution."""
    dtype, tolerance = (setting.dtype, 5e-2) if setting.on_gpu else (torch.float64, 1e-10)
    dense = copy.deepcopy(stage).to(setting.device, dtype)
    for module in dense.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation, module.padding = (1, 1), (1, 1)
    fuse = fuse_of(stage, channels).to(setting.device, dtype)
    pixels = size[0] * size[1]
    slic = SoftSLIC(num_regions=pixels, feature_scale=100.0)  # pixels far apart: assignments are hard
    hg = HGStage.from_stage(dense, slic, fuse=fuse).eval()
    x = torch.randn(1, channels, *size, dtype=torch.float64).to(setting.device, dtype)
    with torch.no_grad():
        want = fuse(torch.cat([x, dense(x)], 1))
        return agree(f"HG stage, one region per pixel = dense stage, {str(dtype)[6:]}", hg(x), want, tolerance)


def parts(hg: HGStage, x: Tensor) -> dict[str, Callable[[], object]]:
    """Return the parts of the HG stage, each to run alone on what the others give it."""
    slic = hg.clusterer
    assert isinstance(slic, SoftSLIC) and hg.fuse is not None

    def scaled() -> Tensor:
        scale, mean = spread_scale(x).view(-1, 1, 1, 1), x.mean((2, 3), keepdim=True)
        return torch.addcmul(-scale * mean, x, scale)

    features = scaled()
    assignment = slic(x)
    spacing = (x.shape[2] * x.shape[3] / assignment.num_regions) ** 0.5
    options = {"candidates": slic.candidates, "update": slic.update, "position": slic.position / spacing}
    adjacency = assignment.adjacency(hg.stencil).to_dense()

    def blocks() -> Tensor:
        z, fresh = pooled, RegionAdjacency(hg.stencil, adjacency)  # a used one has its normalised form
        for block in hg.blocks:
            z = block(z, fresh)
        return z

    pooled = assignment.pool(x)
    z = blocks()
    return {
        "feature scale": scaled,
        "soft SLIC": lambda: soft_slic(features, assignment.seeds, iterations=slic.iterations, **options),
        "pool": lambda: assignment.pool(x),
        "adjacency": lambda: assignment.adjacency(hg.stencil),
        f"{len(hg.blocks)} blocks": blocks,
        "unpool and 1x1": lambda: assignment.unpool_conv1x1(x, z, hg.fuse.weight, hg.fuse.bias),
    }


def breakdown(report: Report, hg: HGStage, x: Tensor, name: str) -> None:
    """Add a table of the parts' times; the whole is measured in the same rounds."""
    whole = "the whole stage"
    with torch.inference_mode():
        own = Report("parts", report.setting)
        timings = own.time({**parts(hg, x), whole: lambda: hg(x)}, warmup=1)
    total = timings.pop(whole).median
    table = Table("part", title=f"HG stage, {name}, part by part")
    for column in ("median ms", "share of the whole"):
        table.add_column(column, justify="right")
    for part, timing in timings.items():
        table.add_row(part, f"{1e3 * timing.median:.1f}", f"{timing.median / total:.0%}")
    accounted = sum(timing.median for timing in timings.values())
    table.add_row("all parts", f"{1e3 * accounted:.1f}", f"{accounted / total:.0%}", style="bold")
    table.add_row(whole, f"{1e3 * total:.1f}", "100%", style="bold")
    report.tables.append(table)
    report.more["parts"] = {part: timing.median for part, timing in timings.items()} | {whole: total}


def measure(report: Report) -> None:
    """Time both stages in both formats, compiled ones too, and report the ratio of the faster ones."""
    setting = report.setting
    stage, x = stage_and_input("resnet26", 96) if setting.quick else stage_and_input("resnet101", 713)
    if setting.on_gpu:
        x = x.expand(2 if setting.quick else 16, -1, -1, -1)
    hg = HGStage.from_stage(stage, SoftSLIC(), fuse=fuse_of(stage, x.shape[1])).eval()
    agreement = one_region_per_pixel(stage, x.shape[1], setting)
    report.more["input"] = list(x.shape)
    report.more["regions"] = hg.clusterer.regions_for((x.shape[2], x.shape[3]))

    contenders: dict[str, Callable[[], object]] = {}
    sides: dict[str, list[str]] = {"dense stage": [], "HG stage": []}
    in_format = {}
    for label, memory_format in FORMATS.items():
        given = x.to(setting.device, setting.dtype).contiguous(memory_format=memory_format)
        for side_name, module in (("dense stage", stage), ("HG stage", hg)):
            module = copy.deepcopy(module).to(setting.device, setting.dtype, memory_format=memory_format)
            name = f"{side_name}, {label}"
            in_format[name] = (module, given)
            sides[side_name].append(name)
            contenders[name] = lambda module=module, given=given: module(given)
            if (fast := compiled_stage(report, name, module, given)) is not None:
                contenders[f"{name}, compiled"] = fast
                sides[side_name].append(f"{name}, compiled")
    with torch.inference_mode():
        timings = report.time(contenders, work=works(hg, stage, x, contenders), warmup=1)
    best = {side_name: min(names, key=lambda name: timings[name].median) for side_name, names in sides.items()}
    dense, ours = best["dense stage"], best["HG stage"]
    least = 2.5 if setting.on_gpu else 3.5
    report.ratio(f"{dense} / {ours}", timings[dense], timings[ours], agreement, at_least=least)
    eager = ours.removesuffix(", compiled")
    breakdown(report, *in_format[eager], eager.rpartition(", ")[2])
    if setting.on_gpu:
        one_image(report, *in_format[eager], in_format[dense.removesuffix(", compiled")][0], agreement)


def compiled_stage(report: Report, name: str, module: nn.Module, x: Tensor) -> Callable[[], object] | None:
    """Return a stage through torch.compile, if it then still gives the same."""
    label = f"{name}, compiled"
    with torch.inference_mode():
        run = report.compiled(label, module, lambda fast: lambda: fast(x))
        if run is None:
            return None
        same = agree(f"{label} = as it is", run(), module(x), 1e-3 if x.dtype == torch.float32 else 5e-2)
    report.agreements.append(same)
    if same.holds:
        return run
    report.absent[label] = "its result is another one"
    return None


def works(hg: HGStage, stage: nn.Module, x: Tensor, names: Iterable[str]) -> dict[str, Work]:
    """Return operations, counted while they run once, and least traffic: map and weights in, result out."""
    out = {}
    for side_name, module in (("dense stage", stage), ("HG stage", hg)):
        one = x[:1]
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            result = module(one)
        moved = len(x) * size_of(one, result) + size_of(*module.parameters())
        work = Work(moved, len(x) * counter.get_total_flops())
        out |= {name: work for name in names if name.startswith(side_name)}
    return out


def one_image(report: Report, hg: HGStage, x: Tensor, stage: nn.Module, agreement: Agreement) -> None:
    """Time one image, both stages replayed as CUDA graphs, for which launches cost nothing."""
    one = x[:1]
    names = {"HG stage, one image, CUDA graph": hg, "dense stage, one image, CUDA graph": stage}
    runs = {name: report.peer(name, lambda module=module: captured(module, one)) for name, module in names.items()}
    if any(run is None for run in runs.values()):
        return
    ours, dense = report.time({name: run for name, run in runs.items() if run is not None}).values()
    report.ratio("dense stage / HG stage, one image, CUDA graph", dense, ours, agreement, at_least=1)


def captured(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return the replay of a CUDA graph of `module`."""
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(x)
    return graph.replay


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=9)
    report = Report("hg_stage", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
