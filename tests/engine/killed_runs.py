"""Kill training at random moments, go on each time, and compare the end with a run that was left alone.

    python -m tests.engine.killed_runs FOLDER KILLS

A process of its own, which forks the runs: all imports are paid once, and no thread is alive when it forks.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from hggraph.engine.run import run
from tests.engine.toys import write_recipe


def start(recipe: Path, out: Path) -> int:
    """Train in a child process and return its number."""
    child = os.fork()
    if child:
        return child
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        run("fit", ["--config", str(recipe), "--out", str(out)])
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    recipe = write_recipe(folder, max_epochs=12)
    begin = time.perf_counter()
    child = start(recipe, folder / "alone")
    while not (folder / "alone" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    startup = time.perf_counter() - begin
    alone = os.waitpid(child, 0)[1]
    training = time.perf_counter() - begin - startup
    random.seed(0)
    killed, runs = 0, [folder / "killed-0"]
    while killed < kills:
        child = start(recipe, runs[-1])
        time.sleep(startup + training * random.uniform(-0.2, 1.2) / kills)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended and status:
            sys.exit(runs[-1].with_suffix(".log").read_text())
        if ended:  # it was done before it could be killed
            runs.append(folder / f"killed-{len(runs)}")
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    status = os.waitpid(start(recipe, runs[-1]), 0)[1]
    want, *ends = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (folder / "alone", *runs)
    ]
    equal = all(
        torch.equal(value, end["state_dict"][name]) for end in ends for name, value in want["state_dict"].items()
    )
    steps = sorted({end["global_step"] for end in (want, *ends)})
    print(json.dumps({"alone": alone, "status": status, "killed": killed, "steps": steps, "equal": equal}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
