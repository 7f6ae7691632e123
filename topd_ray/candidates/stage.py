"""The candidates of one scored rollout."""

from topd_ray.candidates.select import select_positions
from topd_ray.config import CandidatesConfig
from topd_ray.messages import CandidateSet, ScoredRollout


def find_candidates(scored: ScoredRollout, config: CandidatesConfig) -> CandidateSet:
    """The positions with the highest token loss; none where the response is too short."""
    positions_W = select_positions(
        scored.token_loss_N,
        fraction=config.fraction,
        min_count=config.min_per_rollout,
        min_window=config.min_window,
    )
    rollout = scored.rollout
    return CandidateSet(
        rollout_id=rollout.rollout_id,
        policy_version=rollout.policy_version,
        prompt_ids_P=rollout.prompt_ids_P,
        response_ids_N=rollout.response_ids_N,
        positions_W=positions_W,
        losses_W=scored.token_loss_N[positions_W],
        truncated=rollout.finish_reason == "length",
    )
