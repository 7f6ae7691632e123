"""Kinds of tokens, and windows of each kind to read.

Axes: W windows.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topd_ray.messages import HIGH, CandidateSet, Flags, Ints, ProbeSet
from topd_ray.reports.report import Table

OTHER = "other"
"""The kind of a token that no expression matches."""

_TOKENS_BEFORE = 24
"""Tokens of the response that are shown before a window."""

Spell = Callable[[Sequence[int]], str]
"""Writes token ids as text, special tokens included."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kind of each window's first student token."""

    names: tuple[str, ...]
    """All kinds in the order of the study file, `other` last."""
    of_W: NDArray[np.str_]

    def part(self, mine_W: Flags) -> "Kinds":
        """Return the kinds of some of the windows."""
        return Kinds(self.names, self.of_W[mine_W])


def find_kinds(student_W: Ints, patterns: Mapping[str, str], spell: Spell) -> Kinds:
    """Return the kind of each token id of `student_W`.

    A token is of the first kind whose regular expression matches all of it, without the
    white space around it.
    """
    names = (*patterns, OTHER)
    kinds: dict[int, str] = {}
    for token in {int(token) for token in student_W}:
        text = spell([token]).strip()
        matching = (
            name for name, pattern in patterns.items() if re.fullmatch(pattern, text)
        )
        kinds[token] = next(matching, OTHER)
    return Kinds(names, np.array([kinds[int(token)] for token in student_W], np.str_))


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


__all__ = ["OTHER", "Kinds", "Spell", "find_kinds", "readings_table"]
