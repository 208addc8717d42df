"""What holds for every test: seeds, threads, poisoned memory, hypothesis profiles, no GPU."""

import os
from pathlib import Path

# Before triton is imported: without a GPU its kernels run in the interpreter, on CPU tensors.
if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the tests, each with one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start too

import hypothesis
import pytest
import torch
import torch_geometric  # noqa: F401  (scripts its classes with the true torch.empty, not ours)

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
with torch.device("cpu"):
    torch.zeros(0)  # torch notes which functions `with torch.device` steers: the true ones, not those below

# Off, whatever the environment says: a reference in TF32 is no reference.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():  # true on ROCm too
        return
    skip = pytest.mark.skip(reason="needs a GPU, and torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill `torch.empty` and its kin with NaN: an operation that forgets to write is caught."""

    def poisoned(allocate):
        def allocate_poisoned(*args, **kwargs):
            out = allocate(*args, **kwargs)
            # Not in traced code: the filling ends up in the graph, where inductor refuses it.
            if not torch.compiler.is_compiling() and (out.is_floating_point() or out.is_complex()):
                with torch.no_grad():
                    out.fill_(float("nan"))
            return out

        return allocate_poisoned

    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ]:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
