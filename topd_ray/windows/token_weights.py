"""The weight of each response token's loss: selection and down-weighting.

Axes: N response tokens of a rollout, M ids of the student kept a position, B those ids
and a bucket for the rest. The result does not depend on the order of rollouts or
probes.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from topd_ray.config import ObjectiveConfig
from topd_ray.messages import Floats, ProbeSet, ScoredRollout
from topd_ray.seeds import derive_seed
from topd_ray.windows.verdict import divergent, false_alarm

TokenPlaces = list[tuple[str, int]]
"""Tokens, each by rollout id and response position."""


def token_weights(
    scored: Sequence[ScoredRollout],
    probes: Sequence[ProbeSet] | None,
    *,
    objective: ObjectiveConfig,
    threshold: float,
    run_seed: int,
) -> dict[str, Floats]:
    """Return the weights of the tokens of each rollout of one chunk.

    A weight is 1, unless one of two settings says otherwise; both together multiply.

    `select: entropy_divergence` works **per rollout**: of its N tokens, the
    `select_fraction` with the highest student entropy x token loss keep 1, the others
    get 0.

    `downweight` multiplies the weight of some tokens by min(1, m / loss), m the median
    token loss **of their rollout**. Their term then counts as much as the median, as in
    the paper (section 5.1, table 2), and keeps its gradient, which a clamp would take
    away. Which tokens:

    - `low_ot`: the false alarms of each rollout, candidates with D_OT <= threshold.
    - `matched_high_ot`: as many divergent candidates as the **chunk** has false alarms,
      drawn at random. Each rollout gives as many as it has false alarms itself; what it
      lacks is drawn from the remaining candidates of the whole chunk. All of them where
      the chunk has fewer. So the config refuses it with several learner ranks, of
      which each packs a share of a chunk.

    Args:
        scored: The rollouts of the chunk.
        probes: Their windows, one set a rollout; None when the run does not probe.
        objective: The settings `select`, `select_fraction` and `downweight`.
        threshold: D_OT above which a candidate is divergent.
        run_seed: Together with rollout id and position it decides the random draw.

    Returns:
        Weights of shape (N,), in [0, 1], by rollout id. They are not normalised: the
        loss is divided by the number of tokens, not by the sum of weights.

    Raises:
        ValueError: Tokens are to be down-weighted and `probes` is None.
    """
    weights = {
        scored_rollout.rollout.rollout_id: _selection(scored_rollout, objective)
        for scored_rollout in scored
    }
    if objective.downweight == "none":
        return weights
    if probes is None:
        raise ValueError(f"objective.downweight={objective.downweight} without probes")
    places = _false_alarms(probes, threshold)
    if objective.downweight == "matched_high_ot":
        places = _matched(places, probes, threshold, run_seed)
    losses = {
        scored_rollout.rollout.rollout_id: scored_rollout.token_loss_N
        for scored_rollout in scored
    }
    for name, t in places:
        weights[name][t] *= _cap(float(losses[name][t]), median=_median(losses[name]))
    return weights


def student_entropy(top_logp_NM: Floats) -> NDArray[np.float64]:
    """Return the entropy of the student's top ids and one bucket for all others.

    A lower bound of the entropy over the vocabulary of V ids, which lies at most
    p_tail * log(V - M) above; equal to it when the top ids are all ids.

    Args:
        top_logp_NM: Log-probabilities of the student's likeliest ids; -inf where there
            are fewer than M.

    Returns:
        Nats a position, of shape (N,).
    """
    p_NM = np.exp(top_logp_NM.astype(np.float64))
    # Rounding can make the top ids sum to more than 1.
    tail_N1 = np.clip(1 - p_NM.sum(1, keepdims=True), 0, None)
    p_NB = np.concatenate([p_NM, tail_N1], axis=1)
    log_p_NB = np.log(np.where(p_NB > 0, p_NB, 1))
    entropy_N: NDArray[np.float64] = -(p_NB * log_p_NB).sum(1)
    return entropy_N


def _selection(scored: ScoredRollout, objective: ObjectiveConfig) -> Floats:
    """Return 1 for the selected tokens; ties go to the earlier one, nan comes last."""
    loss_N = scored.token_loss_N
    if objective.select == "all":
        return np.ones(len(loss_N), np.float32)
    score_N = student_entropy(scored.rollout.top_logp_OM) * loss_N
    count = max(1, round(objective.select_fraction * len(loss_N)))
    weight_N = np.zeros(len(loss_N), np.float32)
    weight_N[np.argsort(-score_N, kind="stable")[:count]] = 1
    return weight_N


def _false_alarms(probes: Sequence[ProbeSet], threshold: float) -> TokenPlaces:
    places: TokenPlaces = []
    for probe_set in probes:
        positions = probe_set.positions_W[false_alarm(probe_set, threshold)].tolist()
        places += [(probe_set.rollout_id, t) for t in positions]
    return places


def _matched(
    low: TokenPlaces, probes: Sequence[ProbeSet], threshold: float, run_seed: int
) -> TokenPlaces:
    """Return as many divergent candidates as `low` holds, at random.

    Each rollout gives as many as it has in `low`. What it lacks is drawn from the
    candidates that other rollouts have left.
    """
    shares = Counter(name for name, _ in low)
    chosen: TokenPlaces = []
    leftover: TokenPlaces = []
    for probe_set in probes:
        positions = probe_set.positions_W[divergent(probe_set, threshold)].tolist()
        above = _shuffled([(probe_set.rollout_id, t) for t in positions], run_seed)
        share = shares[probe_set.rollout_id]
        chosen += above[:share]
        leftover += above[share:]
    return chosen + _shuffled(leftover, run_seed)[: len(low) - len(chosen)]


def _shuffled(places: TokenPlaces, run_seed: int) -> TokenPlaces:
    """Return the places in random order, the same for any order that they come in."""
    # Sorted by each place's seed: a generator's shuffle would depend on which probe
    # came back first.
    return sorted(
        places, key=lambda place: (derive_seed(run_seed, *place, "downweight"), *place)
    )


def _median(loss_N: Floats) -> float:
    """Return the median of the losses that are not nan; nan where all are."""
    known_N = loss_N[~np.isnan(loss_N)]
    return float(np.median(known_N)) if len(known_N) else math.nan


def _cap(loss: float, *, median: float) -> float:
    """Return the factor that brings a loss down to the median.

    1 when the loss is not above the median, or one of them is nan; 0 when the median is
    not positive, because no positive factor gets there.
    """
    if not loss > median:
        return 1.0
    return median / loss if median > 0 else 0.0
