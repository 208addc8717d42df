"""Runs beside each other: seeds of a recipe are one line, and the last value counts."""

import pytest

from hggraph.benchmarks.compare_runs import curve, main


def log(run, version, rows):
    folder = run / "logs" / "csv" / f"version_{version}"
    folder.mkdir(parents=True)
    lines = ["step,train/loss,val/miou", *(f"{step},{loss},{miou}" for step, loss, miou in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def test_seeds_of_a_recipe_are_one_line(tmp_path, capsys):
    log(tmp_path / "dense-0", 0, [(0, 2.0, ""), (1, "", 0.9), (2, 1.0, 0.4)])
    log(tmp_path / "dense-1", 0, [(0, 2.0, ""), (2, 1.0, 0.6)])
    log(tmp_path / "hg-0", 0, [(0, 3.0, 0.7)])
    assert main([*map(str, sorted(tmp_path.glob("*-*"))), "--plot", str(tmp_path / "out.png")]) == 0
    words = capsys.readouterr().out.split()
    assert {"50.0", "40.0", "60.0", "70.0"} <= set(words) and "90.0" not in words
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_several_metrics(tmp_path, capsys):
    log(tmp_path / "dense-0", 0, [(0, 2.0, 0.25), (1, 1.5, 0.75)])
    assert main([str(tmp_path / "dense-0"), "--metric", "val/miou", "--metric", "train/loss"]) == 0
    assert {"75.0", "150.0"} <= set(capsys.readouterr().out.split())


def test_a_step_taken_twice_counts_once(tmp_path):
    log(tmp_path / "run", 0, [(0, 3.0, ""), (1, 2.0, "")])
    log(tmp_path / "run", 10, [(1, 2.5, ""), (2, 1.0, "")])
    log(tmp_path / "run", 2, [(1, 9.0, "")])
    assert curve(tmp_path / "run", "train/loss") == [(0, 3.0), (1, 2.5), (2, 1.0)]


def test_a_run_without_a_metric(tmp_path):
    log(tmp_path / "run-0", 0, [(0, 3.0, "")])
    with pytest.raises(SystemExit, match="has logged no 'val/miou'"):
        main([str(tmp_path / "run-0")])
