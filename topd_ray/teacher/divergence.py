"""KL(student || teacher) where of the student only the likeliest ids are known.

Axes: C positions of one chunk, M student ids kept a position (PAD = -1 with
log-probability -inf where there are fewer), V vocabulary. logp is the student, logq the
teacher; nats.
"""

import torch
from torch import Tensor

SMALLEST_TAIL = 1e-6
"""A student's tail is one minus a sum of float32 probabilities: below this its log is
rounding.
"""


def reverse_kl(
    logits_CV: Tensor, lse_C1: Tensor, top_ids_CM: Tensor, top_logp_CM: Tensor
) -> Tensor:
    """KL of every position over the student's ids and one bucket for all others,
    float64 (C,).

    It is the whole KL where the ids are all ids, and never clamped. The teacher comes
    as float32 logits with their logsumexp; the logits are spent: their named ids end as
    -inf.
    """
    # PAD reads (and masks) the best id once more; its probability of 0 keeps it out of
    # the sum.
    ids_CM = torch.where(top_ids_CM < 0, top_ids_CM[:, :1], top_ids_CM).long()
    logq_CM = (logits_CV.gather(1, ids_CM) - lse_C1).double()
    logp_CM = top_logp_CM.double().masked_fill(top_ids_CM < 0, -torch.inf)
    p_CM = logp_CM.exp()
    top_C = torch.where(p_CM > 0, p_CM * (logp_CM - logq_CM), 0.0).sum(1)
    # The teacher's tail is summed, not taken as one minus the rest: right however small
    # it is.
    log_tail_q_C = (
        logits_CV.scatter_(1, ids_CM, -torch.inf).logsumexp(1).double() - lse_C1[:, 0]
    )
    return top_C + _tail_term(1.0 - p_CM.sum(1), log_tail_q_C)


def _tail_term(tail_p_C: Tensor, log_tail_q_C: Tensor) -> Tensor:
    """p log(p / q) of the bucket; 0 where no id, or none of the student's mass, is left
    in it.
    """
    log_tail_p_C = tail_p_C.clamp(min=SMALLEST_TAIL).log()
    term_C = tail_p_C.clamp(min=0.0) * (log_tail_p_C - log_tail_q_C)
    return term_C.masked_fill(log_tail_q_C.isneginf(), 0.0)


__all__ = ["reverse_kl"]
