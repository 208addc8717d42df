"""The choice of the backend: which is usual, how it is forced, and what is never silent."""

import importlib.machinery
import importlib.util
import logging
import sys
import threading
import types

import pytest
import torch

from hggraph import use_backend
from hggraph.ops import _library


def on_gpu(is_cuda=True, dtype=torch.float32, index=0):
    device = torch.device("cuda", index) if is_cuda else torch.device("cpu")
    return types.SimpleNamespace(is_cuda=is_cuda, device=device, dtype=dtype)


@pytest.fixture
def triton_runs(monkeypatch):
    """Pretend that Triton can run here, on a GPU."""
    monkeypatch.setattr(_library, "missing_backend", lambda backend: None)
    monkeypatch.setattr(_library, "interpreting", lambda: False)


def test_unknown_backend():
    message = r"one of \('torch', 'triton'\) or None, got 'cuda'"
    with pytest.raises(ValueError, match=message), use_backend("cuda"):
        pytest.fail("the block ran")


def test_impossible_backend(monkeypatch):
    """A choice that cannot be kept raises before the block starts, and says what is missing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_library, "interpreting", lambda: False)
    for spec, reason in [(object(), "no CUDA or ROCm device"), (None, "triton is not installed")]:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        message = f"'triton' cannot be used here: .*{reason}"
        with pytest.raises(RuntimeError, match=message), use_backend("triton"):
            pytest.fail("the block ran")
        assert _library.backend_of(on_gpu(False)) == "torch"


def test_nesting(triton_runs):
    seen = []
    with use_backend("torch"):
        seen.append(_library.backend_of(on_gpu()))
        with use_backend("triton"):
            seen.append(_library.backend_of(on_gpu(False)))
            with use_backend(None):
                seen.append(_library.backend_of(on_gpu()))
                seen.append(_library.backend_of(on_gpu(), on_gpu(False)))
            seen.append(_library.backend_of(on_gpu(False)))
        with pytest.raises(KeyError), use_backend("triton"):
            raise KeyError
        seen.append(_library.backend_of(on_gpu()))
    assert seen == ["torch", "triton", "triton", "torch", "triton", "torch"]
    assert _library.backend_of(on_gpu(False)) == "torch"
    assert _library.backend_of(on_gpu()) == "triton"


@pytest.fixture
def made_up(monkeypatch):
    module = types.ModuleType("hggraph.kernels.made_up")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_kernel(triton_runs, made_up, caplog):
    """The module of that name when Triton runs the tensors, and a log line for each choice."""
    caplog.set_level(logging.DEBUG, "hggraph")
    assert _library.kernel("made_up", on_gpu(), None) is made_up
    assert _library.kernel("made_up", on_gpu(), on_gpu(False)) is None
    assert _library.kernel("made_up", on_gpu(dtype=torch.float64)) is None
    assert caplog.messages == ["made_up: triton", "made_up: torch", "made_up: torch"]
    with use_backend("torch"):
        assert _library.kernel("made_up", on_gpu()) is None
    with use_backend("triton"):
        assert _library.kernel("made_up", on_gpu()) is made_up


def test_forced_triton_never_falls_back(triton_runs, made_up):
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match="`made_up` needs tensors on a GPU, got one on the CPU"):
            _library.kernel("made_up", on_gpu(False))
        with pytest.raises(TypeError, match=r"`made_up` takes float32, .*, got torch.float64"):
            _library.kernel("made_up", on_gpu(), on_gpu(dtype=torch.float64))
        with pytest.raises(ModuleNotFoundError, match="not_made"):
            _library.kernel("not_made", on_gpu())


@pytest.mark.parametrize("other", [on_gpu(index=1), on_gpu(False)])
def test_two_devices(triton_runs, made_up, other):
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"one device, got c.* and cuda:"):
        _library.kernel("made_up", on_gpu(), other)
    if other.is_cuda:  # also where Triton is the usual choice
        with pytest.raises(RuntimeError, match="one device, got cuda:0 and cuda:1"):
            _library.kernel("made_up", on_gpu(), other)


def test_interpreter(monkeypatch):
    """Triton on CPU tensors where its interpreter is on, and only when forced."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for value, expected in [("1", True), ("0", False), ("", False)]:
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert _library.interpreting() is expected
        assert (_library.missing_backend("triton") is None) is expected
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _library.backend_of(torch.zeros(1)) == "torch"
    with use_backend("triton"):
        assert _library.backend_of(torch.zeros(1)) == "triton"


def test_backward_keeps_the_backend(monkeypatch):
    """Autograd may run the backward pass in another thread, which has not entered `use_backend`."""
    asked = []
    monkeypatch.setattr(_library, "kernel", None)
    real = _library.backend_of
    module = importlib.import_module("hggraph.ops.region_pool")
    monkeypatch.setattr(module, "kernel", lambda name, *tensors: asked.append(real(*tensors)))
    monkeypatch.setattr(_library, "missing_backend", lambda backend: None)
    x = torch.rand(1, 2, 3, requires_grad=True)
    with use_backend("triton"):
        out = torch.ops.hggraph.region_pool(x, torch.ones(1, 1, 3), None, 1)
    thread = threading.Thread(target=lambda: out.sum().backward())
    thread.start()
    thread.join()
    assert asked == ["triton", "triton"] and _library.backend_of(x) == "torch"
