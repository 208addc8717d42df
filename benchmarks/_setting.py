"""Where and how benchmarks run, and the command line of one of them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hggraph.benchmarks._roofline import Roofline

__all__ = ["THREADS", "RegionData", "Setting", "options", "setting_for"]

THREADS = 2


@dataclass(frozen=True)
class RegionData:
    """What the case `regions` reads and draws; see there."""

    data: Path | None = None  # BSDS500
    camvid: Path | None = None
    every: int = 2  # photo
    clusterer: Path | None = None  # a run that has learned regions
    curves: Path | None = None  # folder for pictures


@dataclass(frozen=True)
class Setting:
    """Where and how benchmarks run."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    rounds: int = 9
    quick: bool = False  # tiny sizes, to see that it runs
    compile: bool = False  # time torch.compile's versions too
    regions: RegionData = field(default_factory=RegionData)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def options(doc: str | None, argv: Sequence[str] | None = None, rounds: int = 15) -> argparse.Namespace:
    """Read a benchmark's command line, set the threads, and seed."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of all contenders")
    parser.add_argument("--compile", action="store_true", help="time torch.compile's versions too")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs, measures nothing")
    args = parser.parse_args(argv)
    args.setting = setting_for(args.device, rounds=args.rounds, quick=args.quick, compile=args.compile)
    args.roofline = Roofline.measure(args.setting.device, args.setting.dtype, quick=args.quick)
    return args


def setting_for(
    device: str,
    *,
    dtype: torch.dtype | None = None,
    rounds: int = 9,
    quick: bool = False,
    compile: bool = False,
    regions: RegionData | None = None,
) -> Setting:
    """Return the setting for a device, bfloat16 on a GPU unless told otherwise.

    Sets the threads, seeds, and hushes compilers.
    """
    place = torch.device(device)
    if place.index is not None and place.type == "cuda":
        torch.cuda.set_device(place)  # events and peaks are the current device's
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    for name in ("torch._dynamo", "torch.utils.cpp_extension"):  # graph breaks, and that there is no GPU
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1 if quick else THREADS)  # threads that wait for each other make tiny sizes slow
    torch.manual_seed(0)
    return Setting(place, dtype, min(rounds, 2) if quick else rounds, quick, compile, regions or RegionData())
