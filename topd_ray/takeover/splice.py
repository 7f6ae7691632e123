"""Put the teacher's continuation in the place of the student's tokens. Pure.

Axes as in messages.py.
"""

from dataclasses import replace

import numpy as np

from topd_ray.messages import ScoredRollout, Takeover
from topd_ray.windows.signals import join_signals, rows_of


def taken_over(scored: ScoredRollout, takeover: Takeover | None) -> ScoredRollout:
    """Return the trained response y' = y_<t ++ T, with its signal.

    The student's rows before t stay as they are. The student's tokens predict position
    t. The teacher's tokens are part of the context of every later position.

    Args:
        scored: The student's rollout y.
        takeover: The teacher's continuation T; None where there is no fork.

    Returns:
        A scored rollout of t + L tokens, t of them the student's; `scored` itself
        without a takeover.

    Raises:
        ValueError: The two are not of one rollout, or t lies behind its end.
    """
    if takeover is None:
        return scored
    rollout = scored.rollout
    t = takeover.position
    if (takeover.rollout_id, takeover.policy_version) != (
        rollout.rollout_id,
        rollout.policy_version,
    ):
        raise ValueError(
            f"takeover of rollout {takeover.rollout_id} of policy_version"
            f" {takeover.policy_version} for rollout {rollout.rollout_id} of"
            f" {rollout.policy_version}"
        )
    if t >= len(rollout.response_ids_N):
        raise ValueError(
            f"rollout {rollout.rollout_id}: a takeover at {t} of"
            f" {len(rollout.response_ids_N)} tokens"
        )
    return ScoredRollout(
        rollout=replace(
            rollout,
            response_ids_N=np.concatenate(
                [rollout.response_ids_N[:t], takeover.response_ids_L]
            ),
            logp_O=rollout.logp_O[:t],
            top_ids_OM=rollout.top_ids_OM[:t],
            top_logp_OM=rollout.top_logp_OM[:t],
            finish_reason=takeover.finish_reason,
        ),
        signal=join_signals([rows_of(scored.signal, t), takeover.signal]),
        token_loss_N=np.concatenate([scored.token_loss_N[:t], -takeover.logq_L]),
        logq_N=np.concatenate([scored.logq_N[:t], takeover.logq_L]),
        entropy_N=scored.entropy_N[:0],  # nothing behind this stage asks for it
    )


__all__ = ["taken_over"]
