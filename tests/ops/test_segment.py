"""Segment reductions against literal loops, PyG and torch_scatter."""

import pytest
import torch
import torch_geometric.utils as pyg
from hypothesis import given, settings
from hypothesis import strategies as st

from hggraph.ops import segment_reduce, segment_softmax
from hggraph.ops.segment import (
    csr_pointer,
    gathered_dot,
    segment_ids,
    segment_reduce_reference,
    segment_softmax_reference,
    transpose_csr,
)

close = {"rtol": 1e-10, "atol": 1e-10}
REDUCTIONS = ("sum", "mean", "max")
counts_of_segments = st.lists(st.integers(0, 4), max_size=6)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=30)


def pointer(counts):
    return torch.tensor([0, *counts]).cumsum(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def loop(x, ptr, index, weight, reduce):
    """Reduce number by number, in plain Python."""
    out = [[0.0] * x.shape[1] for _ in range(len(ptr) - 1)]
    for n in range(len(ptr) - 1):
        for c in range(x.shape[1]):
            values = []
            for e in range(int(ptr[n]), int(ptr[n + 1])):
                factor = 1.0 if weight is None else float(weight[e])
                values.append(factor * float(x[e if index is None else index[e], c]))
            if values:
                whole = {"sum": sum(values), "mean": sum(values) / len(values), "max": max(values)}
                out[n][c] = whole[reduce]
    return torch.tensor(out, dtype=torch.float64).view(len(ptr) - 1, x.shape[1])


@given(
    *[seeds, counts_of_segments, st.integers(1, 3), st.sampled_from(REDUCTIONS)],
    *[st.booleans(), st.booleans()],
)
def test_loop(seed, counts, channels, reduce, gathered, weighted):
    torch.manual_seed(seed)
    ptr, entries = pointer(counts), sum(counts)
    x = double(5 if gathered else entries, channels)
    index = torch.randint(5, (entries,)) if gathered else None
    weight = double(entries) if weighted and reduce != "max" else None
    expected = loop(x, ptr, index, weight, reduce)
    actual = segment_reduce(x, ptr, index, weight, reduce=reduce)
    torch.testing.assert_close(actual, expected, **close)
    reference = segment_reduce_reference(x, ptr, index, weight, reduce)
    torch.testing.assert_close(reference, expected, **close)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_pyg(reduce):
    ptr, x = pointer([3, 0, 1, 5]), double(9, 4)
    expected = pyg.scatter(x, segment_ids(ptr, 9), dim=0, dim_size=4, reduce=reduce)
    torch.testing.assert_close(segment_reduce(x, ptr, reduce=reduce), expected, **close)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_torch_scatter(reduce):
    reason = "torch_scatter is not installed (extra `peers`)"
    segment_csr = pytest.importorskip("torch_scatter", reason=reason).segment_csr
    ptr, x = pointer([3, 0, 1, 5]), double(9, 4).requires_grad_()
    outs = segment_reduce(x, ptr, reduce=reduce), segment_csr(x, ptr, reduce=reduce)
    cotangent = double(4, 4)
    torch.testing.assert_close(*outs, **close)
    torch.testing.assert_close(*(torch.autograd.grad(o, x, cotangent)[0] for o in outs), **close)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("gathered", [False, True])
def test_layouts(agree_everywhere, reduce, gathered):
    ptr = pointer([2, 0, 3, 1])
    index = torch.tensor([4, 0, 2, 2, 3, 0]) if gathered else None
    for weight in [None] if reduce == "max" else [None, double(6)]:
        agree_everywhere(
            lambda x, ptr, index, weight: segment_reduce(x, ptr, index, weight, reduce=reduce),
            lambda x, ptr, index, weight: segment_reduce_reference(x, ptr, index, weight, reduce),
            *[double(6, 3), ptr, index, weight],
        )


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("flat", [False, True])
def test_gradcheck(reduce, flat):
    ptr, index = pointer([2, 0, 3, 1]), torch.tensor([4, 0, 2, 2, 3, 0])
    x = (double(5) if flat else double(5, 2)).requires_grad_()
    weight = None if reduce == "max" else double(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: segment_reduce(a[0], ptr, index, *a[1:], reduce=reduce), (x, weight))
    x = (double(6) if flat else double(6, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_reduce(x, ptr, reduce=reduce), x)


def test_equal_maxima():
    """Entries that reach the maximum share its gradient; a row gathered twice gets both shares."""
    x = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0], requires_grad=True)
    out = segment_reduce(x, torch.tensor([0, 4, 5]), reduce="max")
    assert torch.autograd.grad(out, x, torch.tensor([6.0, 7.0]))[0].tolist() == [0, 2, 2, 2, 7]
    out = segment_reduce(x, torch.tensor([0, 3]), torch.tensor([1, 1, 2]), reduce="max")
    assert torch.autograd.grad(out, x, torch.tensor([6.0]))[0].tolist() == [0, 4, 2, 0, 0]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(("rows", "counts", "channels"), [(0, [], 2), (0, [0, 0], 2), (3, [1, 2], 0), (1, [0, 1], 1)])
