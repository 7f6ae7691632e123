"""Axes: T positions, V vocabulary, M ids that the teacher kept."""

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.unit.learner import oracle, reference
from tests.unit.learner.distributions import (
    FORMS,
    composed,
    distributions,
    forms,
    logs,
    rows,
)
from topd_ray.learner.divergence import (
    TokenLoss,
    WhichKl,
    divergence,
    entropy,
    forward_kl,
    jsd,
    reverse_kl,
)

INF = math.inf


def autograd(logp_TV: Tensor, logq_TV: Tensor, token_loss: TokenLoss) -> Tensor:
    """Slope by the logits of the plain formula; a log-softmax of logs is these logs."""
    logits_TV = logp_TV.clone().requires_grad_()
    nats_T = reference.divergence(logits_TV.log_softmax(1), logq_TV, token_loss)
    (slope_TV,) = torch.autograd.grad(nats_T.sum(), logits_TV)
    return slope_TV


@forms
def test_each_divergence_is_its_sum_over_the_whole_vocabulary(token_loss):
    logp_TV, logq_TV = logs(6, seed=1), logs(6, seed=2)
    want = [
        oracle.divergence(p, q, token_loss)
        for p, q in zip(rows(logp_TV), rows(logq_TV), strict=True)
    ]
    assert divergence(logp_TV, logq_TV, token_loss).nats_T.tolist() == pytest.approx(
        want, rel=1e-12
    )


@composed
@settings(deadline=None)
@given(logp_TV=distributions(), logq_TV=distributions())
def test_each_slope_is_autograds(token_loss, logp_TV, logq_TV):
    got = divergence(logp_TV, logq_TV, token_loss)
    want_T = reference.divergence(logp_TV, logq_TV, token_loss)
    torch.testing.assert_close(got.nats_T, want_T, rtol=1e-10, atol=1e-12)
    want_TV = autograd(logp_TV, logq_TV, token_loss)
    torch.testing.assert_close(got.slope(), want_TV, rtol=1e-8, atol=1e-10)


@composed
def test_a_slope_leaves_no_probability_over(token_loss):
    """Logits that all rise by as much are the same distribution."""
    slope_TV = divergence(
        logs(5, seed=3, scale=0.7), logs(5, seed=4, scale=0.7), token_loss
    ).slope()
    torch.testing.assert_close(
        slope_TV.sum(1), torch.zeros(5).double(), rtol=0, atol=1e-12
    )
    assert slope_TV.any()


@forms
def test_an_id_that_has_no_probability_counts_as_the_limit_and_spoils_no_gradient(
    token_loss,
):
    logp_TV = (
        torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
        .double()
        .log()
    )
    logq_TV = (
        torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
        .double()
        .log()
    )
    got = divergence(logp_TV, logq_TV, token_loss)
    want = [
        oracle.divergence(p, q, token_loss)
        for p, q in zip(rows(logp_TV), rows(logq_TV), strict=True)
    ]
    assert got.nats_T.tolist() == pytest.approx(want, rel=1e-12)
    slope_TV = got.slope()[got.nats_T.isfinite()]
    assert slope_TV.isfinite().all()
    assert slope_TV.any()


@forms
def test_float32_stays_finite_and_close_where_one_id_has_nearly_everything(token_loss):
    logits_TV = torch.tensor([[60.0, 0.0, -60.0], [0.0, 80.0, 0.0]])
    other_TV = torch.tensor([[59.0, 0.0, 0.0], [90.0, 0.0, 0.0]])
    got_T = divergence(
        logits_TV.log_softmax(1), other_TV.log_softmax(1), token_loss
    ).nats_T
    logp_TV, logq_TV = (x.double().log_softmax(1) for x in (logits_TV, other_TV))
    want_T = divergence(logp_TV, logq_TV, token_loss).nats_T
    torch.testing.assert_close(got_T.double(), want_T, rtol=1e-5, atol=1e-6)


def test_the_even_jsd_is_symmetric_and_at_most_log_2():
    logp_TV, logq_TV = logs(8, seed=5, scale=20.0), logs(8, seed=6, scale=20.0)
    there_T, back_T = (
        jsd(*pair, beta=0.5).nats_T for pair in ((logp_TV, logq_TV), (logq_TV, logp_TV))
    )
    torch.testing.assert_close(there_T, back_T)
    assert (there_T <= math.log(2)).all()
    apart = torch.tensor([[0.0, -INF], [-INF, 0.0]], dtype=torch.float64)
    assert jsd(apart, apart.flip(1), beta=0.5).nats_T.tolist() == pytest.approx(
        [math.log(2)] * 2
    )


