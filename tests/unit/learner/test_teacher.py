"""Axes: T positions, V vocabulary, M ids that the teacher kept, C entries of a
distribution.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.learner import oracle, reference
from tests.unit.learner.distributions import (
    FORMS,
    V,
    composed,
    distributions,
    forms,
    logs,
    normal,
    rows,
)
from topd_ray.learner.divergence import (
    TokenDivergence,
    TokenLoss,
    divergence,
    reverse_kl,
)
from topd_ray.learner.teacher import (
    SampledTeacher,
    TopkTeacher,
    likeliest_ids,
    sampled_divergence,
    teacher_at,
    topk_divergence,
)

TAILS = ("bucket", "renormalise")
tails = pytest.mark.parametrize("tail", TAILS)


def topk(logq_TV: Tensor, kept: int) -> TopkTeacher:
    logq_TM, ids_TM = logq_TV.topk(kept, 1)
    return TopkTeacher(ids_TM=ids_TM, logq_TM=logq_TM)


def autograd(
    logp_TV: Tensor, teacher: TopkTeacher, token_loss: TokenLoss
) -> tuple[Tensor, Tensor]:
    logits_TV = logp_TV.clone().requires_grad_()
    coarse = (
        reference.with_bucket if token_loss.tail == "bucket" else reference.renormalised
    )
    few = coarse(logits_TV.log_softmax(1), teacher.ids_TM, teacher.logq_TM)
    nats_T = reference.divergence(*few, token_loss)
    return nats_T.detach(), torch.autograd.grad(nats_T.sum(), logits_TV)[0]


@composed
@tails
@settings(deadline=None)
@given(logp_TV=distributions(), logq_TV=distributions(), kept=st.integers(1, V))
def test_few_ids_have_the_value_and_slope_of_autograd(
    token_loss, tail, logp_TV, logq_TV, kept
):
    token_loss, teacher = replace(token_loss, tail=tail), topk(logq_TV, kept)
    got, (want_T, want_TV) = (
        topk_divergence(logp_TV, teacher, token_loss),
        autograd(logp_TV, teacher, token_loss),
    )
    torch.testing.assert_close(got.nats_T, want_T, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(got.slope(), want_TV, rtol=1e-7, atol=1e-9)


@forms
@settings(deadline=None)
@given(logp_TV=distributions(), logq_TV=distributions(), kept=st.integers(1, V))
def test_a_bucket_never_raises_a_divergence_nor_makes_it_negative(
    token_loss, logp_TV, logq_TV, kept
):
    coarse_T = topk_divergence(logp_TV, topk(logq_TV, kept), token_loss).nats_T
    assert (coarse_T >= -1e-12).all()
    # a rest below the resolution of 1 - sum is taken for that resolution
    clear_T = (logq_TV.exp().sort(1).values[:, : V - kept].sum(1) > 1e-9) | (kept == V)
    whole_T = divergence(logp_TV, logq_TV, token_loss).nats_T * (1 + 1e-6) + 1e-6
    assert (coarse_T <= whole_T)[clear_T].all()


@forms
@tails
def test_few_ids_count_as_a_distribution_of_their_own(token_loss, tail):
    logp_TV, logq_TV = logs(5, seed=13), logs(5, seed=14)
    coarse = oracle.bucketed if tail == "bucket" else oracle.renormalised
    for kept in (1, 3, V - 1):
        teacher = topk(logq_TV, kept)
        want = [
            oracle.divergence(coarse(p, ids), coarse(q, ids), token_loss)
            for p, q, ids in zip(
                rows(logp_TV), rows(logq_TV), teacher.ids_TM.tolist(), strict=True
            )
        ]
        got_T = topk_divergence(logp_TV, teacher, replace(token_loss, tail=tail)).nats_T
        assert got_T.tolist() == pytest.approx(want, rel=1e-9, abs=1e-12)


@forms
@tails
def test_with_every_id_kept_it_is_the_full_divergence(token_loss, tail):
    logp_TV, logq_TV = logs(4, seed=15), logs(4, seed=16)
    got = topk_divergence(logp_TV, topk(logq_TV, V), replace(token_loss, tail=tail))
    want = divergence(logp_TV, logq_TV, token_loss)
    torch.testing.assert_close(got.nats_T, want.nats_T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.slope(), want.slope(), rtol=1e-9, atol=1e-12)


def of_one_position(
    logits: list[float], ids: list[int], logq: list[float]
) -> TokenDivergence:
    logp_TV = torch.tensor([logits]).log_softmax(1)
    teacher = TopkTeacher(ids_TM=torch.tensor([ids]), logq_TM=torch.tensor([logq]))
    return topk_divergence(logp_TV, teacher, TokenLoss(divergence="forward_kl"))


def test_the_students_bucket_keeps_a_mass_that_one_minus_the_rest_would_lose():
    """In float32, three times 9e-14; half of the teacher's mass lies there."""
    got = of_one_position([30.0, 0.0, 0.0, 0.0], [0], [math.log(0.5)])
    want = math.log(0.5) - 0.5 * (math.log(3) - 30.0)
    assert got.nats_T.item() == pytest.approx(want, rel=1e-6)
    assert got.slope().tolist()[0] == pytest.approx([0.5, *[-0.5 / 3] * 3], rel=1e-5)


