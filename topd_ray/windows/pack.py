"""Scored rollouts and their divergent windows -> micro-batches of a token budget, for each rank.

Axes as in messages.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from topd_ray.messages import Floats, Ints, ProbeSet, ScoredRollout, TrainBatch
from topd_ray.transport import soft_targets
from topd_ray.windows.verdict import divergent

_EMPTY_ROW = 1  # tokens of the row that stands in where a rank has nothing to do


def pack(
    scored: Sequence[ScoredRollout],
    probes: Sequence[ProbeSet] | None,
    *,
    threshold: float,
    token_budget: int,
    num_ranks: int,
) -> list[list[TrainBatch]]:
    """Micro-batches of each rank, equally many for all: collectives must meet.

    Every rollout lands in exactly one micro-batch. Longest first and dealt out in turn, so ranks
    carry alike and rows of a micro-batch are of like length. A rank short of work gets empty
    micro-batches (no trained position). `probes` is None for plain OPD. Raises ValueError where
    rollouts and probes do not belong together.
    """
    windows = _by_rollout(scored, probes)
    order = sorted(scored, key=lambda one: (-_length(one), one.rollout.rollout_id))
    shares = [order[rank::num_ranks] for rank in range(num_ranks)]
    packed = [
        [_batch(rows, windows, threshold) for rows in _split(share, token_budget)]
        for share in shares
    ]
    most = max(len(batches) for batches in packed)
    return [batches + [_empty(order[0])] * (most - len(batches)) for batches in packed]


def _by_rollout(
    scored: Sequence[ScoredRollout], probes: Sequence[ProbeSet] | None
) -> Mapping[str, ProbeSet]:
    windows = {probe.rollout_id: probe for probe in probes or ()}
    rollouts = {one.rollout.rollout_id: one.rollout.policy_version for one in scored}
    if probes is not None and windows.keys() != rollouts.keys():
        odd = sorted(windows.keys() ^ rollouts.keys())
        raise ValueError(f"rollouts and probes differ: {odd[:5]} are in only one of them")
    for name, probe in windows.items():
        if probe.policy_version != rollouts[name]:
            raise ValueError(
                f"rollout {name} is of policy_version {rollouts[name]}, "
                f"its probes of {probe.policy_version}"
            )
    return windows


def _length(one: ScoredRollout) -> int:
    """Input tokens: the last response token predicts nothing that is trained."""
    return len(one.rollout.prompt_ids_P) + len(one.rollout.response_ids_N) - 1


def _split(share: Sequence[ScoredRollout], token_budget: int) -> list[list[ScoredRollout]]:
    """Rows while rows x longest row fits; `share` is sorted, so its first row is the longest."""
    batches: list[list[ScoredRollout]] = []
    for one in share:
        if batches and (len(batches[-1]) + 1) * _length(batches[-1][0]) <= token_budget:
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


def _batch(
    rows: Sequence[ScoredRollout], windows: Mapping[str, ProbeSet], threshold: float
) -> TrainBatch:
    lengths_R = np.array([_length(one) for one in rows], dtype=np.int32)
    width = int(lengths_R.max())
    input_ids_RL = np.zeros((len(rows), width), dtype=np.int32)
    positions, targets, first = [], [], 0
    for row, one in enumerate(rows):
        prompt_P, response_N = one.rollout.prompt_ids_P, one.rollout.response_ids_N
        input_ids_RL[row, : lengths_R[row]] = np.concatenate([prompt_P, response_N[:-1]])
        start = row * width + len(prompt_P) - 1
        positions.append(np.arange(start, start + len(response_N), dtype=np.int32))
        if one.rollout.rollout_id in windows:
            targets.append(_targets(windows[one.rollout.rollout_id], threshold, first))
        first += len(response_N)
    window_Q, ids_QK, weights_QK = _joined(targets)
    return TrainBatch(
        rollout_ids=tuple(one.rollout.rollout_id for one in rows),
        policy_version=rows[0].rollout.policy_version,
        input_ids_RL=input_ids_RL,
        lengths_R=lengths_R,
        position_T=np.concatenate(positions),
        teacher_hidden_TD=np.concatenate([one.teacher_hidden_ND for one in rows]),
        window_Q=window_Q,
        target_ids_QK=ids_QK,
        target_weights_QK=weights_QK,
    )


def _targets(probes: ProbeSet, threshold: float, first: int) -> tuple[Ints, Ints, Floats]:
    """Trained positions, target ids and weights (D8) of a rollout's divergent windows."""
    real_W = divergent(probes, threshold)
    num_student_W = probes.num_student_W[real_W]
    weights_WKK = soft_targets(
        torch.from_numpy(probes.plan_WKK[real_W]), torch.from_numpy(num_student_W)
    ).numpy()
    step_WK = np.arange(probes.student_ids_WK.shape[1])[None, :]
    inside_WK = step_WK < num_student_W[:, None]
    place_WK = first + probes.positions_W[real_W][:, None] + step_WK
    ids_WKK = np.broadcast_to(probes.teacher_ids_WK[real_W][:, None, :], weights_WKK.shape)
    return (
        place_WK[inside_WK].astype(np.int32),
        ids_WKK[inside_WK].astype(np.int32),
        weights_WKK[inside_WK].astype(np.float32),
    )


def _joined(targets: Sequence[tuple[Ints, Ints, Floats]]) -> tuple[Ints, Ints, Floats]:
    if not targets:
        return np.zeros(0, np.int32), np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)
    places, ids, weights = zip(*targets, strict=True)
    return np.concatenate(places), np.concatenate(ids), np.concatenate(weights)


def _empty(like: ScoredRollout) -> TrainBatch:
    """Nothing to learn; the rank only takes part in the collectives."""
    return TrainBatch(
        rollout_ids=(),
        policy_version=like.rollout.policy_version,
        input_ids_RL=like.rollout.prompt_ids_P[None, :_EMPTY_ROW].astype(np.int32),
        lengths_R=np.array([_EMPTY_ROW], dtype=np.int32),
        position_T=np.zeros(0, np.int32),
        teacher_hidden_TD=like.teacher_hidden_ND[:0],
        window_Q=np.zeros(0, np.int32),
        target_ids_QK=np.zeros((0, 1), np.int32),
        target_weights_QK=np.zeros((0, 1), np.float32),
    )
