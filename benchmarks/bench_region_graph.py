"""From photo to graph: `hggraph graph`'s work against scikit-image's SLIC alone, and growth to 16 megapixels.

    python -m hggraph.benchmarks.bench_region_graph [--rounds N] [--json FILE] [--quick]

- A 640 x 480 photo in a JPEG and in a PNG file becomes a PyG graph of 300 regions in memory: decoding, importance
  map, sampling, soft SLIC, pooling, adjacency, edges. Against it runs ``skimage.segmentation.slic`` with 300 segments
  and 10 iterations on the decoded photo: labels only, no graph. The results cannot be the same; that candidates
  change nothing when all regions are candidates is checked instead, and the table says how much of the photo's
  variance the mean colours of the regions explain on each side.
- ``region_graph`` with 16 candidates and 64 pixels per region, on photos of 0.25 to 16 megapixels (mirrored copies of
  the sample photo), each size in a process of its own: seconds, and the largest memory that the process held.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from hggraph import SoftSLIC, region_graph
from hggraph.benchmarks._measure import Agreement, Report, agree
from hggraph.benchmarks._setting import THREADS, options
from hggraph.data import load_image, sample_photo

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch_geometric.data import Data

TITLE = "From photo to region graph"
SLIC = "scikit-image SLIC, 10 iterations"
MEGAPIXELS = (0.25, 0.5, 1, 2, 4, 8, 16)
CANDIDATES = 16
DOWNSAMPLE = 64


def photo_of(height: int, width: int) -> Tensor:
    """Return a photo of any size, shape ``(3, height, width)``: the sample photo and its mirror images."""
    photo = sample_photo()
    for axis, size in ((1, height), (2, width)):
        copies = -(-size // photo.shape[axis])
        photo = torch.cat([photo.flip(axis) if i % 2 else photo for i in range(copies)], axis).narrow(axis, 0, size)
    return photo.contiguous()


def graph_of_file(path: Path, clusterer: SoftSLIC, device: torch.device) -> Data:
    """Do what ``hggraph graph`` does for an image, without writing and without a figure."""
    x = load_image(path)[None].to(device)
    with torch.inference_mode():
        return region_graph(x, clusterer(x))[0]


def all_candidates(device: torch.device) -> Agreement:
    """Compare the graph with every region a candidate with the graph of the all-pairs assignment.

    In float64; on a GPU in float32, in which its kernels compute.
    """
    dtype, tolerance = (torch.float32, 1e-3) if device.type == "cuda" else (torch.float64, 1e-10)
    x = F.interpolate(sample_photo()[None].to(device, dtype), (36, 48), mode="bilinear", antialias=True)
    graphs = []
    for candidates in (20, None):
        slic = SoftSLIC(num_regions=20, candidates=candidates, feature_scale="photo").eval()
        graph = region_graph(x, clusterer=slic)
        dense = x.new_zeros(20, 9, 20)
        dense[graph.edge_index[1], graph.edge_type, graph.edge_index[0]] = graph.edge_weight
        graphs.append((graph.x, graph.pos, graph.area, dense))
    return agree(f"region_graph, all regions candidates = all pairs, {str(dtype)[6:]}", *graphs, tolerance)


def explained(photo: Tensor, labels: Tensor) -> float:
    """Return the share of the colours' variance that the regions' mean colours explain."""
    colors, label = photo.double().flatten(1), labels.flatten()
    count = torch.bincount(label).clamp(min=1)
    sums = torch.zeros(len(colors), len(count), dtype=colors.dtype).index_add(1, label, colors)
    rest = (colors - (sums / count)[:, label]).square().sum()
    return float(1 - rest / (colors - colors.mean(1, keepdim=True)).square().sum())


def scikit_image(pixels: np.ndarray, regions: int) -> Callable[[], np.ndarray]:
    from skimage.segmentation import slic

    return lambda: slic(pixels, n_segments=regions, max_num_iter=10, start_label=0)


def against_slic(report: Report, size: tuple[int, int] = (480, 640), regions: int = 300) -> None:
    """Time the way from file to graph and scikit-image's SLIC on the decoded photo, on the CPU."""
    device = report.setting.device
    photo = F.interpolate(sample_photo()[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    pixels = (photo.permute(1, 2, 0) * 255).round().byte().numpy()
    clusterer = SoftSLIC(num_regions=regions, candidates=6, feature_scale="photo").eval()
    slic = report.peer(SLIC, lambda: scikit_image(pixels, regions))
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], object]] = {}
        for kind, suffix in (("JPEG", "jpg"), ("PNG", "png")):
            path = Path(folder, f"photo.{suffix}")
            Image.fromarray(pixels).save(path, quality=95)
            contenders[f"{kind} to region graph"] = lambda path=path: graph_of_file(path, clusterer, device)
        timings = report.time(contenders | ({} if slic is None else {SLIC: slic}))
        x = load_image(path)
    with torch.inference_mode():
        labels = {"hggraph": clusterer(x[None].to(device)).labels[0].cpu()}
    if slic is not None:
        labels["scikit-image SLIC"] = torch.from_numpy(slic())
        agreement = all_candidates(device)
        for name in contenders:
            report.ratio(f"scikit-image SLIC / {name}", timings[SLIC], timings[name], agreement, at_least=1)

    table = Table("regions", title=f"{size[1]} x {size[0]} photo")
    for column in ("number", "colour variance explained"):
        table.add_column(column, justify="right")
    for name, label in labels.items():
        table.add_row(name, str(label.unique().numel()), f"{explained(x, label):.1%}")
        report.more[f"variance explained, {name}"] = explained(x, label)
    report.tables.append(table)


