"""Metrics are the same to the last bit on 1, 2 and 3 processes with 5 and 7 images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("skimage", reason="needs the extra `road`")

SCRIPT = Path(__file__).with_name("evaluate_on_processes.py")
WORLD = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("needs torch.distributed with gloo")
    folder = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join([str(SCRIPT.parents[2]), os.getenv("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(WORLD), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error::UserWarning:torchmetrics"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_the_same_to_the_last_bit(results):
    alone = {key[:2]: value for key, value in results[0].items() if key[2] == "alone"}
    assert {count for _, count in alone} == {5, 7}
    assert len(alone) >= 2 * 6
    compared = 0
    for rank, mine in enumerate(results):
        for (name, count, size), result in mine.items():
            want = alone[name, count]
            assert result.keys() == want.keys()
            for key, value in result.items():
                same = value.numpy().tobytes() == want[key].numpy().tobytes()
                assert same, f"{name} of {count} images on process {rank} of {size}: {key} {value} {want[key]}"
                compared += 1
    assert compared > 6 * 2 * (1 + 1 + 2 + 3)


def test_the_images_tell_the_metrics_something(results):
    alone = {key[:2]: value for key, value in results[0].items() if key[2] == "alone"}
    for (name, count), key in [(("iou", 5), "miou"), (("saliency", 5), "s_measure"), (("apls", 7), "apls")]:
        assert 0 < alone[name, count][key] < 1
    assert alone["iou", 5]["miou"] != alone["iou", 7]["miou"]
