"""Two next-token distributions -> the divergence of each position, and its slope.

Axes: T positions, V vocabulary, C entries of a distribution (V, or fewer where ids are
merged). `logp` is the student, `logq` the teacher; both are natural logs, -inf is
probability 0. Divergences are in nats. A slope is the derivative by the student's
logits over the same entries, in closed form: autograd would keep a copy of the
vocabulary for each operation. The teacher has no slope.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """How the loss of one token is composed.

    loss = kd_ratio x divergence + (1 - kd_ratio) x cross entropy of the sampled token.
    """

    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """The divergence of student and teacher."""
    jsd_beta: float = 0.5
    """Weight of the teacher in the mixture of `jsd`, 0..1."""
    token_clip: float | None = None
    """Most nats of a token's divergence; a token above it has no gradient."""
    forward_above_entropy: float | None = None
    """Forward KL is added where the teacher's entropy exceeds this many nats.

    `token_clip` bounds the sum.
    """
    kd_ratio: float = 1.0
    """Share of the divergence in the loss; the rest is the cross entropy."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """How the ids count that the teacher does not keep: see `topk_divergence`."""


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """The divergence of student and teacher at each position, with its slope."""

    nats_T: Float[Tensor, "T"]
    """The divergences, in nats."""
    slope: Callable[[], Float[Tensor, "T C"]]
    """Computes d nats / d logits, in a new tensor that the caller may overwrite.

    A function, because evaluation needs the divergence alone.
    """
    reverse_T: Float[Tensor, "T"] | None = None
    """What reverse KL adds to `nats_T` where a `WhichKl` counts it, before a clip."""
    forward_T: Float[Tensor, "T"] | None = None
    """Likewise forward KL."""


@dataclass(frozen=True, slots=True)
class WhichKl:
    """Which of the two KL divergences counts at each position; both may."""

    reverse_T: Bool[Tensor, "T"]
    """KL(student || teacher)."""
    forward_T: Bool[Tensor, "T"]
    """KL(teacher || student)."""


def divergence(
    logp_TC: Float[Tensor, "T C"],
    logq_TC: Float[Tensor, "T C"],
    token_loss: TokenLoss,
    where: WhichKl | None = None,
) -> TokenDivergence:
    """Return the divergence that `token_loss` composes, without cross entropy.

    Args:
        logp_TC: The student's log-probabilities.
        logq_TC: The teacher's log-probabilities.
        token_loss: The kind of divergence, the added forward KL and the clip.
        where: Which KL counts where; None: the kind of `token_loss` everywhere.

    Returns:
        The divergence of each position, in nats, with its slope; not weighed.
    """
    if where is not None:
        plain = _by_position(logp_TC, logq_TC, where)
    elif token_loss.divergence == "jsd":
        plain = jsd(logp_TC, logq_TC, beta=token_loss.jsd_beta)
    else:
        plain = (reverse_kl if token_loss.divergence == "reverse_kl" else forward_kl)(
            logp_TC, logq_TC
        )
    if token_loss.forward_above_entropy is not None:
        unsure_T = entropy(logq_TC) > token_loss.forward_above_entropy
        plain = _with_forward_where(unsure_T, plain, forward_kl(logp_TC, logq_TC))
    return (
        plain
        if token_loss.token_clip is None
        else _clipped(plain, token_loss.token_clip)
    )


def reverse_kl(
    logp_TC: Float[Tensor, "T C"], logq_TC: Float[Tensor, "T C"]
) -> TokenDivergence:
    """Return KL(student || teacher) = sum_c p_c (log p_c - log q_c).

    An entry of the student without probability adds 0. The slope is
    p_c (log p_c - log q_c - KL).

    Args:
        logp_TC: The student's log-probabilities.
        logq_TC: The teacher's log-probabilities.

    Returns:
        The divergence of each position, in nats, with its slope.
    """
    p_TC = logp_TC.exp()
    # where p is 0 the ratio is -inf, and 0 x -inf is not a number
    ratio_TC = (logp_TC - logq_TC).masked_fill_(logp_TC.isneginf(), 0.0)
    return _of_ratio(p_TC, ratio_TC, (p_TC * ratio_TC).sum(1))


def forward_kl(
    logp_TC: Float[Tensor, "T C"], logq_TC: Float[Tensor, "T C"]
) -> TokenDivergence:
    """Return KL(teacher || student) = sum_c q_c (log q_c - log p_c).

    The slope is p_c - q_c.

    Args:
        logp_TC: The student's log-probabilities.
        logq_TC: The teacher's log-probabilities.

    Returns:
        The divergence of each position, in nats, with its slope.
    """
    return TokenDivergence(
        _mean(logq_TC, logq_TC - logp_TC), lambda: logp_TC.exp().sub_(logq_TC.exp())
    )


def jsd(
    logp_TC: Float[Tensor, "T C"], logq_TC: Float[Tensor, "T C"], *, beta: float
) -> TokenDivergence:
    """Return the generalised Jensen-Shannon divergence of GKD (Agarwal et al., 2024).

    With the mixture M = beta teacher + (1 - beta) student it is
    beta KL(teacher || M) + (1 - beta) KL(student || M). It is 0 at beta 0 and 1, but
    divided by beta (1 - beta) it tends to forward KL at 0 and to reverse KL at 1, so
    these two stand for the ends, as in GKD.

    Args:
        logp_TC: The student's log-probabilities.
        logq_TC: The teacher's log-probabilities.
        beta: Weight of the teacher in the mixture, 0..1.

    Returns:
        The divergence of each position, in nats, with its slope.
    """
    if beta == 0.0:
        return forward_kl(logp_TC, logq_TC)
    if beta == 1.0:
        return reverse_kl(logp_TC, logq_TC)
    log_beta, log_rest = logp_TC.new_tensor([math.log(beta), math.log1p(-beta)])
    neither_TC = logp_TC.isneginf() & logq_TC.isneginf()
    # -inf - -inf is not a number
    ratio_TC = (logp_TC - logq_TC).masked_fill_(neither_TC, 0.0)
    teacher_T = -_mean(logq_TC, torch.logaddexp(log_beta, log_rest + ratio_TC))
    # What M adds to the slope cancels: (1 - beta) log(student / M) is all that is left
    # of it.
    to_mixture_TC = torch.logaddexp(log_beta - ratio_TC, log_rest).mul_(beta - 1.0)
    to_mixture_TC.masked_fill_(logp_TC.isneginf(), 0.0)
    p_TC = logp_TC.exp()
    student_T = (p_TC * to_mixture_TC).sum(1)
    held = _of_ratio(p_TC, to_mixture_TC, student_T)
    return TokenDivergence(beta * teacher_T + student_T, held.slope)


def entropy(logq_TC: Float[Tensor, "T C"]) -> Float[Tensor, "T"]:
    """Return the entropy of each distribution, -sum_c q_c log q_c.

    Args:
        logq_TC: Log-probabilities; -inf is probability 0.

    Returns:
        Entropies in nats.
    """
    return -_mean(logq_TC, logq_TC)


def _of_ratio(p_TC: Tensor, ratio_TC: Tensor, mean_T: Tensor) -> TokenDivergence:
    """Return the mean of a ratio under the student, with slope p x (ratio - mean).

    That is the whole slope, because the slope of the ratio itself has mean 0.
    """
    return TokenDivergence(mean_T, lambda: (ratio_TC - mean_T[:, None]).mul_(p_TC))


def _with_forward_where(
    unsure_T: Tensor, plain: TokenDivergence, forward: TokenDivergence
) -> TokenDivergence:
    return TokenDivergence(
        plain.nats_T + forward.nats_T.where(unsure_T, 0.0),
        lambda: plain.slope().add_(forward.slope().mul_(unsure_T[:, None])),
    )


def _by_position(logp_TC: Tensor, logq_TC: Tensor, where: WhichKl) -> TokenDivergence:
    """Return the sum of the KL divergences that count at each position."""
    # A block of one kind alone is the usual case, and needs that one alone.
    reverse, forward = (
        _where(flags_T, kl(logp_TC, logq_TC)) if flags_T.any() else None
        for flags_T, kl in (
            (where.reverse_T, reverse_kl),
            (where.forward_T, forward_kl),
        )
    )
    first, *others = [part for part in (reverse, forward) if part is not None]

    def slope() -> Tensor:
        slope_TC = first.slope()
        for other in others:
            slope_TC.add_(other.slope())
        return slope_TC

    nats_T = first.nats_T
    for other in others:
        nats_T = nats_T + other.nats_T
    return TokenDivergence(
        nats_T,
        slope,
        None if reverse is None else reverse.nats_T,
        None if forward is None else forward.nats_T,
    )


def _where(flags_T: Tensor, plain: TokenDivergence) -> TokenDivergence:
    if flags_T.all():
        return plain
    return TokenDivergence(
        plain.nats_T.where(flags_T, 0.0),
        lambda: plain.slope().masked_fill_(~flags_T[:, None], 0.0),
    )


def _clipped(plain: TokenDivergence, most: float) -> TokenDivergence:
    return replace(
        plain,
        nats_T=plain.nats_T.clamp(max=most),
        slope=lambda: plain.slope().masked_fill_((plain.nats_T > most)[:, None], 0.0),
    )


def _mean(log_weight_TC: Tensor, value_TC: Tensor) -> Tensor:
    """Return the sum of weight x value; an entry of weight 0 counts nothing, at any
    value.
    """
    inside_TC = value_TC.masked_fill(log_weight_TC.isneginf(), 0.0)
    return inside_TC.mul_(log_weight_TC.exp()).sum(1)


__all__ = [
    "TokenDivergence",
    "TokenLoss",
    "WhichKl",
    "divergence",
    "entropy",
    "forward_kl",
    "jsd",
    "reverse_kl",
]
