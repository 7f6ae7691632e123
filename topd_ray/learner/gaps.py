"""Where in which rollout the learner's log-probability differs from the engine's."""

import numpy as np

from topd_ray.messages import TokenGap, TrainBatch


def token_gap(batch: TrainBatch, at: int, learner_logp: float) -> TokenGap | None:
    """Return the gap at a trained position, with the rollout and place of its token.

    Args:
        batch: The micro-batch.
        at: Index into the T positions; negative where no token was sampled.
        learner_logp: The learner's log-probability there, in nats.

    Returns:
        The gap, or None for a negative index.
    """
    if at < 0:
        return None
    end_S = np.cumsum(batch.length_S)
    place = int(batch.position_TU[at])
    segment = int(np.searchsorted(end_S, place, side="right"))
    # Among the segments, only rollouts are their own trunk.
    is_rollout_S = batch.trunk_S == np.arange(len(end_S))
    start = int(end_S[segment]) - int(batch.length_S[segment])
    return TokenGap(
        rollout_id=batch.rollout_ids[int(is_rollout_S[:segment].sum())],
        # The state at `place` predicts the token behind it.
        index=place - start + 1,
        token_id=int(batch.response_ids_T[at]),
        engine_logp=float(batch.logp_T[at]),
        learner_logp=learner_logp,
    )


__all__ = ["token_gap"]
