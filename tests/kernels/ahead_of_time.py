"""Compile every kernel for real GPUs without one, and say what it takes: registers, spills, shared memory.

    python -m tests.kernels.ahead_of_time [--quick] [--jobs 2]

The launchers run as they are, on tensors without memory (PyTorch's meta device), under a stand-in for Triton's driver
that names the target; instead of a launch there is a compilation. So each configuration that can be shipped is compiled
with the specialisations of a real call, and a launcher that read a value back from the GPU would fail here.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Shared memory that a block may take (bytes) and registers per thread.
LIMITS = {"sm_80": (166_912, 255), "sm_90": (232_448, 255), "gfx942": (65_536, 512)}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Row:
    """What one kernel of one call takes on one target."""

    target: str
    kernel: str
    call: str
    registers: int
    spills: int
    shared: int

    @property
    def fits(self) -> bool:
        shared, registers = LIMITS[self.target]
        return self.spills == 0 and self.shared <= shared and self.registers <= registers


class StandIn:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling_for(name: str) -> Iterator[dict[str, tuple[str, object]]]:
    """Let launches compile for a target; gives what was compiled, by hash."""
    compiled: dict[str, tuple[str, object]] = {}
    run, hip = JITFunction.run, torch.version.hip

    def compile_only(self, *args, grid, warmup, **meta):
        result = run(self, *args, grid=grid, warmup=True, **meta)
        compiled[result.hash] = (self.fn.__name__, result)
        return result

    JITFunction.run = compile_only
    torch.version.hip = "as on gfx942" if name.startswith("gfx") else None
    driver.set_active(StandIn(TARGETS[name]))
    try:
        yield compiled
    finally:
        JITFunction.run, torch.version.hip = run, hip


def usage(kernel) -> tuple[int, int, int]:
    """Return registers per thread, spilled registers or bytes, and shared memory of a compiled kernel."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        find = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
        return find["vgpr_count"], find["vgpr_spill_count"], kernel.metadata.shared
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        text = subprocess.run(
            [tool, "--dump-resource-usage", binary], check=True, capture_output=True, text=True
        ).stdout
    registers, local = (int(re.search(rf"{key}:(\d+)", text).group(1)) for key in ("REG", "STACK"))
    return registers, local, kernel.metadata.shared


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def index(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.long)


@dataclass(frozen=True)
class Call:
    """One call of a launcher, for one dtype of the features."""

    about: str
    run: Callable[[], object]
    precision: str = "highest"  # of float32 products


def calls(quick: bool) -> list[Call]:
    """Return calls that reach every kernel and every configuration: wide and narrow, both precisions."""
    out = network_calls(torch.bfloat16)
    if not quick:
        out += [*network_calls(torch.float32), *network_calls(torch.float32, "high"), *graph_calls()]
    return out


def network_calls(dtype: torch.dtype, precision: str = "highest") -> list[Call]:
    """The sizes of a stage of HG-ResNet-50 and of its local attention."""
    from hggraph.kernels import (
        centre_update,
        local_attention,
        region_adjacency,
        region_pool,
        region_unpool,
        segment,
        soft_assign,
        typed_aggregate,
        typed_aggregate_dense,
        unpool_conv1x1,
    )

    batch, side, regions, pixels = 16, 90, 127, 8100
    name = str(dtype).removeprefix("torch.") + ("" if precision == "highest" else f" {precision}")
    square = [value for offset in itertools.product((-1, 0, 1), repeat=2) for value in offset]
    window = [value for offset in itertools.product(range(-3, 4), repeat=2) for value in offset]
    x = meta(batch, pixels, 1024, dtype=dtype).mT
    z = meta(batch, regions, 2048, dtype=dtype)
    centers, s = meta(batch, regions, 1024), meta(batch, regions, pixels)
    weight = meta(2048, 3072, dtype=dtype)
    heads = [meta(batch, side, side, 256, dtype=dtype).permute(0, 3, 1, 2) for _ in range(3)]
    log_sum = meta(batch, side, side)
    edge = (meta(2032 * 9, dtype=dtype), index(2032 * 9 + 1), index(2032 * 9))
    nodes, matrices = meta(2032, 512, dtype=dtype), meta(9, 512, 128, dtype=dtype)
    readers = (index(pixels + 1), index(pixels * 49))

    def attention(border: str, bias: Tensor | None) -> None:
        inverse = readers if border == "shift" else None
        local_attention.local_attention(*heads, bias, window, 0.1, border)
        local_attention.local_attention_backward(
            heads[0], *heads, bias, heads[0], log_sum, window, 0.1, border, inverse
        )

    calls = [
        Call(f"soft_assign {name}", lambda: soft_assign.soft_assign(x, centers, 1e-3, s)),
        Call(f"soft_assign backward {name}", lambda: soft_assign.soft_assign_backward(s, x, centers, s)),
        Call(f"centre_update {name}", lambda: centre_update.centre_update(x, centers)),
        Call(
            f"centre_update backward {name}",
            lambda: centre_update.centre_update_backward(centers, x, centers, centers, s[..., 0]),
        ),
        Call(f"region_adjacency {name}", lambda: region_adjacency.region_adjacency(
            s.to(dtype), [side, side], square, True, True, 1e-7, 0.999)),
        Call(f"region_adjacency backward {name}", lambda: region_adjacency.region_adjacency_backward(
            meta(batch, 9, regions, regions), s.to(dtype), meta(batch, 9, regions, regions), [side, side], square, True)),
        Call(f"region_pool {name}", lambda: region_pool.region_pool(x, s)),
        Call(f"region_pool backward {name}", lambda: region_pool.region_pool_backward(
            z[..., :1024], s[..., 0], x, s, z[..., :1024], s[..., 0])),
        Call(f"region_unpool {name}", lambda: region_unpool.region_unpool(z, s)),
        Call(f"region_unpool backward {name}", lambda: region_unpool.region_unpool_backward(z.new_empty(batch, 2048, pixels), z, s)),
        Call(f"unpool_conv1x1 {name}", lambda: unpool_conv1x1.unpool_conv1x1(x, z, s, weight, weight[:, 0])),
        Call(f"unpool_conv1x1 backward {name}", lambda: unpool_conv1x1.assignment_gradients(
            z.new_empty(batch, pixels, 2048).mT, z, s)),
        Call(f"typed_aggregate {name}", lambda: typed_aggregate.typed_aggregate(nodes, matrices, *edge, 1)),
        Call(f"typed_aggregate_dense {name}", lambda: typed_aggregate_dense.aggregates(
            z[..., :512], meta(batch, 9, regions, regions, dtype=dtype))),
        Call(f"segment_reduce {name}", lambda: segment.segment_reduce(nodes, edge[1], edge[2], edge[0], "sum")),
        Call(f"segment_reduce max backward {name}", lambda: segment.segment_reduce_backward(
            nodes, nodes, index(2033), index(18288), None, nodes, "max", index(18288), (index(2033), index(18288), index(18288)))),
        Call(f"segment_reduce backward {name}", lambda: segment.segment_reduce_backward(
            nodes, nodes, index(2033), index(18288), edge[0], None, "mean", index(18288), (index(2033), index(18288), index(18288)))),
        Call(f"local_attention zero {name}", lambda: attention("zero", None)),
        Call(f"local_attention mask {name}", lambda: attention("mask", meta(49))),
        Call(f"local_attention shift {name}", lambda: attention("shift", None)),
    ]  # fmt: skip
    return [replace(call, precision=precision) for call in calls]


