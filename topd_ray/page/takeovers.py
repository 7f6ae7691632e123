"""Where the teacher took over in a run, and how those rollouts ended.

Axes: F rollouts that were taken over, R rollouts.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topd_ray.page.grades import RIGHT, UNKNOWN
from topd_ray.page.rollouts import StepRollouts
from topd_ray.page.tokens import KIND_NAMES, TokenTexts
from topd_ray.statistics import median, share

_NUM_BARS = 30
_NUM_WORDS = 12
"""Most pairs of words that are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepForks:
    """What the figures need of the rollouts of one step."""

    grades_R: NDArray[np.uint8]
    is_taken_R: NDArray[np.bool_]
    ended_F: NDArray[np.uint8]
    """Grades with the teacher's end."""
    position_F: NDArray[np.int32]
    kind_F: NDArray[np.uint8]
    """Of the student's token."""
    logp_F: NDArray[np.float32]
    logq_F: NDArray[np.float32]
    words: list[tuple[str, str]]
    """The student's token, the teacher's in its place."""


class RunTakeovers:
    """The takeovers of all recorded rollouts; grows step by step."""

    def __init__(self, tokens: TokenTexts) -> None:
        self._tokens = tokens
        self._parts: dict[int, _StepForks] = {}

    def add(self, step: int, rollouts: StepRollouts) -> None:
        """Take the rollouts of a step, once."""
        taken = np.flatnonzero(rollouts.forks.position_R >= 0)
        forks = rollouts.forks
        self._parts[step] = _StepForks(
            grades_R=rollouts.grades_R,
            is_taken_R=forks.position_R >= 0,
            ended_F=forks.ended_R[taken],
            position_F=forks.position_R[taken],
            kind_F=self._tokens.kinds(forks.own_R[taken]),
            logp_F=forks.logp_R[taken],
            logq_F=forks.logq_R[taken],
            words=list(
                zip(
                    self._tokens.texts(forks.own_R[taken]),
                    self._tokens.texts(forks.teachers_R[taken]),
                    strict=True,
                )
            ),
        )

    def keep(self, steps: Collection[int]) -> None:
        """Forget all other steps: a run that went back does them again."""
        self._parts = {step: self._parts[step] for step in self._parts if step in steps}

    def has(self, step: int) -> bool:
        """Return whether a step's rollouts were taken."""
        return step in self._parts

    def figures(self) -> dict[str, Any] | None:
        """Return the data of all figures as plain values; None without takeovers."""
        parts = [self._parts[step] for step in sorted(self._parts)]
        if not any(len(part.position_F) for part in parts):
            return None
        is_taken_R = np.concatenate([part.is_taken_R for part in parts])
        grades_R = np.concatenate([part.grades_R for part in parts])
        ended_F = np.concatenate([part.ended_F for part in parts])
        position_F = np.concatenate([part.position_F for part in parts])
        kind_F = np.concatenate([part.kind_F for part in parts])
        p_F = np.exp(np.concatenate([part.logp_F for part in parts]))
        q_F = np.exp(np.concatenate([part.logq_F for part in parts]))
        words = Counter(pair for part in parts for pair in part.words)
        return {
            "num_rollouts": len(is_taken_R),
            "num_taken": len(position_F),
            "taken": share(is_taken_R).value,
            "ends": _ends(grades_R, is_taken_R, ended_F),
            "positions": _positions(position_F),
            "kinds": [
                {
                    "name": name,
                    "count": int((kind_F == kind).sum()),
                    "student": _number(median(p_F[kind_F == kind])),
                    "teacher": _number(median(q_F[kind_F == kind])),
                    "right": _share_right(ended_F[kind_F == kind]),
                }
                for kind, name in enumerate(KIND_NAMES)
            ],
            "words": [
                {"student": student, "teacher": teacher, "count": number}
                for (student, teacher), number in words.most_common(_NUM_WORDS)
            ],
            "num_pairs": len(words),
        }


def _ends(
    grades_R: NDArray[np.uint8],
    is_taken_R: NDArray[np.bool_],
    ended_F: NDArray[np.uint8],
) -> list[dict[str, Any]]:
    """Return shares of right answers; rows of which nothing is graded are left out."""
    rows = [
        {"label": label, **_share_right(grades)}
        for label, grades in (
            ("left alone", grades_R[~is_taken_R]),
            ("own end", grades_R[is_taken_R]),
            ("teacher's end", ended_F),
        )
    ]
    return [row for row in rows if row["count"]]


def _share_right(grades: NDArray[np.uint8]) -> dict[str, Any]:
    found = share(grades[grades != UNKNOWN] == RIGHT)
    return {
        "share": _number(found.value),
        "low": _number(found.low),
        "high": _number(found.high),
        "count": found.count,
    }


def _positions(position_F: NDArray[np.int32]) -> dict[str, Any]:
    """Return forks by their place in the response, in bars of whole tokens."""
    last = int(position_F.max())
    width = max(1, math.ceil((last + 1) / _NUM_BARS))
    edges = np.arange(0, last + 1 + width, width)
    return {
        "edges": edges.tolist(),
        "counts": np.histogram(position_F, edges)[0].tolist(),
        "median": median(position_F),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


__all__ = ["RunTakeovers"]
