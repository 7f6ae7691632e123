"""Kinds of tokens by regular expressions. Axes: W windows."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topd_ray.messages import Flags, Ints

OTHER = "other"
"""The kind of a token that no expression matches."""

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


__all__ = ["OTHER", "Kinds", "Spell", "find_kinds"]
