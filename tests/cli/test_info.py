"""`hggraph info` says what is installed, which devices there are, and what runs where and why."""

import inspect

import pytest
from typer.testing import CliRunner

import hggraph
from hggraph.cli import app, info
from hggraph.models.makers import MAKERS


def test_output():
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    words = " ".join(result.output.split())
    assert f"hggraph {hggraph.__version__}" in words
    for name in ["torch-geometric", "cpu", "why not Triton", "region_adjacency", "typed_aggregate"]:
        assert name in words


def test_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(info.PACKAGES, "no-such-package", "models")
    result = CliRunner().invoke(app, ["info"])
    assert 'not installed (pip install "hggraph[models]")' in result.output


def test_networks_and_their_options():
    """Each network is listed; each of its options comes with type, default and meaning, of whatever length."""
    listed = CliRunner().invoke(app, ["info"]).output
    for name, maker in MAKERS.items():
        assert f"  {name} " in listed
        lines = CliRunner().invoke(app, ["info", name]).output.splitlines()
        assert lines[0].startswith(f"{name}: ") and inspect.getdoc(maker).startswith(lines[0].removeprefix(f"{name}: "))
        options = {
            line.strip().partition(":")[0]: text.strip() for line, text in zip(lines[2::2], lines[3::2], strict=True)
        }
        assert options.keys() == inspect.signature(maker).parameters.keys()
        assert all(len(text) > 9 for text in options.values()), (name, options)
    assert "  depth: int | str = 50" in CliRunner().invoke(app, ["info", "resnet18"]).output
    done = CliRunner().invoke(app, ["info", "hg_resne"])
    assert done.exit_code == 2 and "there is no network 'hg_resne'; did you mean hg_resnet" in done.stderr


def test_operators():
    names = info.operator_names()
    assert {"region_pool", "segment", "soft_assign", "unpool_conv1x1"} <= set(names)
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize(
    ("missing", "has_kernel", "device", "expected"),
    [
        ("no device", False, "cpu", ("torch", "no device; there is no Triton kernel of")),
        ("no device", True, "cpu", ("torch", "no device")),
        (None, False, "cuda:0", ("torch", "there is no Triton kernel of")),
        (None, True, "cpu", ("torch", "Triton kernels need tensors on a GPU")),
        (None, True, "cuda:0", ("triton", "")),
    ],
)
def test_reasons(missing, has_kernel, device, expected, monkeypatch):
    monkeypatch.setattr(info, "missing_backend", lambda backend: missing)
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: has_kernel or None)
    backend, why = info.backend_on(device, "region_pool")
    assert backend == expected[0] and why.startswith(expected[1]) and bool(why) == bool(expected[1])
