"""Continuations -> ground cost between their tokens.

Axes: W windows, K student tokens, L teacher tokens, V vocabulary, D embedding width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

COST_CHUNK = 256
"""Windows that share their cosines, about those of one rollout."""

# Windows embedded at once where they do not: 33 MB in fp32 at K = L = 50, D = 2560.
_EMBEDDED = 32


def continuation_cost(
    student_ids_WK: Int[Tensor, "W K"],
    teacher_ids_WL: Int[Tensor, "W L"],
    num_student_W: Int[Tensor, "W"],
    num_teacher_W: Int[Tensor, "W"],
    embedding_VD: Float[Tensor, "V D"],
    *,
    chunk: int = COST_CHUNK,
) -> Float[Tensor, "W K L"]:
    """Cosine distance between the embeddings of every student and every teacher token,
    in [0, 2].

    Decision D5: 1 - cos in fp32 whatever the table's dtype, exactly 0 between equal
    ids, 1 from an all-zero row to any other id. Padding (beyond num_student /
    num_teacher, whatever ids are there) is 0. The result lies on the table's device and
    carries no gradient. Raises ValueError for an id outside the table; a non-finite row
    gives non-finite costs in its own windows only.
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
        cost_WKL[part] = 1 - _cosines(embedding_VD, ids_WK[part], ids_WL[part])
    return cost_WKL.clamp_(0.0, 2.0).masked_fill_(free_WKL, 0.0)


def _cosines(embedding_VD: Tensor, ids_WK: Tensor, ids_WL: Tensor) -> Tensor:
    """From one product of all distinct tokens where these are few, else window by
    window.
    """
    distinct_S, at_WK = torch.unique(ids_WK, return_inverse=True)
    distinct_T, at_WL = torch.unique(ids_WL, return_inverse=True)
    num_pairs = ids_WK.numel() * ids_WL.shape[1]
    if len(distinct_S) * len(distinct_T) <= num_pairs:
        cosine_ST = _cosine(
            _embed(embedding_VD, distinct_S), _embed(embedding_VD, distinct_T)
        )
        return cosine_ST.take((at_WK * len(distinct_T))[:, :, None] + at_WL[:, None, :])
    parts = [
        _cosine(_embed(embedding_VD, rows_WK), _embed(embedding_VD, cols_WL))
        for rows_WK, cols_WL in zip(
            torch.split(ids_WK, _EMBEDDED), torch.split(ids_WL, _EMBEDDED), strict=True
        )
    ]
    return torch.cat(parts)


def _cosine(rows: tuple[Tensor, Tensor], cols: tuple[Tensor, Tensor]) -> Tensor:
    """Dividing the products, not the embeddings, saves two passes over the largest
    arrays.
    """
    dot = rows[0] @ cols[0].transpose(-1, -2)
    return dot.div_(rows[1][..., :, None]).div_(cols[1][..., None, :])


def _embed(embedding_VD: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings in fp32 and their lengths; an all-zero row gets length 1, so its
    cosines are 0.
    """
    embedded = torch.nn.functional.embedding(ids, embedding_VD.detach()).float()
    norm = torch.linalg.vector_norm(embedded, dim=-1)
    return embedded, norm.where(norm != 0, 1.0)


def _inside(size_W: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=size_W.device) < size_W[:, None]


def _check_ids(name: str, ids_WN: Tensor, num_rows: int) -> None:
    bad_WN = (ids_WN < 0) | (ids_WN >= num_rows)
    if bool(bad_WN.any()):
        window, position = bad_WN.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{window}, {position}]={int(ids_WN[window, position])}; the"
            f" embedding table has rows 0..{num_rows - 1}"
        )
