"""Axes: T trained positions, D, E widths, V vocabulary, Q window positions, K ids of a target."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from topd_ray.learner.loss import aggregate_targets, distillation_sums
from topd_ray.messages import PAD

V, D, E = 11, 5, 7


@dataclass(frozen=True)
class Case:
    """One micro-batch in float64, with a linear head for the student."""

    student_hidden_TD: Tensor
    student_head_VD: Tensor
    teacher_hidden_TE: Tensor
    teacher_head_VE: Tensor
    window_Q: Tensor
    target_ids_QK: Tensor
    target_weights_QK: Tensor

    def sums(self, num_chunks: int = 1) -> tuple[Tensor, Tensor]:
        return distillation_sums(
            self.student_hidden_TD,
            lambda hidden: hidden @ self.student_head_VD.T,
            self.teacher_hidden_TE,
            self.teacher_head_VE,
            self.window_Q,
            self.target_ids_QK,
            self.target_weights_QK,
            num_chunks=num_chunks,
        )


def make_case(*, tokens: int = 6, seed: int = 0) -> Case:
    """Overlapping windows (positions repeat), ids that repeat in a row, ragged rows."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    ids_QK = torch.tensor([[1, 2, 1, 3], [4, PAD, PAD, PAD], [5, 5, 5, 5], [0, 9, PAD, PAD]])
    weights_QK = torch.rand(ids_QK.shape, generator=rng, dtype=torch.float64)
    weights_QK = weights_QK.masked_fill(ids_QK == PAD, 0.0)
    return Case(
        student_hidden_TD=normal(tokens, D),
        student_head_VD=normal(V, D),
        teacher_hidden_TE=normal(tokens, E),
        teacher_head_VE=normal(V, E),
        window_Q=torch.tensor([1, 2, 2, 5]) % max(tokens, 1),
        target_ids_QK=ids_QK,
        target_weights_QK=weights_QK / weights_QK.sum(1, keepdim=True),
    )


def kl(p_V: list[float], q_V: list[float]) -> float:
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(p_V, q_V, strict=True) if p > 0)


def brute_force(case: Case) -> tuple[float, float]:
    """Both sums with loops over the whole vocabulary."""
    student = (case.student_hidden_TD @ case.student_head_VD.T).softmax(1).tolist()
    teacher = (case.teacher_hidden_TE @ case.teacher_head_VE.T).softmax(1).tolist()
    opd = sum(kl(p_V, q_V) for p_V, q_V in zip(student, teacher, strict=True))
    traj = 0.0
    for row, position in enumerate(case.window_Q.tolist()):
        target_V = [0.0] * V
        for column, token in enumerate(case.target_ids_QK[row].tolist()):
            if token != PAD:
                target_V[token] += float(case.target_weights_QK[row, column])
        traj += kl(target_V, student[position])
    return opd, traj


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 6, 9])
def test_both_sums_are_the_full_vocabulary_divergences_however_they_are_chunked(num_chunks):
    case = make_case()
    opd, traj = case.sums(num_chunks)
    assert (opd.item(), traj.item()) == pytest.approx(brute_force(case), rel=1e-12)


@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_each_loss_is_that_of_finite_differences(which, num_chunks):
    case = make_case()

    def loss(hidden_TD: Tensor, head_VD: Tensor) -> Tensor:
        moved = replace(case, student_hidden_TD=hidden_TD, student_head_VD=head_VD)
        return moved.sums(num_chunks)[which]

    inputs = [t.clone().requires_grad_() for t in (case.student_hidden_TD, case.student_head_VD)]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7)


def test_the_teacher_gets_no_gradient():
    case = make_case()
    hidden_TE = case.teacher_hidden_TE.clone().requires_grad_()
    opd, traj = replace(case, teacher_hidden_TE=hidden_TE).sums()
    assert not opd.requires_grad
    assert not traj.requires_grad


