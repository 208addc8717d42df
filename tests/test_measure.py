"""Turns, clocks, memory, the roofline, refusals, tables and the chart of the benchmarks."""

import json
from types import SimpleNamespace

import pytest
import torch

from hggraph.benchmarks import _measure, _tables, _timing
from hggraph.benchmarks._measure import Report, agree
from hggraph.benchmarks._plot import plot_ratios
from hggraph.benchmarks._roofline import Roofline, Work, size_of
from hggraph.benchmarks._setting import Setting, setting_for
from hggraph.benchmarks._timing import Timing

CPU = torch.device("cpu")


def report(**settings) -> Report:
    return Report("case", "title", Setting(**{"rounds": 3, **settings}))


def test_contenders_take_turns():
    order = []
    contenders = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    _timing.take_turns(contenders, 2, CPU, warmup=1, least=0)
    assert order == ["a", "b", "a", "b", "b", "a"]  # one run of each to see how long it takes, then two rounds


def test_short_contenders_repeat_and_long_ones_warm_up_once(monkeypatch):
    runs = []
    seconds = {"short": 0.005, "long": 1.0}

    def clock(run, repeat):
        runs.append((run(), repeat))
        return seconds[run()]

    monkeypatch.setattr(_timing, "clock_of", lambda device: clock)
    times = _timing.take_turns({"short": lambda: "short", "long": lambda: "long"}, 1, CPU, warmup=3, least=0.02)
    assert runs == [("short", 1)] * 3 + [("long", 1), ("short", 4), ("long", 1)]
    assert times == {name: Timing((value,)) for name, value in seconds.items()}


def test_median_and_quartiles():
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert timing.median == 3 and timing.quartiles == (2, 4)
    assert Timing((7.0,)).quartiles == (7, 7)


def test_gpu_clock_starts_after_the_cache_is_overwritten_and_ends_before_synchronising(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, end):
            assert log[-1] == "synchronize"
            return 8.0  # milliseconds

    cache = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: cache)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    clock = _timing.clock_of(torch.device("cuda"))
    assert clock(lambda: log.append("run"), 2) == pytest.approx(8e-3)
    assert log == ["flush", "record", "run", "record"] * 2 + ["synchronize"]


def test_gpu_memory_is_the_peak_beyond_what_was_there(monkeypatch):
    log = []
    for name, value in (("synchronize", None), ("reset_peak_memory_stats", None), ("memory_allocated", 100)):
        monkeypatch.setattr(torch.cuda, name, lambda name=name, value=value: (log.append(name), value)[1])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: (log.append("peak"), 175)[1])
    assert _timing.extra_memory(lambda: log.append("run"), torch.device("cuda")) == 75
    assert log == ["synchronize", "reset_peak_memory_stats", "memory_allocated", "run", "synchronize", "peak"]


def test_cpu_memory_is_the_peak_not_the_sum():
    kept = torch.ones(1 << 16)  # there before: does not count

    def run():
        for _ in range(3):
            temporary = kept + 1  # 256 KiB, freed before the next
            del temporary
        return kept[: 1 << 14] * 2

    most = _timing.extra_memory(run, CPU)
    # a name keeps the last sum alive while the next is made
    assert 1 << 18 <= most < 3 << 18
    assert _timing.extra_memory(lambda: (kept + 1, kept + 2), CPU) >= 2 << 18
    assert _timing.extra_memory(lambda: None, CPU) == 0


def test_roofline_by_hand():
    roofline = Roofline(bandwidth=10.0, rate=100.0)
    assert roofline.seconds(Work(bytes=50, flops=200)) == 5  # moving takes longer than computing
    assert roofline.seconds(Work(bytes=5, flops=200)) == 2
    assert roofline.share(Work(bytes=50, flops=200), 20.0) == 0.25
    assert size_of(torch.ones(3, 4), torch.ones(5, dtype=torch.bfloat16)) == 58


def test_roofline_counts_what_is_read_and_written(monkeypatch):
    clock = {"copy": (2.0, 1.0), "product": (8.0, 4.0)}  # the best round counts
    monkeypatch.setattr(
        "hggraph.benchmarks._roofline.take_turns",
        lambda contenders, *_: {name: Timing(clock[name]) for name in contenders},
    )
    roofline = Roofline.measure(CPU, torch.float32, quick=True)
    assert roofline == Roofline(bandwidth=2 * 4 * 4096, rate=2 * 32**3 / 4)


def test_share_uses_the_median():
    case = Report("case", "title", Setting(rounds=1), Roofline(bandwidth=1.0, rate=1.0))
    times = case.time({"a": lambda: None}, work={"a": Work(bytes=3.0, flops=1.0)}, least=0)
    assert case.shares["a"] == pytest.approx(3.0 / times["a"].median)


