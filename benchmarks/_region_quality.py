"""The quality of regions, ours and the peers', on photos that people segmented, at several numbers of regions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hggraph.benchmarks._measure import Report, finite
from hggraph.benchmarks._regions import FAST, OURS, Maker, learned, ours
from hggraph.benchmarks._setting import RegionData
from hggraph.data import BSDS500, CamVid, sample_photo, write_atomically
from hggraph.metrics import MeanIoU, RegionQuality, majority_labels

# isort: split
import torch
from rich.table import Table
from torch import Tensor

__all__ = ["camvid", "curves", "quality"]

COUNTS = (100, 200, 400, 800, 1600)
LEARNED = "hggraph, learned"
UE_TARGETS = {100: 0.92, 400: 0.94, 1600: 0.95}  # of fast-slic's at its own K
LEARNED_TARGETS = {100: 0.85, 400: 0.85}
COLUMNS = {
    "regions": ("K", "{:.1f}"),
    "pieces": ("pieces", "{:.1f}"),
    "boundary_recall": ("BR", "{:.3f}"),
    "boundary_precision": ("BP", "{:.3f}"),
    "asa": ("ASA", "{:.4f}"),
    "ue": ("UE", "{:.4f}"),
    "compactness": ("CO", "{:.3f}"),
    "explained_variation": ("EV", "{:.3f}"),
    "edges_per_node": ("edges a node", "{:.2f}"),
    "milliseconds": ("processor ms", "{:.1f}"),
}
AXES = {
    "asa": "achievable segmentation accuracy",
    "ue": "undersegmentation error (lower is better)",
    "edges_per_node": "edges per node",
    "milliseconds": "processor time, ms",
}
Row = dict[str, float]
Photo = tuple[Tensor, Tensor | None]  # bytes (3, H, W), and the annotators' segments (A, H, W)


def photos(where: RegionData, quick: bool) -> Sequence[Photo]:
    """Return the photos to measure on: of the test split as published, of all in one folder, or the sample photo."""
    if where.data is None:
        photo = (sample_photo() * 255).round().byte()
        return [(photo[:, :192:4, :256:4] if quick else photo, None)]
    dataset = BSDS500(where.data, "all" if (where.data / "segmentation").is_dir() else "test")
    chosen = range(0, len(dataset), where.every)[: 2 if quick else None]
    return _Photos(dataset, chosen)


class _Photos(Sequence[Photo]):
    """Photos that are read when they are asked for."""

    def __init__(self, dataset: BSDS500, chosen: Sequence[int]) -> None:
        self.dataset, self.chosen = dataset, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, at: Any) -> Photo:
        index = self.chosen[at]
        return self.dataset.raw(index)["image"].as_subclass(Tensor), self.dataset.segments(index)


def quality(report: Report, peers: dict[str, Maker], where: RegionData, counts: Sequence[int] = COUNTS) -> None:
    """Measure all at each number of regions, and ours once more at the number that each peer made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processor's time is told, and threads that wait for each other burn it
    try:
        _quality(report, peers, where, counts)
    finally:
        torch.set_num_threads(threads)


def _quality(report: Report, peers: dict[str, Maker], where: RegionData, counts: Sequence[int]) -> None:
    data = photos(where, report.quick)
    embedded = {} if where.clusterer is None else {LEARNED: learned(where.clusterer)}
    makers = _makers(peers) | embedded
    names = list(makers)
    found: dict[str, dict[int, list[Row]]] = {name: {n: [] for n in counts} for name in names}
    equal: dict[str, dict[int, list[tuple[Row, Row]]]] = {}
    started: set[tuple[str, int, torch.Size]] = set()
    for turn, (image, truth) in enumerate(data):
        for n in counts:
            for name in names:
                if (key := (name, n, image.shape)) not in started:  # first calls set up much
                    started.add(key)
                    makers[name](image.float() / 255, n)
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name][n].append(_measured(makers[name], image, truth, n))
            for mine in () if truth is None else (OURS, *embedded):
                known = {n: found[mine][n][-1]}
                for peer in peers if mine == OURS else [FAST] if FAST in peers else []:
                    theirs = found[peer][n][-1]
                    k = round(theirs["regions"])
                    if k not in known:
                        known[k] = _measured(makers[mine], image, truth, k)
                    label = peer if mine == OURS else mine
                    equal.setdefault(label, {c: [] for c in counts})[n].append((known[k], theirs))
    if where.data is None:
        report.absent["ASA, UE, borders"] = "left out: they need --data FOLDER, with BSDS500 in it"
    means = {name: {n: _mean(rows) for n, rows in by_count.items()} for name, by_count in found.items()}
    for n in counts:
        report.tables.append(_table(f"{n} regions asked for, mean of {len(data)} photos", means, n))
    report.more["photos"] = len(data)
    report.more["quality"] = _plain(means)
    _bounds(report, found, equal, counts, truth_known=where.data is not None)
    if where.curves is not None:
        curves(means, where.curves)


def _makers(peers: dict[str, Maker]) -> dict[str, Callable[[Tensor, int], Tensor]]:
    def of_pixels(make: Maker) -> Callable[[Tensor, int], Tensor]:
        return lambda photo, n: torch.from_numpy(make(_pixels(photo), n).astype("int64"))

    return {OURS: ours} | {name: of_pixels(make) for name, make in peers.items()}


def _pixels(photo: Tensor) -> Any:
    return (photo.permute(1, 2, 0) * 255).round().byte().contiguous().numpy()