def test_little(reduce, rows, counts, channels):
    x = double(rows, channels).requires_grad_()
    out = segment_reduce(x, pointer(counts), reduce=reduce)
    assert out.shape == (len(counts), channels)
    assert not out[torch.tensor(counts, dtype=torch.long) == 0].any()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))  # each row is alone, or summed, or there is none
    nothing = torch.zeros(0, dtype=torch.long)
    out = segment_reduce(double(4, 2), torch.tensor([0, 0, 0]), nothing, reduce=reduce)
    assert torch.equal(out, torch.zeros(2, 2, dtype=torch.float64))


def test_unused_rows():
    """NaN in a row that no entry reads goes nowhere, forward and backward."""
    x = double(4, 2)
    x[1] = float("nan")
    x.requires_grad_()
    weight = double(3).requires_grad_()
    out = segment_reduce(x, pointer([2, 1]), torch.tensor([0, 2, 3]), weight)
    grads = torch.autograd.grad(out, (x, weight), double(2, 2))
    assert all(t.isfinite().all() for t in (out, *grads))
    assert not grads[0][1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_half(near_float32, dtype, reduce):
    """Numbers that a half holds exactly, so that no other row becomes the maximum."""
    ptr, x = pointer([3, 0, 2]), torch.randperm(10).float().view(5, 2)
    near_float32(lambda x: segment_reduce(x, ptr, reduce=reduce), dtype, x, autocast=False)
    near_float32(lambda x: segment_softmax(x / 8, ptr), dtype, x, autocast=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_mean(dtype):
    """The sum of this segment, 140000, is no float16."""
    x, ptr = torch.full((70000, 1), 2.0, dtype=dtype), torch.tensor([0, 70000])
    out = segment_reduce(x, ptr, reduce="mean")
    assert out.dtype == dtype
    assert out.item() == 2


@few
@given(seeds, counts_of_segments)
def test_softmax(seed, counts):
    torch.manual_seed(seed)
    ptr, x = pointer(counts), 3 * double(sum(counts), 2)
    out = segment_softmax(x, ptr)
    expected = pyg.softmax(x, segment_ids(ptr, len(x)), num_nodes=len(counts))
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(out, segment_softmax_reference(x, ptr), **close)
    total = segment_reduce_reference(out, ptr, None, None, "sum")
    torch.testing.assert_close(total, (ptr.diff() > 0)[:, None].expand_as(total).double(), **close)


def test_softmax_layouts(agree_everywhere):
    ptr = pointer([2, 0, 3, 1])
    agree_everywhere(segment_softmax, segment_softmax_reference, double(6, 3), ptr)
    agree_everywhere(segment_softmax, segment_softmax_reference, double(6), ptr)
    assert torch.autograd.gradcheck(segment_softmax, (double(6, 2).requires_grad_(), ptr))


def test_softmax_large():
    """Logits of 1e4 neither over- nor underflow, and a common summand changes nothing."""
    ptr, x = pointer([3, 1]), torch.tensor([1e4, 1e4, -1e4, -1e4], requires_grad=True)
    out = segment_softmax(x, ptr)
    assert out.tolist() == [0.5, 0.5, 0, 1]
    assert torch.autograd.grad(out, x, torch.tensor([4.0, 0, 0, 1]))[0].tolist() == [1, -1, 0, 0]


@few
@given(counts_of_segments)
def test_pointer(counts):
    ptr = pointer(counts)
    ids = [n for n, count in enumerate(counts) for _ in range(count)]
    assert segment_ids(ptr, len(ids)).tolist() == ids
    assert csr_pointer(torch.tensor(ids, dtype=torch.long), len(counts)).tolist() == ptr.tolist()


@few
@given(seeds, counts_of_segments)
def test_transpose(seed, counts):
    torch.manual_seed(seed)
    ptr, index = pointer(counts), torch.randint(4, (sum(counts),))
    row_ptr, segment, order = transpose_csr(ptr, index, 4)
    back = list(zip(segment_ids(row_ptr, len(index)).tolist(), segment.tolist(), strict=True))
    there = list(zip(index.tolist(), segment_ids(ptr, len(index)).tolist(), strict=True))
    assert back == sorted(there)
    assert [there[e] for e in order.tolist()] == back


def test_gathered_dot():
    a, b, i, j = double(3, 4), double(5, 4), torch.randint(3, (9,)), torch.randint(5, (9,))
    expected = torch.stack([a[m] @ b[n] for m, n in zip(i, j, strict=True)])
    torch.testing.assert_close(gathered_dot(a, i, b, j), expected, **close)
    columns = a.t().contiguous().t(), i, b.t().contiguous().t(), j
    torch.testing.assert_close(gathered_dot(*columns), expected, **close)
    assert gathered_dot(a, i[:0], b, j[:0]).shape == (0,)
    assert gathered_dot(a[:, :0], i, b[:, :0], j).tolist() == [0.0] * 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 2, 2)}, "`x` must have shape"),
        ({"ptr": torch.zeros(2, 1)}, "`ptr` must have shape"),
        ({"reduce": "min"}, "`reduce` must be one of"),
        ({"weight": torch.ones(3)}, r"`weight` must have shape \(2,\)"),
        ({"reduce": "max", "weight": torch.ones(2)}, "cannot be used with reduce='max'"),
        ({"index": torch.tensor([0, 2])}, r"`index` must be in \[0, 2\), got values from 0 to 2"),
        ({"index": torch.tensor([-1, 1])}, r"`index` must be in \[0, 2\)"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.zeros(2, 2), "ptr": torch.tensor([0, 2])} | change
    with pytest.raises(ValueError, match=message):
        segment_reduce(**arguments)


