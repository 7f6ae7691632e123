"""Every probed window of a study as flat columns, and the share of false alarms.

Axes: W windows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from topd_ray.messages import HIGH, LOW, RANDOM, Flags, Floats, Ints, ProbeSet
from topd_ray.statistics import share_below, upper_quartile

GROUP_NAMES = {HIGH: "high loss", RANDOM: "random", LOW: "low loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedWindows:
    """Every solved window of the study; all columns have one entry a window.

    Example: three windows of two rollouts.
        prompts=["p0", "p0", "p1"], rollouts=["p0/0", "p0/0", "p1/0"],
        positions_W=[4, 17, 9], groups_W=[HIGH, LOW, HIGH], d_ot_W=[0.6, 0.0, 0.2]
    """

    prompts: list[str]
    rollouts: list[str]
    positions_W: Ints
    groups_W: Ints
    losses_W: Floats
    """Token loss at the candidate, in nats."""
    d_ot_W: Floats
    student_W: Ints
    """First token of the student's continuation."""
    teacher_W: Ints
    """First token of the teacher's continuation."""
    num_unsolved: int
    """Windows left out, because their plan did not converge."""

    def in_group(self, group: int) -> Flags:
        """Return which windows are of a group."""
        flags: Flags = self.groups_W == group
        return flags

    def prompts_in_group(self, group: int) -> list[str]:
        """Return the prompts of a group's windows, one entry a window."""
        rows = np.flatnonzero(self.in_group(group))
        return [self.prompts[row] for row in rows]

    def keys(self) -> list[tuple[str, int]]:
        """Return rollout and position of each window."""
        positions = [int(position) for position in self.positions_W]
        return list(zip(self.rollouts, positions, strict=True))


def gather(probe_sets: Sequence[ProbeSet], prompts: Mapping[str, str]) -> ProbedWindows:
    """Return the solved windows of all probe sets.

    `prompts` gives the prompt of each rollout id. A window whose plan did not converge
    is counted and left out.
    """
    names: list[str] = []
    rollouts: list[str] = []
    # An empty array first: np.concatenate refuses an empty list.
    positions = [np.zeros(0, np.int32)]
    groups = [np.zeros(0, np.int32)]
    losses = [np.zeros(0, np.float32)]
    distances = [np.zeros(0, np.float32)]
    student = [np.zeros(0, np.int32)]
    teacher = [np.zeros(0, np.int32)]
    num_unsolved = 0
    for probe_set in probe_sets:
        solved = probe_set.converged_W
        num_solved = int(solved.sum())
        num_unsolved += len(solved) - num_solved
        names += [prompts[probe_set.rollout_id]] * num_solved
        rollouts += [probe_set.rollout_id] * num_solved
        positions.append(probe_set.positions_W[solved])
        groups.append(probe_set.groups_W[solved])
        losses.append(probe_set.losses_W[solved])
        distances.append(probe_set.d_ot_W[solved])
        if num_solved:  # a rollout without candidates has windows of no tokens
            student.append(probe_set.student_ids_WK[solved, 0])
            teacher.append(probe_set.teacher_ids_WK[solved, 0])
    return ProbedWindows(
        prompts=names,
        rollouts=rollouts,
        positions_W=np.concatenate(positions),
        groups_W=np.concatenate(groups),
        losses_W=np.concatenate(losses),
        d_ot_W=np.concatenate(distances),
        student_W=np.concatenate(student),
        teacher_W=np.concatenate(teacher),
        num_unsolved=num_unsolved,
    )


def false_alarms(d_ot_W: Floats, groups_W: Ints) -> float:
    """Return the share of high-loss windows that are no farther than low-loss ones.

    A high-loss window counts where its D_OT is at or below the upper quartile of the
    low-loss windows (section 2.1 of the paper). nan where a group is empty.
    """
    quartile = upper_quartile(d_ot_W[groups_W == LOW])
    return share_below(d_ot_W[groups_W == HIGH], quartile)


__all__ = ["GROUP_NAMES", "ProbedWindows", "false_alarms", "gather"]
