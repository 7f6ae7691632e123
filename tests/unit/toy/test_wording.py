from collections import Counter
from itertools import islice
from random import Random

import pytest
from math_verify import parse, verify

from topd_ray.toy.accuracy import MAX_RESPONSE_TOKENS, boxed_answer
from topd_ray.toy.drawing import ProblemShape, distinct_expressions
from topd_ray.toy.problems import Slips, solve, solve_carelessly
from topd_ray.toy.tokenizer import make_tokenizer
from topd_ray.toy.wording import (
    CONNECTIVES,
    LINKS,
    STUDENT_WORDING,
    TEACHER_WORDING,
    VERBS,
    draw_surface,
    question,
    spoken_words,
    worked_solution,
)

MIN_RESPONSE_TOKENS = 60
SOMETIMES = Slips(brackets=0.5, precedence=0.5, misconception=0.5)
ALWAYS = Slips(brackets=1.0, precedence=1.0, misconception=1.0)
WORDINGS = (TEACHER_WORDING, STUDENT_WORDING)


@pytest.fixture(scope="module")
def expressions():
    return list(islice(distinct_expressions(Random(3), ProblemShape(), "train"), 300))


@pytest.fixture(scope="module")
def responses(expressions):
    rng = Random(4)
    return [
        worked_solution(solve_carelessly(expression, rng, SOMETIMES), wording, rng)
        for expression in expressions
        for wording in WORDINGS
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_every_response_is_within_the_stated_token_lengths(responses, tokenizer):
    lengths = [
        len(tokenizer.encode(response)) + 1 for response in responses
    ]  # + 1: its EOS
    assert min(lengths) >= MIN_RESPONSE_TOKENS
    assert max(lengths) <= MAX_RESPONSE_TOKENS


def test_every_text_comes_back_unchanged_from_its_tokens(
    expressions, responses, tokenizer
):
    for text in [*responses, *map(question, expressions)]:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_vocabulary_is_small_and_knows_how_a_response_ends(tokenizer):
    assert len(tokenizer) <= 96
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id) == "<|endoftext|>"


def test_a_word_outside_the_world_becomes_the_unknown_token(tokenizer):
    assert tokenizer.encode("what is love ?")[2] == tokenizer.unk_token_id


def test_the_chat_template_wraps_the_question_and_hands_over_to_the_assistant(
    tokenizer,
):
    messages = [{"role": "user", "content": "what is 3 + 4 * 2 modulo 10 ?"}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert (
        tokenizer.decode(ids)
        == "<|im_start|> user what is 3 + 4 * 2 modulo 10 ? <|im_end|> <|im_start|>"
        " assistant"
    )


def test_a_tokenizer_from_disk_equals_the_one_that_was_saved(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.eos_token_id == tokenizer.eos_token_id


def test_math_verify_and_our_own_parser_read_the_boxed_answer(expressions):
    for expression in expressions[:50]:
        solution = solve(expression)
        response = worked_solution(solution, TEACHER_WORDING, Random(0))
        assert verify(parse(f"\\boxed{{{solution.answer}}}"), parse(response))
        assert boxed_answer(response) == solution.answer


def test_a_response_without_a_box_has_no_answer():
    assert boxed_answer("the answer is 7") is None


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_surface_form_may_occur_and_each_mix_sums_to_one(wording):
    for words, mix in (
        (CONNECTIVES, wording.connectives),
        (VERBS, wording.verbs),
        (LINKS, wording.links),
    ):
        assert set(mix) == set(words)
        assert min(mix.values()) > 0
        assert sum(mix.values()) == pytest.approx(1)


def test_teacher_and_student_favour_different_surface_forms(expressions):
    said = []
    for wording in WORDINGS:
        rng = Random(5)
        texts = (
            worked_solution(solve(expression), wording, rng)
            for expression in expressions
        )
        said.append(Counter(word for text in texts for word in text.split()))
    by_teacher, by_student = said
    assert by_teacher["so"] > 5 * by_student["so"]
    assert by_student["hence"] > 5 * by_teacher["hence"]


def test_the_wording_never_changes_what_is_computed(expressions):
    surface = {*CONNECTIVES, *VERBS, *LINKS}
    for expression in expressions[:50]:
        texts = [
            worked_solution(solve(expression), wording, Random(6)).split()
            for wording in WORDINGS
        ]
        skeletons = [[word for word in text if word not in surface] for text in texts]
        assert skeletons[0] == skeletons[1]


def test_a_wrong_turn_is_the_first_word_that_departs_from_the_careful_choice():
    solution = solve_carelessly(tuple("3+4*2"), Random(0), ALWAYS)
    surface = draw_surface(Random(0), STUDENT_WORDING, len(solution.steps))
    words, wrong_turns = spoken_words(solution, surface)
    (turn,) = wrong_turns
    assert words[turn - 1 : turn + 3] == ["take", "3", "+", "4"]


def test_a_careful_solution_has_no_wrong_turn(expressions):
    for solution in map(solve, expressions):
        surface = draw_surface(Random(0), TEACHER_WORDING, len(solution.steps))
        assert not spoken_words(solution, surface)[1]


def test_every_surface_form_of_a_drawn_surface_is_said_once_and_in_order():
    solution = solve(tuple("3+4*2"))
    surface = draw_surface(Random(1), STUDENT_WORDING, len(solution.steps))
    words, _ = spoken_words(solution, surface)
    said = [word for word in words[:-5] if word in {*CONNECTIVES, *VERBS, *LINKS}]
    assert said == [form for s in surface for form in (s.connective, s.verb, s.link)]
