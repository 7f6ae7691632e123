"""The losses as autograd has them, on tensors of the whole vocabulary: the package's,
before it took closed forms; slow, large and obvious.

Axes: T trained positions, TU those and window-only ones, V vocabulary, M ids the
teacher kept, C entries of a distribution, Q window positions, K ids of a target.
"""

import math

import torch
from torch import Tensor

from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.loss import Positions, aggregate_targets
from topd_ray.learner.teacher import SampledTeacher, TopkTeacher, WholeTeacher


def losses(
    hidden_TUD: Tensor, head_VD: Tensor, positions: Positions, token_loss: TokenLoss
) -> tuple[Tensor, Tensor]:
    """Weighted token losses and KL(target || student); sums that carry gradient."""
    logp_TUV = (hidden_TUD @ head_VD.T).float().log_softmax(1)
    if hidden_TUD.dtype == torch.float64:
        logp_TUV = (hidden_TUD @ head_VD.T).log_softmax(1)
    logp_TV = logp_TUV[: len(positions.weight_T)]
    logp_T = logp_TV.gather(1, positions.response_ids_T[:, None])[:, 0]
    nats_T = _known(logp_TV, logp_T, positions, token_loss)
    loss_T = token_loss.kd_ratio * nats_T - (1.0 - token_loss.kd_ratio) * logp_T
    ids_QK, weights_QK = aggregate_targets(
        positions.target_ids_QK, positions.target_weights_QK.double()
    )
    logp_QK = logp_TUV[positions.window_Q[:, None], ids_QK.clamp(min=0)]
    traj = -torch.special.entr(weights_QK).sum() - (weights_QK * logp_QK).sum()
    return (positions.weight_T * loss_T).sum(dtype=torch.float64), traj


def _known(
    logp_TV: Tensor, logp_T: Tensor, positions: Positions, token_loss: TokenLoss
) -> Tensor:
    match positions.teacher:
        case WholeTeacher(hidden_TE=hidden_TE, head_VE=head_VE):
            return divergence(
                logp_TV,
                (hidden_TE @ head_VE.T).to(logp_TV.dtype).log_softmax(1),
                token_loss,
            )
        case TopkTeacher(ids_TM=ids_TM, logq_TM=logq_TM):
            coarse = with_bucket if token_loss.tail == "bucket" else renormalised
            return divergence(*coarse(logp_TV, ids_TM, logq_TM), token_loss)
        case SampledTeacher(logq_T=logq_T):
            return sampled_reverse_kl(logp_T, logq_T, positions.sampled_logp_T)


def divergence(logp_TC: Tensor, logq_TC: Tensor, token_loss: TokenLoss) -> Tensor:
    """The divergence that `token_loss` composes, before cross entropy and weights."""
    if token_loss.divergence == "jsd":
        nats_T = jsd(logp_TC, logq_TC, beta=token_loss.jsd_beta)
    else:
        nats_T = (reverse_kl if token_loss.divergence == "reverse_kl" else forward_kl)(
            logp_TC, logq_TC
        )
    if token_loss.forward_above_entropy is not None:
        unsure_T = entropy(logq_TC) > token_loss.forward_above_entropy
        nats_T = nats_T + forward_kl(logp_TC, logq_TC).where(unsure_T, 0.0)
    return (
        nats_T
        if token_loss.token_clip is None
        else nats_T.clamp(max=token_loss.token_clip)
    )


def reverse_kl(logp_TC: Tensor, logq_TC: Tensor) -> Tensor:
    """KL(student || teacher)."""
    return _mean(logp_TC, logp_TC - logq_TC)


def forward_kl(logp_TC: Tensor, logq_TC: Tensor) -> Tensor:
    """KL(teacher || student)."""
    return _mean(logq_TC, logq_TC - logp_TC)


