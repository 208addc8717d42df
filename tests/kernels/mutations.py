"""Flip each comparison in the kernels, one at a time, and see whether the interpreter's tests notice.

python -m tests.kernels.mutations [FILE ...]
"""

import ast
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"
FLIPPED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}

# The operators whose cases show a mistake in a file.
SHARED = {
    "_tile": ("region_pool", "unpool_conv1x1", "soft_assign", "region_adjacency", "local_attention"),
    "_matmul": ("region_pool", "typed_aggregate_dense", "region_unpool"),
    "_distance": ("soft_assign", "centre_update"),
    "segment": ("segment_reduce", "segment_softmax", "typed_aggregate"),
}

# Comparisons that may as well be the other way round, and why.
EQUIVALENT = {
    "_kept: logits > least": "a weight that is exactly the threshold",
    "_soft_assign_fwd_kernel: here > best": "of two equally near regions in two blocks the later",
    "_local_gather_kernel: o_p < pixels": "the pointer has an entry more than there are pixels",
    "_cleaned: value >= FILTER": "a strength that is exactly 1e-7",
    "_region_adjacency_clean_kernel: value >= tl.max(value, 0)[None] * TIE": "one that is exactly the share that ties",
    "_strongest: value >= most[None] * TIE": "one that is exactly the share that ties",
    "_typed_aggregate_fwd_kernel: longest > 0": "skips a direction without edges, which adds 0",
}


@dataclass(frozen=True)
class Mutation:
    """One comparison of one file."""

    file: str
    number: int
    where: str

    def __str__(self) -> str:
        return f"{self.file}, {self.where}"


def comparisons(tree: ast.Module) -> Iterator[tuple[str, ast.Compare]]:
    """Yield the comparisons inside kernels, with the name of the function."""
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in function.decorator_list):
            for node in ast.walk(function):
                if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
                    yield function.name, node


def mutations() -> list[Mutation]:
    """Return every comparison that is not known to be equivalent."""
    out = []
    for path in sorted(KERNELS.glob("*.py")):
        for number, (name, node) in enumerate(comparisons(ast.parse(path.read_text()))):
            where = f"{name}: {ast.unparse(node)}"
            if where not in EQUIVALENT:
                out.append(Mutation(path.stem, number, where))
    return out


@contextmanager
def mutated(mutation: Mutation) -> Iterator[Path]:
    """Let `hggraph.kernels` be a copy with one comparison flipped; gives the file."""
    package = importlib.import_module("hggraph.kernels")
    paths = list(package.__path__)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(KERNELS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder) / f"{mutation.file}.py"
        source = path.read_text()
        _, node = list(comparisons(ast.parse(source)))[mutation.number]
        before = ast.get_source_segment(source, node)
        node.ops[0] = FLIPPED[type(node.ops[0])]()
        lines = source.splitlines(keepends=True)
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line[: node.col_offset] + ast.unparse(node) + line[node.col_offset + len(before) :]
        path.write_text("".join(lines))
        _forget()
        package.__path__ = [folder]
        try:
            yield path
        finally:
            package.__path__ = paths
            _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith("hggraph.kernels.")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def caught(mutation: Mutation) -> bool:
    """Run the cases that use the file until one fails."""
    from tests.kernels.cases import CASES, expected, run, worst
    from tests.kernels.sanitizer import checked_memory

    ops = SHARED.get(mutation.file, (mutation.file,))
    with mutated(mutation):
        for case in CASES:
            if case.op not in ops:
                continue
            try:
                with checked_memory():
                    actual = run(case, "triton")
            except Exception:  # whatever breaks has been noticed
                return True
            if not worst(actual, expected(case)) < case.tolerance:
                return True
    return False


def main(files: list[str]) -> int:
    survivors = []
    for mutation in mutations():
        if files and mutation.file not in files:
            continue
        found = caught(mutation)
        print("caught  " if found else "SURVIVED", mutation, flush=True)
        survivors += [] if found else [mutation]
    return len(survivors)


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    sys.exit(min(1, main(sys.argv[1:])))
