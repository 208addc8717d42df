"""Imports only go down the floor plan, and `import hggraph` needs no optional library."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hggraph"

# The files and folders of hggraph and their heights. Equal heights may import each other.
FLOORS = {
    "_check": 0,
    "_files": 0,
    "_pyg": 0,
    "_screen": 0,
    "stencil": 1,
    "kernels": 2,
    "ops": 3,
    "graph": 4,
    "cluster": 5,
    "nn": 6,
    **dict.fromkeys(["models", "schemes"], 7),
    **dict.fromkeys(["data", "metrics", "viz"], 8),
    "inference": 9,  # without Lightning
    "engine": 10,
    **dict.fromkeys(["cli", "benchmarks"], 11),
    **dict.fromkeys(["__init__", "__main__"], 11),  # the face shows everything
}
# The low floors, and all that they may import beside the standard library and hggraph.
THIRD_PARTY = {
    "_check": {"torch"},
    "_files": set(),
    "_pyg": {"torch_geometric"},
    "_screen": {"rich"},
    "stencil": {"torch"},
    "kernels": {"torch", "triton"},
    "ops": {"torch", "triton"},
    "ops/fast": {"torch", "llvmlite", "numba", "numpy"},
}
OPTIONAL = {
    *["av", "jsonargparse", "pycocotools", "scipy", "tensorboard", "torchcodec", "yaml"],
    *["lightning", "lightning_fabric", "matplotlib", "numba", "pytorch_lightning", "rasterio", "skimage"],
    *["sklearn", "timm", "torch_scatter", "torchmetrics", "torchvision", "triton"],
}


def imported_names(tree: ast.Module, package: str) -> Iterator[tuple[str, int, bool]]:
    """Yield the full dotted name of each import, its line, and whether a function holds it."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package.split(".")[: package.count(".") + 2 - child.level]
                parts = [*(base if child.level else []), *([child.module] if child.module else [])]
                for alias in child.names:
                    yield ".".join([*parts, alias.name]), child.lineno, inside
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, inside or function)

    yield from visit(tree, False)


def wrong_imports(source: str, path: str) -> list[str]:
    """Say what is wrong with the imports of a file; `path` is relative to the package."""
    parts = Path(path).with_suffix("").parts
    here = parts[0]
    if here not in FLOORS:
        return [f"{path}: {here!r} is on no floor; give it one in FLOORS of {__file__}"]
    errors = []
    for name, line, inside in imported_names(ast.parse(source), ".".join(["hggraph", *parts[:-1]])):
        top, *rest = name.split(".")
        if top != "hggraph":
            allowed = THIRD_PARTY.get("/".join(parts[:2]), THIRD_PARTY.get(here))
            if allowed is not None and top not in allowed | sys.stdlib_module_names:
                errors.append(f"{path}:{line}: {here} must not import {top}")
            elif top == "triton" and here != "kernels" and not inside:
                errors.append(f"{path}:{line}: import triton inside the function that needs it")
            continue
        there = rest[0] if rest and rest[0] in FLOORS else "__init__"
        if there == here:
            continue
        if here == "kernels":
            errors.append(f"{path}:{line}: kernels must not import hggraph.{there}")
        elif there == "kernels" and here != "ops":
            errors.append(f"{path}:{line}: only ops may import hggraph.kernels")
        elif there == "kernels" and not inside:
            errors.append(f"{path}:{line}: import kernels inside the function that needs it")
        elif FLOORS[there] > FLOORS[here]:
            errors.append(f"{path}:{line}: {here} imports hggraph.{there}, which is above it")
    return errors


def test_imports_go_down():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    # rglob does not go through the links hggraph/kernels and hggraph/benchmarks.
    files += [path.relative_to(ROOT) for top in ("kernels", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    assert files, "found no file to check"
    errors = []
    for path in sorted(files):
        source = (PACKAGE / path).read_text(encoding="utf-8")
        errors += wrong_imports(source, path.as_posix())
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("stencil.py", "import numpy"),
        ("stencil.py", "from hggraph import ops"),
        ("_check.py", "from .stencil import Stencil"),
        ("ops/a.py", "from torch_geometric.utils import softmax"),
        ("ops/a.py", "import numpy as np"),
        ("ops/a.py", "import numba"),
        ("ops/fast/a.py", "import triton"),
        ("ops/fast/a.py", "from hggraph.graph import Assignment"),
        ("ops/a.py", "import triton"),
        ("ops/a.py", "from hggraph.kernels.a import a_fwd"),
        ("ops/a.py", "from ..graph import Assignment"),
        ("ops/a.py", "def f():\n    from hggraph.graph import Assignment"),
        ("ops/a.py", "from hggraph import Stencil"),
        ("graph/a.py", "def f():\n    from hggraph import kernels"),
        ("graph/a.py", "if True:\n    from hggraph.cluster import soft_slic"),
        ("cluster/a.py", "import hggraph.nn"),
        ("nn/a.py", "from .. import models"),
        ("models/a.py", "from hggraph.engine import train"),
        ("nn/a.py", "from hggraph.benchmarks._measure import Report"),
        ("benchmarks/a.py", "from hggraph.kernels.a import a_fwd"),
        ("kernels/a.py", "from hggraph.stencil import Stencil"),
        ("kernels/a.py", "import numpy"),
        ("extra/a.py", "import torch"),
    ],
)
def test_wrong_import_is_caught(path, source):
    assert len(wrong_imports(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("stencil.py", "import math\nimport torch\nfrom torch import Tensor"),
        ("stencil.py", "from hggraph._check import check"),
        ("ops/fast/a.py", "import numba\nimport numpy as np\nfrom hggraph.ops.fast.b import c"),
        ("ops/a.py", "from . import b\nfrom .b import c\nfrom .._check import check"),
        ("ops/a.py", "def f():\n    import triton\n    from hggraph.kernels.a import a_fwd"),
        ("nn/a.py", "from hggraph.cluster import SoftSLIC\nfrom hggraph import ops"),
        ("nn/a.py", "from torch_geometric.nn import MessagePassing"),
        ("cli/a.py", "from hggraph import Stencil, __version__\nfrom hggraph.viz import figure"),
        ("benchmarks/a.py", "from hggraph import ops\nfrom hggraph.benchmarks._measure import Report"),
        ("__init__.py", "from hggraph.nn import HGConv\nfrom .ops import use_backend"),
        ("kernels/a.py", "import triton.language as tl\nfrom hggraph.kernels.launch import grid"),
    ],
)
def test_right_import_passes(path, source):
    assert wrong_imports(source, path) == []


IMPORT_AND_REPORT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
start = time.perf_counter()
import hggraph
seconds = time.perf_counter() - start
import torch, torch_geometric
before = set(sys.modules)
[getattr(hggraph, name) for name in hggraph.__all__]
print(json.dumps([sorted(set(sys.modules) - before), seconds]))
"""


def test_import_is_light():
    """`import hggraph` is quick, and using its names brings in no optional library.

    What torch and PyG import themselves (torch imports triton where it finds it) does not count.
    """
    run = [sys.executable, "-c", IMPORT_AND_REPORT]
    out = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    modules, seconds = json.loads(out)
    assert not OPTIONAL & {name.partition(".")[0] for name in modules}
    assert seconds < 5