def jsd(logp_TC: Tensor, logq_TC: Tensor, *, beta: float) -> Tensor:
    """beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 -
    beta) student.

    By GKD's convention beta 0 is forward and beta 1 reverse KL: divided by beta (1 -
    beta), that is what the formula, which is 0 at both ends, tends to.
    """
    if beta == 0.0:
        return forward_kl(logp_TC, logq_TC)
    if beta == 1.0:
        return reverse_kl(logp_TC, logq_TC)
    log_beta, log_rest = logp_TC.new_tensor([math.log(beta), math.log1p(-beta)])
    neither_TC = logp_TC.isneginf() & logq_TC.isneginf()
    ratio_TC = (logp_TC - logq_TC).masked_fill(
        neither_TC, 0.0
    )  # -inf - -inf is not a number
    teacher_T = -_mean(logq_TC, torch.logaddexp(log_beta, log_rest + ratio_TC))
    student_T = -_mean(logp_TC, torch.logaddexp(log_beta - ratio_TC, log_rest))
    return beta * teacher_T + (1.0 - beta) * student_T


def entropy(logq_TC: Tensor) -> Tensor:
    """Of each distribution."""
    return -_mean(logq_TC, logq_TC)


def with_bucket(
    logp_TV: Tensor, ids_TM: Tensor, logq_TM: Tensor
) -> tuple[Tensor, Tensor]:
    """Both over the M ids and one bucket for all others, which holds what mass they
    have.

    Merging ids never raises a divergence, and a KL of distributions is never negative;
    a sum over the M ids alone can be.
    """
    logp_TM = logp_TV.gather(1, ids_TM)
    if ids_TM.shape[1] == logp_TV.shape[1]:
        return logp_TM, logq_TM  # nothing is left for a bucket
    # the others themselves: 1 - sum, in float32, cannot tell 1e-9 from nothing
    rest_TV = logp_TV.scatter(1, ids_TM, -math.inf)
    logp_TC = torch.cat([logp_TM, rest_TV.logsumexp(1, keepdim=True)], 1)
    return logp_TC, torch.cat([logq_TM, _log_rest(logq_TM)], 1).log_softmax(1)


def renormalised(
    logp_TV: Tensor, ids_TM: Tensor, logq_TM: Tensor
) -> tuple[Tensor, Tensor]:
    """Both over the M ids alone, as if there were no others."""
    return logp_TV.gather(1, ids_TM).log_softmax(1), logq_TM.log_softmax(1)


def sampled_reverse_kl(
    logp_T: Tensor, logq_T: Tensor, sampled_logp_T: Tensor
) -> Tensor:
    """log p_S - log p_T of tokens sampled from p_S, with the gradient of its mean over
    samples.

    The log ratio's own gradient has mean 0: it is a policy's reward (negated) and not
    what to descend. So the gradient is that of log ratio (held) x p_S / p_S at sampling
    time, which is 1 up to the rounding of two engines. Its mean over samples is the
    gradient of reverse KL.
    """
    log_ratio_T = (logp_T - logq_T).detach()
    surrogate_T = log_ratio_T * (logp_T - sampled_logp_T).exp()
    return log_ratio_T + (surrogate_T - surrogate_T.detach())


def _mean(log_weight_TC: Tensor, value_TC: Tensor) -> Tensor:
    """sum of weight x value, where an entry without weight counts nothing, whatever its
    value.
    """
    inside_TC = value_TC.masked_fill(log_weight_TC.isneginf(), 0.0)
    return (log_weight_TC.exp() * inside_TC).sum(1)


def _log_rest(logq_TM: Tensor) -> Tensor:
    """log(1 - sum) of what the M ids leave, (T, 1); at least the resolution of their
    logs.

    Of less they do not know even the sign, and a bucket without mass would cost
    infinitely much.
    """
    rest_T = 1.0 - logq_TM.double().exp().sum(1, keepdim=True)
    return rest_T.clamp(min=torch.finfo(logq_TM.dtype).eps).log().to(logq_TM.dtype)
