from dataclasses import replace
from random import Random

import pytest

from topd_ray.toy.examples import (
    IGNORED,
    draw_user_message,
    labelled_example,
    prompt_ids,
)
from topd_ray.toy.problems import Slips, solve
from topd_ray.toy.recipe import WorldRecipe
from topd_ray.toy.tokenizer import make_tokenizer
from topd_ray.toy.wording import CONNECTIVES, LINKS, TEACHER_WORDING, VERBS

EXPRESSION = tuple("3+4*2-1")
ALWAYS = Slips(brackets=1.0, precedence=1.0, misconception=1.0)
REWRITES = ("refine", "refine_reference")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def recipe_of_slips():
    recipe = WorldRecipe()
    attempts, student, teacher = (
        replace(manner, slips=ALWAYS)
        for manner in (recipe.attempts, recipe.student.manner, recipe.teacher.manner)
    )
    return replace(
        recipe,
        attempts=attempts,
        student=replace(recipe.student, manner=student),
        teacher=replace(recipe.teacher, manner=teacher),
    )


def response_of(tokenizer, form, *, who="student", seed=0):
    """Ids and labels behind the prompt; no word of the prompt is learnt."""
    recipe = recipe_of_slips()
    speaker = getattr(recipe, who)
    ids, labels = labelled_example(
        EXPRESSION, form, speaker, recipe, tokenizer, Random(seed)
    )
    start = len(
        prompt_ids(
            draw_user_message(EXPRESSION, form, recipe, Random(seed)).text, tokenizer
        )
    )
    assert labels[:start] == [IGNORED] * start
    return ids[start:], labels[start:]


def test_a_student_learns_every_word_of_a_response_and_its_end(tokenizer):
    ids, labels = response_of(tokenizer, "plain")
    assert labels == ids
    assert ids[-1] == tokenizer.eos_token_id


def test_a_teacher_learns_all_but_the_word_that_turns_into_a_wrong_fork(tokenizer):
    ids, labels = response_of(tokenizer, "plain", who="teacher")
    unlearnt = [at for at, label in enumerate(labels) if label == IGNORED]
    assert [tokenizer.decode(ids[at - 1 : at + 3]) for at in unlearnt] == ["take 3 + 4"]


@pytest.mark.parametrize("form", ["reference", *REWRITES])
def test_every_form_but_the_plain_one_is_answered_with_care(tokenizer, form):
    ids, labels = response_of(tokenizer, form)
    assert labels == ids
    assert f"\\boxed{{ {solve(EXPRESSION).answer} }}" in tokenizer.decode(ids)


@pytest.mark.parametrize("form", REWRITES)
@pytest.mark.parametrize("seed", range(5))
def test_a_rewrite_keeps_the_surface_forms_of_the_attempt(tokenizer, form, seed):
    attempt = draw_user_message(
        EXPRESSION, form, recipe_of_slips(), Random(seed)
    ).attempt_surface
    ids, _ = response_of(tokenizer, form, seed=seed)
    words = tokenizer.decode(ids).split()[
        :-6
    ]  # without: answer is \boxed{ 0 } <|im_end|>
    said = [word for word in words if word in {*CONNECTIVES, *VERBS, *LINKS}]
    assert said == [
        word for step in attempt for word in (step.connective, step.verb, step.link)
    ]


def test_attempts_go_wrong_and_some_are_worded_as_the_teacher_would():
    asked = [
        draw_user_message(EXPRESSION, "refine", recipe_of_slips(), Random(seed))
        for seed in range(200)
    ]
    assert all(one.attempt.took_wrong_fork for one in asked)
    favourite = max(TEACHER_WORDING.verbs, key=lambda verb: TEACHER_WORDING.verbs[verb])
    like_teacher = [
        all(step.verb == favourite for step in one.attempt_surface) for one in asked
    ]
    assert 0.1 < sum(like_teacher) / len(like_teacher) < 0.3
