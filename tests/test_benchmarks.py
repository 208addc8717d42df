"""Each case runs with tiny sizes, its results agree, and it writes its JSON. Nothing is said about time."""

import json
import sys

import pytest
import torch

from hggraph.benchmarks import (
    _measure,
    bench_gald,
    bench_hg_stage,
    bench_hs3,
    bench_local_attention,
    bench_networks,
    bench_py_conv,
    bench_region_graph,
    bench_segment,
    bench_soft_slic,
    bench_specialize,
    bench_training,
    bench_typed_aggregate,
)
from hggraph.benchmarks._setting import Setting

QUICK = Setting(rounds=2, quick=True)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(path) -> dict[str, float]:
    """Return the ratios of a file, after checks that hold for each."""
    report = json.loads(path.read_text())
    assert report["hardware"] and report["quick"] and not report["failure"]
    assert report["agreements"] and all(agreement["holds"] for agreement in report["agreements"])
    assert report["roofline"]["bandwidth"] > 0 and report["roofline"]["rate"] > 0
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in report["seconds"].values())
    assert not set(report["seconds"]) & set(report["absent"])
    return {ratio["label"]: ratio["median"] for ratio in report["ratios"]}


@pytest.mark.parametrize(
    ("case", "ratios", "absent", "agreement"),
    [
        (bench_segment, 5, "index_add_, compiled", "segment_reduce, gathered = gather, index_add_"),
        (bench_typed_aggregate, 10, "HGConv compiled, forward", "HGConv = PyG RGCNConv, gradients too"),
        (bench_local_attention, 4, "FlexAttention, mask", "local_attention = unfold"),
        (bench_soft_slic, 3, "soft_assign, eager, compiled", "centre_update = centre_update, eager"),
        (bench_hg_stage, 1, "dense stage, NCHW, compiled", "HG stage, one region per pixel = dense stage, float64"),
    ],
    ids=["segment", "typed_aggregate", "local_attention", "soft_slic", "hg_stage"],
)
def test_case(case, ratios, absent, agreement, tmp_path, capsys):
    assert case.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) >= ratios
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["absent"][absent].startswith("left out: --")
    assert agreement in [entry["what"] for entry in report["agreements"]]
    assert f"agreement: {agreement}" in capsys.readouterr().out


@pytest.mark.slow
def test_networks(tmp_path, capsys):
    assert bench_networks.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 8
    assert "HG network, one region per pixel = dense network, float64" in capsys.readouterr().out


def test_py_conv(tmp_path, capsys):
    assert bench_py_conv.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 7
    assert "PyConvResNet = the same on F.conv2d, float64" in capsys.readouterr().out


@pytest.mark.slow
def test_gald(tmp_path, capsys):
    assert bench_gald.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 10
    assert "LDv2 in the network = unfold, float64" in capsys.readouterr().out


@pytest.mark.slow
def test_specialize(tmp_path, capsys):
    assert bench_specialize.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 5
    assert "fuse = Eq. 2 as written: relative difference 0.0" in capsys.readouterr().out


@pytest.mark.slow
def test_hs3(tmp_path, capsys):
    assert bench_hs3.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 2
    assert "analysed = validated: relative difference 0.0" in capsys.readouterr().out


def test_training(tmp_path, capsys):
    assert bench_training.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 3
    assert "batches of the loader = one sample at a time" in capsys.readouterr().out
    speeds = json.loads((tmp_path / "out.json").read_text())["images_per_second"]
    assert len(speeds) == 5 and min(speeds.values()) > 0


def test_region_graph(tmp_path, capsys, monkeypatch):
    # a process of its own takes seconds to import PyTorch and PyG: see the next test
    monkeypatch.setattr(bench_region_graph, "in_own_process", bench_region_graph.one_size)
    assert bench_region_graph.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 5
    out = capsys.readouterr().out
    assert "colour variance explained" in out
    assert "not seen" in out  # what scikit-image allocates


def test_region_graph_in_own_process():
    found = bench_region_graph.in_own_process(24, 40)
    assert found["pixels"] == 960 and found["regions"] == 15
    assert found["peak"] >= found["before"] > 0 and found["seconds"] > 0


def test_region_graph_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    report = _measure.Report("region_graph", bench_region_graph.TITLE, QUICK)
    bench_region_graph.measure(report)
    assert "skimage" in report.absent[bench_region_graph.SLIC]
    assert "JPEG to region graph" in report.timings and report.ratios == []


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


def test_wrong_result_refuses_the_ratios(monkeypatch):
    """A peer that computes something else gets no ratio, and the other peers keep theirs."""
    index_add = torch.index_add
    monkeypatch.setattr(bench_segment.torch, "index_add", lambda *args: 1.01 * index_add(*args))
    report = _measure.Report("segment", bench_segment.TITLE, QUICK)
    bench_segment.measure(report)
    ratios = {ratio.label: ratio for ratio in report.ratios}
    assert report.refused
    assert ratios["index_add_ / segment_reduce"].median is None
    assert ratios["scatter_add_ / segment_reduce"].median is not None


def test_hg_stage_with_other_weights_is_refused(monkeypatch):
    stage, x = bench_hg_stage.stage_and_input("resnet26", 64)
    assert bench_hg_stage.one_region_per_pixel(stage, x.shape[1], QUICK).holds
    from_stage = bench_hg_stage.HGStage.from_stage

    def changed(*args, **kwargs):
        hg = from_stage(*args, **kwargs)
        with torch.no_grad():
            hg.blocks[0].conv2.weight[0] *= 1.01  # one direction of nine
        return hg

    monkeypatch.setattr(bench_hg_stage.HGStage, "from_stage", changed)
    assert not bench_hg_stage.one_region_per_pixel(stage, x.shape[1], QUICK).holds


def test_unfold_attention_by_hand():
    q = k = torch.zeros(1, 1, 1, 3)
    v = torch.tensor([[[[9.0, 18.0, 27.0]]]])
    # nine equal weights, of which the rows above and below and a column at each border are padding
    expected = torch.tensor([[[[3.0, 6.0, 5.0]]]])
    torch.testing.assert_close(bench_local_attention.unfold_attention(q, k, v, 3, 1), expected)
