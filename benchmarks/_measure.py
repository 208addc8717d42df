"""What all benchmarks share: interleaved timing, checks before ratios, one table and one JSON file.

Contenders take turns within each round, so that a machine that slows down slows all of them. Ratios are taken round
by round; medians and quartiles are reported. A ratio needs an agreement: what is compared was shown to give the same
result, within a stated tolerance. Without it no ratio is reported and the program fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

__all__ = ["THREADS", "Agreement", "Report", "agree", "hardware", "options"]

THREADS = 2


@dataclass(frozen=True)
class Agreement:
    """Whether two results are the same: the largest difference over the largest value, and what is allowed."""

    what: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    def __str__(self) -> str:
        relation = "<=" if self.holds else "NOT <="
        return f"{self.what}: relative difference {self.error:.1e} {relation} {self.tolerance:.0e}"


def agree(what: str, got: Tensor | Sequence[Tensor], want: Tensor | Sequence[Tensor], tolerance: float) -> Agreement:
    """Compare one or several tensors; the worst of them counts, and different shapes never agree."""
    pairs = [(got, want)] if isinstance(got, Tensor) else list(zip(got, want, strict=True))
    worst = 0.0
    for a, b in pairs:
        a, b = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
        if a.shape != b.shape:
            return Agreement(f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}", float("inf"), tolerance)
        error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if b.numel() else 0.0
        worst = error if not error <= worst else worst  # keeps NaN
    return Agreement(what, worst, tolerance)


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender in each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """A time over another, and what it should reach."""

    label: str
    median: float | None
    quartiles: tuple[float, float] | None
    target: str
    reached: bool | None


@dataclass
class Report:
    """Times contenders, keeps what was found, prints it and writes it."""

    title: str
    rounds: int = 15
    quick: bool = False
    timings: dict[str, Timing] = field(default_factory=dict)
    agreements: list[Agreement] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def time(
        self, contenders: dict[str, Callable[[], object]], *, warmup: int = 2, least: float = 0.02
    ) -> dict[str, Timing]:
        """Run all contenders in each round, in turning order.

        Args:
            contenders: Name and what to run.
            warmup: Runs of each before anything counts.
            least: Seconds; shorter contenders run several times per round, and the mean counts.
        """
        repeats = {}
        for name, run in contenders.items():
            for _ in range(warmup):
                run()
            repeats[name] = max(1, round(least / max(seconds_of(run, 1), 1e-6)))
        names = list(contenders)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(self.rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(seconds_of(contenders[name], repeats[name]))
        timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
        self.timings |= timings
        return timings

    def ratio(
        self,
        label: str,
        numerator: Timing,
        denominator: Timing,
        agreement: Agreement,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Report ``numerator / denominator`` of the same rounds, or refuse to where results disagree."""
        if agreement not in self.agreements:
            self.agreements.append(agreement)
        if not agreement.holds:
            self.ratios.append(Ratio(label, None, None, "", None))
            return
        values = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
        self.bound(label, statistics.median(values), quartiles(values), at_least=at_least, at_most=at_most)

    def bound(
        self,
        label: str,
        value: float,
        spread: tuple[float, float] | None = None,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Report any number with its target."""
        target, reached = "", None
        if self.quick:  # tiny sizes reach and miss nothing
            pass
        elif at_least is not None:
            target, reached = f">= {at_least:g}", value >= at_least
        elif at_most is not None:
            target, reached = f"<= {at_most:g}", value <= at_most
        self.ratios.append(Ratio(label, value, spread, target, reached))

    @property
    def refused(self) -> bool:
        """Whether any comparison was refused."""
        return not all(agreement.holds for agreement in self.agreements)

    def finish(self, path: str | Path | None = None) -> int:
        """Print everything, write JSON if a path is given, and return the exit status: 1 after a refusal."""
        console = Console()
        if not console.is_terminal:
            console.width = 120
        console.print(f"\n[bold]{self.title}[/bold]\n{hardware()}", highlight=False)
        if self.quick:
            console.print("--quick: tiny sizes, to see that it runs; the numbers mean nothing")
        for agreement in self.agreements:
            console.print(f"agreement: {agreement}", style="" if agreement.holds else "red", highlight=False)
        if self.timings:
            console.print(self._timing_table())
        for table in self.tables:
            console.print(table)
        if self.ratios:
            console.print(self._ratio_table())
        if path is not None:
            Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return int(self.refused)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "title": self.title,
            "hardware": hardware(),
            "threads": torch.get_num_threads(),
            "quick": self.quick,
            "seconds": {name: timing.seconds for name, timing in self.timings.items()},
            "agreements": [asdict(agreement) | {"holds": agreement.holds} for agreement in self.agreements],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            **self.more,
        }

    def _timing_table(self) -> Table:
        table = Table("contender", title=f"{self.rounds} rounds, {torch.get_num_threads()} threads")
        for column in ("median ms", "quartiles", "least"):
            table.add_column(column, justify="right")
        for name, timing in self.timings.items():
            low, high = timing.quartiles
            cells = (f"{1e3 * timing.median:.2f}", f"{1e3 * low:.2f} - {1e3 * high:.2f}")
            table.add_row(name, *cells, f"{1e3 * min(timing.seconds):.2f}")
        return table

    def _ratio_table(self) -> Table:
        table = Table("ratio")
        for column in ("median", "quartiles", "target", "reached"):
            table.add_column(column, justify="right")
        for ratio in self.ratios:
            if ratio.median is None:
                table.add_row(ratio.label, "refused", "results disagree", ratio.target, "[red]no[/red]")
                continue
            spread = "" if ratio.quartiles is None else f"{ratio.quartiles[0]:.2f} - {ratio.quartiles[1]:.2f}"
            reached = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[ratio.reached]
            table.add_row(ratio.label, f"{ratio.median:.2f}", spread, ratio.target, reached)
        return table


def seconds_of(run: Callable[[], object], repeat: int) -> float:
    """Return the mean seconds of `repeat` runs."""
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - start) / repeat


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def hardware() -> str:
    """Return one line on machine and software, with the load: above the number of cores, times mean little."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}; "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def options(doc: str | None, argv: Sequence[str] | None = None, rounds: int = 15) -> argparse.Namespace:
    """Read a benchmark's command line, set two threads, and seed."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of all contenders")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs, measures nothing")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds = min(args.rounds, 2)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return args
