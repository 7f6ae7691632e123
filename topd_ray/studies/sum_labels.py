"""Forks and wording in responses that add and subtract integers. Pure."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from topd_ray.studies.labels import Label, TokenSpan, first_difference

_NUMBER = r"(?:-?\d+|\(-?\d+\))"
_SUM = re.compile(
    # No number goes on, as in 3.5 or 1,200.
    rf"(?<![\w.,)}}\]])(?P<terms>{_NUMBER}(?:\s*[-+]\s*{_NUMBER})+)"
    r"\s*=\s*(?P<result>-?\d+)(?!\d|[.,]\d)"
    # The result is no part of the next product or sum; ** is markup.
    r"(?![ \t]*(?:[-+/^%]|\*(?!\*)|\\(?:times|cdot|div|%)))"
)
_BEFORE_SUM = re.compile(r"\S[ \t]*(?:[-+/^]|(?<!\*)\*|\\(?:times|cdot|div))\s*$")
"""The sum is part of a longer one, or its first term of a product.

An operator at the beginning of a line marks an item of a list.
"""
_TERM = re.compile(r"([-+]?)\s*\(?(-?\d+)\)?")
_ARITHMETIC = re.compile(r"[\d+\-*/=]")


class WrittenSum(NamedTuple):
    """The result of a sum or difference that a text works out, as in "31 - 7 = 24"."""

    start: int
    """Index of the result's first character."""
    departs: int | None
    """Index of its first wrong character; None where it is right.

    It is the character behind the result where the result ends too early.
    """


def written_sums(text: str) -> list[WrittenSum]:
    """Return every sum of integers with its result, held against the terms before it.

    Terms are added and subtracted from left to right; a result is right or wrong given
    these terms, whether or not the problem asks for them.
    """
    return [
        WrittenSum(start=match.start("result"), departs=_wrong_digit(match))
        for match in _SUM.finditer(text)
        if not _BEFORE_SUM.search(text[: match.start()])
    ]


def label_sums(text: str, spans: Sequence[TokenSpan]) -> list[Label | None]:
    """Return the labels of a response that adds and subtracts integers.

    A fork is the token with the first wrong character of a result. Wording is a token
    without digits and operators before a result that is right.
    """
    sums = written_sums(text)
    wrong = {written.departs for written in sums}
    labels: list[Label | None] = []
    for start, end in spans:
        label: Label | None = None
        following = next((written for written in sums if written.start >= end), None)
        if wrong.intersection(range(start, end)):
            label = "fork"
        elif (
            following is not None
            and following.departs is None
            and start < end
            and not _ARITHMETIC.search(text[start:end])
        ):
            label = "wording"
        labels.append(label)
    return labels


def _wrong_digit(match: re.Match[str]) -> int | None:
    """Return where the result of a sum departs from the right one."""
    right = sum(
        -int(number) if sign == "-" else int(number)
        for sign, number in _TERM.findall(match["terms"])
    )
    if int(match["result"]) == right:
        return None
    return match.start("result") + first_difference(match["result"], str(right))


__all__ = ["WrittenSum", "label_sums", "written_sums"]