def test_disagreement_refuses_the_ratio(capsys, tmp_path):
    case = report()
    times = case.time({"a": lambda: None, "b": lambda: None}, least=0)
    differs = agree("a = b", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), 1e-3)
    case.ratio("a / b", times["a"], times["b"], differs, at_least=0)
    assert case.finish(tmp_path / "out.json") == 1
    assert case.ratios[0].median is None
    out = capsys.readouterr().out
    assert "refused" in out and "NOT <=" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["ratios"][0]["median"] is None and not written["agreements"][0]["holds"]


@pytest.mark.parametrize("other", [torch.tensor([float("nan")]), torch.ones(2)])
def test_nan_and_other_shapes_never_agree(other, tmp_path):
    same = agree("a = b", other, torch.ones(1), 1e9)
    assert not same.holds
    case = report()
    case.agreements.append(same)
    text = json.dumps(case.to_dict(), allow_nan=False)
    assert json.loads(text)["agreements"][0]["error"] is None


def test_ratio_is_taken_round_by_round():
    case = report()
    same = agree("a = b", torch.ones(1), torch.ones(1), 0)
    case.ratio("a / b", Timing((1.0, 8.0, 9.0)), Timing((1.0, 2.0, 3.0)), same, at_least=3)
    assert case.ratios[0].median == 3  # of 1, 4, 3; the ratio of medians is 4
    assert (case.ratios[0].target, case.ratios[0].reached) == (">= 3", True)
    case.bound("x", 1.5, at_most=1.4)
    assert (case.ratios[1].target, case.ratios[1].reached) == ("<= 1.4", False)


def test_quick_reaches_and_misses_nothing():
    case = report(quick=True)
    case.bound("x", 1.5, at_most=1.4)
    assert (case.ratios[0].target, case.ratios[0].reached) == ("", None)


def broken():
    raise RuntimeError("no kernel\nfor this")


def missing():
    import no_such_library  # noqa: F401


def wants():
    raise ImportError("needs pyg-lib")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (broken, "RuntimeError: no kernel"),
        (lambda: broken, "RuntimeError: no kernel"),
        (missing, "no_such_library is not installed"),
        (wants, "needs pyg-lib"),
    ],
)
def test_absent_peer_is_shown_with_its_reason(make, reason, capsys):
    case = report()
    assert case.peer("peer", make) is None
    assert case.absent == {"peer": reason}
    assert case.finish() == 0
    out = capsys.readouterr().out
    assert "peer" in out and reason in out


def test_slow_peer_is_not_repeated(monkeypatch):
    runs = []
    monkeypatch.setattr(_measure, "clock_of", lambda device: lambda run, repeat: (run(), 9.0)[1])
    case = report()
    assert case.peer("peer", lambda: lambda: runs.append(1)) is None
    assert case.absent == {"peer": "one run takes 9.0 s: not repeated"} and runs == [1]


def test_compiling_is_left_out_or_done(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args: ("compiled", function(*args)))
    left_out, done = report(), report(compile=True)
    assert left_out.compiled("f", abs) is None and left_out.absent == {"f": "left out: --no-compile"}
    assert done.compiled("f", abs, lambda fast: lambda: fast(-2))() == ("compiled", 2) and not done.absent
    assert done.compiled("f", abs) is None and "TypeError" in done.absent["f"]  # abs needs an argument


def test_warning_on_a_busy_machine(monkeypatch, capsys):
    monkeypatch.setattr(_tables, "load", lambda: 3.0)
    report().finish()
    assert "3.0 running threads per core" in capsys.readouterr().out
    monkeypatch.setattr(_tables, "load", lambda: 0.5)
    report().finish()
    assert "per core" not in capsys.readouterr().out


def test_plot(tmp_path):
    case = report()
    with pytest.raises(ValueError, match="no ratio to draw"):
        plot_ratios([case], tmp_path / "out.png", caption="")
    case.bound("reached", 2.0, (1.5, 2.5), at_least=1)
    case.bound("missed", 2.0, at_most=1)
    plot_ratios([case, case], tmp_path / "out.png", caption="a machine")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_setting_of_a_device(monkeypatch):
    threads, chosen = torch.get_num_threads(), []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    try:
        assert setting_for("cpu", rounds=7) == Setting(CPU, torch.float32, 7)
        assert torch.get_num_threads() == 2 and not chosen
        gpu = setting_for("cuda:1", rounds=7, quick=True)
        assert (gpu.dtype, gpu.rounds, gpu.on_gpu) == (torch.bfloat16, 2, True)
        assert torch.get_num_threads() == 1 and chosen == [torch.device("cuda:1")]
        assert setting_for("cuda", dtype=torch.float32).dtype == torch.float32
    finally:
        torch.set_num_threads(threads)
