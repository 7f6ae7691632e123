"""The candidates of one scored rollout, and the positions they are compared with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from topd_ray.candidates.select import num_to_pick, select_positions
from topd_ray.config import CandidatesConfig
from topd_ray.messages import (
    HIGH,
    LOW,
    RANDOM,
    CandidateSet,
    Floats,
    Ints,
    ScoredRollout,
)
from topd_ray.seeds import derive_seed


def find_candidates(
    scored: ScoredRollout,
    config: CandidatesConfig,
    *,
    controls: Sequence[int] = (),
    run_seed: int,
) -> CandidateSet:
    """The positions with the highest token loss; none where the response is too short.

    `controls` names the groups (RANDOM, LOW) that are probed beside them: as many
    positions each, none in two groups, fewer where the response has no more; an earlier
    control picks first. The random ones depend on run seed and rollout id alone.
    """
    groups = _groups(scored, config, controls, run_seed)
    positions_W = np.concatenate([positions for _, positions in groups])
    rollout = scored.rollout
    return CandidateSet(
        rollout_id=rollout.rollout_id,
        policy_version=rollout.policy_version,
        prompt_ids_P=rollout.prompt_ids_P,
        teacher_prompt_ids_P=rollout.teacher_prompt_ids_P,
        response_ids_N=rollout.response_ids_N,
        positions_W=positions_W,
        losses_W=scored.token_loss_N[positions_W],
        groups_W=np.repeat(
            np.array([group for group, _ in groups], np.int32),
            [len(positions) for _, positions in groups],
        ),
        truncated=rollout.finish_reason == "length",
    )


def _groups(
    scored: ScoredRollout,
    config: CandidatesConfig,
    controls: Sequence[int],
    run_seed: int,
) -> list[tuple[int, Ints]]:
    """Each group with its positions, the candidates first."""
    loss_N = scored.token_loss_N
    count = num_to_pick(
        len(loss_N), fraction=config.fraction, min_count=config.min_per_rollout
    )
    high_W = select_positions(loss_N, count=count, min_window=config.min_window)
    groups, taken = [(HIGH, high_W)], set(high_W.tolist())
    for group in controls:
        positions_W = select_positions(
            _control_score(group, loss_N, run_seed, scored.rollout.rollout_id),
            count=len(high_W),
            min_window=config.min_window,
            taken=taken,
        )
        groups.append((group, positions_W))
        taken.update(positions_W.tolist())
    return groups


def _control_score(
    group: int, loss_N: Floats, run_seed: int, rollout_id: str
) -> NDArray[np.float32] | NDArray[np.float64]:
    """What a control group has most of; nan, like the loss, where a position has no
    loss.
    """
    if group == LOW:
        return -loss_N
    if group == RANDOM:
        noise_N = np.random.default_rng(derive_seed(run_seed, rollout_id, "controls"))
        return np.where(np.isnan(loss_N), np.nan, noise_N.random(len(loss_N)))
    raise ValueError(
        f"controls={group}: a control group is RANDOM ({RANDOM}) or LOW ({LOW})"
    )
