"""Two next-token distributions -> the divergence of each position, in nats, and its
slope.

Axes: T positions, V vocabulary, C entries of a distribution (V, or fewer where ids are
merged). `logp` is the student, `logq` the teacher; both are natural logs, -inf is
probability 0. A slope is the derivative by the student's logits over the same entries,
in closed form: nothing here is for autograd, and the teacher has no slope.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """What a token's loss is made of: kd_ratio x divergence + (1 - kd_ratio) x cross
    entropy.
    """

    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    jsd_beta: float = 0.5
    token_clip: float | None = None
    """Nats; the divergence of a token above it counts so much, and has no gradient."""
    forward_above_entropy: float | None = None
    """Nats; forward KL is added where the teacher's entropy exceeds it. Clipped as
    one.
    """
    kd_ratio: float = 1.0
    tail: Literal["bucket", "renormalise"] = "bucket"
    """What becomes of the ids that a teacher of a few ids does not name."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of each position."""

    nats_T: Float[Tensor, "T"]
    slope: Callable[[], Float[Tensor, "T C"]]
    """d nats / d logits, a tensor of the caller's own; worked out where it is asked
    for.
    """


def divergence(
    logp_TC: Float[Tensor, "T C"], logq_TC: Float[Tensor, "T C"], parts: TokenLoss
) -> Divergence:
    """The divergence that `parts` composes, before cross entropy and weights."""
    if parts.divergence == "jsd":
        plain = jsd(logp_TC, logq_TC, beta=parts.jsd_beta)
    else:
        plain = (reverse_kl if parts.divergence == "reverse_kl" else forward_kl)(
            logp_TC, logq_TC
        )
    if parts.forward_above_entropy is not None:
        unsure_T = entropy(logq_TC) > parts.forward_above_entropy
        plain = _with_forward_where(unsure_T, plain, forward_kl(logp_TC, logq_TC))
    return plain if parts.token_clip is None else _clipped(plain, parts.token_clip)


def reverse_kl(
    logp_TC: Float[Tensor, "T C"], logq_TC: Float[Tensor, "T C"]
) -> Divergence:
    """KL(student || teacher)."""
    p_TC = logp_TC.exp()
    ratio_TC = (logp_TC - logq_TC).masked_fill_(logp_TC.isneginf(), 0.0)
    return _of_ratio(p_TC, ratio_TC, (p_TC * ratio_TC).sum(1))


def forward_kl(
    logp_TC: Float[Tensor, "T C"], logq_TC: Float[Tensor, "T C"]
) -> Divergence:
    """KL(teacher || student)."""
    return Divergence(
        _mean(logq_TC, logq_TC - logp_TC), lambda: logp_TC.exp().sub_(logq_TC.exp())
    )


def jsd(
    logp_TC: Float[Tensor, "T C"], logq_TC: Float[Tensor, "T C"], *, beta: float
) -> Divergence:
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
    ratio_TC = (logp_TC - logq_TC).masked_fill_(
        neither_TC, 0.0
    )  # -inf - -inf is not a number
    teacher_T = -_mean(logq_TC, torch.logaddexp(log_beta, log_rest + ratio_TC))
    # What M adds to the slope cancels: (1 - beta) log(student / M) is all that is left
    # of it.
    to_mixture_TC = torch.logaddexp(log_beta - ratio_TC, log_rest).mul_(beta - 1.0)
    to_mixture_TC.masked_fill_(logp_TC.isneginf(), 0.0)
    p_TC = logp_TC.exp()
    student_T = (p_TC * to_mixture_TC).sum(1)
    held = _of_ratio(p_TC, to_mixture_TC, student_T)
    return Divergence(beta * teacher_T + student_T, held.slope)


def entropy(logq_TC: Float[Tensor, "T C"]) -> Float[Tensor, "T"]:
    """Of each distribution."""
    return -_mean(logq_TC, logq_TC)


def _of_ratio(p_TC: Tensor, ratio_TC: Tensor, mean_T: Tensor) -> Divergence:
    """The student's mean of a ratio whose own slope has no mean: p x (ratio - mean)."""
    return Divergence(mean_T, lambda: (ratio_TC - mean_T[:, None]).mul_(p_TC))


def _with_forward_where(
    unsure_T: Tensor, plain: Divergence, forward: Divergence
) -> Divergence:
    return Divergence(
        plain.nats_T + forward.nats_T.where(unsure_T, 0.0),
        lambda: plain.slope().add_(forward.slope().mul_(unsure_T[:, None])),
    )


def _clipped(plain: Divergence, most: float) -> Divergence:
    return Divergence(
        plain.nats_T.clamp(max=most),
        lambda: plain.slope().masked_fill_((plain.nats_T > most)[:, None], 0.0),
    )


def _mean(log_weight_TC: Tensor, value_TC: Tensor) -> Tensor:
    """sum of weight x value, where an entry without weight counts nothing, whatever its
    value.
    """
    inside_TC = value_TC.masked_fill(log_weight_TC.isneginf(), 0.0)
    return inside_TC.mul_(log_weight_TC.exp()).sum(1)


__all__ = [
    "Divergence",
    "TokenLoss",
    "divergence",
    "entropy",
    "forward_kl",
    "jsd",
    "reverse_kl",
]
