"""The teacher's log-probabilities of a response, from hidden states and output head.

Axes: N response positions, C positions of one chunk, K ids of the teacher kept a
position, M ids of the student kept a position (PAD where there are fewer), V
vocabulary, R rows of the head (V and padding), D width of the teacher. logp is the
student, logq the teacher; nats.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topd_ray.engines.tensors import to_torch
from topd_ray.messages import Floats, HiddenStates, Ints
from topd_ray.teacher.divergence import entropy, reverse_kl_on_top_ids
from topd_ray.teacher.product import head_product


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the teacher says about each position of one response."""

    logq_N: Floats
    """Log-probability of each response token."""
    entropy_N: Floats
    """Entropy of each distribution, nats; (0,) where it was not asked for."""
    top_ids_NK: Ints
    """The teacher's likeliest ids, best first; K is at most the vocabulary's size."""
    top_logq_NK: Floats
    """Log-probabilities of `top_ids_NK` under the full softmax."""
    reverse_kl_N: Floats
    """KL(student || teacher) on the student's top ids and a bucket for all others.

    Shape (0,) when the student's ids were not given.
    """


@torch.inference_mode()
def read_response(
    *,
    hidden_ND: HiddenStates,
    head_RD: Tensor,
    head_is_bfloat16: bool,
    num_ids: int,
    response_ids_N: Ints,
    top_k: int,
    student_top: tuple[Ints, Floats] | None,
    chunk: int,
    with_entropy: bool = False,
) -> Reading:
    """Return the teacher's log-probabilities of every response position.

    logq = log_softmax(hidden @ head^T), over all ids and no padding. Logits exist for
    `chunk` positions at a time and are computed once, for all fields of the reading.

    Args:
        hidden_ND: The teacher's states after its final norm, at the positions that
            predict the response tokens.
        head_RD: The teacher's output head, in the number format that `head_product`
            wants; its device does the work.
        head_is_bfloat16: Whether bfloat16 holds every number of the head.
        num_ids: V; rows of the head behind it are padding.
        response_ids_N: The response, at least one token.
        top_k: K, how many of the teacher's likeliest ids to return; 0 for none.
        student_top: The student's likeliest ids and their log-probabilities, both
            (N, M); None when no KL is wanted.
        chunk: How many positions have logits in memory at a time.
        with_entropy: Whether the entropies are wanted.

    Returns:
        The reading, in float32 and int32 on the CPU.

    Raises:
        ValueError: The arrays have different lengths, the response is empty, the widths
            of states and head differ, or an id lies outside the vocabulary.
    """
    _check(hidden_ND, head_RD, num_ids, response_ids_N, student_top)
    parts = []
    for start in range(0, len(response_ids_N), chunk):
        part = slice(start, start + chunk)
        # The whole head, then a view: a product of an odd width is slower on a GPU.
        states_CD = _tensor(hidden_ND[part], head_RD)
        logits_CV = head_product(states_CD, head_RD, head_is_bfloat16=head_is_bfloat16)[
            :, :num_ids
        ]
        lse_C1 = logits_CV.logsumexp(1, keepdim=True)
        ids_C1 = _tensor(response_ids_N[part], head_RD).long()[:, None]
        logq_C = (logits_CV.gather(1, ids_C1) - lse_C1)[:, 0]
        top = logits_CV.topk(min(top_k, logits_CV.shape[1]))
        fields = [logq_C, top.indices, top.values - lse_C1]
        entropy_C = logq_C[:0]
        if with_entropy:
            entropy_C = entropy(logits_CV - lse_C1)
        fields.append(entropy_C)
        # The KL comes last, because it overwrites the logits.
        if student_top is not None:
            student_CM = [_tensor(array[part], head_RD) for array in student_top]
            fields.append(reverse_kl_on_top_ids(logits_CV, lse_C1, *student_CM))
        parts.append([field.cpu().numpy() for field in fields])
    logq_N, ids_NK, logq_NK, entropy_N, *kl_N = (
        np.concatenate(chunks) for chunks in zip(*parts, strict=True)
    )
    return Reading(
        logq_N=logq_N,
        entropy_N=entropy_N,
        top_ids_NK=ids_NK.astype(np.int32),
        top_logq_NK=logq_NK,
        reverse_kl_N=kl_N[0].astype(np.float32) if kl_N else logq_N[:0],
    )


def _tensor(array: HiddenStates | Ints, like: Tensor) -> Tensor:
    """Return a copy of the array on the device of `like`."""
    return to_torch(array).to(like.device)


def _check(
    hidden_ND: HiddenStates,
    head_RD: Tensor,
    num_ids: int,
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
    width = head_RD.shape[1]
    if hidden_ND.shape[1] != width:
        raise ValueError(f"hidden width {hidden_ND.shape[1]}, head width {width}")
    ids = [response_ids_N] if student_top is None else [response_ids_N, student_top[0]]
    highest = max(int(array.max(initial=-1)) for array in ids)
    if highest >= num_ids or int(response_ids_N.min()) < 0:
        raise ValueError(f"a token id is outside the teacher's vocabulary of {num_ids}")


__all__ = ["Reading", "read_response"]
