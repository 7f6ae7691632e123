"""Hidden states and both output heads -> the losses and their gradient.

The logits are most of the memory of a full-vocabulary loss, and plain autograd holds a
dozen copies of them. So the positions are cut twice. A chunk is as large as a matrix
product needs for its full rate: its logits are computed, their gradient replaces them,
and two products turn it into the gradients of hidden states and head. A block is a few
rows of a chunk, which stay in the processor's cache while the loss reads them a dozen
times. Nothing is computed twice, and the backward pass only scales.

Axes: TU trained positions and, behind them, positions of resampled windows, C positions
of a chunk, D width of the student, V vocabulary, R rows of a head: V and, behind them,
padding that no loss sees.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from topd_ray.engines.tensors import add_blocks
from topd_ray.learner.loss import (
    Positions,
    Recipe,
    block_sums,
    target_entropy,
    worst_gap,
)
from topd_ray.learner.teacher import Teacher, WholeTeacher

_CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Bytes of a chunk's logits in float32, by device.

Each chunk reads the head and adds to its gradient once. On a GPU that costs relatively
more than the products, so its chunks are larger.
"""
_BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**27}
"""Bytes of a block's logits in float32, by device.

On a CPU a share of the cache; on a GPU so many that the start of a kernel is cheap.
"""

_PRODUCT_ROWS = {"cpu": 2**12}
"""Rows of the head whose gradient is computed at a time, by device; else all.

On a CPU so few that the product of a chunk is still in the cache when it is added.
"""


class Tiles(NamedTuple):
    """Numbers of positions of a chunk and of a block."""

    chunk: int
    """Positions of one matrix product."""
    block: int
    """Positions over which the loss goes at a time."""


