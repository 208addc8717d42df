"""What all benchmarks share: contenders, and checks before ratios.

Ratios are taken round by round; medians and quartiles are reported. A ratio needs an agreement: what is compared was
shown to give the same result, within a stated tolerance. Without it no ratio is reported and the program fails.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from hggraph.benchmarks._roofline import Roofline, Work
from hggraph.benchmarks._setting import Setting
from hggraph.benchmarks._tables import hardware, heading, screen, show
from hggraph.benchmarks._timing import Timing, clock_of, extra_memory, quartiles, take_turns
from hggraph.data import write_atomically

__all__ = ["Agreement", "Ratio", "Report", "agree", "reason", "write_json"]

_SLOW = 3.0  # seconds of a peer that is not repeated


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

    case: str
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
    failure: str = ""  # why the case ended early

    @property
    def quick(self) -> bool:
        return self.setting.quick

    def time(
        self,
        contenders: dict[str, Callable[[], object]],
        *,
        work: dict[str, Work] | None = None,
        warmup: int = 3,
        least: float = 0.02,
    ) -> dict[str, Timing]:
        """Run all contenders in each round, in turning order, then each once more for its memory.

        Args:
            contenders: Name and what to run.
            work: What a contender has to move and to compute at least, for its share of the roofline.
            warmup: Runs of each before anything counts; one is enough for a contender that takes long.
            least: Seconds; shorter contenders run several times per round, and the mean counts.
        """
        device = self.setting.device
        timings = take_turns(contenders, self.setting.rounds, device, warmup=warmup, least=least)
        self.timings |= timings
        held = {name: extra_memory(run, device) for name, run in contenders.items()}
        # every result of PyTorch takes memory: none means that another library allocates for itself
        self.memory |= {name: most for name, most in held.items() if most > 0}
        if self.roofline is not None:
            for name, needs in (work or {}).items():
                self.shares[name] = self.roofline.share(needs, timings[name].median)
        return timings

    def peer(self, name: str, make: Callable[[], Callable[[], object]]) -> Callable[[], object] | None:
        """Return what `make` gives after one run of it.

        None, with the reason in the table, if that fails or takes too long to be repeated.
        """
        try:
            run = make()
            seconds = clock_of(self.setting.device)(run, 1)
        except Exception as error:  # a peer of any kind may be missing or broken in any way
            self.absent[name] = reason(error)
        else:
            if seconds <= _SLOW:
                return run
            self.absent[name] = f"one run takes {seconds:.1f} s: not repeated"
        return None

    def compiled(
        self,
        name: str,
        function: Callable[..., Any],
        use: Callable[[Callable[..., Any]], Callable[[], object]] | None = None,
    ) -> Callable[[], object] | None:
        """Return what `use` makes of `function` compiled by torch.compile, or that itself.

        None, with the reason in the table, where that fails or the setting leaves it out.
        """
        if not self.setting.compile:
            self.absent[name] = "left out: --no-compile"
            return None

        def make() -> Callable[[], object]:
            fast = torch.compile(function)
            run = fast if use is None else use(fast)
            run()  # compiles
            return run

        return self.peer(name, make)

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
        console = screen()
        console.print(heading(self.setting))
        show(self, console)
        if path is not None:
            write_json(path, self.to_dict())
        return int(self.refused)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "case": self.case,
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
            "failure": self.failure,
            "agreements": [
                # JSON knows no NaN and no infinity
                asdict(agreement) | {"error": finite(agreement.error), "holds": agreement.holds}
                for agreement in self.agreements
            ],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            **self.more,
        }


def reason(error: Exception) -> str:
    """Return in one line why something could not run."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    text = str(error).strip().partition("\n")[0]
    return (text if isinstance(error, ImportError) and text else f"{type(error).__name__}: {text}")[:160]


def finite(value: float) -> float | None:
    """Return the number if it is one."""
    return value if math.isfinite(value) else None


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
