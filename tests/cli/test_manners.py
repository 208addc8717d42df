"""How commands end, whatever they are given: a line that says what is wrong, a harmless one, in any encoding."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.table import Table
from typer.testing import CliRunner

from hggraph import SoftSLIC, __version__
from hggraph._screen import one_line, screen
from hggraph.cli import app, info
from hggraph.cli._device import device_of
from hggraph.models import hg_orientation, save_pretrained

pytest.importorskip("lightning", reason="needs the extra `train`")

RECIPE = Path(__file__).parents[2] / "recipes" / "camvid_hg_resnet18.yaml"
# what can stand where a file, a folder, a run or a network is meant
PLACES = {
    "empty folder": "empty",
    "nothing": "missing",
    "file": "file",
    "bytes": "bytes",
    "open bracket": "bracket",
    "below a file": "file/x",
    "system": "/proc/x",
    "space": "a b c",
    "line break": "a\nb",
    "escape code": "a\x1b[31mb\x1b[2J",
    "dash": "-x",
    "no text": os.fsdecode(b"stra\xdfe"),
    "too long": "n" * 300,
    "turned": "a\u202eb",
    "markup": "[red]:smile:",
}
COMMANDS = [
    ["graph", "--out", "o", "--", "{}"],
    ["graph", "photos", "--out", "o", "--attention={}"],
    ["graph", "photos", "--out", "o", "--clusterer={}"],
    ["predict", "photos", "--out", "o", "--model={}"],
    ["inspect", "--out", "o", "--", "{}", "photos"],
    ["inspect", "--out", "o", "--labels", "photos", "--", "net", "{}/none"],
    ["inspect", "net", "photos", "--out", "o", "--labels={}"],
    ["fit", "--config={}"],
    ["validate", "--config={}"],
    ["test", "-c", "{}"],
    ["publish", "--out", "o", "--", "{}"],
    ["hs3", "analyse", "--", "{}"],
    ["count", "--", "{}"],
    ["info", "--", "{}"],
    ["bench", "--", "{}"],
    ["bench", "segment", "--quick", "--json={}/none/x.json"],
]
FIT = ["fit", "-c", str(RECIPE), "--data.root={}", "--out", "o"]
# nowhere to write: not into a file, not below one, not where the system makes the folders
OUTS = ["file", "file/x", "/proc/x", "n" * 300]
WRITERS = [
    ["graph", "photos", "--no-figure", "--out={}"],
    ["predict", "photos", "--model", "net", "--out={}"],
    ["inspect", "net", "photos", "--labels", "photos", "--out={}"],
    ["count", "hg_orientation", "--size", "64", "64", "--json={}/x"],
]
DEVICES = ["banana", "cuda", "cuda:99", "mps", "meta", ""]
COMPUTERS = [
    ["predict", "photos", "--model", "net", "--out", "o", "--device={}"],
    ["inspect", "net", "photos", "--labels", "photos", "--out", "o", "--device={}"],
    ["hs3", "analyse", "empty", "--device={}"],
    ["bench", "--device={}"],
]


def invoke(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    arguments = {"channels": 8, "depth": 1, "clusterer": SoftSLIC(4)}
    save_pretrained(hg_orientation(**arguments).eval(), folder / "net", model="hg_orientation", arguments=arguments)
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    (folder / "bytes").write_bytes(b"\x00\xff\xfe" * 100)
    (folder / "bracket").write_text("model: [")
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / "photos" / "a.png")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A name such as file/x could stand on the hub."""

    def refuse(address, timeout):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", refuse)


