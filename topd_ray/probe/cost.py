"""Continuations -> ground cost between their tokens.

Axes: W windows, K student tokens, L teacher tokens, V vocabulary, D embedding width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

COST_CHUNK = 32
"""Windows embedded at once: (K + L) * D fp32 values each, 33 MB in all at K = L = 50, D = 2560."""


def continuation_cost(
    student_ids_WK: Int[Tensor, "W K"],
    teacher_ids_WL: Int[Tensor, "W L"],
    num_student_W: Int[Tensor, "W"],
    num_teacher_W: Int[Tensor, "W"],
    embedding_VD: Float[Tensor, "V D"],
    *,
    chunk: int = COST_CHUNK,
) -> Float[Tensor, "W K L"]:
    """Cosine distance between the embeddings of every student and every teacher token, in [0, 2].

    Decision D5: 1 - cos in fp32 whatever the table's dtype, exactly 0 between equal ids, 1 from
    an all-zero row to any other id. Padding (beyond num_student / num_teacher, whatever ids are
    there) is 0. The result lies on the table's device and carries no gradient. Raises ValueError
    for an id outside the table; a non-finite row gives non-finite costs in its own windows only.
    """
    device = embedding_VD.device
    inside_WK = _inside(num_student_W.to(device), student_ids_WK.shape[1])
    inside_WL = _inside(num_teacher_W.to(device), teacher_ids_WL.shape[1])
    ids_WK = student_ids_WK.to(device).masked_fill(~inside_WK, 0)
    ids_WL = teacher_ids_WL.to(device).masked_fill(~inside_WL, 0)
    _check_ids("student_ids_WK", ids_WK, len(embedding_VD))
    _check_ids("teacher_ids_WL", ids_WL, len(embedding_VD))
    inside_WKL = inside_WK[:, :, None] & inside_WL[:, None, :]
    free_WKL = ~inside_WKL | (ids_WK[:, :, None] == ids_WL[:, None, :])

    cost_WKL = torch.empty(free_WKL.shape, device=device)
    for start in range(0, len(cost_WKL), chunk):
        part = slice(start, start + chunk)
        student_WKD, student_norm_WK = _embed(embedding_VD, ids_WK[part])
        teacher_WLD, teacher_norm_WL = _embed(embedding_VD, ids_WL[part])
        dot_WKL = student_WKD @ teacher_WLD.transpose(1, 2)
        # Dividing the products, not the rows, saves two passes over the largest arrays.
        cost_WKL[part] = 1 - dot_WKL / student_norm_WK[:, :, None] / teacher_norm_WL[:, None, :]
    return cost_WKL.clamp_(0.0, 2.0).masked_fill_(free_WKL, 0.0)


def _embed(embedding_VD: Tensor, ids_WN: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings in fp32 and their lengths; an all-zero row gets length 1, so its cosines are 0."""
    rows_WND = torch.nn.functional.embedding(ids_WN, embedding_VD.detach()).float()
    norm_WN = torch.linalg.vector_norm(rows_WND, dim=-1)
    return rows_WND, norm_WN.where(norm_WN != 0, 1.0)


def _inside(size_W: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=size_W.device) < size_W[:, None]


def _check_ids(name: str, ids_WN: Tensor, num_rows: int) -> None:
    bad_WN = (ids_WN < 0) | (ids_WN >= num_rows)
    if bool(bad_WN.any()):
        window, position = bad_WN.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{window}, {position}]={int(ids_WN[window, position])}; the embedding table "
            f"has rows 0..{num_rows - 1}"
        )
