"""The inputs that a transport problem accepts, and the costs that solvers read."""

import pytest
import torch
from jaxtyping import TypeCheckError

from topd_ray.transport import TransportProblem

TWO = torch.tensor([2, 2])


@pytest.mark.parametrize(
    ("cost", "rows", "cols", "message"),
    [
        (torch.zeros(2, 3), TWO, TWO, "cost_WKL"),
        (torch.zeros(2, 3, 3, dtype=torch.long), TWO, TWO, "cost_WKL"),
        (torch.zeros(2, 3, 3), torch.tensor([2]), TWO, "num_rows_W"),
        (torch.zeros(2, 3, 3), TWO, torch.tensor([2.0, 2.0]), "num_cols_W"),
        (torch.zeros(2, 3, 3), TWO, torch.tensor([True, True]), "num_cols_W"),
        (torch.zeros(2, 3, 3), torch.tensor([1, 0]), TWO, r"num_rows_W\[1\]=0"),
        (torch.zeros(2, 3, 3), TWO, torch.tensor([4, 1]), r"num_cols_W\[0\]=4"),
    ],
)
def test_a_malformed_problem_names_its_field(cost, rows, cols, message):
    # Where run-time shape checks are on, they see some of these first and name the
    # field as well.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        TransportProblem(cost, rows, cols)


def test_marginals_are_uniform_over_the_true_entries():
    problem = TransportProblem(
        torch.zeros(2, 3, 2), torch.tensor([3, 2]), torch.tensor([1, 2])
    )
    row_WK, col_WL = problem.marginals()
    torch.testing.assert_close(row_WK, torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0]]))
    torch.testing.assert_close(col_WL, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))


def test_solvers_read_zeros_in_padding_and_in_windows_with_a_non_finite_cost():
    cost_WKL = torch.ones(2, 2, 2)
    cost_WKL[0, 1, 1] = torch.nan  # padding of a healthy window
    cost_WKL[1, 0, 0] = torch.inf
    problem = TransportProblem(cost_WKL, torch.tensor([1, 2]), TWO)
    readable_WKL, healthy_W = problem.readable()
    assert healthy_W.tolist() == [True, False]
    assert readable_WKL.tolist() == [[[1, 1], [0, 0]], [[0, 0], [0, 0]]]
