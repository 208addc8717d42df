"""What all benchmarks share: contenders, checks before ratios, one table and one JSON file.

Ratios are taken round by round; medians and quartiles are reported. A ratio needs an agreement: what is compared was
shown to give the same result, within a stated tolerance. Without it no ratio is reported and the program fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from hggraph.benchmarks._roofline import Roofline, Work
from hggraph.benchmarks._timing import Timing, extra_memory, quartiles, seconds_of, take_turns
from hggraph.data import write_atomically

__all__ = ["THREADS", "Agreement", "Report", "Setting", "agree", "hardware", "options"]

THREADS = 2
_SLOW = 2.0  # seconds of a peer that is not repeated


@dataclass(frozen=True)
class Setting:
    """Where and how benchmarks run."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    rounds: int = 9
    quick: bool = False  # tiny sizes, to see that it runs
    compile: bool = False  # time torch.compile's versions too

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


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
    setting: Setting = field(default_factory=Setting)
    roofline: Roofline | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    agreements: list[Agreement] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def quick(self) -> bool:
        return self.setting.quick

    def time(
        self,
        contenders: dict[str, Callable[[], object]],
        *,
        work: dict[str, Work] | None = None,
        warmup: int = 2,
        least: float = 0.02,
    ) -> dict[str, Timing]:
        """Run all contenders in each round, in turning order, then each once more for its memory.

        Args:
            contenders: Name and what to run.
            work: What a contender has to move and to compute at least, for its share of the roofline.
            warmup: Runs of each before anything counts.
            least: Seconds; shorter contenders run several times per round, and the mean counts.
        """
        device = self.setting.device
        timings = take_turns(contenders, self.setting.rounds, device, warmup=warmup, least=least)
        self.timings |= timings
        self.memory |= {name: extra_memory(run, device) for name, run in contenders.items()}
        if self.roofline is not None:
            for name, needs in (work or {}).items():
                self.shares[name] = self.roofline.share(needs, timings[name].median)
        return timings

    def peer(self, name: str, make: Callable[[], Callable[[], object]]) -> Callable[[], object] | None:
        """Return what `make` gives after two runs of it.

        None, with the reason in the table, if that fails or takes too long to be repeated.
        """
        try:
            run = make()
            run()
            seconds = seconds_of(run, 1)
        except Exception as error:  # a peer of any kind may be missing or broken in any way
            reason = str(error).strip().partition("\n")[0]
            self.absent[name] = f"{type(error).__name__}: {reason}"[:160]
            return None
        if seconds > _SLOW:
            self.absent[name] = f"one run takes {seconds:.1f} s: too slow to repeat"
            return None
        return run

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
        if self.roofline is not None:
            rates = f"{self.roofline.bandwidth / 1e9:.1f} GB/s copied, {self.roofline.rate / 1e9:.0f} GFLOP/s"
            console.print(f"measured here: {rates} in {self.setting.dtype}", highlight=False)
        for agreement in self.agreements:
            console.print(f"agreement: {agreement}", style="" if agreement.holds else "red", highlight=False)
        if self.timings or self.absent:
            console.print(self._timing_table())
        for table in self.tables:
            console.print(table)
        if self.ratios:
            console.print(self._ratio_table())
        if path is not None:
            write_json(path, self.to_dict())
        return int(self.refused)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "title": self.title,
            "hardware": hardware(),
            "threads": torch.get_num_threads(),
            "device": str(self.setting.device),
            "dtype": str(self.setting.dtype).removeprefix("torch."),
            "quick": self.quick,
            "roofline": None if self.roofline is None else asdict(self.roofline),
            "seconds": {name: timing.seconds for name, timing in self.timings.items()},
            "extra_memory": self.memory,
            "share_of_roofline": self.shares,
            "absent": self.absent,
            "agreements": [asdict(agreement) | {"holds": agreement.holds} for agreement in self.agreements],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            **self.more,
        }

    def _timing_table(self) -> Table:
        table = Table("contender", title=f"{self.setting.rounds} rounds, {self.setting.device}")
        for column in ("median ms", "quartiles", "extra MB", "of the roofline"):
            table.add_column(column, justify="right")
        for name, timing in self.timings.items():
            low, high = timing.quartiles
            cells = (f"{1e3 * timing.median:.2f}", f"{1e3 * low:.2f} - {1e3 * high:.2f}")
            share = f"{self.shares[name]:.0%}" if name in self.shares else ""
            table.add_row(name, *cells, f"{self.memory[name] / 1e6:.1f}", share)
        for name, reason in self.absent.items():
            table.add_row(f"[dim]{name}[/dim]", "", Text(reason, style="dim"), "", "")
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


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def hardware() -> str:
    """Return one line on machine and software, with the load: above the number of cores, times mean little."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}; {name}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}; "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def options(doc: str | None, argv: Sequence[str] | None = None, rounds: int = 15) -> argparse.Namespace:
    """Read a benchmark's command line, set two threads, and seed."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of all contenders")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs, measures nothing")
    args = parser.parse_args(argv)
    args.setting = setting_for(args.device, rounds=args.rounds, quick=args.quick)
    return args


def setting_for(
    device: str, *, dtype: torch.dtype | None = None, rounds: int = 9, quick: bool = False, compile: bool = False
) -> Setting:
    """Return the setting for a device, bfloat16 on a GPU unless told otherwise; sets two threads, and seeds."""
    place = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return Setting(place, dtype, min(rounds, 2) if quick else rounds, quick, compile)
