from itertools import islice
from random import Random

import pytest

from topd_ray.toy.drawing import ProblemShape, distinct_expressions, split_of

SHAPE = ProblemShape()
COUNTS = {"train": 2000, "dev": 300, "heldout": 300}


def draw(split, count, seed=0):
    return list(islice(distinct_expressions(Random(seed), SHAPE, split), count))


def test_the_three_splits_never_meet_and_no_expression_repeats():
    drawn = {split: set(draw(split, count)) for split, count in COUNTS.items()}
    assert {split: len(expressions) for split, expressions in drawn.items()} == COUNTS
    assert len(set.union(*drawn.values())) == sum(COUNTS.values())


@pytest.mark.parametrize("split", COUNTS)
def test_every_drawn_expression_belongs_to_its_split(split):
    assert {split_of(expression) for expression in draw(split, 100)} == {split}


def test_the_same_seed_draws_the_same_expressions():
    assert draw("train", 50, seed=7) == draw("train", 50, seed=7)


def test_expressions_have_four_to_six_single_digit_operands():
    counts = {
        sum(token.isdigit() for token in expression)
        for expression in draw("train", 500)
    }
    assert counts == {4, 5, 6}
