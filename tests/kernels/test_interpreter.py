"""Every kernel, run by Triton's interpreter on small, odd and empty arguments, agrees with PyTorch in float64."""

import pytest
import torch

from hggraph import use_backend
from hggraph.ops._library import interpreting
from tests.kernels.cases import CASES, Case, expected, rand, run, worst
from tests.kernels.sanitizer import checked_memory

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1, which a GPU turns off")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    """Results and gradients; no kernel touches memory that is not its own."""
    with checked_memory() as memory:
        actual = run(case, "triton")
    wanted = expected(case)
    assert memory.accesses or not any(x.numel() for x in wanted) or "no e" in case.about or "empty" in case.about
    assert worst(actual, wanted) < case.tolerance
    assert [x.dtype for x in actual] == [torch.float32] * len(actual)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_half(case):
    """float16 arguments: results of their dtype, as near as half precision is."""
    actual = run(case, "triton", torch.float16)
    wanted = run(case, "torch", torch.float16)
    assert [x.dtype for x in actual] == [x.dtype for x in wanted]
    rounded = [x.double() for x in run(case, "torch")]
    assert worst(actual, rounded) <= max(2 * worst(wanted, rounded), 4e-3)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.about in ("all", "square", "plain", "sum", "zero")], ids=str
)
def test_surrounded_by_nan(case):
    """What lies around an argument in memory has no influence."""

    def surround(x):
        buffer = torch.full([size + 2 for size in x.shape], float("nan"), dtype=x.dtype)
        view = buffer[(slice(1, -1),) * x.dim()]
        view.copy_(x)
        return view

    def surrounded():
        return tuple(surround(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in case.make())

    assert worst(run(Case(case.op, case.about, surrounded), "triton"), expected(case)) < case.tolerance


def test_checker_sees_an_overrun():
    """The memory checker itself: a kernel that reads one element too many is caught, and its argument is not copied."""
    import triton
    import triton.language as tl

    @triton.jit
    def copy(p_x, p_out, size, BLOCK: tl.constexpr):
        o = tl.arange(0, BLOCK)
        tl.store(p_out + o, tl.load(p_x + o, mask=o <= size), mask=o < size)

    x = torch.arange(10.0)[:5]
    with checked_memory(), pytest.raises(Exception, match="reads 1 elements outside"):
        copy[(1,)](x, torch.empty(5), 5, BLOCK=8)


def test_too_large_a_head():
    q = rand(1, 1025, 1, 1)
    with use_backend("triton"), pytest.raises(ValueError, match=r"at most 1024 channels of `q`, got 1025\. Split"):
        torch.ops.hggraph.local_attention(q, q, q, None, [0, 0], 1.0, "zero")


def test_float64_is_refused():
    with use_backend("triton"), pytest.raises(TypeError, match=r"float32, bfloat16 and float16, got torch.float64"):
        torch.ops.hggraph.region_pool(rand(1, 1, 1).double(), rand(1, 1, 1), None, 1)
