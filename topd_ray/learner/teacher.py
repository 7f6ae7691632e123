"""What is known of the teacher at some positions -> their divergence, by all of the
logits.

Axes: T positions, V vocabulary, E width of the teacher, M ids the teacher kept, C
entries of a distribution over these (M, or M and a bucket).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from topd_ray.learner.divergence import Divergence, TokenLoss, divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTeacher:
    """Its hidden states and output head: every id's probability."""

    hidden_TE: Float[Tensor, "T E"]
    head_VE: Float[Tensor, "V E"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopkTeacher:
    """Log-probabilities of M ids, each id once a row, under the full softmax."""

    ids_TM: Int[Tensor, "T M"]
    logq_TM: Float[Tensor, "T M"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTeacher:
    """Its log-probability of the sampled token."""

    logq_T: Float[Tensor, "T"]


Teacher = WholeTeacher | TopkTeacher | SampledTeacher


def part_of(teacher: Teacher, where: slice) -> Teacher:
    """What is known of these positions."""
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


def topk_divergence(
    logp_TV: Float[Tensor, "T V"], teacher: TopkTeacher, parts: TokenLoss
) -> Divergence:
    """Over the M ids and one bucket for all others, or over the M ids as if there were
    no others.

    Merging ids never raises a divergence, and a KL of distributions is never negative;
    a sum over the M ids alone can be.
    """
    ids_TM, logq_TM = teacher.ids_TM, teacher.logq_TM
    logp_TM = logp_TV.gather(1, ids_TM)
    if parts.tail == "renormalise":
        few = divergence(logp_TM.log_softmax(1), logq_TM.log_softmax(1), parts)
    elif ids_TM.shape[1] == logp_TV.shape[1]:
        few = divergence(logp_TM, logq_TM, parts)  # nothing is left for a bucket
    else:
        return _bucket_divergence(logp_TV, ids_TM, logp_TM, logq_TM, parts)
    return Divergence(
        few.nats_T, lambda: torch.zeros_like(logp_TV).scatter_(1, ids_TM, few.slope())
    )


def _bucket_divergence(
    logp_TV: Tensor, ids_TM: Tensor, logp_TM: Tensor, logq_TM: Tensor, parts: TokenLoss
) -> Divergence:
    # the others themselves: 1 - sum, in float32, cannot tell 1e-9 from nothing
    rest_TV = logp_TV.scatter(1, ids_TM, -math.inf)
    log_rest_T = rest_TV.logsumexp(1, keepdim=True)
    few = divergence(
        torch.cat([logp_TM, log_rest_T], 1),
        torch.cat([logq_TM, _log_rest(logq_TM)], 1).log_softmax(1),
        parts,
    )

    def slope() -> Tensor:
        """The bucket's slope falls to its ids by their share of it."""
        slope_TC = few.slope()
        share_TV = (rest_TV - log_rest_T).exp_()
        return share_TV.mul_(slope_TC[:, -1:]).scatter_(1, ids_TM, slope_TC[:, :-1])

    return Divergence(few.nats_T, slope)


def sampled_divergence(
    logp_TV: Float[Tensor, "T V"],
    teacher: SampledTeacher,
    response_ids_T: Int[Tensor, "T"],
    sampled_logp_T: Float[Tensor, "T"],
) -> Divergence:
    """log p_S - log p_T of tokens sampled from p_S, with the slope of its mean over
    samples.

    The log ratio's own slope has mean 0: it is a policy's reward (negated) and not what
    to descend. So the slope is that of log ratio (held) x p_S / p_S at sampling time,
    which is 1 up to the rounding of two engines and to staleness. Its mean over samples
    is the slope of reverse KL.
    """
    chosen_T = response_ids_T[:, None]
    logp_T = logp_TV.gather(1, chosen_T)[:, 0]
    log_ratio_T = logp_T - teacher.logq_T

    def slope() -> Tensor:
        pull_T = (log_ratio_T * (logp_T - sampled_logp_T).exp())[:, None]
        return logp_TV.exp().mul_(-pull_T).scatter_add_(1, chosen_T, pull_T)

    return Divergence(log_ratio_T, slope)


def _log_rest(logq_TM: Tensor) -> Tensor:
    """log(1 - sum) of what the M ids leave, (T, 1); at least the resolution of their
    logs.

    Of less they do not know even the sign, and a bucket without mass would cost
    infinitely much.
    """
    rest_T = 1.0 - logq_TM.double().exp().sum(1, keepdim=True)
    return rest_T.clamp(min=torch.finfo(logq_TM.dtype).eps).log().to(logq_TM.dtype)


__all__ = [
    "SampledTeacher",
    "Teacher",
    "TopkTeacher",
    "WholeTeacher",
    "part_of",
    "sampled_divergence",
    "topk_divergence",
]
