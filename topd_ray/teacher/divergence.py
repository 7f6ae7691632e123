"""The teacher's entropy, and KL(student || teacher) when only the student's likeliest
ids are known.

Axes: C positions of one chunk, M student ids kept a position (PAD = -1 with
log-probability -inf where there are fewer), V vocabulary. logp is the student, logq the
teacher; nats.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST_TAIL = 1e-6
"""Smallest student tail whose logarithm is taken.

The tail is one minus a sum of float32 probabilities; below this it is rounding.
"""


def entropy(logq_CV: Float[Tensor, "C V"]) -> Float[Tensor, "C"]:
    """Return the entropy of each distribution, -sum q log q, in nats.

    Args:
        logq_CV: Log-probabilities; -inf is probability 0.

    Returns:
        One number a position.
    """
    finite_CV = logq_CV.masked_fill(logq_CV.isneginf(), 0.0)
    return -finite_CV.mul_(logq_CV.exp()).sum(1)


def reverse_kl_on_top_ids(
    logits_CV: Float[Tensor, "C V"],
    lse_C1: Float[Tensor, "C 1"],
    top_ids_CM: Int[Tensor, "C M"],
    top_logp_CM: Float[Tensor, "C M"],
) -> Float[Tensor, "C"]:
    """Return the reverse KL over the student's top ids and one bucket for the rest.

    KL = sum over the M ids of p log(p / q) + p_tail log(p_tail / q_tail). This is the
    token loss that picks candidates by default (decision D1; "token-level OPD loss" in
    section 3 of the paper). It never exceeds the KL over the vocabulary, and
    equals it when the M ids are all ids. It is not clamped at 0.

    Args:
        logits_CV: The teacher's logits in float32. **Overwritten:** the logits of the
            student's ids end as -inf.
        lse_C1: The logsumexp of these logits.
        top_ids_CM: The student's likeliest ids, best first; PAD where there are fewer.
        top_logp_CM: Their log-probabilities.

    Returns:
        One number a position, in float64.
    """
    # PAD stands for the best id here, with a probability of 0 that keeps it out of the
    # sum.
    ids_CM = torch.where(top_ids_CM < 0, top_ids_CM[:, :1], top_ids_CM).long()
    logq_CM = (logits_CV.gather(1, ids_CM) - lse_C1).double()
    logp_CM = top_logp_CM.double().masked_fill(top_ids_CM < 0, -torch.inf)
    p_CM = logp_CM.exp()
    top_C = torch.where(p_CM > 0, p_CM * (logp_CM - logq_CM), 0.0).sum(1)
    # The teacher's tail is summed, not taken as one minus the rest, so that it is right
    # however small it is.
    log_tail_q_C = (
        logits_CV.scatter_(1, ids_CM, -torch.inf).logsumexp(1).double() - lse_C1[:, 0]
    )
    return top_C + _tail_term(1.0 - p_CM.sum(1), log_tail_q_C)


def _tail_term(tail_p_C: Tensor, log_tail_q_C: Tensor) -> Tensor:
    """Return p log(p / q) of the bucket.

    It is 0 when no id, or none of the student's mass, is left in the bucket.
    """
    log_tail_p_C = tail_p_C.clamp(min=SMALLEST_TAIL).log()
    term_C = tail_p_C.clamp(min=0.0) * (log_tail_p_C - log_tail_q_C)
    return term_C.masked_fill(log_tail_q_C.isneginf(), 0.0)


__all__ = ["entropy", "reverse_kl_on_top_ids"]
