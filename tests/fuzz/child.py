"""Runs one fuzzed target in a process of its own, which may crash, hang or run out of memory: ``python -m`` this.

Each example is noted in a file before it is tried, so that the last one is known whatever happens. Hypothesis draws
them; with a seed of 0 always the same.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

MEMORY = 6 << 30  # bytes that a child may take, its libraries included
MODULES = ("tests.fuzz.files", "tests.fuzz.calls")


def main(target: str, seconds: float, noted: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    targets = {name: found for module in MODULES for name, found in importlib.import_module(module).TARGETS.items()}
    strategy, check = targets[target]
    found: Counter[str] = Counter()
    end, round_number = time.monotonic() + seconds, int(os.environ.get("HGGRAPH_FUZZ_SEED", "0"))

    def try_one(example: object) -> None:
        if time.monotonic() > end:
            return
        noted.write_text(repr(example))
        found[check(example)] += 1

    options = settings(max_examples=100, deadline=None, database=None, phases=[Phase.generate])
    options = settings(options, suppress_health_check=list(HealthCheck))
    warnings.simplefilter("ignore")
    try:
        while time.monotonic() < end:
            seed(round_number)(options(given(strategy)(try_one)))()
            round_number += 1
    except Exception:  # an example that went wrong: how, and which, is what the parent shows
        print(json.dumps({"tried": found, "wrong": traceback.format_exc()}))
        return
    print(json.dumps({"tried": found}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
