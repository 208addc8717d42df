"""Benchmarks import, run with tiny sizes and write their JSON. Nothing is said about time."""

import json

import pytest
import torch

from benchmarks import _measure, bench_hg_stage, bench_region_graph, bench_typed_aggregate


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ratios(path) -> dict[str, float]:
    found = json.loads(path.read_text())
    assert found["hardware"] and found["quick"]
    assert found["agreements"] and all(agreement["holds"] for agreement in found["agreements"])
    return {ratio["label"]: ratio["median"] for ratio in found["ratios"]}


def test_typed_aggregate(tmp_path, capsys):
    assert bench_typed_aggregate.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    found = ratios(tmp_path / "out.json")
    assert len(found) == 7 and all(value > 0 for value in found.values())
    assert "HGConv = PyG RGCNConv, gradients too" in capsys.readouterr().out


def test_hg_stage(tmp_path, capsys):
    assert bench_hg_stage.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(ratios(tmp_path / "out.json")) == 1
    assert "adjacency" in capsys.readouterr().out


def test_region_graph(tmp_path, capsys, monkeypatch):
    # a process of its own takes seconds to import PyTorch and PyG: see the next test
    monkeypatch.setattr(bench_region_graph, "in_own_process", bench_region_graph.one_size)
    assert bench_region_graph.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(ratios(tmp_path / "out.json")) == 5
    assert "colour variance explained" in capsys.readouterr().out


def test_region_graph_in_own_process():
    found = bench_region_graph.in_own_process(24, 40)
    assert found["pixels"] == 960 and found["regions"] == 15
    assert found["peak"] >= found["before"] > 0 and found["seconds"] > 0


def test_growth_is_per_doubling_of_pixels():
    rows = [
        {"pixels": 1, "seconds": 1, "peak": 101e6, "before": 1e6},
        {"pixels": 4, "seconds": 6, "peak": 401e6, "before": 1e6},
    ]
    assert bench_region_graph.growth(rows) == ([3], [2])


def test_photo_of_any_size_is_the_photo_and_its_mirror_images():
    photo = bench_region_graph.photo_of(500, 1300)
    assert photo.shape == (3, 500, 1300)
    assert torch.equal(photo[:, :427, 639], photo[:, :427, 640])
    assert torch.equal(photo[:, 426], photo[:, 427])


def test_disagreement_refuses_the_ratio(capsys):
    report = _measure.Report("title", rounds=3)
    times = report.time({"a": lambda: None, "b": lambda: None}, least=0)
    differs = _measure.agree("a = b", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), 1e-3)
    report.ratio("a / b", times["a"], times["b"], differs, at_least=0)
    assert report.finish() == 1
    assert report.ratios[0].median is None
    out = capsys.readouterr().out
    assert "refused" in out and "NOT <=" in out


@pytest.mark.parametrize("other", [torch.tensor([float("nan")]), torch.ones(2)])
def test_nan_and_other_shapes_never_agree(other):
    assert not _measure.agree("a = b", other, torch.ones(1), 1e9).holds


def test_contenders_take_turns():
    order = []
    report = _measure.Report("title", rounds=2)
    contenders = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    report.time(contenders, warmup=0, least=0)
    assert order == ["a", "b", "a", "b", "b", "a"]  # one run of each to see how long it takes, then two rounds
