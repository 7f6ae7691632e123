"""Hidden states of both models -> sums of the two losses; sums, because the step divides once.

Axes: T trained positions, D width of the student, E width of the teacher, V vocabulary, Q window
positions, K ids of a soft target.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_NO_ID = -1  # any negative id is padding


Head = Callable[[Tensor], Tensor]
"""Hidden states (..., D) -> logits (..., V)."""


def distillation_sums(
    student_hidden_TD: Float[Tensor, "T D"],
    student_head: Head,
    teacher_hidden_TE: Float[Tensor, "T E"],
    teacher_head_VE: Float[Tensor, "V E"],
    window_Q: Int[Tensor, "Q"],
    target_ids_QK: Int[Tensor, "Q K"],
    target_weights_QK: Float[Tensor, "Q K"],
    *,
    num_chunks: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sums in nats: KL(student || teacher) over T, KL(target || student) over Q; float64 scalars.

    Full vocabulary, temperature 1; gradient flows to the student alone. `window_Q` indexes T.
    The positions are cut into `num_chunks` slices and only one slice at a time has logits, in the
    forward as in the backward pass, where they are computed again. An empty slice still calls
    `student_head`: ranks that share a sharded head must call it equally often.
    """
    opd = torch.zeros((), dtype=torch.float64, device=student_hidden_TD.device)
    _, distribution_QK = aggregate_targets(target_ids_QK, target_weights_QK.double())
    traj = -torch.special.entr(distribution_QK).sum()  # minus the entropy, then the cross entropy
    slices = (_slice(len(student_hidden_TD), num_chunks, index) for index in range(num_chunks))
    for first, last in slices:
        inside_Q = ((window_Q >= first) & (window_Q < last)).nonzero()[:, 0]
        kl, cross_entropy = checkpoint(
            _slice_sums,
            student_hidden_TD[first:last],
            student_head,
            teacher_hidden_TE[first:last],
            teacher_head_VE,
            window_Q[inside_Q] - first,
            target_ids_QK[inside_Q],
            target_weights_QK[inside_Q],
            use_reentrant=False,
            preserve_rng_state=False,  # nothing here is random
        )
        opd, traj = opd + kl, traj + cross_entropy
    return opd, traj


def aggregate_targets(
    target_ids_QK: Int[Tensor, "Q K"], target_weights_QK: Float[Tensor, "Q K"]
) -> tuple[Int[Tensor, "Q K"], Float[Tensor, "Q K"]]:
    """The same targets with every id once a row, equal ids' weights added up; -1 fills the rest.

    A teacher's continuation repeats tokens, so a row may name an id more than once. As a
    distribution over the vocabulary it has the sum there, and only the entropy of the sums makes
    KL(target || student) 0 where the two agree.
    """
    ids_QK, order_QK = target_ids_QK.sort(1)
    weights_QK = target_weights_QK.gather(1, order_QK).masked_fill(ids_QK < 0, 0.0)
    is_new_QK = torch.ones_like(ids_QK, dtype=torch.bool)
    is_new_QK[:, 1:] = ids_QK[:, 1:] != ids_QK[:, :-1]
    place_QK = is_new_QK.cumsum(1) - 1
    return (
        torch.full_like(ids_QK, _NO_ID).scatter(1, place_QK, ids_QK),
        torch.zeros_like(weights_QK).scatter_add(1, place_QK, weights_QK),
    )


def _slice(length: int, num_chunks: int, index: int) -> tuple[int, int]:
    return length * index // num_chunks, length * (index + 1) // num_chunks


def _slice_sums(
    student_hidden_TD: Tensor,
    student_head: Head,
    teacher_hidden_TE: Tensor,
    teacher_head_VE: Tensor,
    window_Q: Tensor,
    target_ids_QK: Tensor,
    target_weights_QK: Tensor,
) -> tuple[Tensor, Tensor]:
    """KL(student || teacher) of a slice, and the cross entropy of its targets, in float64."""
    logp_TV = _log_softmax(student_head(student_hidden_TD))
    with torch.no_grad():
        logq_TV = _log_softmax(teacher_hidden_TE.to(teacher_head_VE.dtype) @ teacher_head_VE.T)
    kl_T = (logp_TV.exp() * (logp_TV - logq_TV)).sum(1)
    logp_QK = logp_TV[window_Q[:, None], target_ids_QK.clamp(min=0)]
    weights_QK = target_weights_QK.masked_fill(target_ids_QK < 0, 0.0)
    return kl_T.sum(dtype=torch.float64), -(weights_QK * logp_QK).sum(dtype=torch.float64)


def _log_softmax(logits_TV: Tensor) -> Tensor:
    """In float32 at least: bfloat16 carries three digits, and a KL is a difference of logs."""
    return logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)).log_softmax(1)


__all__ = ["Head", "aggregate_targets", "distillation_sums"]
