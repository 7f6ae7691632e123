"""Random Expression -> Solution: arithmetic modulo 10, solved with care or by a careless reader.

An expression is a tuple of tokens such as ``("3", "*", "(", "2", "-", "5", ")")``; brackets never
nest. A solution reduces one operator a step and rewrites the whole expression, so one wrong choice
of operator, a *wrong fork*, ruins everything behind it.
"""

import hashlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

Expression = tuple[str, ...]

MODULUS = 10
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemShape:
    """Which expressions are drawn."""

    min_operands: int = 4
    max_operands: int = 6
    bracket_probability: float = 0.8
    """Chance of a first pair of brackets; a second pair has the same chance again, if it fits."""
    operator_weights: tuple[float, float, float] = (0.35, 0.3, 0.35)
    """For + - *."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slips:
    """How often a careless reader takes a wrong fork, by what misleads him there."""

    brackets: float
    """Probability where brackets stand to the right and he should have begun inside them."""
    precedence: float
    """Probability where only a product should have come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One reduction: the sub-expression taken, its value, and the expression it leaves."""

    taken: Expression
    due: Expression
    """What a careful solver takes here."""
    value: int
    leaves: Expression
    wrong_fork: bool
    """Whether this choice changed what the whole expression is worth."""


@dataclass(frozen=True, slots=True)
class Solution:
    """An expression and the steps that were taken down to a single digit."""

    expression: Expression
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The digit this solution ends in, right or wrong."""
        return int(self.steps[-1].leaves[0])

    @property
    def took_wrong_fork(self) -> bool:
        """Whether any step went wrong."""
        return any(step.wrong_fork for step in self.steps)


def sample_expression(rng: Random, shape: ProblemShape) -> Expression:
    """An expression on which a careless reader has at least one chance to go wrong."""
    while True:
        expression = _any_expression(rng, shape)
        if has_fork(expression):
            return expression


def is_held_out(expression: Expression) -> bool:
    """Whether a hash of the expression reserves it for evaluation; nothing trains on those."""
    digest = hashlib.sha256(" ".join(expression).encode()).digest()
    return digest[0] % HELD_OUT_ONE_IN == 0


def distinct_expressions(
    rng: Random, shape: ProblemShape, *, held_out: bool
) -> Iterator[Expression]:
    """Expressions without repetition from one side of the held-out rule, for ever."""
    seen: set[Expression] = set()
    while True:
        expression = sample_expression(rng, shape)
        if expression not in seen and is_held_out(expression) == held_out:
            seen.add(expression)
            yield expression


def solve(expression: Expression) -> Solution:
    """The careful solution: brackets first, then products, then left to right."""
    steps = []
    current = expression
    while len(current) > 1:
        taken, value, leaves = _reduce(current, _due_operator(current))
        steps.append(Step(taken=taken, due=taken, value=value, leaves=leaves, wrong_fork=False))
        current = leaves
    return Solution(expression, tuple(steps))


def solve_carelessly(expression: Expression, rng: Random, slips: Slips) -> Solution:
    """A solution that reads from the left, blind to precedence and brackets, where it slips.

    Slips happen only where they do harm, and later ones never repair earlier ones by luck: the
    answer is wrong exactly when a wrong fork was taken.
    """
    right_answer = solve_value(expression)
    steps = []
    current = expression
    while len(current) > 1:
        due, value, leaves = _reduce(current, _due_operator(current))
        taken = due
        slip = _reduce(current, _first_operator(current))
        harmful = solve_value(slip[2]) not in (solve_value(current), right_answer)
        wrong_fork = harmful and rng.random() < _slip_probability(current, slips)
        if wrong_fork:
            taken, value, leaves = slip
        steps.append(Step(taken=taken, due=due, value=value, leaves=leaves, wrong_fork=wrong_fork))
        current = leaves
    return Solution(expression, tuple(steps))


def solve_value(expression: Expression) -> int:
    """What an expression is worth modulo 10."""
    while len(expression) > 1:
        _, _, expression = _reduce(expression, _due_operator(expression))
    return int(expression[0])


def has_fork(expression: Expression) -> bool:
    """Whether reading from the left does harm at any step of the careful solution."""
    worth = solve_value(expression)
    while len(expression) > 1:
        _, _, careless = _reduce(expression, _first_operator(expression))
        if solve_value(careless) != worth:
            return True
        _, _, expression = _reduce(expression, _due_operator(expression))
    return False


def _any_expression(rng: Random, shape: ProblemShape) -> Expression:
    """Single-digit operands, random operators, up to two pairs of brackets side by side."""
    num_operands = rng.randint(shape.min_operands, shape.max_operands)
    operands = [str(rng.randint(1, 9)) for _ in range(num_operands)]
    operators = rng.choices(tuple(OPERATORS), shape.operator_weights, k=num_operands - 1)
    spans = _bracket_spans(rng, num_operands, shape.bracket_probability)
    tokens: list[str] = []
    for index, operand in enumerate(operands):
        tokens += ["("] * any(index == first for first, _ in spans)
        tokens.append(operand)
        tokens += [")"] * any(index == last for _, last in spans)
        tokens += operators[index : index + 1]
    return tuple(tokens)


def _bracket_spans(rng: Random, num_operands: int, probability: float) -> list[tuple[int, int]]:
    """First and last operand of each pair of brackets, never around the whole expression."""
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


def _slip_probability(expression: Expression, slips: Slips) -> float:
    """Brackets mislead only a reader who begins in front of them."""
    before_first_operator = expression[: _first_operator(expression)]
    begins_before_brackets = "(" in expression and "(" not in before_first_operator
    return slips.brackets if begins_before_brackets else slips.precedence


def _due_operator(expression: Expression) -> int:
    """Where a careful solver reduces next."""
    start, stop = 0, len(expression)
    if "(" in expression:
        start = expression.index("(") + 1
        stop = expression.index(")")
    inner = expression[start:stop]
    return start + (inner.index("*") if "*" in inner else _first_operator(inner))


def _first_operator(expression: Expression) -> int:
    """Where a careless reader reduces next: the leftmost operator, whatever surrounds it."""
    return next(index for index, token in enumerate(expression) if token in OPERATORS)


def _reduce(expression: Expression, at: int) -> tuple[Expression, int, Expression]:
    """(sub-expression taken, its value, expression left) when the operator at `at` is applied.

    Reaching over an opening bracket drops that pair of brackets.
    """
    if expression[at + 1] == "(":
        closing = expression.index(")", at)
        expression = expression[: at + 1] + expression[at + 2 : closing] + expression[closing + 1 :]
    taken = expression[at - 1 : at + 2]
    value = OPERATORS[taken[1]](int(taken[0]), int(taken[2])) % MODULUS
    before, behind = expression[: at - 1], expression[at + 2 :]
    if before[-1:] == ("(",) and behind[:1] == (")",):
        before, behind = before[:-1], behind[1:]
    return taken, value, (*before, str(value), *behind)
