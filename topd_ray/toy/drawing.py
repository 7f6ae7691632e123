"""Draw random expressions, and put each into one of three splits by its hash."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from topd_ray.toy.problems import OPERATORS, Expression, has_fork, misconception_harms

Split = Literal["train", "dev", "heldout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemShape:
    """The distribution of the expressions that are drawn."""

    min_operands: int = 4
    max_operands: int = 6
    bracket_probability: float = 0.7
    """Probability of a first pair of brackets, and again of a second if it fits."""
    operator_weights: tuple[float, float, float] = (0.25, 0.35, 0.4)
    """Relative frequencies of + - *."""


def sample_expression(rng: Random, shape: ProblemShape) -> Expression:
    """Return an expression on which a careless reader has at least one wrong fork.

    Wherever the misconception applies, it changes the answer. So a student can learn to
    be sure of it without knowing what the expression is worth.
    """
    while True:
        expression = _any_expression(rng, shape)
        # Drawn again, not repaired: a repair would favour the expressions it leads to.
        if has_fork(expression) and misconception_harms(expression):
            return expression


def split_of(expression: Expression) -> Split:
    """Return the split of an expression, by a hash; models train on "train" alone."""
    # Not Python's hash(), which differs from process to process.
    sixteenth = hashlib.sha256(" ".join(expression).encode()).digest()[0] % 16
    if sixteenth < 2:
        return "heldout"
    return "dev" if sixteenth < 4 else "train"


def distinct_expressions(
    rng: Random, shape: ProblemShape, split: Split
) -> Iterator[Expression]:
    """Yield expressions of one split without repetition or end."""
    seen: set[Expression] = set()
    while True:
        expression = sample_expression(rng, shape)
        if expression not in seen and split_of(expression) == split:
            seen.add(expression)
            yield expression


def _any_expression(rng: Random, shape: ProblemShape) -> Expression:
    """Return single-digit operands, random operators and up to two bracket pairs."""
    num_operands = rng.randint(shape.min_operands, shape.max_operands)
    operands = [str(rng.randint(1, 9)) for _ in range(num_operands)]
    operators = rng.choices(
        tuple(OPERATORS), shape.operator_weights, k=num_operands - 1
    )
    spans = _bracket_spans(rng, num_operands, shape.bracket_probability)
    tokens: list[str] = []
    for index, operand in enumerate(operands):
        tokens += ["("] * any(index == first for first, _ in spans)
        tokens.append(operand)
        tokens += [")"] * any(index == last for _, last in spans)
        tokens += operators[index : index + 1]
    return tuple(tokens)


def _bracket_spans(
    rng: Random, num_operands: int, probability: float
) -> list[tuple[int, int]]:
    """Return the first and last operand of each pair of brackets.

    The pairs stand side by side; none is around the whole expression.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    while len(spans) < 2 and num_operands - start >= 2 and rng.random() < probability:
        first = rng.randint(start, num_operands - 2)
        last = min(first + rng.randint(1, 2), num_operands - 1)
        if last - first + 1 == num_operands:
            continue
        spans.append((first, last))
        start = last + 1
    return spans
