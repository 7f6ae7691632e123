"""Find the candidates of a scored rollout, and controls to compare them with.

Axes as in messages.py.
"""

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
    Rollout,
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
    """Return the positions of a rollout that are to be probed.

    The candidates are the positions with the highest token loss (decisions D1, D2). The
    controls of the paper's probing study (section 2.1) come from the same selector: as
    many positions a group as there are candidates, and none in two groups.

    Args:
        scored: The rollout with its token losses.
        config: How many positions, and how many tokens must follow each.
        controls: Groups (RANDOM, LOW) to probe beside the candidates. An earlier group
            picks first.
        run_seed: Together with the rollout id it decides the RANDOM positions.

    Returns:
        The candidates, then each control group; empty where the response is too short,
        and with smaller control groups where positions run out.

    Raises:
        ValueError: `controls` names another group.
    """
    groups = _groups(scored, config, controls, run_seed)
    positions_W = np.concatenate([positions for _, positions in groups])
    return candidate_set(
        scored.rollout,
        positions_W,
        losses_W=scored.token_loss_N[positions_W],
        groups_W=np.repeat(
            np.array([group for group, _ in groups], np.int32),
            [len(positions) for _, positions in groups],
        ),
    )


def candidate_set(
    rollout: Rollout, positions_W: Ints, *, losses_W: Floats, groups_W: Ints
) -> CandidateSet:
    """Return the positions of a rollout, with what a probe of them needs.

    Args:
        rollout: The rollout that they are in.
        positions_W: Places in the response at which windows begin.
        losses_W: Their token losses, nats.
        groups_W: HIGH, RANDOM or LOW each, as in `CandidateSet`.

    Returns:
        A message that shares its arrays with the arguments.
    """
    return CandidateSet(
        rollout_id=rollout.rollout_id,
        policy_version=rollout.policy_version,
        prompt_ids_P=rollout.prompt_ids_P,
        teacher_prompt_ids_P=rollout.teacher_prompt_ids_P,
        response_ids_N=rollout.response_ids_N,
        positions_W=positions_W,
        losses_W=losses_W,
        groups_W=groups_W,
        truncated=rollout.finish_reason == "length",
        cut=rollout.finish_reason == "cut",
    )


def _groups(
    scored: ScoredRollout,
    config: CandidatesConfig,
    controls: Sequence[int],
    run_seed: int,
) -> list[tuple[int, Ints]]:
    """Return each group with its positions, the candidates first."""
    loss_N = scored.token_loss_N
    count = num_to_pick(
        len(loss_N), fraction=config.fraction, min_count=config.min_per_rollout
    )
    high_W = select_positions(loss_N, count=count, min_window=config.min_window)
    groups = [(HIGH, high_W)]
    taken = set(high_W.tolist())
    for group in controls:
        # As many as there are candidates, also where these are fewer than `count`: the
        # groups are compared by their medians and quartiles.
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
    """Return the score of which a control group has the highest, (N,)."""
    if group == LOW:
        return -loss_N
    if group == RANDOM:
        generator = np.random.default_rng(derive_seed(run_seed, rollout_id, "controls"))
        # A position without a loss is no candidate, so it is no control either.
        return np.where(np.isnan(loss_N), np.nan, generator.random(len(loss_N)))
    raise ValueError(
        f"controls={group}: a control group is RANDOM ({RANDOM}) or LOW ({LOW})"
    )
