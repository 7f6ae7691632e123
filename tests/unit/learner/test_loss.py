"""Axes as in cases.py; B positions of a block."""

import math

import pytest
import torch
from torch import Tensor

from tests.unit.learner import oracle
from tests.unit.learner.cases import BEHIND, TRAINED, Case, V, compositions, make_case
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.loss import (
    aggregate_targets,
    block_sums,
    rollout_kl,
    target_entropy,
    worst_gap,
)
from topd_ray.learner.teacher import SampledTeacher, TopkTeacher, WholeTeacher
from topd_ray.messages import PAD


def block(case: Case, *, with_slope: bool = True) -> tuple[Tensor, Tensor | None]:
    """All positions of the case at once, from their logits."""
    teacher = case.positions.teacher
    whole = isinstance(teacher, WholeTeacher)
    sums_5, slope_BV, _ = block_sums(
        case.hidden_TUD @ case.head_VD.T,
        teacher.hidden_TE @ teacher.head_VE.T if whole else None,
        case.positions.by_window(),
        case.recipe,
        with_slope=with_slope,
    )
    return sums_5, slope_BV


def brute_force(case: Case) -> tuple[float, float]:
    """Both sums with loops over the whole vocabulary."""
    student, here, ratio = (
        case.logp.exp().tolist(),
        case.positions,
        case.recipe.token_loss.kd_ratio,
    )
    token, traj = 0.0, 0.0
    for t, weight in enumerate(here.weight_T.tolist()):
        y = int(here.response_ids_T[t])
        nats = token_divergence(case, t, student[t], y)
        token += weight * (ratio * nats - (1 - ratio) * math.log(student[t][y]))
    for row, position in enumerate(here.window_Q.tolist()):
        target_V = [0.0] * V
        for column, token_id in enumerate(here.target_ids_QK[row].tolist()):
            if token_id != PAD:
                target_V[token_id] += float(here.target_weights_QK[row, column])
        traj += oracle.kl(target_V, student[position])
    return token, traj


def token_divergence(case: Case, t: int, p_V: list[float], y: int) -> float:
    token_loss = case.recipe.token_loss
    match case.positions.teacher:
        case WholeTeacher(hidden_TE=hidden_TE, head_VE=head_VE):
            return oracle.divergence(
                p_V, (head_VE @ hidden_TE[t]).softmax(0).tolist(), token_loss
            )
        case TopkTeacher(ids_TM=ids_TM, logq_TM=logq_TM):
            ids, q_M = ids_TM[t].tolist(), logq_TM[t].exp().tolist()
            others = (1 - sum(q_M)) / (V - len(ids))
            q_V = [q_M[ids.index(i)] if i in ids else others for i in range(V)]
            coarse = (
                oracle.bucketed if token_loss.tail == "bucket" else oracle.renormalised
            )
            return oracle.divergence(coarse(p_V, ids), coarse(q_V, ids), token_loss)
        case SampledTeacher(logq_T=logq_T):
            return math.log(p_V[y]) - float(logq_T[t])


@pytest.mark.parametrize(("signal", "token_loss"), compositions())
def test_both_sums_are_those_of_loops_over_the_vocabulary(signal, token_loss):
    case = make_case(signal=signal, token_loss=token_loss)
    (token, cross_entropy, *_), _ = block(case)
    here = case.positions
    traj = cross_entropy - target_entropy(here.target_ids_QK, here.target_weights_QK)
    assert (token.item(), traj.item()) == pytest.approx(brute_force(case), rel=1e-9)


@pytest.mark.parametrize(("signal", "token_loss"), compositions())
def test_the_slope_is_the_derivative_by_each_logit(signal, token_loss):
    """Through an identity for a head, so that the logits are what autograd descends."""
    case = make_case(signal=signal, token_loss=token_loss)
    logits_TUV = case.hidden_TUD @ case.head_VD.T
    bare = Case(
        logits_TUV, torch.eye(V, dtype=torch.float64), case.positions, case.recipe
    )
    *_, want_TUV, _ = bare.want()
    _, slope_TUV = block(case)
    torch.testing.assert_close(slope_TUV, want_TUV, rtol=1e-9, atol=1e-12)


def test_without_a_slope_the_sums_are_the_same_and_none_is_computed():
    case = make_case(token_loss=TokenLoss(kd_ratio=0.5))
    sums, slope = block(case, with_slope=False)
    assert slope is None
    torch.testing.assert_close(sums, block(case)[0])


