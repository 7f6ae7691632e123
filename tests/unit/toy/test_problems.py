from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.toy.drawing import ProblemShape, sample_expression
from topd_ray.toy.problems import (
    Slips,
    Solution,
    has_fork,
    is_misconceived,
    misconception_harms,
    solve,
    solve_carelessly,
    solve_value,
)

SHAPE = ProblemShape()
NEVER = Slips(brackets=0.0, precedence=0.0, misconception=0.0)
SOMETIMES = Slips(brackets=0.5, precedence=0.5, misconception=0.5)
ALWAYS = Slips(brackets=1.0, precedence=1.0, misconception=1.0)
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
    careless = solve_carelessly(expression, rng, SOMETIMES)
    assert (careless.answer != solve(expression).answer) == careless.took_wrong_fork


@given(seeds)
@settings(deadline=None)
def test_a_step_is_marked_as_a_wrong_fork_exactly_when_it_changes_the_value(seed):
    rng = Random(seed)
    solution = solve_carelessly(sample_expression(rng, SHAPE), rng, SOMETIMES)
    before = solution.expression
    for step in solution.steps:
        changed = eval(" ".join(before)) % 10 != eval(" ".join(step.leaves)) % 10
        assert step.wrong_fork == changed
        before = step.leaves


@given(seeds)
@settings(deadline=None)
def test_every_single_step_is_right_even_where_the_choice_was_wrong(seed):
    rng = Random(seed)
    solution = solve_carelessly(sample_expression(rng, SHAPE), rng, ALWAYS)
    assert all(eval(" ".join(step.taken)) % 10 == step.value for step in solution.steps)


@given(seeds)
@settings(deadline=None)
def test_whoever_never_slips_solves_with_care(seed):
    rng = Random(seed)
    expression = sample_expression(rng, SHAPE)
    assert solve_carelessly(expression, rng, NEVER) == solve(expression)


@given(seeds)
@settings(deadline=None)
def test_whoever_always_slips_is_always_wrong_since_every_expression_has_a_fork(seed):
    rng = Random(seed)
    expression = sample_expression(rng, SHAPE)
    assert has_fork(expression)
    assert solve_carelessly(expression, rng, ALWAYS).took_wrong_fork


def test_a_careless_reader_goes_through_brackets_from_the_left():
    expression = tuple("3*(2-4)+1")
    solution = solve_carelessly(expression, Random(0), ALWAYS)
    assert [" ".join(step.leaves) for step in solution.steps] == [
        "6 - 4 + 1",
        "2 + 1",
        "3",
    ]
    assert [step.wrong_fork for step in solution.steps] == [True, False, False]


def test_the_careful_solver_takes_brackets_then_products_then_the_left():
    solution = solve(tuple("3+4*(2-5)"))
    assert [" ".join(step.leaves) for step in solution.steps] == [
        "3 + 4 * 7",
        "3 + 8",
        "1",
    ]


def test_an_expression_worked_left_to_right_without_harm_has_no_fork():
    assert not has_fork(tuple("3+4-2+1"))
    assert has_fork(tuple("3+4*2+1"))


def test_a_solution_ends_in_its_last_digit():
    solution = solve(("1", "+", "1", "*", "1"))
    assert isinstance(solution, Solution)
    assert solution.steps[-1].leaves == ("2",)
    assert solution.answer == 2


@pytest.mark.parametrize(
    ("kind", "misleading"),
    [
        ("brackets", "3*(2-4)+1"),
        ("precedence", "3+4*2+1"),
        ("misconception", "3-4*2+1"),
        ("misconception", "3-4*(2+1)"),
    ],
)
def test_each_kind_of_slip_happens_where_its_own_probability_says(kind, misleading):
    expression = tuple(misleading)
    only = replace(NEVER, **{kind: 1.0})
    assert solve_carelessly(expression, Random(0), only).steps[0].wrong_fork
    all_but = replace(ALWAYS, **{kind: 0.0})
    assert not solve_carelessly(expression, Random(0), all_but).steps[0].wrong_fork


def test_the_misconception_is_at_work_where_a_product_follows_a_first_minus_at_once():
    assert is_misconceived(tuple("7-3*4"))
    assert is_misconceived(tuple("(7-3*4)+2"))
    assert is_misconceived(tuple("7-3*(4+2)"))
    assert not is_misconceived(tuple("7-(3*4)"))
    assert not is_misconceived(tuple("7-3+4*2"))
    assert not is_misconceived(tuple("2+7-3*4"))


@given(seeds)
@settings(deadline=None)
def test_where_a_careful_path_meets_the_misconception_acting_on_it_does_harm(seed):
    expression = sample_expression(Random(seed), SHAPE)
    careful = solve(expression)
    met = [expression, *(step.leaves for step in careful.steps[:-1])]
    misled = solve_carelessly(expression, Random(0), replace(NEVER, misconception=1.0))
    assert misled.took_wrong_fork == any(map(is_misconceived, met))


def test_an_expression_that_the_misconception_leaves_unharmed_is_not_drawn():
    assert solve_value(tuple("5-4*3")) == solve_value(("1", "*", "3"))
    assert not misconception_harms(tuple("5-4*3"))
    assert misconception_harms(tuple("5-4*2"))


def test_the_misconception_touches_a_third_to_a_half_of_the_problems():
    rng = Random(0)
    only = replace(NEVER, misconception=1.0)
    touched = [
        solve_carelessly(sample_expression(rng, SHAPE), rng, only).took_wrong_fork
        for _ in range(1000)
    ]
    assert 0.33 < sum(touched) / len(touched) < 0.5