@pytest.mark.parametrize("reduce", [*REDUCTIONS, "softmax"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("ptr", "message"),
    [
        ([1, 3], "must start at 0 and end at the number of entries, 3, got from 1 to 3"),
        ([0, 2], "end at the number of entries, 3, got from 0 to 2"),
        ([0, 1000], "end at the number of entries, 3, got from 0 to 1000"),
        ([-1, 3], "must start at 0"),
        ([3, 0], "must start at 0"),
        ([0, 5, 3], "must not decrease, got 5 before 3 at position 1"),
        ([0, -7, 3], "must not decrease, got 0 before -7 at position 0"),
        ([], "got no bound"),
    ],
)
def test_bad_pointer(reduce, compiled, ptr, message):
    """It would read the memory of others."""

    def run(x, ptr):
        return segment_softmax(x, ptr) if reduce == "softmax" else segment_reduce(x, ptr, reduce=reduce)

    run = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled and ptr else run
    with pytest.raises(ValueError, match=message):
        run(torch.rand(3, 2), torch.tensor(ptr, dtype=torch.long))


def test_bad_dtype():
    x, ptr = torch.rand(2, 2), torch.tensor([0, 2])
    for wrong in (torch.int32, torch.float32, torch.bool):
        for run in (segment_reduce, segment_softmax):
            with pytest.raises(TypeError, match=f"`ptr` must be long .torch.int64., got {wrong}"):
                run(x, ptr.to(wrong))
        with pytest.raises(TypeError, match="`index` must be long"):
            segment_reduce(x, ptr, torch.tensor([0, 1]).to(wrong))
    with pytest.raises(ValueError, match="`index` must have shape"):
        segment_reduce(x, ptr, torch.tensor([[0, 1]]))