def _measured(make: Callable[[Tensor, int], Tensor], image: Tensor, truth: Tensor | None, n: int) -> Row:
    """Return the measures of one photo's regions, and the processor time of making them."""
    photo = image.float() / 255
    start = time.process_time()
    labels = make(photo, n)
    seconds = time.process_time() - start
    row = {name: value.item() for name, value in RegionQuality(ignore_index=255)(labels, truth, image).items()}
    return row | {"milliseconds": 1e3 * seconds, "asked": n}


def _mean(rows: Sequence[Row]) -> Row:
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def _table(title: str, means: dict[str, dict[int, Row]], n: int) -> Table:
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    shown = [name for name in COLUMNS if any(by_count[n][name] == by_count[n][name] for by_count in means.values())]
    for name in shown:
        table.add_column(COLUMNS[name][0], justify="right")
    for method, by_count in means.items():
        table.add_row(method, *(COLUMNS[name][1].format(by_count[n][name]) for name in shown))
    return table


def _bounds(
    report: Report,
    found: dict[str, dict[int, list[Row]]],
    equal: dict[str, dict[int, list[tuple[Row, Row]]]],
    counts: Sequence[int],
    *,
    truth_known: bool,
) -> None:
    """Report what regions have to reach."""
    rows = [row for by_count in (found[OURS][n] for n in counts) for row in by_count]
    report.bound("pieces / K, largest", max(row["pieces"] / row["regions"] for row in rows), at_most=1)
    report.bound("K / asked for, smallest", min(row["regions"] / row["asked"] for row in rows), at_least=1)
    if not truth_known:
        return
    compared: dict[str, Any] = {}
    for label, by_count in equal.items():
        compared[label] = {}
        for n, pairs in by_count.items():
            mine, theirs = (_mean([pair[side] for pair in pairs]) for side in (0, 1))
            better = fmean(a["ue"] < b["ue"] for a, b in pairs)
            compared[label][n] = {"ours": mine, "theirs": theirs, "share of photos with a lower UE": better}
    report.more["at equal K"] = _plain(compared)
    for label, targets in ((FAST, UE_TARGETS), (LEARNED, LEARNED_TARGETS)):
        who = "UE / fast-slic's" if label == FAST else "learned: UE / fast-slic's"
        for n, both in compared.get(label, {}).items():
            ratio = _over("ue", both)
            report.bound(f"{who} at its K, {n} asked for", ratio, at_most=targets.get(n))
            if label == FAST:
                share = both["share of photos with a lower UE"]
                report.bound(f"share of photos with a lower UE, {n}", share, at_least=0.7 if n in targets else None)
    for peer, by_count in compared.items():
        if peer == LEARNED:
            continue
        worst = max(_over("1 - asa", both) for both in by_count.values())
        report.bound(f"(1 - ASA) / that of {peer} at its K, worst", worst, at_most=1)
    if FAST in compared:
        least = min(_over("boundary_recall", both) for both in compared[FAST].values())
        report.bound("boundary recall / fast-slic's at its K, worst", least, at_least=1)


def camvid(report: Report, peers: dict[str, Maker], where: RegionData, num_regions: int = 300) -> None:
    """Report the mean IoU that is possible where each region has one class, of every tenth frame or so of CamVid."""
    assert where.camvid is not None
    dataset = CamVid(where.camvid, "val")
    metrics = {name: MeanIoU(len(dataset.classes)) for name in (OURS, *peers)}
    makers = _makers(peers)
    chosen = range(0, len(dataset), 5 * where.every)[: 2 if report.quick else None]
    for index in chosen:
        sample = dataset.raw(index)
        photo, target = sample["image"].as_subclass(Tensor).float() / 255, sample["mask"].as_subclass(Tensor)
        for name, metric in metrics.items():
            metric.update(majority_labels(makers[name](photo, num_regions), target)[None], target[None])
    best = {name: metric.compute()["miou"].item() for name, metric in metrics.items()}
    table = Table("", title=f"CamVid, {num_regions} regions, {len(chosen)} frames")
    table.add_column("best possible mean IoU", justify="right")
    for name, value in best.items():
        table.add_row(name, f"{value:.3f}")
    report.tables.append(table)
    report.more["best possible mean IoU"] = best
    report.bound(f"best possible mean IoU, CamVid, {num_regions} regions", best[OURS], at_least=0.7)


def curves(means: dict[str, dict[int, Row]], folder: Path) -> None:
    """Draw each measure over the number of regions made, a picture each."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for measure in COLUMNS:
        lines = {
            name: [(row["regions"], row[measure]) for row in by_count.values() if row[measure] == row[measure]]
            for name, by_count in means.items()
        }
        if measure == "regions" or not any(lines.values()):
            continue
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        for name, points in lines.items():
            style = {"linewidth": 2.5, "color": "black"} if name.startswith(OURS) else {"linewidth": 1.2}
            dashes = "--" if name == LEARNED else "-"
            axes.plot(*zip(*points, strict=True), dashes, marker="o", label=name, markersize=4, **style)
        axes.set_xscale("log")
        if measure in ("pieces", "milliseconds"):
            axes.set_yscale("log")
        counts = sorted(next(iter(means.values())))
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("K, regions made (mean)")
        axes.set_ylabel(AXES.get(measure, measure.replace("_", " ")))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        write_atomically(folder / f"{measure}.png", lambda path, figure=figure: figure.savefig(path, dpi=120))


def _over(measure: str, both: dict[str, Row]) -> float:
    """Return ours over theirs, 1 of nothing to nothing: measures are exact to 1e-12."""
    mine, theirs = (
        1 - both[whose]["asa"] if measure == "1 - asa" else both[whose][measure] for whose in ("ours", "theirs")
    )
    return (mine + 1e-12) / (theirs + 1e-12)


def _plain(value: Any) -> Any:
    """Return what JSON can hold: names are text, and there is no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return finite(value)
