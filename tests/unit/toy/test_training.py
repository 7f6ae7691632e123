from dataclasses import replace
from random import Random

import pytest
import torch

from topd_ray.toy.problems import ProblemShape, Slips
from topd_ray.toy.recipe import Recipe
from topd_ray.toy.tokenizer import make_tokenizer
from topd_ray.toy.training import labelled_example, make_model, prompt_ids, train

EXPRESSION = tuple("3+4*2-1")
ALWAYS = Slips(brackets=1.0, precedence=1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def labelled(tokenizer, *, learns_to_slip):
    speaker = replace(Recipe().student, slips=ALWAYS, learns_to_slip=learns_to_slip)
    ids, labels = labelled_example(EXPRESSION, speaker, tokenizer, Random(0))
    response_start = len(prompt_ids(EXPRESSION, tokenizer))
    assert labels[:response_start] == [-100] * response_start
    return ids[response_start:], labels[response_start:]


def test_a_student_learns_every_word_of_a_response_and_its_end(tokenizer):
    ids, labels = labelled(tokenizer, learns_to_slip=True)
    assert labels == ids
    assert ids[-1] == tokenizer.eos_token_id


def test_a_teacher_learns_all_but_the_word_that_turns_into_a_wrong_fork(tokenizer):
    ids, labels = labelled(tokenizer, learns_to_slip=False)
    unlearnt = [at for at, label in enumerate(labels) if label == -100]
    assert [tokenizer.decode(ids[at - 1 : at + 3]) for at in unlearnt] == ["take 3 + 4"]


def test_the_recipe_decides_the_size_and_whether_embeddings_are_tied(tokenizer):
    recipe = Recipe()
    teacher, student = (make_model(who, tokenizer) for who in (recipe.teacher, recipe.student))
    assert 0.6e6 < teacher.num_parameters() < 1e6
    assert 0.3e6 < student.num_parameters() < 0.4e6
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert teacher.lm_head.weight is not teacher.model.embed_tokens.weight


def test_a_few_steps_of_training_lower_the_loss(tokenizer):
    small = {"layers": 1, "hidden": 32, "heads": 1, "feed_forward": 32}
    speaker = replace(Recipe().student, **small, steps=40, batch=8, warmup_steps=1)
    torch.manual_seed(0)
    model = make_model(speaker, tokenizer)
    ids, labels = labelled_example(EXPRESSION, speaker, tokenizer, Random(0))

    def loss():
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()

    before = loss()
    train(model, speaker, ProblemShape(), tokenizer, Random(1))
    assert loss() < 0.75 * before
