"""Continuations -> ground cost between their tokens.

Axes: W windows, K student tokens, L teacher tokens, V vocabulary, D width of embeddings
or states, S and T distinct tokens of student and teacher.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from topd_ray.transport.problem import within

COST_CHUNK = 256
"""Number of windows that share one product of their distinct tokens.

About the windows of one rollout, which repeat many tokens.
"""

# Windows that are embedded at once when they share no product: 33 MB in fp32 at K = L =
# 50, D = 2560.
_EMBEDDED = 32


@dataclass(frozen=True, slots=True)
class _Table:
    """The embedding table, and the centre that is subtracted from its rows."""

    embedding_VD: Tensor
    centre_D: Tensor | None

    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings in fp32 and their norms.

        An all-zero row has norm 1 here, so that its cosines are 0.
        """
        embedded = torch.nn.functional.embedding(ids, self.embedding_VD).float()
        if self.centre_D is not None:
            embedded = embedded - self.centre_D
        norm = torch.linalg.vector_norm(embedded, dim=-1)
        return embedded, norm.where(norm != 0, 1.0)


def continuation_cost(
    student_ids_WK: Int[Tensor, "W K"],
    teacher_ids_WL: Int[Tensor, "W L"],
    num_student_W: Int[Tensor, "W"],
    num_teacher_W: Int[Tensor, "W"],
    embedding_VD: Float[Tensor, "V D"],
    *,
    centre_D: Float[Tensor, "D"] | None = None,
    chunk: int = COST_CHUNK,
) -> Float[Tensor, "W K L"]:
    """Return the cosine distance between every student and every teacher token.

    C_kl = 1 - cos(E[S_k], E[T_l]). The paper leaves the ground cost open ("We map both
    continuations into the embedding space", section 3); this is decision D5. The paper
    writes C as (teacher, student); here rows are the student.

    Args:
        student_ids_WK: The student's continuations.
        teacher_ids_WL: The teacher's continuations.
        num_student_W: True length of each student continuation. The ids behind it are
            never read.
        num_teacher_W: True length of each teacher continuation, likewise.
        embedding_VD: The embedding table E, in any float dtype.
        centre_D: Subtracted from every row of E in fp32; None subtracts nothing.
        chunk: Number of windows that share one product of their distinct tokens; bounds
            the memory.

    Returns:
        Costs in [0, 2], in fp32 for every dtype of the table, on its device, without
        gradient. Exactly 0 between equal ids and in the padding; 1 between an all-zero
        row and any other id; not finite in windows with a non-finite row.

    Raises:
        ValueError: An id lies outside the table.
    """
    device = embedding_VD.device
    inside_WK = within(num_student_W.to(device), student_ids_WK.shape[1])
    inside_WL = within(num_teacher_W.to(device), teacher_ids_WL.shape[1])
    ids_WK = student_ids_WK.to(device).masked_fill(~inside_WK, 0)
    ids_WL = teacher_ids_WL.to(device).masked_fill(~inside_WL, 0)
    _check_ids("student_ids_WK", ids_WK, len(embedding_VD))
    _check_ids("teacher_ids_WL", ids_WL, len(embedding_VD))
    inside_WKL = inside_WK[:, :, None] & inside_WL[:, None, :]
    free_WKL = ~inside_WKL | (ids_WK[:, :, None] == ids_WL[:, None, :])

    table = _Table(embedding_VD.detach(), centre_D)
    cost_WKL = torch.empty(free_WKL.shape, device=device)
    for start in range(0, len(cost_WKL), chunk):
        part = slice(start, start + chunk)
        cost_WKL[part] = 1 - _cosines(table, ids_WK[part], ids_WL[part])
    return cost_WKL.clamp_(0.0, 2.0).masked_fill_(free_WKL, 0.0)


