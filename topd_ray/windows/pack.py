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
    Flags,
    Floats,
    Ints,
    ProbeSet,
    Rollout,
    ScoredRollout,
    TrainBatch,
)
from topd_ray.windows.rows import Row, make_row
from topd_ray.windows.signals import join_signals
from topd_ray.windows.token_weights import token_weights


def pack(
    scored: Sequence[ScoredRollout],
    probes: Sequence[ProbeSet] | None,
    *,
    threshold: float,
    objective: ObjectiveConfig,
    token_budget: int,
    run_seed: int,
    at_least: int = 1,
) -> list[TrainBatch]:
    """Return the micro-batches of one learner rank, the largest first.

    Every rollout is in exactly one micro-batch, together with its windows. There are as
    few micro-batches as the budget allows, of similar sizes.

    Args:
        scored: The rank's scored rollouts.
        probes: The probed windows of each rollout; None where nothing is probed.
            Without `lambda_traj` they only weigh tokens.
        threshold: Transport distance above which a window diverges.
        objective: The losses, and how tokens are weighed and selected.
        token_budget: Most tokens of a micro-batch (prompts, responses and windows). A
            rollout that is longer has a micro-batch to itself.
        run_seed: Seed of the run, for the random selection of tokens.
        at_least: Number of micro-batches of the fullest rank: this one has as many,
            where it has as many rollouts.

    Returns:
        The micro-batches, none of them empty; [] without rollouts.

    Raises:
        ValueError: Rollouts and probes do not belong together.
    """
    windows = _by_rollout(scored, probes)
    if not scored:
        return []
    weights = token_weights(
        scored, probes, objective=objective, threshold=threshold, run_seed=run_seed
    )
    trained_windows = windows if objective.lambda_traj > 0 else {}
    rows = [
        make_row(
            rollout,
            trained_windows.get(rollout.rollout.rollout_id),
            threshold=threshold,
        )
        for rollout in scored
    ]
    return [
        _batch(bin_rows, weights, objective)
        for bin_rows in _fill(rows, token_budget, at_least)
    ]


def _by_rollout(
    scored: Sequence[ScoredRollout], probes: Sequence[ProbeSet] | None
) -> Mapping[str, ProbeSet]:
    windows = {probe.rollout_id: probe for probe in probes or ()}
    rollouts = {row.rollout.rollout_id: row.rollout.policy_version for row in scored}
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


def _fill(rows: Sequence[Row], token_budget: int, at_least: int) -> list[list[Row]]:
    """Return the fewest bins that hold all rows, the fullest first."""
    order = sorted(rows, key=lambda row: (-row.num_tokens, row.name))
    total = sum(row.num_tokens for row in rows)
    # Rows beyond the budget could ask for more bins than there are rows.
    num_bins = min(len(rows), max(at_least, math.ceil(total / token_budget)))
    while (bins := _spread(order, token_budget, num_bins)) is None:
        num_bins += 1
    return bins


def _spread(
    order: Sequence[Row], token_budget: int, num_bins: int
) -> list[list[Row]] | None:
    """Put each row, longest first, into the emptiest bin.

    Returns None where a row does not fit there.
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
        bins[index]
        for _, index in sorted(emptiest, key=lambda item: (-item[0], item[1]))
    ]


def _batch(
    rows: Sequence[Row], weights: Mapping[str, Floats], objective: ObjectiveConfig
) -> TrainBatch:
    signal = join_signals([row.scored.signal for row in rows])
    masks = [which_kl(row.scored.rollout, objective) for row in rows]
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
        logp_T=np.concatenate([_logp(row.scored.rollout) for row in rows]),
        weight_T=np.concatenate([weights[row.name] for row in rows]),
        reverse_T=np.concatenate([reverse_N for reverse_N, _ in masks]),
        forward_T=np.concatenate([forward_N for _, forward_N in masks]),
        signal=signal,
        window_Q=window_Q,
        target_ids_QK=ids_QK,
        target_weights_QK=weights_QK,
    )


def which_kl(rollout: Rollout, objective: ObjectiveConfig) -> tuple[Flags, Flags]:
    """Return at which response positions reverse and forward KL count.

    With t own tokens of the student: reverse KL before t, forward KL behind it, both at
    t, whose context is still the student's own; with `mix` both everywhere. A response
    without an own token has no fork: it is the teacher's answer from the first token.

    Args:
        rollout: The trained response.
        objective: `trajectory` and `mix`.

    Returns:
        Two arrays (N,), reverse and forward; both (0,) where every position has the
        objective's divergence.
    """
    if objective.trajectory != "takeover":
        return np.zeros(0, np.bool_), np.zeros(0, np.bool_)
    place_N = np.arange(len(rollout.response_ids_N))
    t = rollout.num_own
    is_fork_N = (place_N == t) & (t > 0)
    return (
        (place_N < t) | is_fork_N | objective.mix,
        (place_N >= t) | objective.mix,
    )


def _logp(rollout: Rollout) -> Floats:
    """Return the student's log-probabilities when it sampled, inf elsewhere, (N,)."""
    logp_N = np.full(len(rollout.response_ids_N), np.inf, np.float32)
    logp_N[: rollout.num_own] = rollout.logp_O
    return logp_N


def _positions(rows: Sequence[Row]) -> Ints:
    """Return indices of what predicts the response tokens of all rows, then of their
    windows.
    """
    trained = []
    windows = []
    start = 0
    for row in rows:
        trunk_end = start + int(row.length_S[0])
        end = start + row.num_tokens
        num_trained = len(row.scored.rollout.response_ids_N)
        trained.append(np.arange(trunk_end - num_trained, trunk_end, dtype=np.int32))
        windows.append(np.arange(trunk_end, end, dtype=np.int32))
        start = end
    return np.concatenate([*trained, *windows])


def _joined_targets(rows: Sequence[Row]) -> tuple[Ints, Ints, Floats]:
    """Return `window_Q`, target ids and weights, every row's places moved to the
    batch's.
    """
    first_t = 0
    first_u = sum(len(row.scored.rollout.response_ids_N) for row in rows)
    places = [np.zeros(0, np.int32)]
    ids = []
    weights = []
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
        first_t = first_t + num_tokens
        first_u = first_u + row.num_window_tokens
    if not ids:
        return places[0], np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)
    return (
        np.concatenate(places).astype(np.int32),
        np.concatenate(ids),
        np.concatenate(weights),
    )
