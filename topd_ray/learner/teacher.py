"""The teacher's signal at some positions -> their divergence from the student.

Axes: T positions, V vocabulary, E width of the teacher, M ids the teacher kept, C
entries of a distribution over these (M, or M and a bucket). Slopes are by all V logits.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from topd_ray.learner.divergence import (
    TokenDivergence,
    TokenLoss,
    WhichKl,
    divergence,
)

_ROWS_OF_LOGITS = 64
"""Positions whose logits are in memory at a time: 40 MB for 150,000 ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTeacher:
    """The teacher's hidden states and output head: they give every id's probability.

    The head may have rows of padding behind its V rows.
    """

    hidden_TE: Float[Tensor, "T E"]
    head_VE: Float[Tensor, "V E"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopkTeacher:
    """Log-probabilities of M ids, each id once a row, under the full softmax."""

    ids_TM: Int[Tensor, "T M"]
    logq_TM: Float[Tensor, "T M"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTeacher:
    """The teacher's log-probability of the sampled token of each position."""

    logq_T: Float[Tensor, "T"]


Teacher = WholeTeacher | TopkTeacher | SampledTeacher


def teacher_at(teacher: Teacher, where: slice) -> Teacher:
    """Return the teacher's signal at a slice of the positions."""
    match teacher:
        case WholeTeacher():
            return WholeTeacher(
                hidden_TE=teacher.hidden_TE[where], head_VE=teacher.head_VE
            )
        case TopkTeacher():
            return TopkTeacher(
                ids_TM=teacher.ids_TM[where], logq_TM=teacher.logq_TM[where]
            )
        case SampledTeacher():
            return SampledTeacher(logq_T=teacher.logq_T[where])


@torch.no_grad()
def likeliest_ids(
    hidden_TE: Float[Tensor, "T E"], head_VE: Float[Tensor, "V E"], count: int
) -> tuple[Int[Tensor, "T M"], Float[Tensor, "T M"]]:
    """Return the ids that hidden states make likeliest.

    Args:
        hidden_TE: States after the final norm.
        head_VE: The output head, without rows of padding.
        count: M, ids a position; fewer where the vocabulary has fewer.

    Returns:
        Ids and log-probabilities in nats, each (T, M), best first.
    """
    num_ids = min(count, len(head_VE))
    parts = [
        (rows_TE.to(head_VE) @ head_VE.T).float().log_softmax(1).topk(num_ids, dim=1)
        for rows_TE in torch.split(hidden_TE, _ROWS_OF_LOGITS)
    ]
    ids_TM = torch.cat([part.indices for part in parts])
    logq_TM = torch.cat([part.values for part in parts])
    return ids_TM, logq_TM


def topk_divergence(
    logp_TV: Float[Tensor, "T V"],
    teacher: TopkTeacher,
    token_loss: TokenLoss,
    where: WhichKl | None = None,
) -> TokenDivergence:
    """Return the divergence over the M ids that the teacher kept.

    With `tail` = bucket, all other ids are one more entry; with renormalise, both sides
    are distributions over the M ids. A sum over the M ids of the full distributions
    would not do: it can be negative. Merging ids never raises a divergence, so the
    bucket's result is a lower bound of the divergence over the vocabulary.

    Args:
        logp_TV: The student's log-probabilities.
        teacher: The teacher's M ids and their log-probabilities.
        token_loss: The kind of divergence, and `tail`.
        where: Which KL counts where; None: the divergence of `token_loss` everywhere.

    Returns:
        The divergence of each position, in nats; its slope has shape (T, V).
    """
    ids_TM = teacher.ids_TM
    logq_TM = teacher.logq_TM
    logp_TM = logp_TV.gather(1, ids_TM)
    if token_loss.tail == "renormalise":
        few = divergence(
            logp_TM.log_softmax(1), logq_TM.log_softmax(1), token_loss, where
        )
    elif ids_TM.shape[1] == logp_TV.shape[1]:
        # nothing is left for a bucket
        few = divergence(logp_TM, logq_TM, token_loss, where)
    else:
        return _bucket_divergence(logp_TV, ids_TM, logp_TM, logq_TM, token_loss, where)
    return replace(
        few, slope=lambda: torch.zeros_like(logp_TV).scatter_(1, ids_TM, few.slope())
    )


def _bucket_divergence(
    logp_TV: Tensor,
    ids_TM: Tensor,
    logp_TM: Tensor,
    logq_TM: Tensor,
    token_loss: TokenLoss,
    where: WhichKl | None,
) -> TokenDivergence:
    # From the other ids themselves: 1 - sum, in float32, cannot tell 1e-9 from 0.
    rest_TV = logp_TV.scatter(1, ids_TM, -math.inf)
    log_rest_T = rest_TV.logsumexp(1, keepdim=True)
    few = divergence(
        torch.cat([logp_TM, log_rest_T], 1),
        torch.cat([logq_TM, _log_rest(logq_TM)], 1).log_softmax(1),
        token_loss,
        where,
    )

    def slope() -> Tensor:
        """Divide the bucket's slope among its ids by their shares of the bucket."""
        slope_TC = few.slope()
        share_TV = (rest_TV - log_rest_T).exp_()
        return share_TV.mul_(slope_TC[:, -1:]).scatter_(1, ids_TM, slope_TC[:, :-1])

    return replace(few, slope=slope)


def sampled_divergence(
    logp_TV: Float[Tensor, "T V"],
    teacher: SampledTeacher,
    response_ids_T: Int[Tensor, "T"],
    sampled_logp_T: Float[Tensor, "T"],
) -> TokenDivergence:
    """Return the estimate log p_S - log p_T of reverse KL from sampled tokens.

    The slope of the log ratio itself has mean 0 over samples. The slope returned is
    that of (log ratio, held constant) x p_S / p_S at sampling time: the policy gradient
    with the log ratio as negative reward. Its mean over samples is the slope of reverse
    KL. The importance weight is 1 up to the rounding of two engines and to staleness.

    Args:
        logp_TV: The student's log-probabilities.
        teacher: The teacher's log-probabilities of the sampled tokens.
        response_ids_T: The sampled tokens.
        sampled_logp_T: The student's log-probabilities when it sampled them.

    Returns:
        The log ratio of each position, in nats; its slope has shape (T, V).
    """
    chosen_T = response_ids_T[:, None]
    logp_T = logp_TV.gather(1, chosen_T)[:, 0]
    log_ratio_T = logp_T - teacher.logq_T

    def slope() -> Tensor:
        pull_T = (log_ratio_T * (logp_T - sampled_logp_T).exp())[:, None]
        return logp_TV.exp().mul_(-pull_T).scatter_add_(1, chosen_T, pull_T)

    return TokenDivergence(log_ratio_T, slope)


def _log_rest(logq_TM: Tensor) -> Tensor:
    """Return the log of the mass that the M ids leave, log(1 - sum), shape (T, 1).

    At least the resolution of the dtype: below it the rounded logs do not even give the
    sign of the mass, and a bucket without mass would cost infinitely much.
    """
    rest_T = 1.0 - logq_TM.double().exp().sum(1, keepdim=True)
    return rest_T.clamp(min=torch.finfo(logq_TM.dtype).eps).log().to(logq_TM.dtype)


__all__ = [
    "SampledTeacher",
    "Teacher",
    "TopkTeacher",
    "WholeTeacher",
    "likeliest_ids",
    "sampled_divergence",
    "teacher_at",
    "topk_divergence",
]
