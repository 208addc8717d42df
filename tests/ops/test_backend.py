"""The choice of the backend: which is usual, how it is forced, and what is never silent."""

import importlib.machinery
import importlib.util
import logging
import sys
import types

import pytest
import torch

from hggraph import use_backend
from hggraph.ops import _library


def on_gpu(is_cuda=True):
    return types.SimpleNamespace(is_cuda=is_cuda)


@pytest.fixture
def triton_runs(monkeypatch):
    """Pretend that Triton can run here."""
    monkeypatch.setattr(_library, "missing_backend", lambda backend: None)


def test_unknown_backend():
    message = r"one of \('torch', 'triton'\) or None, got 'cuda'"
    with pytest.raises(ValueError, match=message), use_backend("cuda"):
        pytest.fail("the block ran")


def test_impossible_backend(monkeypatch):
    """A choice that cannot be kept raises before the block starts, and says what is missing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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


def test_kernel(triton_runs, monkeypatch, caplog):
    """The module of that name when Triton runs the tensors; a forced Triton never falls back."""
    caplog.set_level(logging.DEBUG, "hggraph")
    module = types.ModuleType("hggraph.kernels.made_up")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert _library.kernel("made_up", on_gpu()) is module
    assert caplog.messages == ["made_up: triton"]
    assert _library.kernel("made_up", on_gpu(), on_gpu(False)) is None
    assert _library.kernel("not_made", on_gpu()) is None
    assert caplog.messages[1:] == ["not_made: torch (no Triton kernel of this name)"]
    with use_backend("torch"):
        assert _library.kernel("made_up", on_gpu()) is None
    with use_backend("triton"):
        assert _library.kernel("made_up", on_gpu()) is module
        with pytest.raises(RuntimeError, match="`made_up` needs tensors on a GPU"):
            _library.kernel("made_up", on_gpu(), on_gpu(False))
        with pytest.raises(RuntimeError, match="no Triton kernel of `not_made`"):
            _library.kernel("not_made", on_gpu())
