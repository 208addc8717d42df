"""What Specialize and Fuse costs: its heads on HRNet-W48, fusing against upsampling, and its targets in training.

    python -m hggraph.benchmarks.bench_specialize [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Inference on one image of 512 x 512, folded, beside HRNet-W48 with its own head, as Table 5 of the paper has it on an
RTX 2080 Ti: 28 to 24 images per second. Weights are random, as they do not change the time. The networks are different
functions: what agrees is the network with its folded form in float64, and fusing with its literal form.
"""

from __future__ import annotations

from collections.abc import Sequence

from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._setting import options
from hggraph.models import hg_hrnet, specialize_fuse
from hggraph.schemes.specialize import SpecializeLoss, fuse, relabel, unity_pyramid

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TITLE = "Specialize and Fuse"
CLASSES, LEVELS, THRESHOLD = 150, 4, 0.9


def same_when_folded() -> Agreement:
    """Compare a network with its folded form, in float64."""
    torch.manual_seed(0)
    net = specialize_fuse("hrnet_w18_small_v2", 5, channels=16).double().eval()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        got, want = net.fold()(x)["out"], net(x)["out"]
    return agree("network = the same folded, float64", got, want, 1e-9)


def heads(report: Report) -> None:
    """Time HRNet with its own head and with the pyramidal ones, folded."""
    setting = report.setting
    width, channels, side = ("w18_small_v2", 16, 64) if report.quick else ("w48", 512, 512)
    own, pyramids, trunk = (f"HRNet-{width}{rest}" for rest in ("", " with both pyramids", ", no head at all"))
    nets: dict[str, nn.Module] = {
        own: hg_hrnet(width, hg=False, num_classes=CLASSES).fold(),
        pyramids: specialize_fuse(f"hrnet_{width}", CLASSES, levels=LEVELS, channels=channels).fold(),
    }
    nets[trunk] = nets[pyramids].trunk
    nets = {name: net.to(setting.device, setting.dtype) for name, net in nets.items()}
    x, same = torch.rand(1, 3, side, side).to(setting.device, setting.dtype), same_when_folded()
    with torch.inference_mode():
        times = report.time({name: lambda net=net: net(x) for name, net in nets.items()}, warmup=1)
    report.ratio(f"{pyramids} / {own}", times[pyramids], times[own], same, at_most=1.17)
    report.ratio(f"{pyramids} / {trunk}", times[pyramids], times[trunk], same)


def literal(semantic: Sequence[Tensor], unity: Sequence[Tensor]) -> Tensor:
    """Fuse as Eq. 2 is written: every level upsampled, multiplied and added up."""
    size = (semantic[-1].shape[2], semantic[-1].shape[3])
    free = torch.ones_like(semantic[-1][:, :1])
    out = torch.zeros_like(semantic[-1])
    for level, y in enumerate(semantic):
        here = torch.ones_like(free)
        if level < len(unity):
            here = (F.interpolate(unity[level][:, None], size, mode="nearest") >= THRESHOLD).to(y.dtype)
        out = out + here * free * F.interpolate(y, size, mode="nearest")
        free = free * (1 - here)
    return out


def fusing(report: Report) -> None:
    """Time fusing against bringing its result to the image's size."""
    setting = report.setting
    height, width, classes = (32, 64, 7) if report.quick else (1024, 2048, CLASSES)
    sides = [(height // stride, width // stride) for stride in (32, 16, 8, 4)]
    semantic = [torch.randn(1, classes, *side).to(setting.device, setting.dtype) for side in sides]
    unity = [torch.rand(1, *side).to(setting.device, setting.dtype) for side in sides[:-1]]
    finest = semantic[-1]
    with torch.inference_mode():
        same = agree("fuse = Eq. 2 as written", fuse(semantic, unity, THRESHOLD), literal(semantic, unity), 0)
        contenders = {
            "fuse": lambda: fuse(semantic, unity, THRESHOLD),
            "Eq. 2 as written": lambda: literal(semantic, unity),
            "upsampling": lambda: F.interpolate(finest, (height, width), mode="bilinear", align_corners=True),
        }
        times = report.time(contenders, warmup=1)
    label = f"fuse / upsampling, {classes} classes to {height} x {width}"
    report.ratio(label, times["fuse"], times["upsampling"], same, at_most=0.2)
    report.ratio("Eq. 2 as written / fuse", times["Eq. 2 as written"], times["fuse"], same)


def targets(report: Report) -> None:
    """Time the targets of a batch against a training step of one of its crops, which is as many times shorter."""
    setting, crops = report.setting, 2 if report.quick else 16
    width, channels, side = ("w18_small_v2", 16, 64) if report.quick else ("w48", 512, 512)
    net = specialize_fuse(f"hrnet_{width}", CLASSES, levels=LEVELS, channels=channels).to(setting.device).train()
    x = torch.rand(1, 3, side, side, device=setting.device)
    labels = torch.randint(CLASSES, (crops, side // 16, side // 16), device=setting.device)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    loss = SpecializeLoss()
    unity = [torch.rand(crops, side // stride, side // stride, device=setting.device) for stride in (32, 16, 8)]

    def step() -> None:
        loss(net(x), labels[:1])["loss"].backward()

    def make() -> object:
        return relabel(unity_pyramid(labels, (32, 16, 8, 4)), unity)

    crop = f"step of one crop of {side} x {side}"
    times = report.time({f"targets of {crops} crops": make, crop: step}, warmup=1)
    share = times[f"targets of {crops} crops"].median / (crops * times[crop].median)
    report.bound(f"targets / step, {crops} crops", share, at_most=0.05)


def measure(report: Report) -> None:
    """Time heads, fusing and targets."""
    heads(report)
    fusing(report)
    targets(report)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=5)
    report = Report("specialize", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
