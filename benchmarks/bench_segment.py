"""Segment reduction: `segment_reduce` against index_add_, scatter, PyG, torch-scatter and pyg-lib.

    python -m hggraph.benchmarks.bench_segment [--device cpu|cuda] [--rounds N] [--json FILE] [--quick]

Rows are summed into segments, by a sorted index that PyG would call `batch`; beside stand a PyTorch user's ways to do
the same. Gathered: the rows are named by a second index, as in message passing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hggraph import ops
from hggraph.benchmarks._measure import Report, agree
from hggraph.benchmarks._roofline import Work, size_of
from hggraph.benchmarks._setting import options

# isort: split
import torch
from torch import Tensor
from torch_geometric.utils import scatter

TITLE = "Segment reduction"


def torch_scatter(x: Tensor, index: Tensor, ptr: Tensor) -> Callable[[], Tensor]:
    from torch_scatter import segment_csr

    return lambda: segment_csr(x, ptr, reduce="sum")


def pyg_lib(x: Tensor, index: Tensor, ptr: Tensor) -> Callable[[], Tensor]:
    from pyg_lib.ops import segment_csr

    return lambda: segment_csr(x, ptr, reduce="sum")


def measure(report: Report) -> None:
    """Time sums of sorted rows, then of gathered ones."""
    setting = report.setting
    rows, segments, channels = (1 << 20, 1 << 16, 256) if setting.on_gpu else (1 << 16, 1 << 12, 256)
    if setting.quick:
        rows, segments, channels = 64, 8, 4
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(segments, (rows,), generator=generator).sort().values.to(setting.device)
    source = torch.randint(rows, (rows,), generator=generator).to(setting.device)
    x = torch.randn(rows, channels, generator=generator).to(setting.device, setting.dtype)
    ptr = ops.csr_pointer(index, segments)
    empty = x.new_zeros(segments, channels)
    wide = index[:, None].expand(-1, channels)

    contenders: dict[str, Callable[[], Tensor]] = {
        "segment_reduce": lambda: ops.segment_reduce(x, ptr),
        "segment_reduce, gathered": lambda: ops.segment_reduce(x, ptr, source),
        "index_add_": lambda: torch.index_add(empty, 0, index, x),
        "gather, index_add_": lambda: torch.index_add(empty, 0, index, x[source]),
        "scatter_add_": lambda: torch.scatter_add(empty, 0, wide, x),
    }
    peers = {
        "torch.segment_reduce": lambda: lambda: torch.segment_reduce(x, "sum", offsets=ptr, axis=0),
        "PyG scatter": lambda: lambda: scatter(x, index, 0, segments, "sum"),
        "torch-scatter segment_csr": lambda: torch_scatter(x, index, ptr),
        "pyg-lib segment_csr": lambda: pyg_lib(x, index, ptr),
    }
    found = {name: report.peer(name, make) for name, make in peers.items()}
    for name in ("index_add_", "gather, index_add_"):
        found[f"{name}, compiled"] = report.compiled(f"{name}, compiled", contenders[name])
    contenders |= {name: run for name, run in found.items() if run is not None}
    results = {name: run() for name, run in contenders.items()}
    once = Work(size_of(x, ptr, empty), rows * channels)
    work = {name: Work(once.bytes + size_of(source) * ("gather" in name), once.flops) for name in contenders}
    times = report.time(contenders, work=work)
    # float32 sums in another order; half precision rounds the result, and index_add_ each addition
    tolerance = 1e-5 if setting.dtype == torch.float32 else 5e-2
    for name, timing in times.items():
        ours = "segment_reduce, gathered" if "gather" in name else "segment_reduce"
        if name == ours:
            continue
        same = agree(f"{ours} = {name}", results[ours], results[name], tolerance)
        target = 1 if setting.on_gpu and name in ("index_add_", "torch-scatter segment_csr") else None
        report.ratio(f"{name} / {ours}", timing, times[ours], same, at_least=target)
    if "segment_reduce" in report.shares:
        least = 0.8 if setting.on_gpu else None
        report.bound("segment_reduce, share of the roofline", report.shares["segment_reduce"], at_least=least)


def main(argv: Sequence[str] | None = None) -> int:
    args = options(__doc__, argv)
    report = Report("segment", TITLE, args.setting, args.roofline)
    measure(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