def test_the_slope_of_a_sampled_token_is_its_held_log_ratio_times_its_importance():
    case = make_case(signal="sampled", lambda_traj=0.0)
    here = case.positions
    assert isinstance(here.teacher, SampledTeacher)
    p_TV, rows_T = case.logp[:TRAINED].exp(), range(TRAINED)
    logp_T = case.logp[rows_T, here.response_ids_T]
    pull_T = (
        here.weight_T
        * (logp_T - here.teacher.logq_T)
        * (logp_T - here.sampled_logp_T).exp()
    )
    onto_TV = torch.nn.functional.one_hot(here.response_ids_T, V) - p_TV
    _, slope_TUV = block(case)
    assert slope_TUV is not None
    torch.testing.assert_close(slope_TUV[:TRAINED], pull_T[:, None] * onto_TV)


def test_positions_behind_the_trained_ones_have_no_token_loss():
    case = make_case(token_loss=TokenLoss(kd_ratio=0.5), lambda_traj=0.0)
    _, slope_TUV = block(case)
    assert slope_TUV is not None
    assert len(slope_TUV) == TRAINED + BEHIND
    assert not slope_TUV[TRAINED:].any()
    assert slope_TUV[0].any()
    assert not slope_TUV[2].any()  # its weight is 0


def test_a_target_equal_to_the_student_has_neither_loss_nor_slope():
    case = make_case()
    window_Q = torch.tensor([0, 7])
    p_QV = case.logp[window_Q].exp()
    ids_QK = torch.arange(V).repeat(2, 1)
    same = case.with_positions(
        weight_T=torch.zeros(TRAINED).double(),
        window_Q=window_Q,
        target_ids_QK=torch.cat(
            [ids_QK, ids_QK], 1
        ),  # every id twice, at half its weight
        target_weights_QK=torch.cat([p_QV, p_QV], 1) / 2,
    )
    assert abs(same.losses().traj.item()) < 1e-12
    _, slope_TUV = block(same)
    torch.testing.assert_close(
        slope_TUV, torch.zeros_like(case.logp), rtol=0, atol=1e-15
    )


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
    here = case.positions
    padded = case.with_positions(
        target_ids_QK=torch.cat([here.target_ids_QK, torch.full((4, 3), PAD)], 1),
        target_weights_QK=torch.cat(
            [here.target_weights_QK, torch.full((4, 3), 0.5)], 1
        ),
    )
    for got, want in zip(padded.outcome(), case.outcome(), strict=True):
        torch.testing.assert_close(got, want)


def test_the_mismatch_is_the_kl_of_the_sampling_policy_to_the_present_one_on_average():
    """Every token of the vocabulary is sampled, and weighs as much as it was
    probable.
    """
    rng = torch.Generator().manual_seed(0)
    old_V, new_V = torch.randn(2, V, generator=rng, dtype=torch.float64).log_softmax(1)
    mean = sum(
        float(old_V[i].exp() * rollout_kl(new_V[i : i + 1], old_V[i : i + 1]))
        for i in range(V)
    )
    assert mean == pytest.approx(
        oracle.kl(old_V.exp().tolist(), new_V.exp().tolist()), rel=1e-12
    )


def test_rollout_kl_counts_each_sampled_token_once_at_any_weight():
    case = make_case()
    here = case.positions
    moved_T = case.logp[range(TRAINED), here.response_ids_T] - here.sampled_logp_T
    want = sum(math.exp(moved) - 1 - moved for moved in moved_T.tolist())
    assert case.losses().rollout_kl.item() == pytest.approx(want, rel=1e-12)
    # a token that the student did not sample has inf
    own = here.sampled_logp_T.clone()
    own[2:] = torch.inf
    first = case.with_positions(sampled_logp_T=own)
    want = sum(math.exp(moved) - 1 - moved for moved in moved_T[:2].tolist())
    assert first.losses().rollout_kl.item() == pytest.approx(want, rel=1e-12)
    none = case.with_positions(sampled_logp_T=torch.full_like(own, torch.inf))
    assert none.losses().rollout_kl.item() == 0.0
    broken = case.with_positions(sampled_logp_T=torch.full_like(own, torch.nan))
    assert math.isnan(broken.losses().rollout_kl.item())


def test_a_mismatch_of_two_engines_rounding_is_not_lost_in_rounding():
    sampled_T = torch.full((4,), -3.0)
    moved = 2.0**-20
    got = rollout_kl(sampled_T + moved, sampled_T)
    assert got.item() == pytest.approx(4 * moved**2 / 2, rel=1e-5)


def test_the_worst_gap_is_the_token_that_moved_most() -> None:
    logp_T = torch.tensor([-1.0, -2.0, -3.0])
    assert worst_gap(logp_T, torch.tensor([-1.1, -0.5, -3.2])).tolist() == [1.0, -2.0]
    assert worst_gap(logp_T, torch.tensor([-9.0, torch.nan, -3.0]))[0] == 1
    assert worst_gap(logp_T, torch.tensor([torch.inf, -2.1, torch.inf]))[0] == 1
    assert worst_gap(logp_T, torch.full((3,), torch.inf))[0] == -1
    assert worst_gap(logp_T[:0], torch.zeros(0)).tolist() == [-1.0, 0.0]
