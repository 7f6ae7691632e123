"""What L_traj trains towards, held against what the teacher itself would say.

In the context of its *own* window, L_traj trains the student towards the teacher tokens
that transport pairs with it. The plan knows which tokens resemble each other, not in
which context they were decoded. So each target is compared with the teacher's
distribution in that very context: its first choice, and its probability of the
student's token.

Axes: W windows, K tokens of a window, L teacher tokens of a window.
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
"""Window positions reported together: the first, and one past the last."""
_MASSES = ("on_own", "teacher_on_own", "on_choice", "teacher_on_choice")
_RESAMPLES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow:
    """Masses at one position of one divergent window; all are shares from 0 to 1.

    Example: the student said "3"; the soft target gives 0.25 to "3" and 0.75 to "4";
    the teacher gives 0.1 to "3" and 0.9 to "4" in the same context.
        TargetRow(prompt_id="p0", place=0, on_own=0.25, teacher_on_own=0.1,
                  on_choice=0.75, teacher_on_choice=0.9)
    """

    prompt_id: str
    place: int
    """Position in the window; 0 is the candidate itself."""
    on_own: float
    """Mass of the target on the token that the student said there."""
    teacher_on_own: float
    """The teacher's probability of that token, in the student's context."""
    on_choice: float
    """Mass of the target on the teacher's first choice in the student's context."""
    teacher_on_choice: float
    """The teacher's probability of its first choice."""


def target_rows(
    probe_sets: Sequence[ProbeSet],
    readings: Mapping[str, ScoredRollout],
    *,
    threshold: float,
) -> list[TargetRow]:
    """Return a row for each position of each divergent window.

    `readings` holds, by rollout id, the teacher's top-k signal and its -log p as the
    token loss. Raises ValueError for a probe set of resampled windows: the readings are
    of the rollout's own tokens.
    """
    rows = []
    for probe_set in probe_sets:
        if probe_set.resampled:
            raise ValueError(
                f"rollout {probe_set.rollout_id}: fresh windows have no readings"
            )
        reading = readings[probe_set.rollout_id]
        for window in np.flatnonzero(divergent(probe_set, threshold)):
            rows += _window_rows(probe_set, int(window), reading)
    return rows


def targets_table(rows: Sequence[TargetRow], *, seed: int) -> Table:
    """Return means by window position, with intervals from a bootstrap over prompts."""
    cells: list[list[Cell]] = []
    for first, end in BUCKETS:
        inside = [row for row in rows if first <= row.place < end]
        # A short window has no late positions.
        if not inside:
            continue
        name = str(first) if end == first + 1 else f"{first}-{end - 1}"
        means = [_mean(inside, mass, seed) for mass in _MASSES]
        cells.append([name, len(inside), *means])
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


def _window_rows(
    probe_set: ProbeSet, window: int, reading: ScoredRollout
) -> list[TargetRow]:
    signal = reading.signal
    assert isinstance(signal, TopkSignal), "read with teacher.signal=topk"
    count = int(probe_set.num_student_W[window])
    start = int(probe_set.positions_W[window])
    target_KL = soft_targets(
        # torch warns of read-only arrays, which messages are
        torch.from_numpy(probe_set.plan_WKK[window : window + 1].copy()),
        torch.tensor([count]),
    ).numpy()[0]
    teacher_L = probe_set.teacher_ids_WK[window]
    rows = []
    for place in range(count):
        choice = int(signal.ids_NM[start + place, 0])
        own = int(probe_set.student_ids_WK[window, place])
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
    """Return the mass on a token: the teacher may have said it several times."""
    return float(target_L[(ids_L == token) & (ids_L != PAD)].sum())


def _mean(rows: Sequence[TargetRow], mass: str, seed: int) -> Estimate:
    return bootstrap(
        mean,
        [getattr(row, mass) for row in rows],
        seed=seed,
        resamples=_RESAMPLES,
        clusters=[row.prompt_id for row in rows],
    )


__all__ = ["TargetRow", "target_rows", "targets_table"]