def test_jsd_over_beta_times_its_rest_tends_to_the_kl_at_either_end():
    logp_TV, logq_TV = logs(4, seed=7, scale=0.5), logs(4, seed=8, scale=0.5)
    tiny = 1e-6
    near_0, near_1 = (
        jsd(logp_TV, logq_TV, beta=b).nats_T / tiny for b in (tiny, 1 - tiny)
    )
    torch.testing.assert_close(
        near_0, forward_kl(logp_TV, logq_TV).nats_T, rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        near_1, reverse_kl(logp_TV, logq_TV).nats_T, rtol=1e-4, atol=0
    )
    for beta, end in ((0.0, forward_kl), (1.0, reverse_kl)):
        at_end, want = jsd(logp_TV, logq_TV, beta=beta), end(logp_TV, logq_TV)
        torch.testing.assert_close(at_end.nats_T, want.nats_T)
        torch.testing.assert_close(at_end.slope(), want.slope())


def test_a_clipped_token_counts_the_clip_and_has_no_gradient():
    logp_TV, logq_TV = logs(6, seed=9), logs(6, seed=10)
    plain = forward_kl(logp_TV, logq_TV)
    clip = float(plain.nats_T.median())
    clipped = divergence(
        logp_TV, logq_TV, TokenLoss(divergence="forward_kl", token_clip=clip)
    )
    above_T = plain.nats_T > clip
    assert 0 < above_T.sum() < len(above_T)
    assert clipped.nats_T.tolist() == [
        min(nats, clip) for nats in plain.nats_T.tolist()
    ]
    torch.testing.assert_close(
        clipped.slope(), plain.slope().masked_fill(above_T[:, None], 0.0)
    )


def test_forward_kl_is_added_only_where_the_teacher_is_unsure():
    logp_TV, logq_TV = logs(7, seed=11), logs(7, seed=12)
    line = float(entropy(logq_TV).median())
    token_loss = TokenLoss(forward_above_entropy=line)
    want = [
        oracle.kl(p, q) + (oracle.kl(q, p) if oracle.entropy(q) > line + 1e-12 else 0.0)
        for p, q in zip(rows(logp_TV), rows(logq_TV), strict=True)
    ]
    assert divergence(logp_TV, logq_TV, token_loss).nats_T.tolist() == pytest.approx(
        want, rel=1e-12
    )
    assert divergence(logp_TV, logq_TV, token_loss).nats_T.tolist() != pytest.approx(
        reverse_kl(logp_TV, logq_TV).nats_T.tolist()
    )


def test_a_teacher_that_is_not_a_number_is_not_hidden():
    logp_TV, logq_TV = logs(2, seed=23), logs(2, seed=24)
    logq_TV[0, 3] = math.nan
    for token_loss in (
        *FORMS,
        TokenLoss(token_clip=0.1),
        TokenLoss(forward_above_entropy=0.1),
    ):
        got_T = divergence(logp_TV, logq_TV, token_loss).nats_T
        assert got_T.isnan().tolist() == [True, False]


MASKS = [
    WhichKl(torch.tensor(reverse).bool(), torch.tensor(forward).bool())
    for reverse, forward in (
        ([1, 1, 1, 1], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [1, 1, 1, 1]),
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        ([1, 1, 0, 0], [0, 1, 1, 1]),
    )
]


@pytest.mark.parametrize("where", MASKS)
@pytest.mark.parametrize("clip", [None, 0.8])
def test_each_position_has_the_divergences_that_count_there(where, clip):
    logp_TV, logq_TV = logs(4, seed=1), logs(4, seed=2)
    got = divergence(logp_TV, logq_TV, TokenLoss(token_clip=clip), where)
    logits_TV = logp_TV.clone().requires_grad_()
    logs_TV = logits_TV.log_softmax(1)
    reverse_T = (logs_TV.exp() * (logs_TV - logq_TV)).sum(1)
    forward_T = (logq_TV.exp() * (logq_TV - logs_TV)).sum(1)
    want_T = where.reverse_T * reverse_T + where.forward_T * forward_T
    if clip is not None:
        want_T = want_T.clamp(max=clip)
    torch.testing.assert_close(got.nats_T, want_T, rtol=1e-10, atol=1e-12)
    (want_TV,) = torch.autograd.grad(want_T.sum(), logits_TV)
    torch.testing.assert_close(got.slope(), want_TV, rtol=1e-8, atol=1e-10)
