from dataclasses import replace
from random import Random

import pytest
import torch

from topd_ray.toy.examples import labelled_example
from topd_ray.toy.recipe import WorldRecipe
from topd_ray.toy.tokenizer import make_tokenizer
from topd_ray.toy.training import MAX_POSITIONS, make_model, train

EXPRESSION = tuple("3+4*2-1")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_the_recipe_decides_the_size_and_whether_embeddings_are_tied(tokenizer):
    recipe = WorldRecipe()
    teacher, student = (
        make_model(who, tokenizer) for who in (recipe.teacher, recipe.student)
    )
    assert 0.6e6 < teacher.num_parameters() < 1e6
    assert 0.2e6 < student.num_parameters() < 0.5e6
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert teacher.lm_head.weight is not teacher.model.embed_tokens.weight


def test_a_model_has_room_for_the_longest_prompt_and_its_response(tokenizer):
    recipe = WorldRecipe()
    assert (
        make_model(recipe.student, tokenizer).config.max_position_embeddings
        == MAX_POSITIONS
    )
    longest = tuple("(9-9*9)-(9*9-9)*9")
    ids, _ = labelled_example(
        longest, "refine_reference", recipe.student, recipe, tokenizer, Random(0)
    )
    assert len(ids) < MAX_POSITIONS


def test_the_shares_of_a_models_lessons_add_up_to_one():
    for speaker in (WorldRecipe().teacher, WorldRecipe().student):
        assert sum(lesson.share for lesson in speaker.lessons) == pytest.approx(1)


def test_a_few_steps_of_training_lower_the_loss(tokenizer):
    recipe = WorldRecipe()
    small = {"layers": 1, "hidden": 32, "heads": 1, "feed_forward": 32}
    lessons = tuple(replace(lesson, batch=8) for lesson in recipe.student.lessons)
    speaker = replace(
        recipe.student, **small, lessons=lessons, steps=40, warmup_steps=1
    )
    torch.manual_seed(0)
    model = make_model(speaker, tokenizer)
    ids, labels = labelled_example(
        EXPRESSION, "plain", speaker, recipe, tokenizer, Random(0)
    )

    def loss():
        with torch.inference_mode():
            return model(
                input_ids=torch.tensor([ids]), labels=torch.tensor([labels])
            ).loss.item()

    before = loss()
    train(model, speaker, recipe, tokenizer, Random(1))
    assert loss() < 0.75 * before