def state_cost(
    student_WKD: Float[Tensor, "W K D"],
    teacher_WLD: Float[Tensor, "W L D"],
    num_student_W: Int[Tensor, "W"],
    num_teacher_W: Int[Tensor, "W"],
) -> Float[Tensor, "W K L"]:
    """Return the cosine distance between the states of every two tokens of a window.

    C_kl = 1 - cos(h_k - mu, h_l - mu). States of one model share a large common
    direction, which makes all of them look alike. mu is the mean over both
    continuations of the one window, so a window's cost depends on no other window.

    Args:
        student_WKD: A state for each token of the student's continuations.
        teacher_WLD: A state for each token of the teacher's continuations.
        num_student_W: True length of each student continuation. The states behind it
            are never read.
        num_teacher_W: True length of each teacher continuation, likewise.

    Returns:
        Costs in [0, 2], in fp32, without gradient. 0 in the padding; 1 between the mean
        itself and any state; not finite in windows with a non-finite state.
    """
    inside_WK = within(num_student_W.to(student_WKD.device), student_WKD.shape[1])
    inside_WL = within(num_teacher_W.to(teacher_WLD.device), teacher_WLD.shape[1])
    inside_WN = torch.cat([inside_WK, inside_WL], dim=1)
    state_WND = torch.cat([student_WKD, teacher_WLD], dim=1).detach().float()
    state_WND = state_WND.masked_fill(~inside_WN[:, :, None], 0.0)
    num_W = inside_WN.sum(1)
    centred_WND = state_WND - (state_WND.sum(1) / num_W[:, None])[:, None, :]
    unit_WND = torch.nn.functional.normalize(centred_WND, dim=-1)
    num_rows = inside_WK.shape[1]
    unit_WKD = unit_WND[:, :num_rows]
    unit_WLD = unit_WND[:, num_rows:]
    cost_WKL = (1 - unit_WKD @ unit_WLD.transpose(1, 2)).clamp_(0.0, 2.0)
    return cost_WKL.masked_fill_(~(inside_WK[:, :, None] & inside_WL[:, None, :]), 0.0)


def _cosines(table: _Table, ids_WK: Tensor, ids_WL: Tensor) -> Tensor:
    """Return the cosines (W, K, L) of a chunk of windows."""
    # Windows of one rollout repeat tokens: one product of the distinct ones is often
    # smaller than the products of all windows.
    distinct_S, at_WK = torch.unique(ids_WK, return_inverse=True)
    distinct_T, at_WL = torch.unique(ids_WL, return_inverse=True)
    num_pairs = ids_WK.numel() * ids_WL.shape[1]
    if len(distinct_S) * len(distinct_T) <= num_pairs:
        cosine_ST = _cosine(table.embed(distinct_S), table.embed(distinct_T))
        return cosine_ST.take((at_WK * len(distinct_T))[:, :, None] + at_WL[:, None, :])
    parts = [
        _cosine(table.embed(rows_WK), table.embed(cols_WL))
        for rows_WK, cols_WL in zip(
            torch.split(ids_WK, _EMBEDDED), torch.split(ids_WL, _EMBEDDED), strict=True
        )
    ]
    return torch.cat(parts)


def _cosine(rows: tuple[Tensor, Tensor], cols: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cosines of all pairs; both arguments are results of `_Table.embed`."""
    embedded_rows, row_norm = rows
    embedded_cols, col_norm = cols
    # Products are divided, not embeddings, which saves two passes over the largest
    # arrays.
    dot = embedded_rows @ embedded_cols.transpose(-1, -2)
    return dot.div_(row_norm[..., :, None]).div_(col_norm[..., None, :])


def _check_ids(name: str, ids_WN: Tensor, num_rows: int) -> None:
    bad_WN = (ids_WN < 0) | (ids_WN >= num_rows)
    if bool(bad_WN.any()):
        window, position = bad_WN.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{window}, {position}]={int(ids_WN[window, position])}; the"
            f" embedding table has rows 0..{num_rows - 1}"
        )
