"""The ground cost against a double loop over token pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.probe.cost import continuation_cost


def slow_cost(student, teacher, table) -> list[list[float]]:
    def cost(s: int, t: int) -> float:
        if s == t:
            return 0.0
        u, v = table[s].double(), table[t].double()
        if not u.any() or not v.any():
            return 1.0
        return float(1 - (u @ v) / (u.norm() * v.norm()))

    return [[cost(s, t) for t in teacher] for s in student]


def table_of(rows=11, width=6, *, seed=0):
    rng = torch.Generator().manual_seed(seed)
    table_VD = torch.randn(rows, width, generator=rng)
    table_VD[3] = 0.0
    return table_VD


@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_every_pair_costs_what_a_double_loop_says(data, dtype):
    ids = st.lists(st.integers(0, 10), min_size=1, max_size=4)
    windows = data.draw(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
    student_WK = torch.full((len(windows), 4), -1)
    teacher_WL = torch.full((len(windows), 5), -1)
    for window, (student, teacher) in enumerate(windows):
        student_WK[window, : len(student)] = torch.tensor(student)
        teacher_WL[window, : len(teacher)] = torch.tensor(teacher)
    num_student_W = torch.tensor([len(student) for student, _ in windows])
    num_teacher_W = torch.tensor([len(teacher) for _, teacher in windows])
    table_VD = table_of().to(dtype)
    cost_WKL = continuation_cost(
        student_WK, teacher_WL, num_student_W, num_teacher_W, table_VD, chunk=2
    )
    assert cost_WKL.dtype == torch.float32
    for window, (student, teacher) in enumerate(windows):
        expected_KL = torch.zeros(4, 5)
        expected_KL[: len(student), : len(teacher)] = torch.tensor(
            slow_cost(student, teacher, table_VD)
        )
        torch.testing.assert_close(cost_WKL[window], expected_KL, atol=2e-6, rtol=0)


def one_window(student, teacher, table_VD):
    sizes = torch.tensor([len(student)]), torch.tensor([len(teacher)])
    return continuation_cost(
        torch.tensor([student]), torch.tensor([teacher]), *sizes, table_VD
    )[0]


def test_equal_ids_cost_exactly_zero_and_no_rounding_leaves_zero_to_two():
    half_VD = table_of(40, 64)
    table_VD = torch.cat(
        [half_VD, half_VD, -half_VD]
    )  # twins and opposites: cos rounds past 1
    ids = list(range(120))
    cost_KL = one_window(ids, ids, table_VD)
    assert cost_KL.diagonal().eq(0).all()
    assert float(cost_KL[0, 40]) == pytest.approx(0.0, abs=1e-6)
    assert float(cost_KL[0, 80]) == pytest.approx(2.0, abs=1e-6)
    assert cost_KL.min() >= 0
    assert cost_KL.max() <= 2


def test_a_zero_row_costs_one_against_any_other_id():
    table_VD = torch.cat([table_of(), torch.zeros(1, 6)])
    cost_KL = one_window([3], [0, 3, 11, 5], table_VD)
    assert cost_KL.tolist() == [[1.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_centre_is_subtracted_from_every_row(chunk):
    table_VD = table_of()
    centre_D = torch.arange(6.0)
    ids = [[0, 1, 3], [5, 7]]
    student, teacher = (torch.tensor([part]) for part in ids)
    sizes = torch.tensor([3]), torch.tensor([2])
    torch.testing.assert_close(
        continuation_cost(
            student, teacher, *sizes, table_VD, centre_D=centre_D, chunk=chunk
        ),
        continuation_cost(student, teacher, *sizes, table_VD - centre_D),
    )


def test_padding_costs_nothing_with_any_ids():
    student_WK = torch.tensor([[1, 2, 9999]])
    teacher_WL = torch.tensor([[4, -1]])
    cost_WKL = continuation_cost(
        student_WK, teacher_WL, torch.tensor([2]), torch.tensor([1]), table_of()
    )
    assert cost_WKL[0, :2, 0].gt(0).all()
    assert cost_WKL[0, 2].eq(0).all()
    assert cost_WKL[0, :, 1].eq(0).all()


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_chunk_size_changes_nothing(chunk):
    rng = torch.Generator().manual_seed(1)
    student_WK = torch.randint(0, 11, (7, 5), generator=rng)
    teacher_WL = torch.randint(0, 11, (7, 4), generator=rng)
    sizes = torch.full((7,), 5), torch.full((7,), 4)
    whole_WKL = continuation_cost(student_WK, teacher_WL, *sizes, table_of())
    parts_WKL = continuation_cost(
        student_WK, teacher_WL, *sizes, table_of(), chunk=chunk
    )
    torch.testing.assert_close(parts_WKL, whole_WKL, atol=1e-6, rtol=0)


def test_many_distinct_tokens_and_few_cost_the_same_in_one_window():
    """Few distinct tokens share one product; many are multiplied window by window."""
    rng = torch.Generator().manual_seed(2)
    table_VD = torch.randn(500, 16, generator=rng)
    few_WK = torch.arange(4).repeat(40, 1)
    many_WK = torch.randperm(160, generator=rng).view(40, 4)
    many_WK[0] = few_WK[0]
    sizes = torch.full((40,), 4), torch.full((40,), 4)
    few_WKK = continuation_cost(few_WK, few_WK.flip(1), *sizes, table_VD)
    many_WKK = continuation_cost(many_WK, many_WK.flip(1), *sizes, table_VD)
    torch.testing.assert_close(many_WKK[0], few_WKK[0], atol=1e-6, rtol=0)
    expected_KK = torch.tensor(
        slow_cost(many_WK[39].tolist(), many_WK[39].tolist()[::-1], table_VD)
    )
    torch.testing.assert_close(many_WKK[39], expected_KK, atol=2e-6, rtol=0)


def test_a_non_finite_row_spoils_only_the_windows_that_use_it():
    table_VD = table_of()
    table_VD[7] = torch.inf
    student_WK = torch.tensor([[7], [1]])
    teacher_WL = torch.tensor([[2], [2]])
    one_W = torch.tensor([1, 1])
    cost_WKL = continuation_cost(student_WK, teacher_WL, one_W, one_W, table_VD)
    assert cost_WKL.isfinite().flatten().tolist() == [False, True]


def test_an_id_outside_the_table_is_named():
    with pytest.raises(ValueError, match=r"teacher_ids_WL\[0, 1\]=11"):
        one_window([0], [1, 11], table_of())


def test_no_windows_give_no_costs_and_no_gradient_reaches_the_table():
    none_W = torch.zeros(0, dtype=torch.long)
    empty_WN = torch.zeros(0, 4, dtype=torch.long)
    table_VD = table_of().requires_grad_()
    assert continuation_cost(empty_WN, empty_WN, none_W, none_W, table_VD).shape == (
        0,
        4,
        4,
    )
    assert not one_window([0], [1], table_VD).requires_grad