@pytest.mark.parametrize(
    ("words", "values"),
    [(words, list(PLACES.values())) for words in COMMANDS]
    + [(FIT, ["empty", "a\n\x1b[2J"])]
    + [(words, OUTS) for words in WRITERS]
    + [(words, DEVICES) for words in COMPUTERS],
    ids=lambda value: " ".join(value[:3]).replace(str(RECIPE), "RECIPE") if "{}" in " ".join(value) else "",
)
def test_one_line(words, values, places, monkeypatch):
    monkeypatch.chdir(places)
    for value in values:
        done = invoke(*(word.format(value) for word in words))
        assert isinstance(done.exception, SystemExit) and done.exit_code in (1, 2), (value, done.exception)
        lines = [line for line in done.stderr.splitlines() if not line.startswith(("Seed set", "GPU av", "TPU av"))]
        assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable(), (value, done.stderr)
        assert "Traceback" not in done.output
    assert not list(places.glob(".*")) and not (places / "o" / "labels").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("too\n   few"), 1, "too few"),
        (OSError(28, "No space left on device", "a\x1b.png"), 1, r"a\x1b.png: No space left on device"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (typer.BadParameter("--n must be 1"), 2, "--n must be 1"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("No module", name="lightning.pytorch"), 1, 'lightning is not installed: pip install "hgg'),
        (ModuleNotFoundError("No module", name="skimage"), 1, 'skimage is not installed: pip install "hggraph[road]"'),
        (type("TheirError", (Exception,), {})("of a library"), 1, "of a library"),
        (KeyError("x"), None, ""),
        (AttributeError("x"), None, ""),
        (AssertionError(), None, ""),
        (ImportError("cannot import name", name="hggraph.nn"), None, ""),
        (NotImplementedError(), None, ""),
    ],
)
def test_kinds_of_errors(error, code, line, monkeypatch):
    """What a user or a machine gets wrong is a line; a mistake in the program comes through, and all when asked for."""

    def fail():
        raise error

    monkeypatch.setattr(info, "screen", fail)
    done = invoke("info")
    if code is None:
        assert done.exception is error
    else:
        assert done.exit_code == code and done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1
    if code == 1:
        monkeypatch.setenv("HGGRAPH_TRACEBACK", "1")
        assert invoke("info").exception is error


@pytest.mark.parametrize("words", [[], ["graph"], ["predict"], ["inspect"], ["publish"], ["hs3"], ["hs3", "analyse"]])
def test_help(words):
    done = invoke(*words, "-h")
    assert done.exit_code == 0 and "Usage: " in done.stdout and done.stdout == invoke(*words, "--help").stdout
    assert done.stderr == ""


def test_version_and_no_words():
    assert invoke("--version").stdout == f"hggraph {__version__}\n"
    done = invoke()
    assert done.exit_code == 2 and "Commands" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_any_encoding(encoding, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(info, "_versions", lambda: "Größe ☃")
    for words in (["info"], ["graph", "Größe ☃.png", "--out", "o"]):
        with pytest.raises(SystemExit):
            typer.main.get_command(app).main(words)
    for stream in streams.values():
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)
        assert "e \\u2603" in text or "Größe ☃" in text


def test_a_reader_that_leaves():
    """`python -m hggraph info | true`: what cannot be written is nobody's loss, and no error."""
    command = [sys.executable, "-m", "hggraph", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_no_output_at_all(monkeypatch):
    """`hggraph info >&-`: Python has no standard output then."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as left:
        typer.main.get_command(app).main(["info"])
    assert left.value.code == 0


def test_screen(capsys):
    """Names are printed as they are, unbroken, in tables too; only what is no text is written out."""
    name = "a [red]name[/red] :smile: " + 40 * "0123456789" + "é.png"
    table = Table("image")
    table.add_row(name + "\x1b[2J")
    screen().print(table)
    screen(stderr=True).print(f"{name}\udcff\n")
    out, err = capsys.readouterr()
    assert f" {name}\\x1b[2J " in out
    assert err == f"{name}\\udcff\\n\n"


def test_errors_without_words():
    assert one_line(ValueError()) == "ValueError"
    assert one_line(OSError("plain")) == "plain"
    assert one_line(FileNotFoundError(2, "No such file", "a\nb")) == "a b: No such file"


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_of(None) == device_of("cuda:0") == torch.device("cuda:0")
    assert (device_of("cuda:1").index, device_of("cuda").index, device_of("cpu").type) == (1, None, "cpu")
    assert device_of(None, default="cpu") == torch.device("cpu")
    for text in ("cuda:2", "mps", "meta", "cpu:1"):
        with pytest.raises(typer.BadParameter, match=r"what is here, cuda:0, cuda:1, cpu:0; got"):
            device_of(text)