@pytest.mark.parametrize("peak", [200.0, 1000.0])
def test_a_bucket_too_small_for_float32_still_pulls(peak):
    got = of_one_position([peak, 0.0, 0.0, 0.0], [0], [math.log(0.5)])
    rounding = (
        peak * torch.finfo(torch.float32).eps
    )  # of a log-probability of about -peak
    assert got.slope().tolist()[0] == pytest.approx(
        [0.5, *[-0.5 / 3] * 3], rel=rounding
    )


@forms
@pytest.mark.parametrize("excess", [-1e-7, 0.0, 1e-7, 1e-6])
def test_a_teacher_whose_ids_leave_nothing_measurable_costs_no_more_than_finitely(
    token_loss, excess
):
    """Rounding may even push the sum of the kept ids above one."""
    logq_TM = torch.tensor([[0.75 + excess, 0.25]]).log()
    logp_TV = torch.tensor([[1.0, 2.0, 0.0, 3.0]]).log_softmax(1)
    teacher = TopkTeacher(ids_TM=torch.tensor([[2, 0]]), logq_TM=logq_TM)
    got = topk_divergence(logp_TV, teacher, token_loss)
    assert 0.0 < got.nats_T.item() < 20.0
    assert got.slope().isfinite().all()


def test_a_few_ids_that_are_not_numbers_are_not_hidden():
    logp_TV, logq_TV = logs(2, seed=23), logs(2, seed=24)
    logq_TV[0, 3] = math.nan
    teacher = TopkTeacher(
        ids_TM=torch.tensor([[3, 1], [2, 0]]), logq_TM=logq_TV[:, :2].clone()
    )
    teacher.logq_TM[0, 0] = math.nan
    for token_loss in FORMS:
        assert topk_divergence(
            logp_TV, teacher, token_loss
        ).nats_T.isnan().tolist() == [
            True,
            False,
        ]


def test_the_mean_slope_of_sampled_tokens_is_that_of_reverse_kl():
    """Every token of the vocabulary is sampled, and weighs as much as it is
    probable.
    """
    logp_TV, logq_TV = logs(1, seed=21), logs(1, seed=22)
    exact, p_V = reverse_kl(logp_TV, logq_TV), logp_TV[0].exp()
    got = sampled_divergence(
        logp_TV.expand(V, V),
        SampledTeacher(logq_T=logq_TV[0]),
        torch.arange(V),
        logp_TV[0],
    )
    torch.testing.assert_close((p_V * got.nats_T).sum(), exact.nats_T[0])
    mean_V = (p_V[:, None] * got.slope()).sum(0)
    torch.testing.assert_close(mean_V, exact.slope()[0], rtol=1e-12, atol=1e-14)
    assert mean_V.any()


def test_a_sampled_token_reports_its_log_ratio_and_weighs_its_slope_by_importance():
    logp_TV, ids_T = normal(2, V, seed=25).log_softmax(1), torch.tensor([3, 4])
    logp_T = logp_TV[range(2), ids_T]
    ratio_T, moved_T = (
        torch.tensor([2.0, -1.5]).double(),
        torch.tensor([0.0, 0.5]).double(),
    )
    teacher = SampledTeacher(logq_T=logp_T - ratio_T)
    got = sampled_divergence(logp_TV, teacher, ids_T, logp_T - moved_T)
    torch.testing.assert_close(got.nats_T, ratio_T)
    onto_TV = torch.nn.functional.one_hot(ids_T, V) - logp_TV.exp()
    torch.testing.assert_close(
        got.slope(), (ratio_T * moved_T.exp())[:, None] * onto_TV
    )


def test_a_part_of_a_teacher_is_that_of_its_positions():
    teacher = topk(logs(5, seed=26), 2)
    part = teacher_at(teacher, slice(1, 3))
    assert isinstance(part, TopkTeacher)
    assert part.ids_TM.tolist() == teacher.ids_TM[1:3].tolist()
    assert part.logq_TM.tolist() == teacher.logq_TM[1:3].tolist()


def test_the_likeliest_ids_are_those_of_the_whole_softmax():
    hidden_TE, head_VE = normal(130, 4, seed=27).float(), normal(V, 4, seed=28).float()
    ids_TM, logq_TM = likeliest_ids(hidden_TE, head_VE, 3)
    logq_TV = (hidden_TE @ head_VE.T).log_softmax(1)
    torch.testing.assert_close(logq_TM, logq_TV.sort(1, descending=True).values[:, :3])
    torch.testing.assert_close(logq_TV.gather(1, ids_TM), logq_TM)
    assert likeliest_ids(hidden_TE, head_VE, V + 9)[0].shape == (130, V)
