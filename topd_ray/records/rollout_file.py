"""A draw of a step's rollouts, token by token, as Parquet: the columns of `SCHEMA`."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from topd_ray.messages import ScoredRollout, Takeover

SCHEMA = pa.schema(
    [
        ("rollout_id", pa.string()),
        ("prompt_id", pa.string()),
        ("policy_version", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("num_own", pa.int32()),
        ("finish_reason", pa.string()),
        ("token_loss", pa.list_(pa.float32())),
        ("logp", pa.list_(pa.float32())),
        ("logq", pa.list_(pa.float32())),
        ("takeover_position", pa.int32()),
        ("takeover_ids", pa.list_(pa.int32())),
    ]
)
"""One row a rollout.

`prompt_ids` is the student's prompt. `response_ids` is the response as it was scored:
before a takeover, after a rewrite. Its first `num_own` tokens are the student's;
`logp`, nats, is of these alone, `token_loss` (D1) and `logq` are of all. From
`takeover_position` on the student is trained on `takeover_ids` instead; null: on the
response.
"""


def rollout_row(scored: ScoredRollout, takeover: Takeover | None) -> dict[str, Any]:
    """Return the row of a rollout; `scored` is from before the takeover.

    The arrays are copies: a view would keep the message in the object store.
    """
    rollout = scored.rollout
    return {
        "rollout_id": rollout.rollout_id,
        "prompt_id": rollout.prompt_id,
        "policy_version": rollout.policy_version,
        "prompt_ids": rollout.prompt_ids_P.copy(),
        "response_ids": rollout.response_ids_N.copy(),
        "num_own": rollout.num_own,
        "finish_reason": rollout.finish_reason,
        "token_loss": scored.token_loss_N.copy(),
        "logp": rollout.logp_O.copy(),
        "logq": scored.logq_N.copy(),
        "takeover_position": None if takeover is None else takeover.position,
        "takeover_ids": None if takeover is None else takeover.response_ids_L.copy(),
    }


def rollout_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return the table of a step."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


__all__ = ["SCHEMA", "rollout_row", "rollout_table"]
