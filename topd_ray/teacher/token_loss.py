"""D1: how much the student disagrees with the teacher at each response position, in nats.

Axes: N response positions, C positions of one chunk, M student ids kept a position (PAD = -1 with
log-probability -inf where there are fewer), V vocabulary, D width of the teacher. logp is the
student, logq the teacher.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TokenLoss = Literal["reverse_kl", "log_ratio", "teacher_nll"]

SMALLEST_TAIL = 1e-6
"""A student's tail is one minus a sum of float32 probabilities: below this its log is rounding."""


@torch.inference_mode()
def token_loss(
    kind: TokenLoss,
    *,
    logp_N: NDArray[np.float32],
    response_ids_N: NDArray[np.int32],
    top_ids_NM: NDArray[np.int32],
    top_logp_NM: NDArray[np.float32],
    teacher_hidden_ND: NDArray[np.float32] | NDArray[np.uint16],
    teacher_head_VD: Tensor,
    chunk: int,
) -> NDArray[np.float32]:
    """The loss of every position, (N,); `chunk` positions' logits exist at one time.

    reverse_kl: KL(student || teacher) over the student's top ids and one bucket for all others; it
    is the whole KL where the top ids are all ids, and never clamped. log_ratio: log p_S - log p_T
    of the sampled token. teacher_nll: -log p_T of it. The hidden states are cast to the head's
    dtype and multiplied on its device; everything after the product is float32 or finer. Raises
    ValueError where the arrays do not line up.
    """
    _check_lengths(
        logp_N, response_ids_N, top_ids_NM, top_logp_NM, teacher_hidden_ND, teacher_head_VD
    )
    device = teacher_head_VD.device
    losses = []
    for start in range(0, len(response_ids_N), chunk):
        part = slice(start, start + chunk)
        hidden_CD = _hidden(teacher_hidden_ND[part], like=teacher_head_VD)
        logits_CV = (hidden_CD @ teacher_head_VD.T).float()
        if kind == "reverse_kl":
            top_ids_CM = _tensor(top_ids_NM[part], device).long()
            losses.append(_reverse_kl(logits_CV, top_ids_CM, _tensor(top_logp_NM[part], device)))
            continue
        ids_C1 = _tensor(response_ids_N[part], device).long()[:, None]
        logq_C = (logits_CV.gather(1, ids_C1) - logits_CV.logsumexp(1, keepdim=True))[:, 0]
        losses.append(_tensor(logp_N[part], device) - logq_C if kind == "log_ratio" else -logq_C)
    if not losses:
        return np.zeros(0, dtype=np.float32)
    return torch.cat(losses).to("cpu", torch.float32).numpy()


def _reverse_kl(logits_CV: Tensor, top_ids_CM: Tensor, top_logp_CM: Tensor) -> Tensor:
    lse_C1 = logits_CV.logsumexp(1, keepdim=True)
    # PAD reads (and masks) the best id once more; its probability of 0 keeps it out of the sum.
    ids_CM = torch.where(top_ids_CM < 0, top_ids_CM[:, :1], top_ids_CM)
    logq_CM = (logits_CV.gather(1, ids_CM) - lse_C1).double()
    logp_CM = top_logp_CM.double().masked_fill(top_ids_CM < 0, -torch.inf)
    p_CM = logp_CM.exp()
    top_C = torch.where(p_CM > 0, p_CM * (logp_CM - logq_CM), 0.0).sum(1)
    # The teacher's tail is summed, not taken as one minus the rest: right however small it is.
    log_tail_q_C = logits_CV.scatter_(1, ids_CM, -torch.inf).logsumexp(1).double() - lse_C1[:, 0]
    return top_C + _tail_term(1.0 - p_CM.sum(1), log_tail_q_C)


def _tail_term(tail_p_C: Tensor, log_tail_q_C: Tensor) -> Tensor:
    """p log(p / q) of the bucket; 0 where no id, or none of the student's mass, is left in it."""
    log_tail_p_C = tail_p_C.clamp(min=SMALLEST_TAIL).log()
    term_C = tail_p_C.clamp(min=0.0) * (log_tail_p_C - log_tail_q_C)
    return term_C.masked_fill(log_tail_q_C.isneginf(), 0.0)


def _hidden(hidden_CD: NDArray[np.float32] | NDArray[np.uint16], *, like: Tensor) -> Tensor:
    hidden = _tensor(hidden_CD, like.device)
    if hidden_CD.dtype == np.uint16:
        hidden = hidden.view(torch.bfloat16)
    return hidden.to(like.dtype)


def _tensor(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy: arrays out of the object store are read-only, which torch cannot express."""
    return torch.from_numpy(array.copy()).to(device)


def _check_lengths(
    logp_N: NDArray[np.float32],
    response_ids_N: NDArray[np.int32],
    top_ids_NM: NDArray[np.int32],
    top_logp_NM: NDArray[np.float32],
    teacher_hidden_ND: NDArray[np.float32] | NDArray[np.uint16],
    teacher_head_VD: Tensor,
) -> None:
    shapes = [a.shape for a in (logp_N, response_ids_N, top_ids_NM, top_logp_NM, teacher_hidden_ND)]
    if len({shape[0] for shape in shapes}) != 1 or top_ids_NM.shape != top_logp_NM.shape:
        raise ValueError(f"logp, response, top ids, top logp, hidden do not line up: {shapes}")
    vocab_size, width = teacher_head_VD.shape
    if teacher_hidden_ND.shape[1] != width:
        raise ValueError(f"hidden width {teacher_hidden_ND.shape[1]}, head width {width}")
    if len(response_ids_N) == 0:
        return
    highest = max(int(response_ids_N.max()), int(top_ids_NM.max(initial=-1)))
    if highest >= vocab_size or int(response_ids_N.min()) < 0:
        raise ValueError(f"a token id is outside the teacher's vocabulary of {vocab_size}")
