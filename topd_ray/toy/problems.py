"""Expression -> Solution: arithmetic modulo 10, solved with care or by a careless
reader.

An expression is a tuple of tokens such as ``("3", "*", "(", "2", "-", "5", ")")``;
brackets never nest. A solution reduces one operator a step and rewrites the whole
expression, so one wrong choice of operator, a *wrong fork*, ruins everything behind it.
Three things mislead a careless reader: the *brackets* he has not come to, the
*precedence* of a product, and one *misconception*: that in ``a - b * c`` the
subtraction comes first. Only there is he sure of himself.
"""

import operator
from dataclasses import dataclass
from random import Random

Expression = tuple[str, ...]

MODULUS = 10
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slips:
    """How often a careless reader takes a wrong fork, by what misleads him there."""

    brackets: float
    """Probability where brackets stand to the right and he should have begun inside
    them.
    """
    precedence: float
    """Probability where only a product should have come first."""
    misconception: float
    """Probability where the expression begins like a - b * c, whatever else stands in
    it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """One reduction: the sub-expression taken, its value, and the expression it
    leaves.
    """

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
    steps: tuple[Reduction, ...]

    @property
    def answer(self) -> int:
        """The digit this solution ends in, right or wrong."""
        return int(self.steps[-1].leaves[0])

    @property
    def took_wrong_fork(self) -> bool:
        """Whether any step went wrong."""
        return any(step.wrong_fork for step in self.steps)


def solve(expression: Expression) -> Solution:
    """The careful solution: brackets first, then products, then left to right."""
    steps = []
    current = expression
    while len(current) > 1:
        taken, value, leaves = _reduce(current, _due_operator(current))
        steps.append(
            Reduction(
                taken=taken, due=taken, value=value, leaves=leaves, wrong_fork=False
            )
        )
        current = leaves
    return Solution(expression, tuple(steps))


def solve_carelessly(expression: Expression, rng: Random, slips: Slips) -> Solution:
    """A solution that reads from the left, blind to precedence and brackets, where it
    slips.

    Brackets and precedence mislead only where that does harm; the misconception always.
    No slip repairs an earlier one by luck: the answer is wrong exactly when a wrong
    fork was taken.
    """
    right_answer = solve_value(expression)
    steps = []
    current = expression
    while len(current) > 1:
        worth = solve_value(current)
        due, value, leaves = _reduce(current, _due_operator(current))
        taken = due
        slip = _reduce(current, _first_operator(current))
        harmful = solve_value(slip[2]) != worth
        repairs = harmful and solve_value(slip[2]) == right_answer
        tempted = not repairs and (harmful or is_misconceived(current))
        slipped = tempted and rng.random() < _slip_probability(current, slips)
        if slipped:
            taken, value, leaves = slip
        wrong_fork = slipped and harmful
        steps.append(
            Reduction(
                taken=taken, due=due, value=value, leaves=leaves, wrong_fork=wrong_fork
            )
        )
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


def is_misconceived(expression: Expression) -> bool:
    """Whether the first operator is a minus and a product follows at once: a - b *
    c.
    """
    first = _first_operator(expression)
    return expression[first] == "-" and expression[first + 2 : first + 3] == ("*",)


def misconception_harms(expression: Expression) -> bool:
    """Whether acting on the misconception spoils the answer wherever a careful solver
    meets it.
    """
    worth = solve_value(expression)
    while len(expression) > 1:
        if is_misconceived(expression):
            _, _, misread = _reduce(expression, _first_operator(expression))
            if solve_value(misread) == worth:
                return False
        _, _, expression = _reduce(expression, _due_operator(expression))
    return True


def _slip_probability(expression: Expression, slips: Slips) -> float:
    """Brackets mislead only a reader who begins in front of them."""
    if is_misconceived(expression):
        return slips.misconception
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
    """Where a careless reader reduces next: the leftmost operator, whatever surrounds
    it.
    """
    return next(index for index, token in enumerate(expression) if token in OPERATORS)


def _reduce(expression: Expression, at: int) -> tuple[Expression, int, Expression]:
    """(sub-expression taken, its value, expression left) when the operator at `at` is
    applied.

    Reaching over an opening bracket drops that pair of brackets.
    """
    if expression[at + 1] == "(":
        closing = expression.index(")", at)
        expression = (
            expression[: at + 1]
            + expression[at + 2 : closing]
            + expression[closing + 1 :]
        )
    taken = expression[at - 1 : at + 2]
    value = OPERATORS[taken[1]](int(taken[0]), int(taken[2])) % MODULUS
    before, behind = expression[: at - 1], expression[at + 2 :]
    if before[-1:] == ("(",) and behind[:1] == (")",):
        before, behind = before[:-1], behind[1:]
    return taken, value, (*before, str(value), *behind)
