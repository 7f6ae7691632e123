"""True forks and harmless wording in a response, where its text tells them. Pure.

A labeller takes a text and the span of each token in it, and returns a label for each
token. A fork is the token at which the text first departs from what is right; wording
is a token of which another would have done as well. All other tokens have no label.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from topd_ray.reports.token_kinds import Spell

Label = Literal["fork", "wording"]
TokenSpan = tuple[int, int]
"""First character of a token in its text, and the one behind its last."""
Labeller = Callable[[str, Sequence[TokenSpan]], list[Label | None]]


def token_spans(ids: Sequence[int], spell: Spell) -> tuple[str, list[TokenSpan]]:
    """Return the text of a response, and the span of each token in it.

    A character of several tokens belongs to the first of them.
    """
    text = spell(ids)
    ends = [0]
    for count in range(1, len(ids) + 1):
        # The text of a beginning may end in part of a character.
        end = min(len(spell(ids[:count])), len(text))
        ends.append(max(end, ends[-1]))
    return text, list(pairwise(ends))


def first_difference(written: Sequence[str], right: Sequence[str]) -> int:
    """Return the first index at which two unequal sequences differ.

    It is the length of `written` where `right` goes on.
    """
    pairs = zip(written, right, strict=False)
    different = (index for index, (one, other) in enumerate(pairs) if one != other)
    return next(different, min(len(written), len(right)))


__all__ = ["Label", "Labeller", "TokenSpan", "first_difference", "token_spans"]
