"""What the teacher thinks of a response, position by position: hidden states x output
head, read.

Axes: N response positions, C positions of one chunk, K ids of the teacher kept a
position, M ids of the student kept a position (PAD where there are fewer), V
vocabulary, D width of the teacher. logp is the student, logq the teacher; nats.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topd_ray.messages import Floats, Ints
from topd_ray.teacher.divergence import reverse_kl


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The teacher's log-probabilities, all under the full softmax."""

    logq_N: Floats
    """Of each response token."""
    top_ids_NK: Ints
    """The teacher's likeliest ids, best first; K is the vocabulary's size where that is
    less.
    """
    top_logq_NK: Floats
    reverse_kl_N: Floats
    """KL(student || teacher), the ids the student did not name in one bucket; (0,) if
    not asked.
    """


@torch.inference_mode()
def read_response(
    *,
    hidden_ND: Floats,
    head_VD: Tensor,
    response_ids_N: Ints,
    top_k: int,
    student_top: tuple[Ints, Floats] | None,
    chunk: int,
) -> Reading:
    """Read every response position; the logits of `chunk` positions exist at one time,
    and once.

    `student_top` holds the student's likeliest ids and their log-probabilities, both
    (N, M); the divergence is taken only where it is given. The head is float32 and says
    on which device all is done. Raises ValueError where the arrays do not line up.
    """
    _check(hidden_ND, head_VD, response_ids_N, student_top)
    parts = []
    for start in range(0, len(response_ids_N), chunk):
        part = slice(start, start + chunk)
        logits_CV = _tensor(hidden_ND[part], head_VD) @ head_VD.T
        lse_C1 = logits_CV.logsumexp(1, keepdim=True)
        ids_C1 = _tensor(response_ids_N[part], head_VD).long()[:, None]
        logq_C = (logits_CV.gather(1, ids_C1) - lse_C1)[:, 0]
        top = logits_CV.topk(min(top_k, logits_CV.shape[1]))
        found = [logq_C, top.indices, top.values - lse_C1]
        if student_top is not None:
            student_CM = [_tensor(array[part], head_VD) for array in student_top]
            found.append(
                reverse_kl(logits_CV, lse_C1, *student_CM)
            )  # last: spends the logits
        parts.append([one.cpu().numpy() for one in found])
    logq_N, ids_NK, logq_NK, *kl_N = (
        np.concatenate(one) for one in zip(*parts, strict=True)
    )
    return Reading(
        logq_N=logq_N,
        top_ids_NK=ids_NK.astype(np.int32),
        top_logq_NK=logq_NK,
        reverse_kl_N=kl_N[0].astype(np.float32) if kl_N else logq_N[:0],
    )


def _tensor(array: Floats | Ints, like: Tensor) -> Tensor:
    """A copy: arrays out of the object store are read-only, which torch cannot
    express.
    """
    return torch.from_numpy(array.copy()).to(like.device)


def _check(
    hidden_ND: Floats,
    head_VD: Tensor,
    response_ids_N: Ints,
    student_top: tuple[Ints, Floats] | None,
) -> None:
    shapes = [
        array.shape for array in (response_ids_N, hidden_ND, *(student_top or ()))
    ]
    if len({shape[0] for shape in shapes}) != 1 or len(set(shapes[2:])) > 1:
        raise ValueError(
            f"response, hidden, student's top ids and logp do not line up: {shapes}"
        )
    if len(response_ids_N) == 0:
        raise ValueError("the response is empty; a rollout has at least one token")
    vocab_size, width = head_VD.shape
    if hidden_ND.shape[1] != width:
        raise ValueError(f"hidden width {hidden_ND.shape[1]}, head width {width}")
    ids = [response_ids_N] if student_top is None else [response_ids_N, student_top[0]]
    highest = max(int(one.max(initial=-1)) for one in ids)
    if highest >= vocab_size or int(response_ids_N.min()) < 0:
        raise ValueError(
            f"a token id is outside the teacher's vocabulary of {vocab_size}"
        )


__all__ = ["Reading", "read_response"]
