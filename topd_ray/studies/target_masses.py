"""What does L_traj ask for? The soft targets of divergent windows against the teacher's
own view.

L_traj asks the student, in the context of its *own* window, for the teacher tokens that
transport pairs with it. The plan knows which tokens resemble each other, not which
context they were said in. So each target is held against what the teacher itself would
say in that very context: its first choice, and how likely it finds the student's token.

Axes: W windows, K tokens of a window, V vocabulary ids in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from topd_ray.messages import PAD, ProbeSet, ScoredRollout, TopkSignal
from topd_ray.reports.report import Cell, Table
from topd_ray.statistics import Estimate, bootstrap, mean
from topd_ray.transport import soft_targets
from topd_ray.windows import divergent

BUCKETS = ((0, 1), (1, 5), (5, 15), (15, 50))
"""Window positions reported together: first, and one past the last."""
_RESAMPLES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow:
    """One position of one divergent window."""

    prompt_id: str
    place: int
    """i: 0 is the candidate itself."""
    on_own: float
    """Target's mass on the token the student said there."""
    teacher_on_own: float
    """Teacher's probability of that token, in the student's context."""
    on_choice: float
    """Target's mass on the teacher's first choice in the student's context."""
    teacher_on_choice: float
    """Teacher's probability of its first choice."""


def target_rows(
    probes: Sequence[ProbeSet],
    readings: Mapping[str, ScoredRollout],
    *,
    threshold: float,
) -> list[TargetRow]:
    """A row for each position of each divergent window of rollouts (not of fresh
    windows).

    `readings`: by rollout id, the teacher's top-k signal and its -log p as the token
    loss.
    """
    rows = []
    for one in probes:
        if one.resampled:
            raise ValueError(
                f"rollout {one.rollout_id}: fresh windows have no readings"
            )
        reading = readings[one.rollout_id]
        for window in np.flatnonzero(divergent(one, threshold)):
            rows += _window_rows(one, int(window), reading)
    return rows


def targets_table(rows: Sequence[TargetRow], *, seed: int) -> Table:
    """Means by window position, with intervals from a bootstrap over prompts."""
    cells: list[list[Cell]] = []
    for first, end in BUCKETS:
        inside = [row for row in rows if first <= row.place < end]
        if not inside:
            continue
        name = str(first) if end == first + 1 else f"{first}-{end - 1}"
        cells.append(
            [
                name,
                len(inside),
                *(
                    _mean(inside, field, seed)
                    for field in (
                        "on_own",
                        "teacher_on_own",
                        "on_choice",
                        "teacher_on_choice",
                    )
                ),
            ]
        )
    return Table(
        name="targets",
        title="What L_traj asks for in divergent windows",
        columns=[
            "window position",
            "positions",
            "target's mass on the student's own token",
            "teacher's probability of it",
            "target's mass on the teacher's first choice",
            "teacher's probability of it there",
        ],
        rows=cells,
        note=(
            "All in the context the student is trained in: its own window. Where the"
            " first column of masses exceeds the teacher's probability, L_traj"
            " strengthens what the student did anyway; where the third falls short of"
            " the fourth, it asks for something else than the teacher would say."
        ),
    )


def _window_rows(one: ProbeSet, window: int, reading: ScoredRollout) -> list[TargetRow]:
    signal = reading.signal
    assert isinstance(signal, TopkSignal), "read with teacher.signal=topk"
    count, start = int(one.num_student_W[window]), int(one.positions_W[window])
    target_KL = soft_targets(
        torch.from_numpy(one.plan_WKK[window : window + 1].copy()),
        torch.tensor([count]),
    ).numpy()[0]
    teacher_L = one.teacher_ids_WK[window]
    rows = []
    for place in range(count):
        choice = int(signal.ids_NM[start + place, 0])
        own = int(one.student_ids_WK[window, place])
        rows.append(
            TargetRow(
                prompt_id=reading.rollout.prompt_id,
                place=place,
                on_own=_mass(target_KL[place], teacher_L, own),
                teacher_on_own=float(np.exp(-reading.token_loss_N[start + place])),
                on_choice=_mass(target_KL[place], teacher_L, choice),
                teacher_on_choice=float(np.exp(signal.logq_NM[start + place, 0])),
            )
        )
    return rows


def _mass(target_L: NDArray[np.float32], ids_L: NDArray[np.int32], token: int) -> float:
    return float(target_L[(ids_L == token) & (ids_L != PAD)].sum())


def _mean(rows: Sequence[TargetRow], field: str, seed: int) -> Estimate:
    return bootstrap(
        mean,
        [getattr(row, field) for row in rows],
        seed=seed,
        resamples=_RESAMPLES,
        clusters=[row.prompt_id for row in rows],
    )


__all__ = ["TargetRow", "target_rows", "targets_table"]
