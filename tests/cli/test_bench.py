"""`hggraph bench` as a user runs it: choosing cases, failing ones, files, and wrong options."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import hggraph.benchmarks
from hggraph.benchmarks._measure import Report, agree
from hggraph.benchmarks._roofline import Roofline
from hggraph.cli import app, bench
from hggraph.cli.bench import CASES, LONG


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def words(result: Result) -> str:
    """Return what was printed without line breaks and boxes."""
    return " ".join(result.output.replace("│", " ").split())


def fake(monkeypatch: pytest.MonkeyPatch, name: str, measure) -> None:
    module = SimpleNamespace(TITLE=f"Title of {name}", measure=measure)
    monkeypatch.setitem(sys.modules, f"hggraph.benchmarks.bench_{name}", module)


def good(report: Report) -> None:
    report.peer("a peer", lambda: 1 / 0)
    times = report.time({"ours": lambda: torch.ones(3), "theirs": lambda: torch.ones(3)}, least=0)
    report.ratio(
        "theirs / ours", times["theirs"], times["ours"], agree("ours = theirs", torch.ones(3), torch.ones(3), 0)
    )


def test_tables_json_and_chart(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(Roofline, "measure", lambda *_, **__: Roofline(2e10, 1e11))
    fake(monkeypatch, "segment", lambda report: (seen.append(report.setting), good(report)))
    result = run(
        *("segment", "--device", "cpu", "--dtype", "bfloat16", "--rounds", "3", "--compile"),
        *("--json", tmp_path / "out.json", "--plot", tmp_path / "out.png"),
    )
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    (setting,) = seen
    assert (setting.device.type, setting.dtype, setting.rounds) == ("cpu", torch.bfloat16, 3)
    assert setting.compile and not setting.quick
    for text in [
        "Title of segment",
        "20 GB/s copied, 100 GFLOP/s",
        "ZeroDivisionError",
        "theirs / ours",
        "median ms",
        "extra MB",
    ]:
        assert text in words(result)
    (report,) = json.loads((tmp_path / "out.json").read_text())
    assert set(report) == {
        *("case", "title", "hardware", "threads", "device", "dtype", "quick", "roofline", "seconds", "extra_memory"),
        *("share_of_roofline", "absent", "failure", "agreements", "ratios"),
    }
    assert (report["case"], report["device"], report["dtype"], report["failure"]) == ("segment", "cpu", "bfloat16", "")
    assert len(report["seconds"]["ours"]) == 3
    assert set(report["ratios"][0]) == {"label", "median", "quartiles", "target", "reached"}
    assert set(report["agreements"][0]) == {"what", "error", "tolerance", "holds"}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]


def test_what_the_case_regions_reads_is_its_own(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(Roofline, "measure", lambda *_, **__: Roofline(2e10, 1e11))
    fake(monkeypatch, "regions", lambda report: (seen.append(report.setting.regions), good(report)))
    fake(monkeypatch, "segment", good)
    names = ("--data", "--camvid", "--clusterer", "--curves")
    options = ("--every", 3, *(word for name in names for word in (name, tmp_path)))
    result = run("regions", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    assert (seen[0].data, seen[0].camvid, seen[0].every) == (tmp_path, tmp_path, 3)
    assert (seen[0].clusterer, seen[0].curves) == (tmp_path, tmp_path)
    result = run("segment", "--device", "cpu", *options[:6])
    assert result.exit_code == 2
    assert "--data, --camvid belongs to the case regions, which is not among those named" in words(result)
    result = run("regions", "--device", "cpu", "--data", tmp_path / "none")
    assert result.exit_code == 2 and "does not exist" in words(result)


def test_a_real_case(tmp_path):
    result = run("segment", "--device", "cpu", "--quick", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert "tiny sizes" in result.output
    (report,) = json.loads((tmp_path / "out.json").read_text())
    assert report["quick"] and "segment_reduce" in report["seconds"]


def test_without_names_all_cases_run_in_order_and_one_failure_costs_no_other(monkeypatch, tmp_path):
    for name in CASES:
        fake(monkeypatch, name, good)
    fake(monkeypatch, "soft_slic", lambda report: (good(report), 1 / 0))
    result = run("--device", "cpu", "--quick", "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    assert "soft_slic failed: ZeroDivisionError" in words(result)
    reports = json.loads((tmp_path / "out.json").read_text())
    assert [report["case"] for report in reports] == [name for name in CASES if name not in LONG]
    assert {report["case"]: report["failure"] for report in reports if report["failure"]} == {
        "soft_slic": "ZeroDivisionError: division by zero"
    }
    assert all(report["seconds"] for report in reports)


def test_refusal_ends_with_status_1(monkeypatch, tmp_path):
    def bad(report: Report) -> None:
        times = report.time({"ours": torch.seed, "theirs": torch.seed}, least=0)
        differs = agree("ours = theirs", torch.ones(3), torch.zeros(3), 1e-3)
        report.ratio("theirs / ours", times["theirs"], times["ours"], differs)

    fake(monkeypatch, "segment", bad)
    result = run("segment", "--device", "cpu", "--quick", "--plot", tmp_path / "out.png")
    assert result.exit_code == 1
    assert "refused" in result.output and "error: There is no ratio to draw" in words(result)
    assert list(tmp_path.iterdir()) == []


def test_list():
    result = run("--list")
    assert result.exit_code == 0
    assert all(name in result.output and about.split(",")[0] in words(result) for name, about in CASES.items())


def test_every_case_has_its_file():
    folder = Path(hggraph.benchmarks.__file__).parent
    assert {path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py")} == set(CASES)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["sgement"], "there is no case 'sgement'; did you mean segment"),
        (["xyz"], "known are segment, typed_aggregate"),
        (["--rounds", "0"], "--rounds"),
        (["--json", "no/such/folder/out.json"], "does not exist"),
    ],
)
def test_wrong_options(args, text):
    result = run(*args, "--quick")
    assert result.exit_code == 2
    assert text in words(result)


def test_chart_needs_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    result = run("segment", "--quick", "--plot", tmp_path / "out.png")
    assert result.exit_code == 2 and "hggraph[viz]" in words(result)
