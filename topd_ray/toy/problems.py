"""Solve arithmetic modulo 10, with care or as a careless reader does.

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
    """Probabilities that a careless reader takes a wrong fork, by what misleads him."""

    brackets: float
    """Probability where the careful solver begins in brackets further to the right."""
    precedence: float
    """Probability where only a product should come first."""
    misconception: float
    """Probability where the expression begins with a - b * c."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """One step of a solution: a sub-expression is replaced by its value.

    Example: in 3 + 4 * 7 the careful solver takes 4 * 7, whose value 8 leaves 3 + 8.
    """

    taken: Expression
    due: Expression
    """The sub-expression that a careful solver takes here."""
    value: int
    leaves: Expression
    wrong_fork: bool
    """Whether this choice changed the value of the whole expression."""


@dataclass(frozen=True, slots=True)
class Solution:
    """An expression and the steps that reduce it to a single digit."""

    expression: Expression
    steps: tuple[Reduction, ...]

    @property
    def answer(self) -> int:
        """Return the digit that this solution ends with, right or wrong."""
        return int(self.steps[-1].leaves[0])

    @property
    def took_wrong_fork(self) -> bool:
        """Return whether any step is a wrong fork."""
        return any(step.wrong_fork for step in self.steps)


def solve(expression: Expression) -> Solution:
    """Return the careful solution: brackets, then products, then left to right."""
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
    """Return a solution that sometimes slips.

    A slip takes the leftmost operator, without regard to precedence and brackets. It
    happens with the probabilities in `slips`, drawn from `rng`. Brackets and precedence
    mislead only where that changes the answer; the misconception misleads always. No
    slip repairs an earlier one: the answer is wrong exactly when a wrong fork was
    taken.
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
    """Return the value of an expression modulo 10."""
    while len(expression) > 1:
        _, _, expression = _reduce(expression, _due_operator(expression))
    return int(expression[0])


def has_fork(expression: Expression) -> bool:
    """Return whether the leftmost operator is a wrong fork at any careful step."""
    worth = solve_value(expression)
    while len(expression) > 1:
        _, _, careless = _reduce(expression, _first_operator(expression))
        if solve_value(careless) != worth:
            return True
        _, _, expression = _reduce(expression, _due_operator(expression))
    return False


def is_misconceived(expression: Expression) -> bool:
    """Return whether the expression begins with a - b * c, the misconception."""
    first = _first_operator(expression)
    return expression[first] == "-" and expression[first + 2 : first + 3] == ("*",)


def misconception_harms(expression: Expression) -> bool:
    """Return whether the misconception changes the answer at every careful step.

    Steps where it does not apply do not count.
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
    """Return the probability of a slip here, by what misleads the reader."""
    if is_misconceived(expression):
        return slips.misconception
    # Brackets mislead only a reader who begins before them.
    before_first_operator = expression[: _first_operator(expression)]
    begins_before_brackets = "(" in expression and "(" not in before_first_operator
    return slips.brackets if begins_before_brackets else slips.precedence


def _due_operator(expression: Expression) -> int:
    """Return the index of the operator that a careful solver applies next."""
    start = 0
    stop = len(expression)
    if "(" in expression:
        start = expression.index("(") + 1
        # Brackets never nest: the first closing one belongs to the first opening one.
        stop = expression.index(")")
    inner = expression[start:stop]
    return start + (inner.index("*") if "*" in inner else _first_operator(inner))


def _first_operator(expression: Expression) -> int:
    """Return the index of the leftmost operator, where a careless reader begins."""
    return next(index for index, token in enumerate(expression) if token in OPERATORS)


def _reduce(expression: Expression, at: int) -> tuple[Expression, int, Expression]:
    """Apply the operator at `at`; return what was taken, its value, and what is left.

    An operator in front of an opening bracket drops that pair of brackets.
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
    before = expression[: at - 1]
    behind = expression[at + 2 :]
    # Brackets around one digit would leave nothing to reduce inside them.
    if before[-1:] == ("(",) and behind[:1] == (")",):
        before = before[:-1]
        behind = behind[1:]
    return taken, value, (*before, str(value), *behind)
