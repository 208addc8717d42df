"""What stands between HS3's two phases: groupings of many classes, and the analysis of images against a validation.

    python -m hggraph.benchmarks.bench_hs3 [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Confusion of 150 classes is drawn at random, with no structure that would help. The network is HRNetV2-W18-small with
taps on stages 2 and 3; validation runs it without them and counts what it confuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from hggraph.benchmarks._measure import Report, agree
from hggraph.benchmarks._setting import options
from hggraph.metrics import ConfusionMatrix
from hggraph.metrics.tap_confusion import analyse
from hggraph.models import hg_hrnet
from hggraph.schemes.hs3 import spectral_groupings, tapped

# isort: split
import torch
from torch import Tensor

TITLE = "HS3, between the phases"
CLASSES, SECONDS = 150, 10


def groupings(report: Report) -> None:
    """Time the groupings of all sizes."""
    classes = 12 if report.quick else CLASSES
    generator = torch.Generator().manual_seed(0)
    confusion = torch.rand(classes, classes, generator=generator) ** 6 * 1000
    confusion += torch.diag(1e5 * torch.rand(classes, generator=generator))
    name = f"groupings of {classes} classes, all sizes"
    times = report.time({name: lambda: spectral_groupings(confusion)}, warmup=1)
    report.bound(f"{name}, seconds", times[name].median, at_most=SECONDS)


def analysis(report: Report) -> None:
    """Time the analysis of images against their validation."""
    setting, classes = report.setting, 19
    count, side = (2, 64) if report.quick else (32, 256)
    net = tapped(
        hg_hrnet("w18_small_v2", hg=False, num_classes=classes), {"2": "trunk.stage2", "3": "trunk.stage3"}
    ).to(setting.device)
    images, labels = torch.rand(count, 3, side, side), torch.randint(classes, (count, side, side))
    batches = [{"image": images[i : i + 8], "mask": labels[i : i + 8]} for i in range(0, count, 8)]

    def validate() -> Tensor:
        net.eval()
        metric = ConfusionMatrix(classes).to(setting.device)
        with torch.inference_mode():
            for batch in batches:
                metric.update(net(batch["image"].to(setting.device))["out"], batch["mask"].to(setting.device))
        counts: Tensor = metric.compute()
        return counts.cpu()

    def look() -> Tensor:
        return analyse(net, batches, classes).confusions["out"]

    same = agree("confusion of the output, analysed = validated", look(), validate(), 0)
    what = f"{count} images of {side} x {side}"
    times = report.time({f"analysis of {what}": look, f"validation of {what}": validate}, warmup=1)
    report.ratio("analysis / validation", times[f"analysis of {what}"], times[f"validation of {what}"], same)


def measure(report: Report) -> None:
    """Time groupings, then the analysis."""
    groupings(report)
    analysis(report)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv, rounds=5)
    report = Report("hs3", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
