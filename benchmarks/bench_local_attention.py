"""Local attention over a dilated window: `local_attention` against unfold, FlexAttention and attention to all pixels.

    python -m hggraph.benchmarks.bench_local_attention [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

On the CPU the window of GALD's local distribution, 5 x 5 with dilation 6; on a GPU 7 x 7. FlexAttention is always
compiled, some 20 s, as it is not meant to run without. Attention to all pixels is another function; it is timed
beside, as what a window saves, and no ratio is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hggraph import Stencil, ops
from hggraph.benchmarks._measure import Report, agree
from hggraph.benchmarks._roofline import Work, size_of
from hggraph.benchmarks._setting import options

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

TITLE = "Local attention"
FLEX, ALL = "FlexAttention, mask", "all pixels, SDPA (another function)"


def unfold_attention(q: Tensor, k: Tensor, v: Tensor, size: int, dilation: int) -> Tensor:
    """Return attention on zero-padded unfolded keys and values."""
    batch, channels, height, width = q.shape
    padding = dilation * (size // 2)

    def unfold(x: Tensor) -> Tensor:
        columns = F.unfold(x, size, dilation=dilation, padding=padding)
        return columns.view(batch, x.shape[1], size * size, height * width)

    logits = torch.einsum("bcp,bckp->bkp", q.flatten(2), unfold(k)) * channels**-0.5
    return torch.einsum("bkp,bdkp->bdp", logits.softmax(1), unfold(v)).view(batch, -1, height, width)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, size: int, dilation: int) -> Callable[[], Tensor]:
    """Return FlexAttention with the window as its mask, where neighbours outside are left out."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    height, width = q.shape[2:]
    reach = dilation * (size // 2)

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        dy, dx = i // width - j // width, i % width - j % width
        inside = (dy.abs() <= reach) & (dx.abs() <= reach)
        return inside & (dy % dilation == 0) & (dx % dilation == 0)

    mask = create_block_mask(near, None, None, height * width, height * width, device=q.device.type)
    rows = [x.flatten(2).mT.unsqueeze(1).contiguous() for x in (q, k, v)]
    compiled = torch.compile(flex)

    def run() -> Tensor:
        return compiled(*rows, block_mask=mask).squeeze(1).mT.reshape(v.shape)

    run()  # compiles
    return run


def measure(report: Report) -> None:
    """Time the forward passes, and compare their memory."""
    setting = report.setting
    batch, channels, side, size, dilation = (16, 256, 90, 7, 1) if setting.on_gpu else (1, 256, 90, 5, 6)
    if setting.quick:
        batch, channels, side, size, dilation = 2, 16, 12, 3, 2
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, side, side)
    q, k, v = (torch.randn(shape, generator=generator).to(setting.device, setting.dtype) for _ in range(3))
    offsets = Stencil.square(size, dilation=dilation).offsets
    rows = [x.flatten(2).mT.unsqueeze(1).contiguous() for x in (q, k, v)]

    last = [x.contiguous(memory_format=torch.channels_last) for x in (q, k, v)]
    contenders: dict[str, Callable[[], Tensor]] = {
        "local_attention": lambda: ops.local_attention(q, k, v, offsets),
        "local_attention, channels_last": lambda: ops.local_attention(*last, offsets),
        "local_attention, mask": lambda: ops.local_attention(q, k, v, offsets, border="mask"),
        "unfold": lambda: unfold_attention(q, k, v, size, dilation),
    }
    with torch.inference_mode():
        peers = {
            "unfold, compiled": report.compiled("unfold, compiled", contenders["unfold"]),
            ALL: report.peer(ALL, lambda: lambda: F.scaled_dot_product_attention(*rows)),
        }
        if setting.quick:
            report.absent[FLEX] = "left out: --quick"
        else:
            peers[FLEX] = report.peer(FLEX, lambda: flex_attention(q, k, v, size, dilation))
        contenders |= {name: run for name, run in peers.items() if run is not None}
        needs = Work(size_of(q, k, v, v), 4 * q.numel() * size**2)
        results = {name: run() for name, run in contenders.items()}
        times = report.time(contenders, work={name: needs for name in contenders if name != ALL})
    tolerance = 1e-4 if setting.dtype == torch.float32 else 3e-2
    for peer, ours, least in (
        ("unfold", "local_attention", 8 if setting.on_gpu else 7),
        ("unfold", "local_attention, channels_last", None),
        ("unfold, compiled", "local_attention", None),
        (FLEX, "local_attention, mask", 1 if setting.on_gpu else None),
    ):
        if peer in times:
            same = agree(f"{ours} = {peer}", results[ours], results[peer], tolerance)
            report.ratio(f"{peer} / {ours}", times[peer], times[ours], same, at_least=least)
    result = size_of(v)
    beyond = {name: max(1, report.memory[name] - result) for name in ("unfold", "local_attention")}
    least = None if setting.on_gpu else 20
    ratio = beyond["unfold"] / beyond["local_attention"]
    report.bound("memory beyond the result, unfold / local_attention", ratio, at_least=least)
    if "local_attention" in report.shares:
        least_share = 0.6 if setting.on_gpu else None
        report.bound("local_attention, share of the roofline", report.shares["local_attention"], at_least=least_share)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv)
    report = Report("local_attention", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
