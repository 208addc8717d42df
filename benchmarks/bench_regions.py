"""Regions against those of every superpixel program that is installed: their quality, and the way to a graph.

    python -m hggraph.benchmarks.bench_regions [--data FOLDER] [--camvid FOLDER] [--every N] [--clusterer RUN]
        [--curves FOLDER] [--rounds N] [--json FILE] [--quick]

- Quality on BSDS500 (every N-th photo of its test split, or of a folder without splits), by `hggraph.metrics`: at 100
  to 1600 regions, and ours once more at exactly the number of regions that each peer made. Without ``--data`` the
  sample photo alone, and nothing that needs people's segmentations. On CamVid the best mean IoU that regions allow.
- Processor time from the photo in memory to the typed graph, hard and soft, against the peers' labels alone, at 481 x
  321 pixels with 300 regions and 2 megapixels with 1000: one thread each, as threads that wait for each other burn time
  that is nobody's; and what a second thread gains by the clock. The results cannot be the same; that the graph's nodes
  are the means of the labels is checked instead.
- With ``--data``, or as a program: growth from 0.25 to 16 megapixels, each size in a process of its own.

All on the CPU, whatever the device: there is where peers run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._region_growth import photo_of, scaling
from hggraph.benchmarks._region_quality import camvid, quality
from hggraph.benchmarks._regions import FAST, Maker, hard_graph, ours, peers, soft_graph
from hggraph.benchmarks._setting import RegionData, options
from hggraph.benchmarks._timing import processor_seconds_of, take_turns

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TITLE = "Regions against superpixels: quality, and from photo to region graph"
SIZES = {"481 x 321, 300": ((321, 481), 300), "2 MP, 1000": ((1224, 1664), 1000)}
SEEDS = "OpenCV SEEDS"
TARGETS = {"hard": 2.2, "soft": 2.8}  # times fast-slic's labels


def means_of_labels(photo: Tensor, num_regions: int) -> Agreement:
    """Compare the nodes of the graph of hard regions with means that numpy takes of the labels."""
    label = ours(photo, num_regions).flatten().numpy()
    area = np.bincount(label, minlength=num_regions)
    there = area > 0  # an empty region keeps its last centre
    y, x = np.divmod(np.arange(label.size), photo.shape[2])
    maps = [*photo.double().flatten(1).numpy(), y, x]
    means = np.stack([np.bincount(label, values, num_regions)[there] / area[there] for values in maps], 1)
    graph = hard_graph(photo, num_regions)
    got = torch.cat([graph.x, graph.pos], 1)[torch.from_numpy(there)]
    return agree("nodes of the hard graph = means of the labels", [got, graph.area], [means, area], 1e-4)


def speed(report: Report, makers: dict[str, Maker], where: str, size: tuple[int, int], regions: int) -> None:
    """Time our labels and graphs and the peers' labels, interleaved, by the time of the processor."""
    photo = photo_of(*size)
    pixels = (photo.permute(1, 2, 0) * 255).round().byte().contiguous().numpy()
    contenders: dict[str, Callable[[], object]] = {
        f"{where}: labels": lambda: ours(photo, regions),
        f"{where}: hard graph": lambda: hard_graph(photo, regions),
        f"{where}: soft graph": lambda: soft_graph(photo, regions),
    }
    for name, make in makers.items():
        run = report.peer(f"{where}: {name}'s labels", lambda make=make: lambda: make(pixels, regions))
        contenders |= {} if run is None else {f"{where}: {name}'s labels": run}
    threads = torch.get_num_threads()
    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    try:
        timings = take_turns(contenders, report.setting.rounds, cpu, warmup=1, clock=processor_seconds_of)
    finally:
        torch.set_num_threads(threads)
    report.timings |= timings
    agreement = means_of_labels(F.interpolate(photo[None], (48, 64), mode="area")[0], 12)
    for kind in ("hard", "soft"):
        for name in makers:
            theirs = timings.get(f"{where}: {name}'s labels")
            if theirs is not None:
                at_most = TARGETS[kind] if name == FAST else 1 if name == SEEDS else None
                label = f"{kind} graph / {name}'s labels, {where}"
                report.ratio(label, timings[f"{where}: {kind} graph"], theirs, agreement, at_most=at_most)
    if threads < 2:
        report.absent[f"{where}: several threads"] = f"left out: PyTorch has {threads}"
        return

    def on(count: int) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(count)
            try:
                soft_graph(photo, regions)
            finally:
                torch.set_num_threads(threads)

        return run

    names = {count: f"{where}: soft graph by the clock, {count} thread{'s'[: count - 1]}" for count in (1, threads)}
    timings = take_turns({name: on(count) for count, name in names.items()}, report.setting.rounds, cpu)
    report.timings |= timings
    label = f"one thread / {threads}, soft graph, {where}"
    report.ratio(label, timings[names[1]], timings[names[threads]], agreement, at_least=1.6 if "MP" in where else None)


def edges(report: Report, size: tuple[int, int], regions: int) -> None:
    """Report how many neighbours a node has in our graphs."""
    for kind, make in (("hard", hard_graph), ("soft", soft_graph)):
        graph = make(photo_of(*size), regions)
        others = int((graph.edge_index[0] != graph.edge_index[1]).sum()) / graph.num_nodes
        bounds = {"at_most": 7} if kind == "soft" else {"at_least": 5}
        report.bound(f"edges per node of the {kind} graph, {regions} regions", others, **bounds)


def measure(report: Report, *, grow: bool | None = None) -> None:
    """Measure quality and speed; and, unless told otherwise, growth where there is a data set."""
    where, quick = report.setting.regions, report.quick
    makers = peers(report)
    quality(report, makers, where, **({"counts": (12, 40)} if quick else {}))
    if where.camvid is not None:
        camvid(report, makers, where)
    small = {"48 x 64, 12": ((48, 64), 12)}
    for name, (size, regions) in (small if quick else SIZES).items():
        speed(report, makers, name, size, regions)
    edges(report, *((48, 64), 12) if quick else SIZES["481 x 321, 300"])
    if where.data is not None if grow is None else grow:
        scaling(report, **({"megapixels": (0.01, 0.02), "rounds": 1} if quick else {}))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    for name in ("data", "camvid", "clusterer", "curves"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--every", type=int, default=2)
    own, rest = parser.parse_known_args(argv)
    args = options(__doc__, rest, rounds=9)
    setting = replace(args.setting, regions=RegionData(**vars(own)))
    report = Report("regions", TITLE, setting, args.roofline)
    measure(report, grow=True)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
