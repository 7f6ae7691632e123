from itertools import islice
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.toy.problems import (
    ProblemShape,
    Slips,
    Solution,
    distinct_expressions,
    has_fork,
    is_held_out,
    sample_expression,
    solve,
    solve_carelessly,
)

SHAPE = ProblemShape()
seeds = st.integers(0, 2**32)


@given(seeds)
@settings(deadline=None)
def test_the_careful_solver_agrees_with_python_modulo_10_at_every_step(seed):
    expression = sample_expression(Random(seed), SHAPE)
    right = eval(" ".join(expression)) % 10
    solution = solve(expression)
    assert solution.answer == right
    assert all(eval(" ".join(step.leaves)) % 10 == right for step in solution.steps)


@given(seeds)
@settings(deadline=None)
def test_a_careless_solution_is_wrong_exactly_when_it_took_a_wrong_fork(seed):
    rng = Random(seed)
    expression = sample_expression(rng, SHAPE)
    careless = solve_carelessly(expression, rng, Slips(brackets=0.5, precedence=0.5))
    assert (careless.answer != solve(expression).answer) == careless.took_wrong_fork


@given(seeds)
@settings(deadline=None)
def test_a_step_is_marked_as_a_wrong_fork_exactly_when_it_changes_the_value(seed):
    rng = Random(seed)
    solution = solve_carelessly(
        sample_expression(rng, SHAPE), rng, Slips(brackets=0.5, precedence=0.5)
    )
    before = solution.expression
    for step in solution.steps:
        changed = eval(" ".join(before)) % 10 != eval(" ".join(step.leaves)) % 10
        assert step.wrong_fork == changed
        before = step.leaves


@given(seeds)
@settings(deadline=None)
def test_every_single_step_is_right_even_where_the_choice_was_wrong(seed):
    rng = Random(seed)
    solution = solve_carelessly(
        sample_expression(rng, SHAPE), rng, Slips(brackets=1.0, precedence=1.0)
    )
    assert all(eval(" ".join(step.taken)) % 10 == step.value for step in solution.steps)


@given(seeds)
@settings(deadline=None)
def test_whoever_never_slips_solves_with_care(seed):
    rng = Random(seed)
    expression = sample_expression(rng, SHAPE)
    assert solve_carelessly(expression, rng, Slips(brackets=0.0, precedence=0.0)) == solve(
        expression
    )


@given(seeds)
@settings(deadline=None)
def test_whoever_always_slips_is_always_wrong_since_every_expression_has_a_fork(seed):
    rng = Random(seed)
    expression = sample_expression(rng, SHAPE)
    assert has_fork(expression)
    assert solve_carelessly(expression, rng, Slips(brackets=1.0, precedence=1.0)).took_wrong_fork


def test_a_careless_reader_goes_through_brackets_from_the_left():
    expression = tuple("3*(2-4)+1")
    solution = solve_carelessly(expression, Random(0), Slips(brackets=1.0, precedence=1.0))
    assert [" ".join(step.leaves) for step in solution.steps] == ["6 - 4 + 1", "2 + 1", "3"]
    assert [step.wrong_fork for step in solution.steps] == [True, False, False]


def test_the_careful_solver_takes_brackets_then_products_then_the_left():
    solution = solve(tuple("3+4*(2-5)"))
    assert [" ".join(step.leaves) for step in solution.steps] == ["3 + 4 * 7", "3 + 8", "1"]


def test_an_expression_worked_left_to_right_without_harm_has_no_fork():
    assert not has_fork(tuple("3+4-2+1"))
    assert has_fork(tuple("3+4*2+1"))


def test_held_out_and_training_expressions_never_meet_and_never_repeat():
    held_out = list(islice(distinct_expressions(Random(0), SHAPE, held_out=True), 300))
    training = list(islice(distinct_expressions(Random(0), SHAPE, held_out=False), 2000))
    assert len(set(held_out)) == 300
    assert len(set(training)) == 2000
    assert not set(held_out) & set(training)
    assert all(map(is_held_out, held_out))


def test_the_same_seed_draws_the_same_expressions():
    first, second = (
        list(islice(distinct_expressions(Random(7), SHAPE, held_out=False), 50)) for _ in range(2)
    )
    assert first == second


def test_expressions_have_four_to_six_single_digit_operands():
    drawn = islice(distinct_expressions(Random(1), SHAPE, held_out=False), 500)
    counts = {sum(token.isdigit() for token in expression) for expression in drawn}
    assert counts == {4, 5, 6}


def test_a_solution_ends_in_its_last_digit():
    solution = solve(("1", "+", "1", "*", "1"))
    assert isinstance(solution, Solution)
    assert solution.steps[-1].leaves == ("2",)
    assert solution.answer == 2


def test_each_kind_of_slip_happens_where_its_own_probability_says():
    past_brackets, past_product = tuple("3*(2-4)+1"), tuple("3+4*2+1")
    for expression, misled_by_brackets in ((past_brackets, True), (past_product, False)):
        slips = Slips(brackets=float(misled_by_brackets), precedence=float(not misled_by_brackets))
        assert solve_carelessly(expression, Random(0), slips).steps[0].wrong_fork
