"""Scored rollouts and their divergent windows -> micro-batches of a token budget, for
each rank.

Axes as in messages.py.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from topd_ray.config import ObjectiveConfig
from topd_ray.messages import (
    Floats,
    Ints,
    ProbeSet,
    ScoredRollout,
    TrainBatch,
)
from topd_ray.windows.rows import Row, make_row
from topd_ray.windows.signals import join_signals, no_signal
from topd_ray.windows.token_weights import token_weights


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

    Every rollout lands in exactly one micro-batch, with its windows; one that is longer
    than `token_budget` has a micro-batch of its own. As few rounds as the budget
    allows, and within them micro-batches of like size, so that no rank waits for
    another. A rank short of work gets empty micro-batches (no trained position);
    without any rollout no rank has a micro-batch. `probes` is None where nothing is
    probed; without lambda_traj they only weigh tokens. Raises ValueError where rollouts
    and probes do not belong together.
    """
    windows = _by_rollout(scored, probes)
    if not scored:
        return [[] for _ in range(num_ranks)]
    weights = token_weights(
        scored, probes, objective=objective, threshold=threshold, run_seed=run_seed
    )
    learned = windows if objective.lambda_traj > 0 else {}
    rows = [
        make_row(one, learned.get(one.rollout.rollout_id), threshold=threshold)
        for one in scored
    ]
    bins = _fill(rows, token_budget, num_ranks)
    batches = [_batch(some, weights) if some else _empty(scored[0]) for some in bins]
    return [batches[rank::num_ranks] for rank in range(num_ranks)]


def _by_rollout(
    scored: Sequence[ScoredRollout], probes: Sequence[ProbeSet] | None
) -> Mapping[str, ProbeSet]:
    windows = {probe.rollout_id: probe for probe in probes or ()}
    rollouts = {one.rollout.rollout_id: one.rollout.policy_version for one in scored}
    if probes is not None and windows.keys() != rollouts.keys():
        odd = sorted(windows.keys() ^ rollouts.keys())
        raise ValueError(
            f"rollouts and probes differ: {odd[:5]} are in only one of them"
        )
    for name, probe in windows.items():
        if probe.policy_version != rollouts[name]:
            raise ValueError(
                f"rollout {name} is of policy_version {rollouts[name]}, "
                f"its probes of {probe.policy_version}"
            )
    return windows


def _fill(rows: Sequence[Row], token_budget: int, num_ranks: int) -> list[list[Row]]:
    """The fewest bins that hold all rows, a multiple of `num_ranks`; the fullest
    first.
    """
    order = sorted(rows, key=lambda row: (-row.num_tokens, row.name))
    total = sum(row.num_tokens for row in rows)
    num_rounds = max(1, math.ceil(total / (token_budget * num_ranks)))
    while (bins := _spread(order, token_budget, num_rounds * num_ranks)) is None:
        num_rounds += 1
    return bins


def _spread(
    order: Sequence[Row], token_budget: int, num_bins: int
) -> list[list[Row]] | None:
    """Each row, longest first, into the emptiest bin; None where one does not fit
    there.
    """
    bins: list[list[Row]] = [[] for _ in range(num_bins)]
    emptiest = [(0, index) for index in range(num_bins)]
    for row in order:
        filled, index = emptiest[0]
        if filled and filled + row.num_tokens > token_budget:
            return None
        bins[index].append(row)
        heapq.heapreplace(emptiest, (filled + row.num_tokens, index))
    return [
        bins[index] for _, index in sorted(emptiest, key=lambda one: (-one[0], one[1]))
    ]


def _batch(rows: Sequence[Row], weights: Mapping[str, Floats]) -> TrainBatch:
    signal = join_signals([row.scored.signal for row in rows])
    window_Q, ids_QK, weights_QK = _joined_targets(rows)
    first_S = accumulate((len(row.length_S) for row in rows[:-1]), initial=0)
    return TrainBatch(
        rollout_ids=tuple(row.name for row in rows),
        policy_version=rows[0].scored.rollout.policy_version,
        input_ids_L=np.concatenate([row.token_ids_L for row in rows]),
        length_S=np.concatenate([row.length_S for row in rows]),
        trunk_S=np.concatenate(
            [
                np.full_like(row.length_S, s)
                for s, row in zip(first_S, rows, strict=True)
            ]
        ),
        branch_S=np.concatenate([row.branch_S for row in rows]),
        position_TU=_positions(rows),
        response_ids_T=np.concatenate(
            [row.scored.rollout.response_ids_N for row in rows]
        ),
        logp_T=np.concatenate([row.scored.rollout.logp_N for row in rows]),
        weight_T=np.concatenate([weights[row.name] for row in rows]),
        signal=signal,
        window_Q=window_Q,
        target_ids_QK=ids_QK,
        target_weights_QK=weights_QK,
    )


def _positions(rows: Sequence[Row]) -> Ints:
    """Indices of what predicts the response tokens of all rows, then their window
    tokens.
    """
    trained, windows, start = [], [], 0
    for row in rows:
        trunk_end, end = start + int(row.length_S[0]), start + row.num_tokens
        num_trained = len(row.scored.rollout.response_ids_N)
        trained.append(np.arange(trunk_end - num_trained, trunk_end, dtype=np.int32))
        windows.append(np.arange(trunk_end, end, dtype=np.int32))
        start = end
    return np.concatenate([*trained, *windows])


def _joined_targets(rows: Sequence[Row]) -> tuple[Ints, Ints, Floats]:
    """`window_Q`, target ids and weights, with every row's own places moved to the
    batch's.
    """
    first_t, first_u = 0, sum(len(row.scored.rollout.response_ids_N) for row in rows)
    places, ids, weights = [np.zeros(0, np.int32)], [], []
    for row in rows:
        num_tokens = len(row.scored.rollout.response_ids_N)
        if row.targets is not None:
            own_Q = row.targets.place_Q
            on_trunk_Q = own_Q < num_tokens
            places.append(
                np.where(on_trunk_Q, first_t + own_Q, first_u + own_Q - num_tokens)
            )
            ids.append(row.targets.ids_QK)
            weights.append(row.targets.weights_QK)
        first_t, first_u = first_t + num_tokens, first_u + row.num_window_tokens
    if not ids:
        return places[0], np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)
    return (
        np.concatenate(places).astype(np.int32),
        np.concatenate(ids),
        np.concatenate(weights),
    )


def _empty(like: ScoredRollout) -> TrainBatch:
    """Nothing to learn, from one token; the rank only takes part in the collectives."""
    none, nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return TrainBatch(
        rollout_ids=(),
        policy_version=like.rollout.policy_version,
        input_ids_L=np.zeros(1, np.int32),
        length_S=np.ones(1, np.int32),
        trunk_S=np.zeros(1, np.int32),
        branch_S=np.zeros(1, np.int32),
        position_TU=none,
        response_ids_T=none,
        logp_T=nothing,
        weight_T=nothing,
        signal=no_signal(like.signal),
        window_Q=none,
        target_ids_QK=np.zeros((0, 1), np.int32),
        target_weights_QK=np.zeros((0, 1), np.float32),
    )