def one_size(height: int, width: int) -> dict[str, float]:
    """Make one graph and return seconds, the peak of the process's memory, and what it held before (bytes)."""
    torch.set_num_threads(THREADS)
    clusterer = SoftSLIC(DOWNSAMPLE, candidates=CANDIDATES, feature_scale="photo").eval()
    with torch.inference_mode():
        region_graph(photo_of(96, 128)[None], clusterer=clusterer)  # first calls set up much
        x = photo_of(height, width)[None]
        before = peak_memory()
        start = time.perf_counter()
        graph = region_graph(x, clusterer=clusterer)
        seconds = time.perf_counter() - start
    return {
        "pixels": height * width,
        "regions": graph.num_nodes,
        "edges": graph.num_edges,
        "seconds": seconds,
        "peak": max(before, peak_memory()),  # the kernel counts roughly
        "before": before,
    }


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the process that started this one too
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
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

    table = Table("megapixels", title=f"region_graph, candidates={CANDIDATES}, downsample={DOWNSAMPLE}")
    for column in ("regions", "edges", "seconds", "peak MB", "of it before MB", "time x", "memory x"):
        table.add_column(column, justify="right")
    times, memories = growth(rows)
    for i, (mp, row) in enumerate(zip(megapixels, rows, strict=True)):
        grown = [f"{times[i - 1]:.2f}", f"{memories[i - 1]:.2f}"] if i else ["", ""]
        counts = [f"{row['regions']:,.0f}", f"{row['edges']:,.0f}", f"{row['seconds']:.2f}"]
        table.add_row(f"{mp:g}", *counts, f"{row['peak'] / 1e6:,.0f}", f"{row['before'] / 1e6:,.0f}", *grown)
    report.tables.append(table)
    report.more["scaling"] = rows
    if times:
        report.bound("region_graph: worst growth of time per doubling", max(times), at_most=2.6)
        report.bound("region_graph: worst growth of memory per doubling", max(memories), at_most=2.6)
    report.bound(f"region_graph: peak memory at {megapixels[-1]:g} megapixels, GB", rows[-1]["peak"] / 1e9, at_most=8)


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
    module = "hggraph.benchmarks.bench_region_graph"
    command = [sys.executable, "-m", module, "--size", str(height), str(width)]
    root = Path(__file__).parents[2]  # of hggraph/benchmarks/
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure(report: Report) -> None:
    """Time photo to graph against scikit-image; the growth to 16 megapixels takes minutes: only this file's `main`."""
    if report.quick:
        against_slic(report, size=(48, 64), regions=12)
    else:
        against_slic(report)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--size", type=int, nargs=2)
    size, rest = parser.parse_known_args(argv)
    if size.size is not None:
        print(json.dumps(one_size(*size.size)))
        return 0
    args = options(__doc__, rest, rounds=15)
    report = Report("region_graph", TITLE, args.setting, args.roofline)
    measure(report)
    if args.quick:
        scaling(report, megapixels=(0.01, 0.02), rounds=1)
    else:
        scaling(report)
    return report.finish(args.json)


if __name__ == "__main__":
    raise SystemExit(main())
