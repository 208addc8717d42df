"""What GALD's local distribution costs: whole networks without and with it, and its attention against unfold.

    python -m hggraph.benchmarks.bench_gald [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Inference on one image of 512 x 512 with a ResNet-50, as Table IV of the paper has it on a V100; there the second
version adds 17 ms to 65 ms. Weights are random, as they do not change the time. The networks are different functions:
what agrees is the attention in the network with its unfolded form on the same features, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hggraph import ops
from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._roofline import Work, size_of
from hggraph.benchmarks._setting import options
from hggraph.benchmarks.bench_local_attention import unfold_attention
from hggraph.models import count, gald, hg_resnet

# isort: split
import torch
from torch import Tensor, nn

TITLE = "GALD, 512 x 512"
FCN, GA, V1, V2 = "FCN", "ASPP", "ASPP and LDv1", "ASPP and LDv2"
HG = "context on regions and LDv2"
KERNEL, DILATION = 5, 3


def networks(depth: int, channels: int) -> dict[str, nn.Module]:
    """Return the rows of Table IV, and the second version with its context on regions."""
    name = f"resnet{depth}"
    makers: dict[str, Callable[[], nn.Module]] = {
        FCN: lambda: hg_resnet(depth, hg_stages=(), aux=False),
        GA: lambda: gald(name, "aspp", None, channels=channels, aux=False),
        V1: lambda: gald(name, "aspp", "v1", channels=channels, aux=False),
        V2: lambda: gald(name, "aspp", "v2", channels=channels, aux=False),
        HG: lambda: gald(name, "hg", "v2", channels=channels, aux=False),
        f"{V2}, backbone on regions": lambda: gald(f"hg_{name}", "aspp", "v2", channels=channels, aux=False),
        f"{HG}, backbone on regions": lambda: gald(f"hg_{name}", "hg", "v2", channels=channels, aux=False),
    }
    return {name: make().eval() for name, make in makers.items()}


def same_as_unfold(channels: int) -> Agreement:
    """Compare the attention of a network with its unfolded form, on the features that reach it."""
    net = gald("resnet18", "aspp", "v2", channels=channels).double().eval()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    net.distribution.attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    got: list[Tensor] = []
    net.distribution.attention.register_forward_hook(lambda _, args, out: got.append(out))
    with torch.no_grad():
        net(torch.rand(1, 3, 136, 120, dtype=torch.float64))
        layers = (net.distribution.attention.query, net.distribution.attention.key, net.distribution.attention.value)
        q, k, v = (layer(x.movedim(1, -1)).movedim(-1, 1) for layer, x in zip(layers, seen[0], strict=True))
        want = unfold_attention(q, k, v, KERNEL, DILATION)
    return agree("LDv2 in the network = unfold, float64", got[0], want, 1e-9)


def whole_networks(report: Report, same: Agreement) -> None:
    """Time the networks."""
    setting, depth, channels, side = report.setting, 50, 512, 512
    if report.quick:
        depth, channels, side = 18, 16, 128
    nets = {
        name: net.to(setting.device, setting.dtype, memory_format=torch.channels_last)
        for name, net in networks(depth, channels).items()
    }
    x = torch.rand(1, 3, side, side).to(setting.device, setting.dtype, memory_format=torch.channels_last)
    needs = {
        name: Work(size_of(x, *net.parameters()), count(net, (side, side))[-1].flops) for name, net in nets.items()
    }
    with torch.inference_mode():
        times = report.time({name: lambda net=net: net(x) for name, net in nets.items()}, work=needs, warmup=1)
    report.ratio(f"{V2} / {GA}", times[V2], times[GA], same, at_most=1.15)
    report.ratio(f"{V1} / {GA}", times[V1], times[GA], same)
    report.ratio(f"{GA} / {FCN}", times[GA], times[FCN], same)
    report.ratio(f"{V2} / {HG}", times[V2], times[HG], same)
    report.ratio(f"{V2} / the same, backbone on regions", times[V2], times[f"{V2}, backbone on regions"], same)
    report.ratio(f"{V2} / {HG}, backbone on regions", times[V2], times[f"{HG}, backbone on regions"], same)


def attention_alone(report: Report) -> None:
    """Time the attention at the network's size against unfold, and compare their memory, in training too."""
    setting = report.setting
    shape = (1, 16, 16, 16) if report.quick else (1, 512, 64, 64)
    q, k, v, incoming = (torch.randn(shape).to(setting.device, setting.dtype) for _ in range(4))
    offsets = gald(
        "resnet18", channels=16, kernel_size=KERNEL, dilation=DILATION
    ).distribution.attention.stencil.offsets
    forms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "attention of LDv2": lambda q, k, v: ops.local_attention(q, k, v, offsets),
        "unfold": lambda q, k, v: unfold_attention(q, k, v, KERNEL, DILATION),
    }

    def trained(form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(form(*leaves), leaves, incoming)

    tolerance = 1e-4 if setting.dtype == torch.float32 else 3e-2
    ours, theirs = forms
    contenders: dict[str, Callable[[], object]] = {}
    for name, form in forms.items():
        contenders[name] = lambda form=form: form(q, k, v)
        contenders[f"{name}, forward and backward"] = lambda form=form: trained(form)
    times = report.time(contenders, warmup=1)
    for suffix, kept in (("", 1), (", forward and backward", 3)):
        same = agree(
            f"{ours}{suffix} = {theirs}", contenders[ours + suffix](), contenders[theirs + suffix](), tolerance
        )
        report.ratio(f"{theirs} / {ours}{suffix}", times[theirs + suffix], times[ours + suffix], same)
        beyond = [max(1, report.memory[name + suffix] - kept * size_of(v)) for name in (ours, theirs)]
        report.bound(f"memory beyond the result, {ours} / {theirs}{suffix}", beyond[0] / beyond[1], at_most=0.1)


def measure(report: Report) -> None:
    """Time networks, then the attention alone."""
    whole_networks(report, same_as_unfold(16))
    attention_alone(report)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=5)
    report = Report("gald", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