def graph_calls() -> list[Call]:
    """Few channels, many regions, and the largest heads and windows."""
    from hggraph.kernels import centre_update, local_attention, region_adjacency, segment, soft_assign

    x, centers = meta(8, 5, 4096), meta(8, 60, 5)
    heads = [meta(1, 1024, 30, 30) for _ in range(3)]
    wide, wider = ([v for offset in itertools.product(range(-r, r + 1), repeat=2) for v in offset] for r in (4, 6))
    calls = [
        Call("soft_assign many regions", lambda: soft_assign.soft_assign(
            meta(2, 64, 4096), meta(2, 500, 64), 1e-3, meta(2, 500, 4096))),
        Call("centre_update few channels", lambda: centre_update.centre_update(x, centers)),
        Call("centre_update few channels backward", lambda: centre_update.centre_update_backward(
            meta(8, 60, 5), x, centers, meta(8, 60, 5), meta(8, 60))),
        Call("region_adjacency 9 x 9", lambda: region_adjacency.region_adjacency(
            meta(2, 500, 1024), [32, 32], wide, True, True, 1e-7, 0.999)),
        Call("region_adjacency 13 x 13", lambda: region_adjacency.region_adjacency(
            meta(2, 500, 1024), [32, 32], wider, True, True, 1e-7, 0.999)),
        Call("segment_reduce long", lambda: segment.segment_reduce(meta(100_000, 64), index(11), None, None, "mean")),
        Call("segment_reduce narrow", lambda: segment.segment_reduce(meta(100_000, 3), index(30_001), None, None, "max")),
        Call("segment_softmax", lambda: segment.segment_softmax(meta(100_000, 8), index(10_001))),
        Call("segment_softmax backward", lambda: segment.segment_softmax_backward(
            meta(100_000), meta(100_000), index(10_001))),
        Call("local_attention largest head", lambda: local_attention.local_attention(*heads, None, wide, 1.0, "zero")),
        Call("local_attention smallest head", lambda: local_attention.local_attention(
            *(meta(64, 8, 30, 30) for _ in range(3)), None, wide, 1.0, "shift")),
    ]  # fmt: skip
    return calls


def compile_call(job: tuple[str, int, bool]) -> list[Row]:
    """Run one call for one target; in a process of its own."""
    target, number, quick = job
    call = calls(quick)[number]
    torch.set_float32_matmul_precision(call.precision)
    with compiling_for(target) as compiled:
        call.run()
    return [Row(target, kernel, call.about, *usage(result)) for kernel, result in compiled.values()]


def table(quick: bool = False, jobs: int = 2, targets: tuple[str, ...] = tuple(TARGETS)) -> list[Row]:
    """Compile everything, in several processes."""
    work = [(target, number, quick) for number in range(len(calls(quick))) for target in targets]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        return [row for rows in pool.imap(compile_call, work) for row in rows]


def kernel_names() -> set[str]:
    """Return the kernels of all files: what carries @triton.jit and a name that ends in _kernel."""
    folder = Path(__file__).parents[2] / "kernels"
    return {
        name for path in folder.glob("*.py") for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.M)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the network's sizes in bfloat16 alone")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # the processes that compile import triton after this
    rows = table(args.quick, args.jobs)
    print(f"{'target':8} {'registers':>9} {'spills':>6} {'shared':>7}  kernel, call")
    for row in rows:
        mark = "" if row.fits else "  DOES NOT FIT"
        print(f"{row.target:8} {row.registers:9} {row.spills:6} {row.shared:7}  {row.kernel}, {row.call}{mark}")
    missing = kernel_names() - {row.kernel for row in rows}
    if missing:
        print(f"not compiled: {', '.join(sorted(missing))}")
    return int(bool(missing) or not all(row.fits for row in rows))


if __name__ == "__main__":
    sys.exit(main())
