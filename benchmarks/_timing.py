"""Time and memory of several contenders, on the CPU and on a GPU.

Contenders take turns within each round, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Timing", "clock_of", "extra_memory", "processor_seconds_of", "quartiles", "seconds_of", "take_turns"]

_LONG = 0.3  # seconds of a contender that needs no second run to warm up
_CACHE = 256 << 20  # bytes written before each run on a GPU: more than its last cache holds


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


def take_turns(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    warmup: int = 3,
    least: float = 0.02,
    clock: Callable[[Callable[[], object], int], float] | None = None,
) -> dict[str, Timing]:
    """Run all contenders in each round, in turning order.

    Args:
        contenders: Name and what to run.
        rounds: How often each gets its turn.
        device: Where they run; on a GPU its own clock counts, and its cache is overwritten before each run.
        warmup: Runs of each before anything counts; one is enough for a contender that takes long.
        least: Seconds; shorter contenders run several times per round, and the mean counts.
        clock: What measures the mean seconds of some runs; None is the device's own, `clock_of`.
    """
    clock = clock_of(device) if clock is None else clock
    repeats = {}
    for name, run in contenders.items():
        seconds = clock(run, 1)
        for _ in range(warmup - 1):
            seconds = clock(run, 1) if seconds < _LONG else seconds
        repeats[name] = max(1, min(1000, round(least / max(seconds, 1e-6))))
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(clock(contenders[name], repeats[name]))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def clock_of(device: torch.device) -> Callable[[Callable[[], object], int], float]:
    """Return what measures the mean seconds of some runs on a device."""
    return seconds_on_gpu if device.type == "cuda" else seconds_of


def seconds_of(run: Callable[[], object], repeat: int) -> float:
    """Return the mean seconds of `repeat` runs."""
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - start) / repeat


def processor_seconds_of(run: Callable[[], object], repeat: int) -> float:
    """Return the mean seconds that all threads of this process took together for `repeat` runs."""
    start = time.process_time()
    for _ in range(repeat):
        run()
    return (time.process_time() - start) / repeat


def seconds_on_gpu(run: Callable[[], object], repeat: int) -> float:
    """Return the mean seconds of `repeat` runs by the GPU's clock, each with a cold cache."""
    cache = torch.empty(_CACHE, dtype=torch.int8, device="cuda")
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeat)]
    for start, end in events:
        cache.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return sum(start.elapsed_time(end) for start, end in events) / repeat / 1e3


def extra_memory(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that one run holds beyond what was there before, its results among them.

    On the CPU every allocation and release that PyTorch reports to its profiler is added up; what other libraries
    allocate for themselves is not seen. On a GPU the caching allocator's own peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports its own start and stop
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
