"""How time and memory of the way from photo to region graph grow from 0.25 to 16 megapixels.

Each size in a process of its own, started as ``python -m hggraph.benchmarks._region_growth HEIGHT WIDTH``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from hggraph.benchmarks._measure import Report
from hggraph.benchmarks._regions import soft_graph
from hggraph.benchmarks._setting import THREADS
from hggraph.data import sample_photo

# isort: split
import torch
from rich.table import Table
from torch import Tensor

__all__ = ["growth", "in_own_process", "one_size", "photo_of", "scaling"]

MEGAPIXELS = (0.25, 0.5, 1, 2, 4, 8, 16)
PIXELS = 2000  # of a region


def photo_of(height: int, width: int) -> Tensor:
    """Return a photo of any size, shape ``(3, height, width)``: the sample photo and its mirror images."""
    photo = sample_photo()
    _, tall, wide = photo.shape
    out = photo.new_empty(3, height, width)  # filled in place, so that no copy counts as memory held
    for i, y in enumerate(range(0, height, tall)):
        for j, x in enumerate(range(0, width, wide)):
            place = out[:, y : y + tall, x : x + wide]
            tile = photo.flip([axis for axis, odd in ((1, i % 2), (2, j % 2)) if odd])
            place.copy_(tile[:, : place.shape[1], : place.shape[2]])
    return out


def one_size(height: int, width: int) -> dict[str, float]:
    """Make one graph and return seconds, the peak of the process's memory, and what it held before (bytes)."""
    torch.set_num_threads(THREADS)
    soft_graph(photo_of(96, 128), 12)  # first calls set up much
    photo = photo_of(height, width)
    before = memory("VmRSS")
    start = time.perf_counter()
    graph = soft_graph(photo, max(1, height * width // PIXELS))
    seconds = time.perf_counter() - start
    return {
        "pixels": height * width,
        "regions": graph.num_nodes,
        "edges": graph.num_edges,
        "seconds": seconds,
        "peak": max(before, memory("VmHWM")),  # the kernel counts roughly
        "before": before,
    }


def memory(what: str) -> int:
    """Return the bytes that this process holds, ``"VmRSS"``, or has held at most, ``"VmHWM"``.

    Where it is no Linux always the latter.
    """
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the process that started this one too
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields[what].split()[0]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def scaling(report: Report, megapixels: Sequence[float] = MEGAPIXELS, rounds: int = 3) -> None:
    """Measure each size in processes of its own, sizes taking turns, and report the growth per doubling."""
    sizes = [(round((mp * 0.75e6) ** 0.5), round((mp / 0.75 * 1e6) ** 0.5)) for mp in megapixels]
    runs: list[list[dict[str, float]]] = [[] for _ in sizes]
    for _ in range(rounds):
        for size, found in zip(sizes, runs, strict=True):
            found.append(in_own_process(*size))
    rows = [{key: median(run[key] for run in found) for key in found[0]} for found in runs]

    table = Table("megapixels", title=f"region_graph, {PIXELS} pixels a region, soft edges")
    for column in ("regions", "edges", "seconds", "peak MB", "of it before MB", "time x", "memory x"):
        table.add_column(column, justify="right")
    times, memories = growth(rows)
    for i, (mp, row) in enumerate(zip(megapixels, rows, strict=True)):
        grown = [f"{times[i - 1]:.2f}", f"{memories[i - 1]:.2f}"] if i else ["", ""]
        counts = [f"{row['regions']:,.0f}", f"{row['edges']:,.0f}", f"{row['seconds']:.2f}"]
        table.add_row(f"{mp:g}", *counts, f"{row['peak'] / 1e6:,.0f}", f"{row['before'] / 1e6:,.0f}", *grown)
    report.tables.append(table)
    report.more["growth"] = rows
    if times:
        report.bound("worst growth of time per doubling of pixels", max(times), at_most=2.6)
        report.bound("worst growth of memory per doubling of pixels", max(memories), at_most=2.6)
    beyond = (rows[-1]["peak"] - rows[-1]["before"]) / 1e9
    report.bound(f"memory beyond the photo at {megapixels[-1]:g} megapixels, GB", beyond, at_most=1)


def growth(rows: Sequence[dict[str, float]]) -> tuple[list[float], list[float]]:
    """Return by how much time and memory (beyond what was held before) grow from one to the next, per doubling.

    Memory under a megabyte counts as one: the process had that before.
    """
    times, memories = [], []
    for small, large in pairwise(rows):
        doubling = 2 * small["pixels"] / large["pixels"]
        times.append(doubling * large["seconds"] / small["seconds"])
        own_small, own_large = (max(row["peak"] - row["before"], 1e6) for row in (small, large))
        memories.append(doubling * own_large / own_small)
    return times, memories


def in_own_process(height: int, width: int) -> dict[str, float]:
    """Run `one_size` in a new process."""
    command = [sys.executable, "-m", "hggraph.benchmarks._region_growth", str(height), str(width)]
    root = Path(__file__).parents[2]  # of hggraph/benchmarks/
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(one_size(*map(int, sys.argv[1:]))))
