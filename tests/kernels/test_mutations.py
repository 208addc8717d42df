"""A comparison the wrong way round in any kernel is noticed by the interpreter's cases."""

import pytest

from hggraph.ops._library import interpreting
from tests.kernels.mutations import EQUIVALENT, KERNELS, caught, comparisons, mutated, mutations

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1, which a GPU turns off")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a mutant may well overflow
@pytest.mark.parametrize("mutation", mutations(), ids=str)
def test_mutation_is_caught(mutation):
    assert caught(mutation)


def test_one_is_caught():
    """The machinery itself, in the suite that always runs: the file is another, then the same again."""
    mutation = next(m for m in mutations() if m.where == "load_row: o_n < num_n")
    before = (KERNELS / "_tile.py").read_text()
    assert caught(mutation)
    with mutated(mutation) as path:
        assert path.read_text().replace("o_n <= num_n", "o_n < num_n") == before != path.read_text()
    assert (KERNELS / "_tile.py").read_text() == before


def test_exceptions_exist():
    """An excepted comparison that is no longer in the kernels has to leave the list."""
    import ast

    trees = [ast.parse(path.read_text()) for path in KERNELS.glob("*.py")]
    assert {f"{name}: {ast.unparse(node)}" for tree in trees for name, node in comparisons(tree)} >= set(EQUIVALENT)
