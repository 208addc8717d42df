"""The B-spline basis: values by hand, an independent formula, partition of unity, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hggraph.ops.spline_basis import spline_basis, spline_basis_reference


def check(pseudo, kernel_size, is_open, degree, basis, index):
    pseudo = torch.tensor([pseudo], dtype=torch.float64)
    actual = spline_basis(pseudo, kernel_size, is_open, degree)
    assert_close(actual[0], torch.tensor([basis], dtype=torch.float64))
    assert actual[1].tolist() == [index]


@pytest.mark.parametrize(
    ("u", "is_open", "basis", "index"),
    [  # 5 control points: v = 4 u where open, 5 u where closed; weights 1 - t and t
        (0.00, True, [1, 0], [0, 1]),
        (0.10, True, [1 - 0.4, 0.4], [0, 1]),
        (0.70, True, [1 - 0.8, 0.8], [2, 3]),  # v = 2.8
        (0.75, True, [1, 0], [3, 4]),  # v = 3
        (1.00, True, [1, 0], [4, 0]),  # v = 4: the last point, and the first with weight 0
        (0.00, False, [1, 0], [0, 1]),
        (0.10, False, [1 - 0.5, 0.5], [0, 1]),
        (0.90, False, [1 - 0.5, 0.5], [4, 0]),  # v = 4.5: round to the first
        (1.00, False, [1, 0], [0, 1]),  # v = 5: the same as 0
    ],
)
def test_degree_1_by_hand(u, is_open, basis, index):
    check([u], 5, is_open, 1, basis, index)


@pytest.mark.parametrize(
    ("u", "is_open", "basis", "index"),
    [  # 4 points: v = 2 u or 4 u; weights (1-t)^2 / 2, 1/2 + t - t^2, t^2 / 2
        (0.00, True, [1 / 2, 1 / 2, 0], [0, 1, 2]),
        (0.25, True, [0.25 / 2, 0.5 + 0.5 - 0.25, 0.25 / 2], [0, 1, 2]),  # v = 0.5
        (0.60, True, [0.64 / 2, 0.5 + 0.2 - 0.04, 0.04 / 2], [1, 2, 3]),  # v = 1.2
        (1.00, True, [1 / 2, 1 / 2, 0], [2, 3, 0]),
        (0.00, False, [1 / 2, 1 / 2, 0], [0, 1, 2]),
        (0.80, False, [0.64 / 2, 0.5 + 0.2 - 0.04, 0.04 / 2], [3, 0, 1]),  # v = 3.2
        (1.00, False, [1 / 2, 1 / 2, 0], [0, 1, 2]),
    ],
)
def test_degree_2_by_hand(u, is_open, basis, index):
    check([u], 4, is_open, 2, basis, index)


@pytest.mark.parametrize(
    ("u", "is_open", "basis", "index"),
    [  # 5 points: v = 2 u or 5 u; at t = 0 the weights are 1/6, 4/6, 1/6, 0
        (0.00, True, [1 / 6, 4 / 6, 1 / 6, 0], [0, 1, 2, 3]),
        # t = 1/2: (1-t)^3 / 6 = 1/48; (3 t^3 - 6 t^2 + 4) / 6 = (3/8 - 12/8 + 32/8) / 6 = 23/48
        (0.25, True, [1 / 48, 23 / 48, 23 / 48, 1 / 48], [0, 1, 2, 3]),
        (1.00, True, [1 / 6, 4 / 6, 1 / 6, 0], [2, 3, 4, 0]),
        (0.00, False, [1 / 6, 4 / 6, 1 / 6, 0], [0, 1, 2, 3]),
        (0.70, False, [1 / 48, 23 / 48, 23 / 48, 1 / 48], [3, 4, 0, 1]),  # v = 3.5
        (1.00, False, [1 / 6, 4 / 6, 1 / 6, 0], [0, 1, 2, 3]),
    ],
)
def test_degree_3_by_hand(u, is_open, basis, index):
    check([u], 5, is_open, 3, basis, index)


def test_two_dimensions_by_hand():
    # open, 3 points: v = 2 * 0.35 = 0.7, points 0, 1; closed, 4 points: v = 4 * 0.85 = 3.4, 3 and 0
    basis = [0.3 * 0.6, 0.7 * 0.6, 0.3 * 0.4, 0.7 * 0.4]
    index = [0 + 3 * 3, 1 + 3 * 3, 0 + 3 * 0, 1 + 3 * 0]
    check([0.35, 0.85], [3, 4], [True, False], 1, basis, index)


def test_three_dimensions_by_hand():
    # open, 2, 3 and 4 points: v = 0.25, 2 * 0.75 = 1.5, 3 * 1 = 3; the third is at its last point
    plane = [0.75 * 0.5, 0.25 * 0.5, 0.75 * 0.5, 0.25 * 0.5]
    index = [0 + 2 * 1, 1 + 2 * 1, 0 + 2 * 2, 1 + 2 * 2]
    index = [point + 6 * 3 for point in index] + [point + 6 * 0 for point in index]
    check([0.25, 0.75, 1.0], [2, 3, 4], True, 1, plane + [0] * 4, index)


@st.composite
def splines(draw):
    degree, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    is_open = draw(st.lists(st.booleans(), min_size=dim, max_size=dim))
    sizes = [draw(st.integers(degree if opened else 1, 6)) for opened in is_open]
    row = st.lists(st.floats(0, 1), min_size=dim, max_size=dim)
    pseudo = torch.tensor(draw(st.lists(row, min_size=1, max_size=4)), dtype=torch.float64)
    return pseudo, sizes, is_open, degree


@given(splines())
def test_partition_of_unity(spline):
    basis, index = spline_basis(*spline)
    assert (basis >= 0).all()
    assert_close(basis.sum(1), torch.ones(len(basis), dtype=torch.float64), rtol=0, atol=1e-14)
    assert index.min() >= 0 and index.max() < math.prod(spline[1])
    assert basis.shape == index.shape == (spline[0].shape[0], (spline[3] + 1) ** spline[0].shape[1])


@given(splines())
def test_matches_reference(spline):
    basis, index = spline_basis(*spline)
    expected_basis, expected_index = spline_basis_reference(*spline)
    assert_close(basis, expected_basis, rtol=0, atol=1e-12)
    assert torch.equal(index, expected_index)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_derivative_at_a_knot_is_the_one_to_the_right(degree):
    pseudo = (torch.arange(5, dtype=torch.float64) / 4).unsqueeze(1).requires_grad_()
    weight = torch.randn(5, degree + 1, dtype=torch.float64)
    values = (spline_basis(pseudo, 4 + degree, True, degree)[0], weight)
    expected = (spline_basis_reference(pseudo, [4 + degree], [True], degree)[0], weight)
    grads = [torch.autograd.grad((a * b).sum(), pseudo)[0] for a, b in (values, expected)]
    assert_close(grads[0], grads[1], rtol=0, atol=1e-12)
    if degree == 1:  # d/du of the weights 1 - 4 u and 4 u
        assert_close(grads[0][:, 0], 4 * (weight[:, 1] - weight[:, 0]))


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("is_open", [True, False])
def test_kernel_is_continuous_across_knots(degree, is_open):
    weight = torch.randn(5, dtype=torch.float64)
    knots = torch.arange(1, 5 - degree if is_open else 5) / (5 - degree if is_open else 5)
    for eps in (-1e-9, 1e-9):
        pseudo = (knots.double() + eps).unsqueeze(1)
        basis, index = spline_basis(pseudo, 5, is_open, degree)
        at_knot, index_at_knot = spline_basis(knots.double().unsqueeze(1), 5, is_open, degree)
        value, expected = (basis * weight[index]).sum(1), (at_knot * weight[index_at_knot]).sum(1)
        assert_close(value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_gradcheck(degree):
    pseudo = torch.tensor([[0.11, 0.93], [0.42, 0.38]], dtype=torch.float64, requires_grad=True)
    args = ([4, 5], [True, False], degree)
    torch.autograd.gradcheck(lambda u: spline_basis(u, *args)[0], (pseudo,))


def test_tensors_as_pyg_has_them():
    pseudo = torch.rand(3, 2)
    size, is_open = torch.tensor([4, 5]), torch.tensor([1, 0], dtype=torch.uint8)
    basis, index = spline_basis(pseudo, size, is_open, 2)
    expected = spline_basis(pseudo, [4, 5], [True, False], 2)
    assert torch.equal(basis, expected[0]) and torch.equal(index, expected[1])
    assert basis.dtype == torch.float32 and index.dtype == torch.long


def test_low_precision_is_computed_in_float32():
    pseudo = torch.rand(7, 2).bfloat16()
    basis, index = spline_basis(pseudo, 5)
    expected = spline_basis(pseudo.float(), 5)
    assert torch.equal(basis, expected[0]) and torch.equal(index, expected[1])


def test_no_edges():
    basis, index = spline_basis(torch.rand(0, 3, requires_grad=True), 5, True, 2)
    assert basis.shape == index.shape == (0, 27)
    basis.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pseudo": torch.tensor([[1.1, 0.0]])}, r"`pseudo` .*`edge_attr`.* in \[0, 1\].* 1\.1"),
        ({"pseudo": torch.tensor([[0.0, -0.5]])}, r"in \[0, 1\], got values from -0\.5"),
        ({"pseudo": torch.tensor([[0.0, float("nan")]])}, r"in \[0, 1\]"),
        ({"pseudo": torch.rand(3)}, r"`pseudo` must have shape \(E, D\)"),
        ({"pseudo": torch.ones(3, 2, dtype=torch.long)}, "`pseudo` must be floating point"),
        ({"kernel_size": [5, 5, 5]}, r"`kernel_size` must be one value or D = 2"),
        ({"is_open_spline": [True]}, r"`is_open_spline` must be one value or D = 2"),
        ({"kernel_size": [5, 1], "degree": 2}, r"`kernel_size` must be >= `degree` = 2"),
        ({"kernel_size": 0, "is_open_spline": False}, r">= 1 for a closed one, got \[0, 0\]"),
        ({"degree": 4}, r"`degree` must be one of \(1, 2, 3\), got 4"),
    ],
)
def test_errors(change, message):
    arguments = {"pseudo": torch.rand(3, 2), "kernel_size": 5, "is_open_spline": True, "degree": 1}
    with pytest.raises(ValueError, match=message):
        spline_basis(**{**arguments, **change})
