"""Every probed window of a study, flat, with what the false-alarm line says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topd_ray.messages import HIGH, LOW, RANDOM, Flags, Floats, Ints, ProbeSet
from topd_ray.statistics import share_below, upper_quartile

GROUP_NAMES = {HIGH: "high loss", RANDOM: "random", LOW: "low loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Every solved window of the study, one entry each."""

    prompts: list[str]
    rollouts: list[str]
    positions_W: Ints
    groups_W: Ints
    losses_W: Floats
    d_ot_W: Floats
    student_W: Ints
    """First token of the student's continuation."""
    teacher_W: Ints
    """First token of the teacher's."""
    num_unsolved: int
    """Windows left out, because their plan did not converge."""

    def of(self, group: int) -> Flags:
        """Which windows are of a group."""
        flags: Flags = self.groups_W == group
        return flags


def gather(probes: Sequence[ProbeSet], prompts: dict[str, str]) -> Windows:
    """Flatten; `prompts` says of which prompt a rollout is."""
    solved = [np.flatnonzero(one.converged_W) for one in probes]
    pairs = list(zip(probes, solved, strict=True))

    def joined(column: str, dtype: type[np.generic]) -> np.ndarray:
        parts = [getattr(one, column)[rows] for one, rows in pairs]
        return np.concatenate([np.zeros(0, dtype), *parts])

    return Windows(
        prompts=[prompts[one.rollout_id] for one, rows in pairs for _ in rows],
        rollouts=[one.rollout_id for one, rows in pairs for _ in rows],
        positions_W=joined("positions_W", np.int32),
        groups_W=joined("groups_W", np.int32),
        losses_W=joined("losses_W", np.float32),
        d_ot_W=joined("d_ot_W", np.float32),
        student_W=np.array(
            [one.student_ids_WK[row, 0] for one, rows in pairs for row in rows]
        ),
        teacher_W=np.array(
            [one.teacher_ids_WK[row, 0] for one, rows in pairs for row in rows]
        ),
        num_unsolved=sum(len(one.positions_W) - len(rows) for one, rows in pairs),
    )


def false_alarms(d_ot_W: Floats, groups_W: Ints) -> float:
    """Share of high-loss windows at or below the upper quartile of the low-loss
    ones.
    """
    line = upper_quartile(d_ot_W[groups_W == LOW])
    return share_below(d_ot_W[groups_W == HIGH], line)


__all__ = ["GROUP_NAMES", "Windows", "false_alarms", "gather"]
