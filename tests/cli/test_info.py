"""`hggraph info` says what is installed, which devices there are, and what runs where and why."""

import pytest
from typer.testing import CliRunner

import hggraph
from hggraph.cli import app, info


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