def test_sums_of_micro_batches_add_up_to_those_of_one_batch():
    case = make_case(tokens=6)
    window_Q = case.window_Q
    parts = []
    for first, last in [(0, 2), (2, 6)]:
        inside_Q = (window_Q >= first) & (window_Q < last)
        parts.append(
            replace(
                case,
                student_hidden_TD=case.student_hidden_TD[first:last],
                teacher_hidden_TE=case.teacher_hidden_TE[first:last],
                window_Q=window_Q[inside_Q] - first,
                target_ids_QK=case.target_ids_QK[inside_Q],
                target_weights_QK=case.target_weights_QK[inside_Q],
            ).sums()
        )
    whole = case.sums()
    for part_a, part_b, total in zip(*parts, whole, strict=True):
        torch.testing.assert_close(part_a + part_b, total)


def test_a_student_equal_to_its_teacher_has_no_opd_loss_even_in_float32():
    rng = torch.Generator().manual_seed(3)
    hidden_TD, head_VD = torch.randn(50, 16, generator=rng), torch.randn(300, 16, generator=rng)
    opd, _ = distillation_sums(
        hidden_TD,
        lambda hidden: hidden @ head_VD.T,
        hidden_TD,
        head_VD,
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0, 1, dtype=torch.long),
        torch.zeros(0, 1),
        num_chunks=3,
    )
    assert abs(opd.item()) / 50 < 1e-5


def test_a_target_equal_to_the_student_has_no_trajectory_loss():
    case = make_case(tokens=2)
    p_TV = (case.student_hidden_TD @ case.student_head_VD.T).softmax(1)
    ids_QK = torch.arange(V).repeat(2, 1)
    halves_QK = torch.cat([p_TV, p_TV], 1) / 2  # every id twice, at half its weight
    same = replace(
        case,
        window_Q=torch.tensor([0, 1]),
        target_ids_QK=torch.cat([ids_QK, ids_QK], 1),
        target_weights_QK=halves_QK,
    )
    assert abs(same.sums()[1].item()) < 1e-12


def test_equal_ids_are_added_up_and_padding_counts_for_nothing():
    ids_QK = torch.tensor([[7, 2, 7, PAD], [PAD, 3, PAD, PAD]])
    weights_QK = torch.tensor([[0.25, 0.5, 0.25, 0.9], [0.4, 1.0, 0.3, 0.0]])
    got_ids_QK, got_weights_QK = aggregate_targets(ids_QK, weights_QK)
    rows = [
        {i: w for i, w in zip(ids, ws, strict=True) if i != PAD}
        for ids, ws in zip(got_ids_QK.tolist(), got_weights_QK.tolist(), strict=True)
    ]
    assert rows == [{7: 0.5, 2: 0.5}, {3: 1.0}]
    assert got_weights_QK.sum(1).tolist() == [1.0, 1.0]


def test_padded_columns_change_nothing():
    case = make_case()
    pad_QK = torch.full((4, 3), PAD)
    padded = replace(
        case,
        target_ids_QK=torch.cat([case.target_ids_QK, pad_QK], 1),
        target_weights_QK=torch.cat([case.target_weights_QK, torch.full((4, 3), 0.5)], 1),
    )
    torch.testing.assert_close(padded.sums()[1], case.sums()[1])


def test_without_trained_positions_the_sums_are_zero_and_the_head_still_runs_in_every_chunk():
    head_VD = torch.ones(V, D, requires_grad=True)
    calls = []

    def head(hidden: Tensor) -> Tensor:
        calls.append(len(hidden))
        return hidden @ head_VD.T

    hidden_TD = torch.zeros(0, D, requires_grad=True)
    opd, traj = distillation_sums(
        hidden_TD,
        head,
        torch.zeros(0, E),
        torch.zeros(V, E),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0, 1, dtype=torch.long),
        torch.zeros(0, 1),
        num_chunks=3,
    )
    (opd + traj).backward()
    assert (opd.item(), traj.item()) == (0.0, 0.0)
    assert calls == [0] * 6  # three forward, three recomputed in the backward pass
    assert head_VD.grad is not None
    assert not head_VD.grad.any()
