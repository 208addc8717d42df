"""Pyramidal convolution: each level against PyTorch's grouped convolution, and PyConvResNet-50 against ResNet-50.

    python -m hggraph.benchmarks.bench_py_conv [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Eight images of 224 x 224. The two networks are different functions: what agrees is PyConvResNet with the same network
on PyTorch's grouped convolutions. Both run in both memory formats, and the faster one of each counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hggraph import ops
from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._setting import options
from hggraph.benchmarks.bench_networks import in_faster_format
from hggraph.models import fold_batch_norm, pyconv_resnet
from hggraph.nn import PyConv2d

# isort: split
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TITLE = "Pyramidal convolution"
# channels, side, kernel, groups, outputs: levels of which a CPU makes depthwise convolutions
LEVELS = (
    (64, 56, 9, 16, 16),
    (64, 56, 7, 8, 16),
    (128, 56, 3, 32, 32),
    (128, 56, 5, 32, 32),
    (128, 56, 7, 32, 32),
    (128, 56, 9, 32, 32),
    (256, 28, 5, 64, 64),
)


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Let pyramids run PyTorch's grouped convolutions."""
    ours = PyConv2d.convolve
    PyConv2d.convolve = lambda self, x, level: level(x)
    try:
        yield
    finally:
        PyConv2d.convolve = ours


def level(report: Report, channels: int, side: int, kernel: int, groups: int, outputs: int) -> None:
    """Time a level, forward, and forward and backward."""
    setting, options = report.setting, {"padding": (kernel // 2, kernel // 2), "groups": groups}
    x = torch.randn(1 if report.quick else 8, channels, side, side)
    x = x.to(setting.device, setting.dtype, memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels // groups, kernel, kernel).to(setting.device, setting.dtype)
    incoming = torch.randn_like(F.conv2d(x, weight, **options))
    forms: dict[str, Callable[..., Tensor]] = {"ours": ops.grouped_conv2d, "F.conv2d": F.conv2d}

    def trained(form: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
        return torch.autograd.grad(form(*leaves, **options), leaves, incoming)

    name = f"{channels} channels, {side} x {side}, {kernel} x {kernel}, {groups} groups"
    tolerance = 1e-4 if setting.dtype == torch.float32 else 3e-2
    runs: dict[str, Callable[[Callable[..., Tensor]], object]] = {
        name: lambda form: form(x, weight, **options),
        f"{name}, forward and backward": trained,
    }
    for label, run in runs.items():
        contenders = {f"{which}: {label}": lambda run=run, form=form: run(form) for which, form in forms.items()}
        ours, theirs = (contender() for contender in contenders.values())
        times = list(report.time(contenders, warmup=1).values())
        report.ratio(f"F.conv2d / ours: {label}", times[1], times[0], agree(label, ours, theirs, tolerance))


def same_network(net: nn.Module, x: Tensor) -> Agreement:
    """Compare a network with itself on PyTorch's grouped convolutions, in float64."""
    double = copy.deepcopy(net).double()
    with torch.no_grad():
        got = double(x.double())
        with plain_convolutions():
            want = double(x.double())
    return agree("PyConvResNet = the same on F.conv2d, float64", got, want, 1e-9)


def networks(report: Report) -> None:
    """Time PyConvResNet-50 and ResNet-50, as trained and with normalisations folded."""
    import timm

    depth, side, batch = (18, 64, 2) if report.quick else (50, 224, 8)
    nets: dict[str, nn.Module] = {
        f"ResNet-{depth}": timm.create_model(f"resnet{depth}").eval(),
        f"PyConvResNet-{depth}": pyconv_resnet(depth).eval(),
    }
    dense, ours = nets
    same = same_network(nets[ours], torch.rand(1, 3, 64, 64))
    for name in (dense, ours):
        nets[f"{name}, folded"] = copy.deepcopy(nets[name])
        fold_batch_norm(nets[f"{name}, folded"])
    x = torch.randn(batch, 3, side, side)
    with torch.inference_mode():
        ready = in_faster_format(nets, x, report.setting)
        report.more["formats"] = {name: label for name, (_, _, label) in ready.items()}
        contenders = {name: lambda net=net, given=given: net(given) for name, (net, given, _) in ready.items()}
        with plain_convolutions():
            times = report.time({f"{ours}, F.conv2d": contenders[ours]}, warmup=1)
        times |= report.time(contenders, warmup=1)
    report.ratio(f"{dense} / {ours}", times[dense], times[ours], same, at_least=0.9)
    report.ratio(f"{dense} / {ours}, both folded", times[f"{dense}, folded"], times[f"{ours}, folded"], same)
    report.ratio(f"{dense} / {ours}, F.conv2d", times[dense], times[f"{ours}, F.conv2d"], same)


def measure(report: Report) -> None:
    """Time levels, then networks."""
    for channels, side, kernel, groups, outputs in LEVELS[: 2 if report.quick else None]:
        level(report, channels, 9 if report.quick else side, kernel, groups, outputs)
    networks(report)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=7)
    report = Report("py_conv", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
