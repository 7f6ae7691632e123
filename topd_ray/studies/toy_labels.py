"""Forks and wording in responses of the toy world. Pure."""

import re
from collections.abc import Iterator, Sequence

from topd_ray.studies.labels import Label, TokenSpan, first_difference
from topd_ray.toy.problems import Expression, solve, solve_value
from topd_ray.toy.wording import CONNECTIVES, LINKS, VERBS

_OPERAND = r"(?:\d|\( \d(?: [-+*] \d)+ \))"
_EXPRESSION = re.compile(rf"{_OPERAND}(?: [-+*] {_OPERAND})*")
_FIRST = re.compile(r"we start from (?P<leaves>[^.]*) \.")
_STEP = re.compile(
    r"we take (?P<taken>[^,]*) , which \w+ (?P<value>\S+) \. \w+"
    r" (?:we have (?P<leaves>[^.]*) \.|the answer is \\boxed\{ (?P<answer>\S+))"
)
_SURFACE = frozenset((*CONNECTIVES, *VERBS, *LINKS))


def label_toy(text: str, spans: Sequence[TokenSpan]) -> list[Label | None]:
    """Return the labels of a response of the toy world.

    A fork is the first wrong word of a step that changes the value of the expression.
    Wording is a word whose choice has no bearing on what follows.
    """
    wrong = set(_wrong_words(text))
    labels: list[Label | None] = []
    for start, end in spans:
        label: Label | None = None
        if wrong.intersection(range(start, end)):
            label = "fork"
        elif text[start:end].strip() in _SURFACE and not text[:start].endswith(
            "the answer"
        ):
            label = "wording"
        labels.append(label)
    return labels


def _wrong_words(text: str) -> Iterator[int]:
    """Yield the index of the first wrong character of each step that goes wrong."""
    first = _FIRST.search(text)
    if first is None:
        return
    current = _expression(first["leaves"])
    for step in _STEP.finditer(text, first.end()):
        name = "leaves" if step["leaves"] is not None else "answer"
        left = _expression(step[name])
        # A step that is no arithmetic has no label, and is no ground for one.
        if current and left and solve_value(left) != solve_value(current):
            at = _wrong_turn(step, current, name)
            if at is not None:
                yield at
        current = left


def _wrong_turn(step: re.Match[str], current: Expression, name: str) -> int | None:
    """Return where a step departs from the careful one; None for an answer too early.

    `name` is the group of what is left behind the step.
    """
    if len(current) == 1:
        return None
    due = solve(current).steps[0]
    if name == "answer" and len(due.leaves) > 1:
        return None
    for group, right in (
        ("taken", due.taken),
        ("value", (str(due.value),)),
        (name, due.leaves),
    ):
        written = tuple(step[group].split())
        if written != right:
            at = first_difference(written, right)
            # The words of a group are a blank apart.
            return step.start(group) + len(" ".join((*written[:at], "")))
    return None


def _expression(text: str) -> Expression:
    """Return the expression that a text writes; empty where it is none."""
    return tuple(text.split()) if _EXPRESSION.fullmatch(text) else ()


__all__ = ["label_toy"]
