"""Each case runs with tiny sizes, its results agree, and it writes its JSON. Nothing is said about time."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hggraph.engine
from hggraph import SoftSLIC
from hggraph.benchmarks import (
    _measure,
    _region_growth,
    _region_quality,
    _regions,
    bench_gald,
    bench_hg_stage,
    bench_hs3,
    bench_local_attention,
    bench_networks,
    bench_predict,
    bench_py_conv,
    bench_regions,
    bench_segment,
    bench_soft_slic,
    bench_specialize,
    bench_training,
    bench_typed_aggregate,
    stride_forms,
)
from hggraph.benchmarks._setting import RegionData, Setting
from hggraph.data import sample_photo

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


def test_predict(tmp_path, capsys):
    assert bench_predict.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert "labels: predict_folder, batches of 4 = by hand" in capsys.readouterr().out


def test_training(tmp_path, capsys):
    assert bench_training.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert len(found(tmp_path / "out.json")) == 3
    assert "batches of the loader = one sample at a time" in capsys.readouterr().out
    speeds = json.loads((tmp_path / "out.json").read_text())["images_per_second"]
    assert len(speeds) == 5 and min(speeds.values()) > 0


@pytest.fixture
def bsds(tmp_path):
    """Write two small photos of two squares each, cut the same way by two people."""
    for name in ("1", "2"):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[10:30, 10:30], pixels[20:44, 40:60] = (200, 40, 40), (40, 40, 200)
        pixels += np.random.default_rng(int(name)).integers(0, 9, pixels.shape, np.uint8)
        segments = np.ones((2, 48, 64), np.uint16)
        segments[:, 10:30, 10:30], segments[:, 20:44, 40:60] = 2, 3
        for folder in ("images", "segmentation"):
            (tmp_path / "bsds" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"bsds/images/{name}.png")
        np.savez(tmp_path / f"bsds/segmentation/{name}.npz", segmentation=segments)
    return tmp_path / "bsds"


@pytest.fixture
def here(monkeypatch):
    """Measure growth in this process: one of its own takes seconds to import PyTorch and PyG."""
    monkeypatch.setattr(_region_growth, "in_own_process", _region_growth.one_size)


def test_regions(tmp_path, capsys, bsds, here):
    options = ["--quick", "--data", str(bsds), "--every", "1", "--json", str(tmp_path / "out.json")]
    assert bench_regions.main([*options, "--curves", str(tmp_path / "curves")]) == 0
    ratios = found(tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["photos"] == 2 and len(report["growth"]) == 2
    measured = report["quality"]["hggraph"]["40"]
    assert 0.8 < measured["asa"] <= 1 and measured["milliseconds"] > 0 and measured["asked"] == 40
    assert {"pieces / K, largest", "edges per node of the soft graph, 12 regions"} < ratios.keys()
    installed = [name for name in _regions.PEERS if f"{name}'s labels" not in report["absent"]]
    assert set(report["at equal K"]) == set(installed)
    for name in installed:
        for both in report["at equal K"][name].values():
            assert both["ours"]["asked"] == both["theirs"]["regions"]
        assert f"soft graph / {name}'s labels, 48 x 64, 12" in ratios
    assert {path.name for path in (tmp_path / "curves").iterdir()} >= {"asa.png", "ue.png", "milliseconds.png"}
    assert "12 regions asked for, mean of 2 photos" in capsys.readouterr().out


def test_learned_regions(monkeypatch, bsds):
    slic = SoftSLIC(candidates=6, feature_scale="photo").eval()
    monkeypatch.setattr(hggraph.engine, "load_clusterer", lambda run: slic, raising=False)
    report = _measure.Report("regions", bench_regions.TITLE, QUICK)
    fast = {_regions.FAST: lambda pixels, n: np.arange(48 * 64).reshape(48, 64) // (48 * 64 // n)}
    _region_quality.quality(report, fast, RegionData(data=bsds, clusterer=bsds), counts=(12,))
    rows = report.more["quality"]
    same = {name: value for name, value in rows["hggraph"]["12"].items() if name != "milliseconds"}
    assert same == {name: rows["hggraph, learned"]["12"][name] for name in same}
    assert list(report.more["at equal K"]) == ["fast-slic", "hggraph, learned"]
    label = "learned: UE / fast-slic's at its K, 12 asked for"
    assert {ratio.label: ratio.median for ratio in report.ratios}[label] < 1


def test_regions_of_the_sample_photo_alone(monkeypatch, tmp_path, here):
    for name in ("skimage.segmentation", "cv2", "fast_slic"):
        monkeypatch.setitem(sys.modules, name, None)
    report = _measure.Report("regions", bench_regions.TITLE, QUICK)
    bench_regions.measure(report)
    assert report.absent["ASA, UE, borders"].startswith("left out: they need --data")
    assert set(report.absent) >= {f"{name}'s labels" for name in _regions.PEERS}
    assert "48 x 64, 12: soft graph" in report.timings and "growth" not in report.more
    assert report.more["quality"]["hggraph"]["12"]["asa"] is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_best_mean_iou_on_camvid(tmp_path):
    for folder, shape in (("val", (24, 32, 3)), ("valannot", (24, 32))):
        (tmp_path / folder).mkdir()
        pixels = np.zeros(shape, np.uint8)
        pixels[:, 16:] = 3 if folder == "valannot" else 255
        Image.fromarray(pixels).save(tmp_path / folder / "0016E5_07959.png")
    halves = {"halves": lambda pixels, n: pixels[..., 0] // 255, "one": lambda pixels, n: 0 * pixels[..., 0]}
    report = _measure.Report("regions", bench_regions.TITLE, QUICK)
    _region_quality.camvid(report, halves, RegionData(camvid=tmp_path), num_regions=8)
    # one region of two classes: half of it is right, and the other class is never met
    assert report.more["best possible mean IoU"] == {"hggraph": 1.0, "halves": 1.0, "one": 0.25}


def test_peers_make_about_as_many_regions_as_asked_for():
    report = _measure.Report("regions", bench_regions.TITLE, QUICK)
    makers = _regions.peers(report)
    if not makers:
        pytest.skip("no peer is installed")
    photo = _region_quality._pixels(_region_growth.photo_of(120, 160))
    for name, make in makers.items():
        labels = make(photo, 48)
        assert labels.shape == (120, 160) and 24 <= len(np.unique(labels)) <= 72, name


def test_growth_in_own_process():
    found = _region_growth.in_own_process(40, 60)
    assert found["pixels"] == 2400 and found["regions"] == 1
    assert found["peak"] >= found["before"] > 0 and found["seconds"] > 0


def test_growth_is_per_doubling_of_pixels():
    rows = [
        {"pixels": 1, "seconds": 1, "peak": 101e6, "before": 1e6},
        {"pixels": 4, "seconds": 6, "peak": 401e6, "before": 1e6},
    ]
    assert _region_growth.growth(rows) == ([3], [2])


def test_photo_of_any_size_is_the_photo_and_its_mirror_images():
    photo = _region_growth.photo_of(500, 1300)
    assert photo.shape == (3, 500, 1300) and photo.isfinite().all()
    assert torch.equal(photo[:, :427, 639], photo[:, :427, 640])
    assert torch.equal(photo[:, 426], photo[:, 427])
    assert torch.equal(photo[:, :427, :640], sample_photo())


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


def test_stride_forms(tmp_path, monkeypatch, capsys):
    """Two forms are trained for a step, evaluated and listed; each form can be made."""
    monkeypatch.setattr(stride_forms, "EPOCHS", 1)
    monkeypatch.setattr(stride_forms, "VARIANTS", 1)
    data = {"train": torch.rand(8, 32, 8, 8).half(), "val": torch.rand(2, 32, 8, 8).half()}
    data |= {f"{split}_mask": torch.randint(11, (len(x), 64, 64)).to(torch.uint8) for split, x in tuple(data.items())}
    monkeypatch.setattr(stride_forms, "cached", lambda root, weights, out: data)
    monkeypatch.setattr(stride_forms, "make", lambda form, weights, seed: MAKE(form, False, seed))
    monkeypatch.setattr(stride_forms.CamVid, "__init__", lambda self, root, split: None)
    monkeypatch.setattr(stride_forms.CamVid, "classes", [f"class {i}" for i in range(10)] + ["pole"], raising=False)
    arguments = ["stride_forms", "--root", "x", "--weights", "x", "--out", str(tmp_path), "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--forms", "strided", "regions"])
    stride_forms.main()
    stride_forms.main()  # nothing is done again
    assert json.loads((tmp_path / "regions-0.json").read_text())["form"] == "regions"
    measured = {
        "strided": {"gmacs": 1.0, "frame": 1.0, "step": 1.0},
        "regions": {"gmacs": 1.0, "frame": 2.0, "step": 3},
    }
    (tmp_path / "times.json").write_text(json.dumps(measured))
    monkeypatch.setattr(sys, "argv", ["stride_forms", "--out", str(tmp_path), "--plot", str(tmp_path / "plot.png")])
    stride_forms.main()
    assert "2.00" in capsys.readouterr().out and (tmp_path / "plot.png").is_file()
    for form in stride_forms.FORMS:
        net = stride_forms.without_fine(MAKE(form, False, 0)).eval()
        with torch.no_grad():
            assert stride_forms.predict(net, torch.rand(1, 32, 16, 16), (32, 32)).shape == (1, 11, 32, 32)


MAKE = stride_forms.make
