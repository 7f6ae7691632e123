"""Hidden states and both output heads -> the losses and, at once, their gradient.

A full-vocabulary loss is small but for its logits, of which plain autograd holds a
dozen copies. So the positions are cut twice. A chunk is what a matrix product works on
at its full rate: its logits are made, their gradient takes their place, and two
products turn it into the gradient of hidden states and head. A block is a few of its
rows, over which the loss goes a dozen times while they are in the processor's cache.
Nothing is computed twice, and the backward pass only scales.

Axes: TU trained positions and, behind them, positions of resampled windows, C positions
of a chunk, D width of the student, V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from topd_ray.learner.loss import Positions, Recipe, block_sums, target_entropy
from topd_ray.learner.teacher import Teacher, WholeTeacher

_CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Of a chunk's logits in float32. Each chunk reads the head and adds to its gradient
once, which costs a GPU, fast at products and slower at memory, relatively more.
"""
_BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**27}
"""Of a block's: a share of a CPU's cache; on a GPU, much against the start of a
kernel.
"""


class Tiles(NamedTuple):
    """How many positions are worked on at a time."""

    chunk: int
    block: int


def tiles(num_ids: int, device: torch.device) -> Tiles:
    """For a vocabulary of so many ids."""
    row_bytes = 4 * num_ids
    budgets = (of.get(device.type, of["cuda"]) for of in (_CHUNK_BYTES, _BLOCK_BYTES))
    return Tiles(*(max(1, budget // row_bytes) for budget in budgets))


class Losses(NamedTuple):
    """Sums in nats, float64 scalars; only `total` has a gradient."""

    total: Float[Tensor, ""]
    """token + lambda_traj x traj."""
    token: Float[Tensor, ""]
    """Weighted token losses."""
    traj: Float[Tensor, ""]
    """KL(target || student) of the window positions."""
    rollout_kl: Float[Tensor, ""]
    """See `loss.rollout_kl`."""


def distillation_losses(
    student_hidden_TUD: Float[Tensor, "TU D"],
    student_head_VD: Float[Tensor, "V D"],
    positions: Positions,
    recipe: Recipe,
    cut: Tiles,
) -> Losses:
    """Temperature 1; gradient flows to the student alone, and none is computed where
    none is asked.

    Without a position the sums are 0, and so is the gradient of the head.
    """
    total, sums_3 = _Fused.apply(  # type: ignore[no-untyped-call]
        student_hidden_TUD,
        student_head_VD,
        positions,
        recipe,
        cut,
        torch.is_grad_enabled(),
    )
    return Losses(total, *sums_3.unbind())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TUD: Tensor,
        head_VD: Tensor,
        positions: Positions,
        recipe: Recipe,
        cut: Tiles,
        with_slopes: bool,
    ) -> tuple[Tensor, Tensor]:
        wanted = [with_slopes and needed for needed in ctx.needs_input_grad[:2]]
        sums_3, slopes = _sums_and_slopes(
            hidden_TUD, head_VD, positions, recipe, cut, wanted
        )
        sums_3[1] -= target_entropy(
            positions.target_ids_QK, positions.target_weights_QK
        )
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(sums_3)
        return sums_3[0] + recipe.lambda_traj * sums_3[1], sums_3

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale, slopes = upstream[0], ctx.saved_tensors
        if scale != 1.0:  # scaling is a copy, and the head's gradient is gigabytes
            slopes = [
                one if one is None else one * scale.to(one.dtype) for one in slopes
            ]
        return (*slopes, None, None, None, None)


def _sums_and_slopes(
    hidden_TUD: Tensor,
    head_VD: Tensor,
    positions: Positions,
    recipe: Recipe,
    cut: Tiles,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """See `block_sums`; the slopes by hidden states and head, None where they are not
    `wanted`.
    """
    positions = positions.by_window()
    window_at: list[int] = positions.window_Q.tolist()
    sums_3 = torch.zeros(3, dtype=torch.float64, device=hidden_TUD.device)
    slope_TUD = torch.empty_like(hidden_TUD) if wanted[0] else None
    precise = torch.promote_types(
        head_VD.dtype, torch.float32
    )  # many chunks add up in it
    slope_VD = torch.zeros_like(head_VD, dtype=precise) if wanted[1] else None
    # rooms are kept from chunk to chunk: fresh memory costs a CPU more than what is put
    # there
    room_CV = hidden_TUD.new_empty(min(cut.chunk, len(hidden_TUD)), len(head_VD))
    teacher_room_CV = _teacher_room(positions.teacher, cut)
    for first, last in _cuts(0, len(hidden_TUD), cut.chunk):
        hidden_CD = hidden_TUD[first:last]
        logits_CV = torch.mm(hidden_CD, head_VD.T, out=room_CV[: last - first])
        teacher_logits_TV = _teacher_logits(
            positions.teacher, first, last, teacher_room_CV
        )
        for start, stop in _cuts(first, last, cut.block):
            windows = slice(bisect_left(window_at, start), bisect_left(window_at, stop))
            rows = slice(start - first, stop - first)
            sums, slope_BV = block_sums(
                logits_CV[rows],
                None if teacher_logits_TV is None else teacher_logits_TV[rows],
                positions.between(start, stop, windows),
                recipe,
                with_slope=any(wanted),
            )
            sums_3 += sums
            if slope_BV is not None:
                logits_CV[rows] = slope_BV
        if slope_TUD is not None:
            torch.mm(logits_CV, head_VD, out=slope_TUD[first:last])
        if slope_VD is not None:
            _add_product(slope_VD, logits_CV.T, hidden_CD)
    return sums_3, [slope_TUD, None if slope_VD is None else slope_VD.to(head_VD.dtype)]


def _cuts(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, size):
        yield start, min(start + size, last)


def _teacher_room(teacher: Teacher, cut: Tiles) -> Tensor | None:
    if not isinstance(teacher, WholeTeacher):
        return None
    return teacher.head_VE.new_empty(
        min(cut.chunk, len(teacher.hidden_TE)), len(teacher.head_VE)
    )


def _teacher_logits(
    teacher: Teacher, first: int, last: int, room_CV: Tensor | None
) -> Tensor | None:
    if not isinstance(teacher, WholeTeacher) or room_CV is None:
        return None
    hidden_TE = teacher.hidden_TE[first:last].to(teacher.head_VE.dtype)
    return torch.mm(hidden_TE, teacher.head_VE.T, out=room_CV[: len(hidden_TE)])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


__all__ = ["Losses", "Tiles", "distillation_losses", "tiles"]
