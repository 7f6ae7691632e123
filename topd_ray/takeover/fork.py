"""Find the fork of a rollout: the first position at which the student goes wrong. Pure.

Axes as in messages.py.
"""

import numpy as np

from topd_ray.candidates import candidate_set
from topd_ray.config import CandidatesConfig, TakeoverConfig
from topd_ray.messages import (
    HIGH,
    CandidateSet,
    Flags,
    Floats,
    Ints,
    PartialRollout,
    ProbeSet,
    ScoredRollout,
)
from topd_ray.windows import divergent


def fork_candidates(
    scored: ScoredRollout, config: TakeoverConfig, candidates: CandidatesConfig
) -> CandidateSet:
    """Return the positions among which the verdict looks for the fork.

    Args:
        scored: The rollout, with the teacher's entropies where the verdict needs them.
        config: The verdict and its limits.
        candidates: `min_window`: so many tokens must follow a fork, itself included.

    Returns:
        With `confident` the fork alone, with `d_ot` and `both` the positions to probe,
        with `surprise` every position, whose losses are the surprises, with `always`
        position 0; ascending, and empty where there is none. A rollout that was cut
        ends at its fork: it was found while the student decoded.
    """
    positions_W = _positions(scored, config, candidates.min_window)
    loss_N = scored.token_loss_N
    if config.verdict == "surprise":
        loss_N = surprise(scored.logq_N, scored.entropy_N)
    return candidate_set(
        scored.rollout,
        positions_W,
        losses_W=loss_N[positions_W],
        groups_W=np.full(len(positions_W), HIGH, np.int32),
    )


def fork_ahead(
    partial: PartialRollout,
    logq_N: Floats,
    entropy_N: Floats,
    config: TakeoverConfig,
    threshold: float,
    *,
    min_window: int,
) -> CandidateSet | None:
    """Return the fork of a rollout that is still decoded, once it is certain.

    It is the one that `fork_of` finds in the whole rollout: the first error behind
    which `min_window` tokens are there, itself included.

    Args:
        partial: The rollout's beginning.
        logq_N: The teacher's log-probability of each of its tokens.
        entropy_N: Its entropy at each position, nats.
        config: The verdict, `confident` or `surprise`, and its limits.
        threshold: Nats of surprise above which a token is an error.
        min_window: Fewest tokens from the fork to the end of the rollout.
    """
    if config.verdict == "surprise":
        is_error_N = surprise(logq_N, entropy_N) > threshold
        errors_W = _eligible(is_error_N, min_window)
    else:
        errors_W = unlikely_positions(
            logq_N,
            entropy_N,
            max_prob=config.max_teacher_prob,
            max_entropy=config.max_teacher_entropy,
            min_window=min_window,
        )
    if len(errors_W) == 0:
        return None
    fork = int(errors_W[0])
    return CandidateSet(
        rollout_id=partial.rollout_id,
        policy_version=partial.policy_version,
        prompt_ids_P=partial.prompt_ids_P,
        teacher_prompt_ids_P=partial.teacher_prompt_ids_P,
        response_ids_N=partial.response_ids_N[: fork + 1],
        positions_W=errors_W[:1],
        losses_W=-logq_N[errors_W[:1]],
        groups_W=np.full(1, HIGH, np.int32),
        truncated=False,
        cut=True,
    )


def fork_of(
    candidates: CandidateSet,
    probes: ProbeSet | None,
    config: TakeoverConfig,
    threshold: float,
) -> int | None:
    """Return the position from which the teacher takes over; None: nowhere.

    Args:
        candidates: What `fork_candidates` found.
        probes: The same positions probed, where the verdict asks for D_OT.
        config: The verdict.
        threshold: D_OT above which a position is a real divergence (D7), or nats of
            surprise above which it is an error.
    """
    positions_W = candidates.positions_W
    if candidates.cut:
        positions_W = positions_W[-1:]
    elif probes is not None:
        positions_W = positions_W[divergent(probes, threshold)]
    elif config.verdict == "surprise":
        positions_W = positions_W[candidates.losses_W > threshold]
    return int(positions_W[0]) if len(positions_W) else None


def unlikely_positions(
    logq_N: Floats,
    entropy_N: Floats | None,
    *,
    max_prob: float,
    max_entropy: float,
    min_window: int,
) -> Ints:
    """Return the positions of tokens that the teacher finds unlikely.

    With its entropies, only those at which it is sure: there the student is wrong.
    Elsewhere many words would do.

    Args:
        logq_N: The teacher's log-probability of each response token.
        entropy_N: Its entropy at each position, nats; None asks for no certainty.
        max_prob: A token is unlikely below this probability.
        max_entropy: The teacher is sure below this many nats.
        min_window: Fewest tokens from a position to the end, itself included.

    Returns:
        W positions, ascending.
    """
    is_unlikely_N = logq_N < np.log(max_prob)
    if entropy_N is not None:
        is_unlikely_N &= entropy_N < max_entropy
    return _eligible(is_unlikely_N, min_window)


def surprise(logq_N: Floats, entropy_N: Floats) -> Floats:
    """Return by how much each token surprises the teacher, in nats.

    -log q(y_t) - H(q). The teacher's own words have mean 0. Where many words would do,
    an unlikely word is no surprise.

    Args:
        logq_N: The teacher's log-probability of each response token.
        entropy_N: Its entropy at each position, nats.
    """
    excess_N: Floats = -logq_N - entropy_N
    return excess_N


def _positions(scored: ScoredRollout, config: TakeoverConfig, min_window: int) -> Ints:
    num_tokens = len(scored.logq_N)
    if scored.rollout.finish_reason == "cut":
        first = 0 if config.verdict == "surprise" else num_tokens - 1
        return np.arange(first, num_tokens, dtype=np.int32)
    if config.verdict == "never":
        return np.zeros(0, np.int32)
    if config.verdict == "always":
        return np.zeros(1, np.int32)
    if config.verdict == "surprise":
        return _eligible(np.ones(num_tokens, np.bool_), min_window)
    is_sure = config.verdict in ("confident", "both")
    unlikely_W = unlikely_positions(
        scored.logq_N,
        scored.entropy_N if is_sure else None,
        max_prob=config.max_teacher_prob,
        max_entropy=config.max_teacher_entropy,
        min_window=min_window,
    )
    return unlikely_W[: 1 if config.verdict == "confident" else config.candidates]


def _eligible(is_wanted_N: Flags, min_window: int) -> Ints:
    """Return the wanted positions that `min_window` tokens follow, itself included."""
    num_eligible = max(0, len(is_wanted_N) - min_window + 1)
    return np.flatnonzero(is_wanted_N[:num_eligible]).astype(np.int32)


__all__ = [
    "fork_ahead",
    "fork_candidates",
    "fork_of",
    "surprise",
    "unlikely_positions",
]
