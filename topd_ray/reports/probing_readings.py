"""Windows of each kind of token to read.

Axes: W windows.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from topd_ray.messages import HIGH, CandidateSet, ProbeSet
from topd_ray.reports.report import Table
from topd_ray.reports.token_kinds import Spell, find_kinds

_TOKENS_BEFORE = 24
"""Tokens of the response that are shown before a window."""


def readings_table(
    candidate_sets: Sequence[CandidateSet],
    probe_sets: Sequence[ProbeSet],
    patterns: Mapping[str, str],
    spell: Spell,
    *,
    count: int,
    seed: int,
) -> Table:
    """Return `count` high-loss windows of each kind with both continuations as text.

    They are drawn at random and ordered by D_OT.
    """
    rows = list(_high_rows(candidate_sets, probe_sets))
    first_W = np.array([probe.student_ids_WK[row, 0] for _, probe, row in rows])
    kinds = find_kinds(first_W, patterns, spell)
    random = np.random.default_rng(seed)
    cells = []
    for kind in kinds.names:
        mine = np.flatnonzero(kinds.of_W == kind)
        drawn = random.choice(mine, min(count, len(mine)), replace=False)
        by_distance = sorted(drawn, key=lambda i: float(rows[i][1].d_ot_W[rows[i][2]]))
        for i in by_distance:
            candidates, probe_set, row = rows[i]
            cells.append((kind, *_reading(candidates, probe_set, row, spell)))
    return Table(
        name="readings",
        title="Windows to read",
        columns=(
            "student's token",
            "D_OT",
            "loss",
            "the response before",
            "the student goes on",
            "the teacher goes on",
        ),
        rows=cells,
        note=(
            "High-loss windows drawn at random, of each kind at most"
            f" {count}, ordered by D_OT."
        ),
    )


def _high_rows(
    candidate_sets: Sequence[CandidateSet], probe_sets: Sequence[ProbeSet]
) -> Iterator[tuple[CandidateSet, ProbeSet, int]]:
    for candidates, probe_set in zip(candidate_sets, probe_sets, strict=True):
        is_kept_W = probe_set.converged_W & (probe_set.groups_W == HIGH)
        for row in np.flatnonzero(is_kept_W):
            yield candidates, probe_set, int(row)


def _reading(
    candidates: CandidateSet, probe_set: ProbeSet, row: int, spell: Spell
) -> tuple[float, float, str, str, str]:
    position = int(probe_set.positions_W[row])
    before = candidates.response_ids_N[max(0, position - _TOKENS_BEFORE) : position]
    student = probe_set.student_ids_WK[row, : probe_set.num_student_W[row]]
    teacher = probe_set.teacher_ids_WK[row, : probe_set.num_teacher_W[row]]
    texts = [
        spell(ids.tolist()).replace("\n", "\u23ce")
        for ids in (before, student, teacher)
    ]
    return (
        float(probe_set.d_ot_W[row]),
        float(probe_set.losses_W[row]),
        texts[0],
        texts[1],
        texts[2],
    )


__all__ = ["readings_table"]
