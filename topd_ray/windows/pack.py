"""Scored rollouts and their divergent windows -> micro-batches of a token budget, for each rank.

Axes as in messages.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from topd_ray.config import ObjectiveConfig
from topd_ray.messages import (
    PAD,
    Floats,
    Ints,
    ProbeSet,
    ScoredRollout,
    TrainBatch,
    WindowTree,
)
from topd_ray.windows.rows import Row, make_row
from topd_ray.windows.signals import join_signals, no_signal
from topd_ray.windows.weights import token_weights


def pack(
    scored: Sequence[ScoredRollout],
    probes: Sequence[ProbeSet] | None,
    *,
    threshold: float,
    objective: ObjectiveConfig,
    token_budget: int,
    num_ranks: int,
    run_seed: int,
) -> list[list[TrainBatch]]:
    """Micro-batches of each rank, equally many for all: collectives must meet.

    Every rollout lands in exactly one micro-batch, with its windows. Longest first and dealt out in
    turn, so ranks carry alike and rows of a micro-batch are of like length. A rank short of work
    gets empty micro-batches (no trained position); without any rollout no rank has a micro-batch.
    `probes` is None where nothing is probed; without lambda_traj they only weigh tokens. Raises
    ValueError where rollouts and probes do not belong together.
    """
    windows = _by_rollout(scored, probes)
    if not scored:
        return [[] for _ in range(num_ranks)]
    weights = token_weights(
        scored, probes, objective=objective, threshold=threshold, run_seed=run_seed
    )
    learned = windows if objective.lambda_traj > 0 else {}
    rows = [
        make_row(one, learned.get(one.rollout.rollout_id), threshold=threshold) for one in scored
    ]
    order = sorted(rows, key=lambda row: (-len(row.token_ids_L), row.name))
    shares = [order[rank::num_ranks] for rank in range(num_ranks)]
    packed = [[_batch(some, weights) for some in _split(share, token_budget)] for share in shares]
    most = max(len(batches) for batches in packed)
    return [batches + [_empty(scored[0])] * (most - len(batches)) for batches in packed]


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


def _split(share: Sequence[Row], token_budget: int) -> list[list[Row]]:
    """Rows while rows x longest row fits; `share` is sorted, so its first row is the longest."""
    batches: list[list[Row]] = []
    for row in share:
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].token_ids_L) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _batch(rows: Sequence[Row], weights: Mapping[str, Floats]) -> TrainBatch:
    signal = join_signals([row.scored.signal for row in rows])
    window_Q, ids_QK, weights_QK = _joined_targets(rows)
    return TrainBatch(
        rollout_ids=tuple(row.name for row in rows),
        policy_version=rows[0].scored.rollout.policy_version,
        input_ids_RL=_padded([row.token_ids_L for row in rows], 0),
        lengths_R=np.array([len(row.token_ids_L) for row in rows], dtype=np.int32),
        tree=_tree(rows),
        position_TU=_positions(rows),
        response_ids_T=np.concatenate([row.scored.rollout.response_ids_N for row in rows]),
        logp_T=np.concatenate([row.scored.rollout.logp_N for row in rows]),
        weight_T=np.concatenate([weights[row.name] for row in rows]),
        signal=signal,
        window_Q=window_Q,
        target_ids_QK=ids_QK,
        target_weights_QK=weights_QK,
    )


def _positions(rows: Sequence[Row]) -> Ints:
    """Flat indices of what predicts the response tokens of all rows, then their window tokens."""
    width = max(len(row.token_ids_L) for row in rows)
    trained, windows = [], []
    for index, row in enumerate(rows):
        start, trunk_end = index * width, index * width + row.trunk
        num_tokens = len(row.scored.rollout.response_ids_N)
        trained.append(np.arange(trunk_end - num_tokens, trunk_end, dtype=np.int32))
        windows.append(np.arange(trunk_end, start + len(row.token_ids_L), dtype=np.int32))
    return np.concatenate([*trained, *windows])


def _tree(rows: Sequence[Row]) -> WindowTree | None:
    if not any(row.num_window_tokens for row in rows):
        return None
    return WindowTree(
        segment_RL=_padded([row.segment_L for row in rows], PAD),
        branch_RL=_padded([row.branch_L for row in rows], 0),
        place_RL=_padded([row.place_L for row in rows], 0),
    )


def _padded(parts: Sequence[Ints], fill: int) -> Ints:
    padded_RL = np.full((len(parts), max(map(len, parts))), fill, dtype=np.int32)
    for row_L, part in zip(padded_RL, parts, strict=True):
        row_L[: len(part)] = part
    return padded_RL


def _joined_targets(rows: Sequence[Row]) -> tuple[Ints, Ints, Floats]:
    """`window_Q`, target ids and weights, with every row's own places moved to the batch's."""
    first_t, first_u = 0, sum(len(row.scored.rollout.response_ids_N) for row in rows)
    places, ids, weights = [np.zeros(0, np.int32)], [], []
    for row in rows:
        num_tokens = len(row.scored.rollout.response_ids_N)
        if row.targets is not None:
            own_Q = row.targets.place_Q
            on_trunk_Q = own_Q < num_tokens
            places.append(np.where(on_trunk_Q, first_t + own_Q, first_u + own_Q - num_tokens))
            ids.append(row.targets.ids_QK)
            weights.append(row.targets.weights_QK)
        first_t, first_u = first_t + num_tokens, first_u + row.num_window_tokens
    if not ids:
        return places[0], np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)
    return np.concatenate(places).astype(np.int32), np.concatenate(ids), np.concatenate(weights)


def _empty(like: ScoredRollout) -> TrainBatch:
    """Nothing to learn, in one row of one token; the rank only takes part in the collectives."""
    none, nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return TrainBatch(
        rollout_ids=(),
        policy_version=like.rollout.policy_version,
        input_ids_RL=np.zeros((1, 1), np.int32),
        lengths_R=np.ones(1, np.int32),
        tree=None,
        position_TU=none,
        response_ids_T=none,
        logp_T=nothing,
        weight_T=nothing,
        signal=no_signal(like.signal),
        window_Q=none,
        target_ids_QK=np.zeros((0, 1), np.int32),
        target_weights_QK=np.zeros((0, 1), np.float32),
    )
