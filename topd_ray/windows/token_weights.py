"""How much each response token's loss counts: selection and down-weighting, over one
chunk.

Axes as in messages.py. The result does not depend on the order of rollouts or probes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from topd_ray.config import ObjectiveConfig
from topd_ray.messages import Floats, ProbeSet, ScoredRollout
from topd_ray.seeds import derive_seed
from topd_ray.windows.verdict import divergent, false_alarm

Places = list[tuple[str, int]]
"""Rollout id and response position of some tokens."""


def token_weights(
    scored: Sequence[ScoredRollout],
    probes: Sequence[ProbeSet] | None,
    *,
    objective: ObjectiveConfig,
    threshold: float,
    run_seed: int,
) -> dict[str, Floats]:
    """The weights (N,) of every rollout's tokens, by rollout id; 1 where nothing says
    otherwise.

    `select: entropy_divergence` gives 1 to the `select_fraction` of a rollout's tokens
    that are highest in student entropy x token loss, and 0 to the others. `downweight`
    multiplies the weight of each token it is about by min(1, median token loss of its
    rollout / the token's loss): its term counts as much as the median (paper, table 2)
    and keeps its gradient, which a clamp would take away. `low_ot` is about the
    candidates at or below the threshold, `matched_high_ot` about exactly as many of the
    chunk's candidates above it (all of them, where there are fewer). Raises ValueError
    where tokens are to be down-weighted without probes.
    """
    weights = {one.rollout.rollout_id: _selection(one, objective) for one in scored}
    if objective.downweight == "none":
        return weights
    if probes is None:
        raise ValueError(f"objective.downweight={objective.downweight} without probes")
    places = _false_alarms(probes, threshold)
    if objective.downweight == "matched_high_ot":
        places = _matched(places, probes, threshold, run_seed)
    losses = {one.rollout.rollout_id: one.token_loss_N for one in scored}
    for name, t in places:
        weights[name][t] *= _cap(float(losses[name][t]), median=_median(losses[name]))
    return weights


def student_entropy(top_logp_NM: Floats) -> NDArray[np.float64]:
    """Entropy in nats of the student's top ids and one bucket for all others: (N,).

    A lower bound of the entropy over the vocabulary V, which lies at most p(tail) *
    log(V - M) above; equal to it where the top ids are all ids.
    """
    p_NM = np.exp(top_logp_NM.astype(np.float64))
    tail_N1 = np.clip(1 - p_NM.sum(1, keepdims=True), 0, None)
    p_NB = np.concatenate([p_NM, tail_N1], axis=1)
    entropy_N: NDArray[np.float64] = -(p_NB * np.log(np.where(p_NB > 0, p_NB, 1))).sum(
        1
    )
    return entropy_N


def _selection(one: ScoredRollout, objective: ObjectiveConfig) -> Floats:
    """1 for the selected tokens; ties go to the earlier one, nan comes last."""
    loss_N = one.token_loss_N
    if objective.select == "all":
        return np.ones(len(loss_N), np.float32)
    score_N = student_entropy(one.rollout.top_logp_NM) * loss_N
    count = max(1, round(objective.select_fraction * len(loss_N)))
    weight_N = np.zeros(len(loss_N), np.float32)
    weight_N[np.argsort(-score_N, kind="stable")[:count]] = 1
    return weight_N


def _false_alarms(probes: Sequence[ProbeSet], threshold: float) -> Places:
    return [
        (one.rollout_id, int(t))
        for one in probes
        for t in one.positions_W[false_alarm(one, threshold)]
    ]


def _matched(
    low: Places, probes: Sequence[ProbeSet], threshold: float, run_seed: int
) -> Places:
    """As many candidates above the threshold as `low` holds, at random.

    Each rollout gives as many as it has in `low`; what one cannot give, the whole
    chunk's leftover candidates do.
    """
    shares = _shares(low)
    chosen: Places = []
    leftover: Places = []
    for one in probes:
        above = [
            (one.rollout_id, int(t)) for t in one.positions_W[divergent(one, threshold)]
        ]
        above = _shuffled(above, run_seed)
        share = shares.get(one.rollout_id, 0)
        chosen += above[:share]
        leftover += above[share:]
    return chosen + _shuffled(leftover, run_seed)[: len(low) - len(chosen)]


def _shares(places: Places) -> Mapping[str, int]:
    shares: dict[str, int] = {}
    for name, _ in places:
        shares[name] = shares.get(name, 0) + 1
    return shares


def _shuffled(places: Places, run_seed: int) -> Places:
    """In an order that each place's own seed decides, whatever order they come in."""
    return sorted(
        places, key=lambda place: (derive_seed(run_seed, *place, "downweight"), *place)
    )


def _median(loss_N: Floats) -> float:
    """Of the losses that are numbers; nan where none is."""
    known_N = loss_N[~np.isnan(loss_N)]
    return float(np.median(known_N)) if len(known_N) else math.nan


def _cap(loss: float, *, median: float) -> float:
    """The factor that brings a loss down to the median; 0 for a median that is no
    positive loss.

    1 where the loss is not above the median, or one of them is nan: nothing is known to
    be capped.
    """
    if not loss > median:
        return 1.0
    return median / loss if median > 0 else 0.0
