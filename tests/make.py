"""Small valid messages for unit tests; every field can be overridden."""

from typing import Any

import numpy as np

from topd_ray.messages import (
    HIGH,
    PAD,
    HiddenSignal,
    ProbeSet,
    Prompt,
    Rollout,
    ScoredRollout,
)


def prompt(position: int = 0, length: int = 3, **fields: Any) -> Prompt:
    values = {
        "prompt_id": f"p{position}",
        "position": position,
        "token_ids_P": np.arange(6, 6 + length, dtype=np.int32),
        "answer": None,
    }
    return Prompt(**values | fields)


def rollout(
    name: str = "r0", *, prompt_length: int = 3, length: int = 5, **fields: Any
) -> Rollout:
    response_N = (np.arange(length) % 10 + 6).astype(np.int32)
    values = {
        "rollout_id": name,
        "prompt_id": "p0",
        "position": 0,
        "policy_version": 0,
        "prompt_ids_P": np.arange(20, 20 + prompt_length, dtype=np.int32),
        "teacher_prompt_ids_P": np.arange(20, 20 + prompt_length, dtype=np.int32),
        "response_ids_N": response_N,
        "logp_O": np.full(length, -1.0, np.float32),
        "top_ids_OM": response_N[:, None],
        "top_logp_OM": np.full((length, 1), -1.0, np.float32),
        "finish_reason": "stop",
    }
    return Rollout(**values | fields)


def scored(
    name: str = "r0", *, width: int = 4, seed: int = 0, **shape: Any
) -> ScoredRollout:
    read = rollout(name, **shape)
    length = len(read.response_ids_N)
    rng = np.random.default_rng(seed)
    return ScoredRollout(
        rollout=read,
        signal=HiddenSignal(
            hidden_ND=rng.standard_normal((length, width), dtype=np.float32)
        ),
        token_loss_N=rng.random(length, dtype=np.float32),
        logq_N=-rng.random(length, dtype=np.float32),
        entropy_N=rng.random(length, dtype=np.float32),
    )


def probes(
    name: str = "r0",
    *,
    positions: tuple[int, ...] = (1,),
    distances: tuple[float, ...] = (0.5,),
    num_student: tuple[int, ...] = (3,),
    window: int = 4,
    **fields: Any,
) -> ProbeSet:
    """Uniform plans over `num_student` student and `window` teacher tokens."""
    count = len(positions)
    student_WK = np.full((count, window), PAD, np.int32)
    plan_WKK = np.zeros((count, window, window), np.float32)
    for row, rows in enumerate(num_student):
        student_WK[row, :rows] = 7
        plan_WKK[row, :rows] = 1.0 / (rows * window)
    values = {
        "rollout_id": name,
        "policy_version": 0,
        "positions_W": np.array(positions, np.int32),
        "losses_W": np.ones(count, np.float32),
        "groups_W": np.full(count, HIGH, np.int32),
        "resampled": False,
        "student_ids_WK": student_WK,
        "num_student_W": np.array(num_student, np.int32),
        "teacher_ids_WK": np.tile(
            np.arange(30, 30 + window, dtype=np.int32), (count, 1)
        ),
        "num_teacher_W": np.full(count, window, np.int32),
        "plan_WKK": plan_WKK,
        "d_ot_W": np.array(distances, np.float32),
        "converged_W": np.isfinite(np.array(distances)),
    }
    return ProbeSet(**values | fields)
