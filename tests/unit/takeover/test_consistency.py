"""A student equal to its teacher has nothing to learn, wherever the fork lies."""

from dataclasses import replace

import pytest
import torch

from tests.unit.learner.cases import BEHIND, TRAINED, Case, make_case
from topd_ray.learner.teacher import WholeTeacher


def of_equals(*, lambda_traj: float) -> Case:
    """A micro-batch whose teacher is the student, hidden states and head alike."""
    case = make_case(lambda_traj=lambda_traj)
    teacher = WholeTeacher(hidden_TE=case.hidden_TUD[:TRAINED], head_VE=case.head_VD)
    return case.with_positions(teacher=teacher)


def forked(case: Case, fork: int, *, mix: bool) -> Case:
    """The masks of a rollout of which the first `fork` tokens are the student's."""
    place_T = torch.arange(TRAINED)
    is_fork_T = (place_T == fork) & (fork > 0)
    return case.with_positions(
        reverse_T=(place_T < fork) | is_fork_T | mix, forward_T=(place_T >= fork) | mix
    )


def loss_and_gradient(case: Case) -> tuple[float, float]:
    total, _, _, _, *gradients = case.outcome()
    return abs(total.item()), max(float(gradient.norm()) for gradient in gradients)


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("fork", range(TRAINED + 1))
def test_zero_loss_and_gradient_wherever_the_teacher_takes_over(fork, mix):
    case = forked(of_equals(lambda_traj=0.0), fork, mix=mix)
    loss, gradient = loss_and_gradient(case)
    assert loss <= 1e-6
    assert gradient <= 1e-5


def test_l_traj_pulls_a_student_away_that_is_equal_to_its_teacher():
    """Soft targets are words of another path: L_traj is not Fisher consistent."""
    loss, gradient = loss_and_gradient(of_equals(lambda_traj=0.3))
    assert loss > 0.1
    assert gradient > 0.1


def test_the_case_would_show_a_difference():
    case = forked(make_case(lambda_traj=0.0), 2, mix=False)
    loss, gradient = loss_and_gradient(case)
    assert loss > 0.1
    assert gradient > 0.1
    assert BEHIND  # positions of windows alone have no divergence
    assert replace(case, recipe=case.recipe).positions is case.positions