def tiles(num_rows: int, device: torch.device) -> Tiles:
    """Return the tiles for a head of `num_rows` rows on a device."""
    row_bytes = 4 * num_rows
    chunk_bytes = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"])
    block_bytes = _BLOCK_BYTES.get(device.type, _BLOCK_BYTES["cuda"])
    return Tiles(
        chunk=max(1, chunk_bytes // row_bytes),
        block=max(1, block_bytes // row_bytes),
    )


class Losses(NamedTuple):
    """Sums over a micro-batch in nats, and its worst gap; float64 scalars.

    Only `total` has a gradient.
    """

    total: Float[Tensor, ""]
    """token + lambda_traj x traj."""
    token: Float[Tensor, ""]
    """Sum of the weighted token losses."""
    traj: Float[Tensor, ""]
    """Sum of KL(target || student) over the window positions."""
    rollout_kl: Float[Tensor, ""]
    """See `loss.rollout_kl`."""
    reverse_kl: Float[Tensor, ""]
    """Sum of KL(student || teacher) where it counts; 0 without `reverse_T`."""
    forward_kl: Float[Tensor, ""]
    """Likewise of KL(teacher || student)."""
    gap_at: Float[Tensor, ""]
    """Index into T of the worst gap, see `loss.worst_gap`."""
    gap_logp: Float[Tensor, ""]
    """The student's log-probability there."""


def distillation_losses(
    student_hidden_TUD: Float[Tensor, "TU D"],
    student_head_RD: Float[Tensor, "R D"],
    positions: Positions,
    recipe: Recipe,
    cut: Tiles,
    num_ids: int,
) -> Losses:
    """Return the losses of a micro-batch, at temperature 1.

    Gradient flows to the student alone; where autograd needs none, none is computed.
    Without a position the sums are 0, and so is the gradient of the head.

    Args:
        student_hidden_TUD: The student's hidden states that predict trained tokens.
        student_head_RD: Weight of the student's output head.
        positions: What the T + U positions are trained on.
        recipe: How the losses are composed.
        cut: How many positions are worked on at a time.
        num_ids: V; rows of either head behind it are padding. Their gradient is 0.

    Returns:
        Sums over the positions, which the caller divides, and their worst gap.
    """
    total, sums_7 = _Fused.apply(  # type: ignore[no-untyped-call]
        student_hidden_TUD,
        student_head_RD,
        positions,
        recipe,
        cut,
        num_ids,
        torch.is_grad_enabled(),
    )
    return Losses(total, *sums_7.unbind())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TUD: Tensor,
        head_RD: Tensor,
        positions: Positions,
        recipe: Recipe,
        cut: Tiles,
        num_ids: int,
        with_slopes: bool,
    ) -> tuple[Tensor, Tensor]:
        wanted = [with_slopes and needed for needed in ctx.needs_input_grad[:2]]
        sums_7, slopes = _sums_and_slopes(
            hidden_TUD, head_RD, positions, recipe, cut, num_ids, wanted
        )
        sums_7[1] -= target_entropy(
            positions.target_ids_QK, positions.target_weights_QK
        )
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(sums_7)
        return sums_7[0] + recipe.lambda_traj * sums_7[1], sums_7

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream[0]
        slopes = ctx.saved_tensors
        if scale != 1.0:  # scaling is a copy, and the head's gradient is gigabytes
            slopes = [
                None if slope is None else slope * scale.to(slope.dtype)
                for slope in slopes
            ]
        return (*slopes, None, None, None, None, None)


def _sums_and_slopes(
    hidden_TUD: Tensor,
    head_RD: Tensor,
    positions: Positions,
    recipe: Recipe,
    cut: Tiles,
    num_ids: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the sums of `block_sums` over all positions, their worst gap, and two
    slopes.

    The slopes are by the hidden states and by the head, None where not `wanted`.
    """
    positions = positions.by_window()
    window_at: list[int] = positions.window_Q.tolist()
    sums_5 = torch.zeros(5, dtype=torch.float64, device=hidden_TUD.device)
    logp_parts = [positions.weight_T[:0]]
    slope_TUD = torch.empty_like(hidden_TUD) if wanted[0] else None
    # many chunks add up in it: bfloat16 would lose the small ones
    precise = torch.promote_types(head_RD.dtype, torch.float32)
    slope_RD = torch.zeros_like(head_RD, dtype=precise) if wanted[1] else None
    # Buffers are kept from chunk to chunk: on a CPU, the page faults of fresh memory
    # cost more than the numbers written there.
    buffer_CR = hidden_TUD.new_empty(min(cut.chunk, len(hidden_TUD)), len(head_RD))
    teacher_buffer_CR = _teacher_buffer(positions.teacher, cut)
    for first, last in _cuts(0, len(hidden_TUD), cut.chunk):
        hidden_CD = hidden_TUD[first:last]
        # Whole heads are multiplied, and the loss gets views of the V columns: heads
        # are padded to a width at which products are fast.
        logits_CR = torch.mm(hidden_CD, head_RD.T, out=buffer_CR[: last - first])
        logits_CV = logits_CR[:, :num_ids]
        teacher_logits_TR = _teacher_logits(
            positions.teacher, first, last, teacher_buffer_CR
        )
        for start, stop in _cuts(first, last, cut.block):
            windows = slice(bisect_left(window_at, start), bisect_left(window_at, stop))
            rows = slice(start - first, stop - first)
            sums, slope_BV, logp_T = block_sums(
                logits_CV[rows],
                None
                if teacher_logits_TR is None
                else teacher_logits_TR[rows, :num_ids],
                positions.between(start, stop, windows),
                recipe,
                with_slope=any(wanted),
            )
            sums_5 += sums
            logp_parts.append(logp_T)
            if slope_BV is not None:
                logits_CV[rows] = slope_BV
        logits_CR[:, num_ids:] = 0.0
        if slope_TUD is not None:
            torch.mm(logits_CR, head_RD, out=slope_TUD[first:last])
        if slope_RD is not None:
            _add_product(slope_RD, logits_CR, hidden_CD)
    gap_2 = worst_gap(torch.cat(logp_parts), positions.sampled_logp_T)
    sums_7 = torch.cat([sums_5, gap_2])
    return sums_7, [slope_TUD, None if slope_RD is None else slope_RD.to(head_RD.dtype)]


def _cuts(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, size):
        yield start, min(start + size, last)


def _teacher_buffer(teacher: Teacher, cut: Tiles) -> Tensor | None:
    if not isinstance(teacher, WholeTeacher):
        return None
    return teacher.head_VE.new_empty(
        min(cut.chunk, len(teacher.hidden_TE)), len(teacher.head_VE)
    )


def _teacher_logits(
    teacher: Teacher, first: int, last: int, buffer_CR: Tensor | None
) -> Tensor | None:
    if not isinstance(teacher, WholeTeacher) or buffer_CR is None:
        return None
    hidden_TE = teacher.hidden_TE[first:last].to(teacher.head_VE.dtype)
    return torch.mm(hidden_TE, teacher.head_VE.T, out=buffer_CR[: len(hidden_TE)])


def _add_product(total_RD: Tensor, left_CR: Tensor, right_CD: Tensor) -> None:
    """Add left^T right; where its number format is another, some rows at a time."""
    if total_RD.dtype == left_CR.dtype:
        total_RD.addmm_(left_CR.T, right_CD)
        return
    size = _PRODUCT_ROWS.get(total_RD.device.type, len(total_RD))
    for first, last in _cuts(0, len(total_RD), size):
        product = left_CR[:, first:last].T @ right_CD
        add_blocks(total_RD[first:last].view(-1), product.view(-1))


__all__ = ["Losses", "Tiles", "distillation_losses", "tiles"]
